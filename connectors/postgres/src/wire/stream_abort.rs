//! Stream Abort: a transaction that was sent ahead, or one of its sub-transactions, has rolled back.

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbort {
    /// The transaction.
    pub xid: u32,
    /// Which part of it rolled back; the same number for all of it.
    pub subxid: u32,
}

impl StreamAbort {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let abort = Self { xid: reader.u32()?, subxid: reader.u32()? };
        // Version 4 adds place and time of the abort where `streaming` is `parallel`.
        if !reader.is_empty() {
            reader.u64()?;
            reader.i64()?;
        }
        reader.end()?;
        Ok(abort)
    }
}

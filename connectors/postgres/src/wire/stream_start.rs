//! Stream Start: the next messages belong to one transaction that has not committed (protocol version 2 and later).

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStart {
    /// The transaction, not one of its sub-transactions.
    pub xid: u32,
    /// Nothing of it was sent before.
    pub is_first: bool,
}

impl StreamStart {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let start = Self { xid: reader.u32()?, is_first: reader.u8()? == 1 };
        reader.end()?;
        Ok(start)
    }
}

//! Begin: a committed transaction follows.

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Where the transaction's commit record starts.
    pub final_lsn: u64,
    /// When it committed, in microseconds since 2000-01-01 UTC.
    pub commit_time: i64,
    /// The transaction.
    pub xid: u32,
}

impl Begin {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let begin = Self { final_lsn: reader.u64()?, commit_time: reader.i64()?, xid: reader.u32()? };
        reader.end()?;
        Ok(begin)
    }
}

//! Commit: the transaction is complete.

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where the commit record starts; Begin said the same.
    pub commit_lsn: u64,
    /// Where it ends.
    pub end_lsn: u64,
    /// When it committed, in microseconds since 2000-01-01 UTC.
    pub commit_time: i64,
}

impl Commit {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        // Flags, of which none is in use.
        reader.u8()?;
        let commit = Self { commit_lsn: reader.u64()?, end_lsn: reader.u64()?, commit_time: reader.i64()? };
        reader.end()?;
        Ok(commit)
    }
}

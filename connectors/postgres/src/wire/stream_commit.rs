//! Stream Commit: a transaction that was sent ahead has committed.

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamCommit {
    /// The transaction.
    pub xid: u32,
    /// Where its commit record starts.
    pub commit_lsn: u64,
    /// Where its commit record ends.
    pub end_lsn: u64,
    /// When it committed (microseconds since 2000-01-01 UTC).
    pub commit_time: i64,
}

impl StreamCommit {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let xid = reader.u32()?;
        // Flags; none are defined.
        reader.u8()?;
        let commit = Self { xid, commit_lsn: reader.u64()?, end_lsn: reader.u64()?, commit_time: reader.i64()? };
        reader.end()?;
        Ok(commit)
    }
}

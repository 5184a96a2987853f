//! Origin: the transaction was itself replicated from elsewhere.

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Where it committed at its origin.
    pub commit_lsn: u64,
    /// The origin's name.
    pub name: &'a str,
}

impl<'a> Origin<'a> {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let origin = Self { commit_lsn: reader.u64()?, name: reader.string()? };
        reader.end()?;
        Ok(origin)
    }
}

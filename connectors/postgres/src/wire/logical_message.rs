//! Message: what `pg_logical_emit_message` wrote. Asked for (`messages`) only where our event
//! trigger is.

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction around it.
    pub transactional: bool,
    /// Where it stands.
    pub lsn: u64,
    /// Whose it is.
    pub prefix: &'a str,
    /// What it says.
    pub content: &'a [u8],
}

impl<'a> LogicalMessage<'a> {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let transactional = reader.u8()? & 1 == 1;
        let lsn = reader.u64()?;
        let prefix = reader.string()?;
        let length = reader.u32()? as usize;
        let content = reader.bytes(length)?;
        reader.end()?;
        Ok(Self { transactional, lsn, prefix, content })
    }
}

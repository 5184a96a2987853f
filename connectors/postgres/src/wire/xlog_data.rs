//! XLogData: the envelope of a pgoutput message.

use super::{
    pgoutput::Message,
    reader::{Malformed, Reader},
};

/// The message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XLogData<'a> {
    /// Where the server's log ends, as far as this walsender knows.
    pub wal_end: u64,
    /// The server's clock; microseconds since 2000-01-01 UTC.
    pub clock: i64,
    /// What it carries.
    pub message: Message<'a>,
}

impl<'a> XLogData<'a> {
    /// Reads the body behind the tag.
    #[inline]
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        reader.u64()?;
        let (wal_end, clock) = (reader.u64()?, reader.i64()?);
        Ok(Self { wal_end, clock, message: Message::parse(reader)? })
    }
}

/// Where the server's log ends, with its clock, and the message from its tag on, of a CopyData that is such an envelope.
#[inline]
pub fn open(payload: &[u8]) -> Option<((u64, i64), &[u8])> {
    let mut reader = Reader::new(payload);
    if reader.u8().ok()? != b'w' {
        return None;
    }
    reader.u64().ok()?;
    let (wal_end, clock) = (reader.u64().ok()?, reader.i64().ok()?);
    Some(((wal_end, clock), reader.rest()))
}

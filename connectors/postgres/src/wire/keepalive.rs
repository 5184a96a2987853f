//! Primary keepalive: how far the server has come (manual, "Streaming Replication Protocol").

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Everything that committed before this has been sent.
    pub wal_end: u64,
    /// The server's clock; microseconds since 2000-01-01 UTC.
    pub clock: i64,
    /// Whether the server wants an answer at once, because it is about to give up on us or to shut down.
    pub reply_requested: bool,
}

impl Keepalive {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let (wal_end, clock) = (reader.u64()?, reader.i64()?);
        let reply_requested = reader.u8()? == 1;
        reader.end()?;
        Ok(Self { wal_end, clock, reply_requested })
    }
}

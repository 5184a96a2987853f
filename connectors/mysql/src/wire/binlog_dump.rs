//! The command that asks for the binary log (manual, "COM_BINLOG_DUMP"), and the frame of an event.

use super::reader::{Malformed, Reader};

/// The command's body: from a byte of a file on, for a replica with this number.
pub fn command(server_id: u32, file: &str, position: u32) -> Vec<u8> {
    let mut body = vec![0x12];
    body.extend(position.to_le_bytes());
    body.extend(0_u16.to_le_bytes());
    body.extend(server_id.to_le_bytes());
    body.extend(file.as_bytes());
    body
}

/// The body of COM_BINLOG_DUMP_GTID (manual): everything but the executed transactions, as [`crate::gtid::Executed::encode`]
/// writes them.
pub fn command_gtid(server_id: u32, executed: &[u8]) -> Vec<u8> {
    const THROUGH_GTID: u16 = 4;
    let mut body = vec![0x1e];
    body.extend(THROUGH_GTID.to_le_bytes());
    body.extend(server_id.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    body.extend(4_u64.to_le_bytes());
    body.extend((executed.len() as u32).to_le_bytes());
    body.extend(executed);
    body
}

/// The header of an event (manual, "Binlog Event header").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventHeader {
    /// When it was written, in seconds since 1970-01-01 UTC.
    pub timestamp: u32,
    /// What it is.
    pub kind: u8,
    /// Of the server where it was written first.
    pub server_id: u32,
    /// Its length with the header.
    pub size: u32,
    /// The low 32 bits of where the next event begins; 0 for what is not in the file.
    pub next: u32,
    /// What `LOG_EVENT_…_F` says.
    pub flags: u16,
}

/// A statement that concerns a temporary table of its session.
pub const FLAG_THREAD_SPECIFIC: u16 = 0x4;
/// The server made it up for us: it is not in the file.
pub const FLAG_ARTIFICIAL: u16 = 0x20;
/// Who does not know the event may pass over it.
pub const FLAG_IGNORABLE: u16 = 0x80;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 19;

impl EventHeader {
    /// The bytes of an event with this header and another body.
    pub fn event(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend(self.timestamp.to_le_bytes());
        bytes.push(self.kind);
        bytes.extend(self.server_id.to_le_bytes());
        bytes.extend(((HEADER_BYTES + body.len()) as u32).to_le_bytes());
        bytes.extend(self.next.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// The event without the checksum at its end, if there is one and it is right.
    pub fn verified<'a>(&self, bytes: &'a [u8], has_checksum: bool) -> Result<&'a [u8], Malformed> {
        let Some((rest, sum)) = bytes.split_last_chunk::<4>() else { return Ok(bytes) };
        let is_right = || crc32fast::hash(rest) == u32::from_le_bytes(*sum);
        // The head of a file has one always; the first event is made up before anything says whether there are any.
        if self.kind == FORMAT_DESCRIPTION {
            return Ok(bytes);
        }
        let made_up = self.flags & FLAG_ARTIFICIAL != 0 || self.next == 0;
        match (has_checksum || made_up, is_right()) {
            (false, _) => Ok(bytes),
            (true, true) => Ok(rest),
            (true, false) if made_up => Ok(bytes),
            (true, false) => Err(Malformed("an event has a wrong checksum")),
        }
    }
}

/// FORMAT_DESCRIPTION_EVENT.
pub const FORMAT_DESCRIPTION: u8 = 15;

/// Splits an event into header and body; a checksum is still at its end.
pub fn event(bytes: &[u8]) -> Result<(EventHeader, &[u8]), Malformed> {
    let mut reader = Reader::new(bytes);
    let header = EventHeader {
        timestamp: reader.u32()?,
        kind: reader.u8()?,
        server_id: reader.u32()?,
        size: reader.u32()?,
        next: reader.u32()?,
        flags: reader.u16()?,
    };
    if header.size as usize != bytes.len() {
        return Err(Malformed("an event has not the length that it says"));
    }
    Ok((header, reader.rest()))
}

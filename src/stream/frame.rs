//! The header of a frame: what it holds, where it stands, and the checksums that say whether it is whole.
//!
//! ```text
//!  0  u32  CRC32C of the header from byte 4 on
//!  4  u16  magic
//!  6  u8   kind
//!  7  u8   encoding of the payload
//!  8  u8   flags: 1 the payload is one LZ4 block
//!  9  u8   bytes per row of the column of shard numbers that precedes the payload: 0 (all rows in one shard), 1 or 2
//! 10  u16  0
//! 12  u32  header length
//! 16  u32  stored length: bytes behind the header
//! 20  u32  payload length before compression
//! 24  u32  CRC32C of the bytes behind the header
//! 28  u32  rows
//! 32  u32  shape: the how-manieth shape frame of this segment names its table
//! 36  u32  0
//! 40  u64  its own place in the log
//! 48  u64  up to where the log was fsynced when it was written
//! 56  i64  arrival (microseconds since 1970-01-01 UTC)
//! 64  …    for frames of rows: number of shards, and for each its number, first sequence and row count, as varints
//! ```
//! All integers are little-endian. The header has a checksum of its own, so that a reader may pass over payloads
//! unread. The two places in it tell damage from a crash: a whole frame behind a damaged one, written when the log was
//! already fsynced past the damaged one, is proof that acknowledged bytes went bad; without it the damaged frame is the
//! tail that a crash tore, because a disk may keep the later pages of a write and lose the earlier ones.

use super::{
    cursor::{Cursor, put_varint},
    shard::SHARDS_MAX,
};

/// Bytes of a header without shards.
pub(super) const FIXED_LEN: usize = 64;
/// No header is longer: every shard at its longest.
const LEN_MAX: usize = FIXED_LEN + 5 + SHARDS_MAX as usize * 20;
/// Found at byte 4 of every frame.
pub(super) const MAGIC: [u8; 2] = *b"Mf";
const FLAG_LZ4: u8 = 1;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows of one table.
    Rows = 1,
    /// Rejected rows of one table.
    Rejects = 2,
    /// Tables that were emptied.
    Truncate = 3,
    /// A change of shape.
    Ddl = 4,
    /// The shape of a table, or only its name, before its first use in the segment.
    Shape = 5,
    /// A commit mark.
    Mark = 6,
    /// The first frame of every segment: the last mark before it and the counters of all shards.
    Carry = 7,
}

/// How a payload is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// [`super::column_frame`].
    Columns = 1,
    /// JSON.
    Json = 2,
    // 3 is kept for Arrow IPC, should nested types want it.
    /// [`super::mark`].
    Mark = 4,
}

/// Rows of one shard in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) shard: u32,
    /// Sequence counter of the first of them; the others follow without gaps.
    pub(super) first: u64,
    pub(super) rows: u32,
}

/// A frame's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) encoding: Encoding,
    pub(super) lz4: bool,
    pub(super) shard_width: u8,
    pub(super) stored_len: u32,
    pub(super) raw_len: u32,
    pub(super) payload_crc: u32,
    pub(super) rows: u32,
    pub(super) shape: u32,
    pub(super) position: u64,
    pub(super) synced: u64,
    pub(super) arrival_us: i64,
    pub(super) runs: Vec<Run>,
}

/// What stands where a header should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A header, and its length in bytes.
    Whole(Header, usize),
    /// As many bytes are needed to tell.
    Needs(usize),
    /// Nothing that was written as a header.
    Damaged,
}

impl Header {
    /// Adds the header to `out`; gives its length.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&MAGIC);
        let flags = if self.lz4 { FLAG_LZ4 } else { 0 };
        out.extend_from_slice(&[self.kind as u8, self.encoding as u8, flags, self.shard_width, 0, 0]);
        for word in [0, self.stored_len, self.raw_len, self.payload_crc, self.rows, self.shape, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.position.to_le_bytes());
        out.extend_from_slice(&self.synced.to_le_bytes());
        out.extend_from_slice(&self.arrival_us.to_le_bytes());
        if self.kind == Kind::Rows {
            put_varint(out, self.runs.len() as u64);
            for run in &self.runs {
                put_varint(out, u64::from(run.shard));
                put_varint(out, run.first);
                put_varint(out, u64::from(run.rows));
            }
        }
        let len = out.len() - start;
        out[start + 12..start + 16].copy_from_slice(&(len as u32).to_le_bytes());
        let crc = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        len
    }

    /// Reads the header at the start of `bytes`.
    pub(super) fn parse(bytes: &[u8]) -> Parsed {
        let Some(len) = bytes.get(12..16).and_then(|len| Cursor::new(len).u32()) else {
            return Parsed::Needs(FIXED_LEN);
        };
        let len = len as usize;
        if bytes.get(4..6) != Some(&MAGIC[..]) || !(FIXED_LEN..=LEN_MAX).contains(&len) {
            return Parsed::Damaged;
        }
        let Some(whole) = bytes.get(..len) else { return Parsed::Needs(len) };
        match Self::parse_whole(whole) {
            Some(header) => Parsed::Whole(header, len),
            None => Parsed::Damaged,
        }
    }

    fn parse_whole(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let crc = cursor.u32()?;
        if crc32c::crc32c(bytes.get(4..)?) != crc {
            return None;
        }
        cursor.u16()?;
        let kind = match cursor.u8()? {
            1 => Kind::Rows,
            2 => Kind::Rejects,
            3 => Kind::Truncate,
            4 => Kind::Ddl,
            5 => Kind::Shape,
            6 => Kind::Mark,
            7 => Kind::Carry,
            _ => return None,
        };
        let encoding = match cursor.u8()? {
            1 => Encoding::Columns,
            2 => Encoding::Json,
            4 => Encoding::Mark,
            _ => return None,
        };
        let (flags, shard_width) = (cursor.u8()?, cursor.u8()?);
        cursor.take(2 + 4)?;
        let (stored_len, raw_len, payload_crc) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let (rows, shape) = (cursor.u32()?, cursor.u32()?);
        cursor.take(4)?;
        let (position, synced, arrival_us) = (cursor.u64()?, cursor.u64()?, cursor.i64()?);
        let runs = if kind == Kind::Rows { parse_runs(&mut cursor)? } else { vec![] };
        let lz4 = flags & FLAG_LZ4 != 0;
        let header = Self {
            kind,
            encoding,
            lz4,
            shard_width,
            stored_len,
            raw_len,
            payload_crc,
            rows,
            shape,
            position,
            synced,
            arrival_us,
            runs,
        };
        (cursor.remaining() == 0).then_some(header)
    }

    /// Whether the bytes behind the header are those that were written.
    pub(super) fn fits(&self, stored: &[u8]) -> bool {
        stored.len() == self.stored_len as usize && crc32c::crc32c(stored) == self.payload_crc
    }

    /// The payload out of the bytes behind the header, decompressed into `scratch` where it has to be; `None` if the
    /// bytes are not what was written.
    pub(super) fn payload<'a>(&self, stored: &'a [u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        let shards = (self.rows as usize).checked_mul(usize::from(self.shard_width))?;
        let payload = stored.get(shards..)?;
        let raw_len = self.raw_len as usize;
        if !self.lz4 {
            return (payload.len() == raw_len).then_some(payload);
        }
        // LZ4 cannot shrink to less than a 255th, so that a damaged length reserves no memory.
        if raw_len > payload.len().saturating_mul(255) {
            return None;
        }
        scratch.clear();
        scratch.resize(raw_len, 0);
        let len = lz4_flex::block::decompress_into(payload, scratch).ok()?;
        (len == raw_len).then_some(scratch)
    }
}

fn parse_runs(cursor: &mut Cursor) -> Option<Vec<Run>> {
    let count = cursor.count()?;
    let mut runs = Vec::with_capacity(count.min(SHARDS_MAX as usize));
    for _ in 0..count {
        let shard = u32::try_from(cursor.varint()?).ok().filter(|shard| *shard < SHARDS_MAX)?;
        runs.push(Run { shard, first: cursor.varint()?, rows: u32::try_from(cursor.varint()?).ok()? });
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn any_header() -> impl Strategy<Value = Header> {
        let run =
            (0..SHARDS_MAX, any::<u64>(), any::<u32>()).prop_map(|(shard, first, rows)| Run { shard, first, rows });
        let kind = prop_oneof![Just(Kind::Rows), Just(Kind::Mark), Just(Kind::Shape), Just(Kind::Carry)];
        let encoding = prop_oneof![Just(Encoding::Columns), Just(Encoding::Json), Just(Encoding::Mark)];
        let words = any::<(u32, u32, u32, u32, u32, u64, u64, i64)>();
        (kind, encoding, any::<bool>(), 0..3u8, words, vec(run, 0..5)).prop_map(
            |(kind, encoding, lz4, shard_width, words, runs)| {
                let (stored_len, raw_len, payload_crc, rows, shape, position, synced, arrival_us) = words;
                let runs = if kind == Kind::Rows { runs } else { vec![] };
                Header {
                    kind,
                    encoding,
                    lz4,
                    shard_width,
                    stored_len,
                    raw_len,
                    payload_crc,
                    rows,
                    shape,
                    position,
                    synced,
                    arrival_us,
                    runs,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn headers_round_trip_and_any_flipped_bit_is_seen(header in any_header(), bit in any::<prop::sample::Index>()) {
            let mut bytes = vec![];
            let len = header.encode(&mut bytes);
            prop_assert_eq!(len, bytes.len());
            bytes.extend_from_slice(b"behind");
            prop_assert_eq!(Header::parse(&bytes), Parsed::Whole(header.clone(), len));
            let bit = bit.index(len * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(Header::parse(&bytes), Parsed::Whole(..)));
        }

        #[test]
        fn arbitrary_headers_and_payloads_do_no_harm(
            bytes in vec(any::<u8>(), 0..200), header in any_header(), stored in vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(!matches!(Header::parse(&bytes), Parsed::Whole(..)));
            let mut scratch = vec![];
            if let Some(payload) = header.payload(&stored, &mut scratch) {
                prop_assert_eq!(payload.len(), header.raw_len as usize);
            }
            prop_assert!(scratch.len() <= stored.len() * 255);
        }
    }
}

//! Compressed events: MariaDB's (`log_bin_compress`; zlib, one event or its rows), and MySQL's transactions
//! (TRANSACTION_PAYLOAD_EVENT; zstd, all events between a transaction's GTID and its end).
//!
//! What a packet may hold at most, an event may hold when it is unpacked. Memory is taken as bytes come, not as a header says.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use std::io::{Cursor, Read};

use crate::wire::{Malformed, Reader, binlog_dump::HEADER_BYTES};

/// An unpacked event has at most as many bytes (`max_allowed_packet` at its greatest).
const EVENT_BYTES_MAX: usize = 1 << 30;
/// The window of a compressed transaction has at most so many bits: what the format's decoders take by default.
const WINDOW_BITS_MAX: u32 = 27;

/// Unpacks what MariaDB packed: a byte with the algorithm, whether zlib's header is left out, and the number of bytes of the
/// length; the length with its highest byte first; and the stream (`binlog_buf_uncompress` of `log_event.cc`,
/// `uncompress_zlib` of `field_comp.cc`).
pub fn unpack(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(bytes);
    let head = reader.u8()?;
    if head & 0xf0 != 0x80 {
        return Err(Malformed("it is compressed in a way that is not known"));
    }
    let length = usize::try_from(reader.big(usize::from(head & 0x07))?).unwrap_or(usize::MAX);
    if length > EVENT_BYTES_MAX {
        return Err(Malformed("a compressed event is too large"));
    }
    let unpacked = match head & 0x08 {
        0 => miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(reader.rest(), length),
        _ => miniz_oxide::inflate::decompress_to_vec_with_limit(reader.rest(), length),
    };
    let unpacked = unpacked.map_err(|_| Malformed("a compressed event is damaged"))?;
    if unpacked.len() == length { Ok(unpacked) } else { Err(Malformed("a compressed event has another length")) }
}

/// The events of a transaction that are still to come.
pub struct Payload {
    unpacked: Box<dyn Read + Send + Sync>,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Payload")
    }
}

/// Fields of a TRANSACTION_PAYLOAD_EVENT (manual, "Binary Log Transaction Compression"; `codecs/binary.h`).
const END: u64 = 0;
const COMPRESSION: u64 = 2;
const ZSTD: u64 = 0;
const NONE: u64 = 255;

impl Payload {
    /// Events that were kept as they are.
    pub fn of_events(events: Vec<u8>) -> Self {
        Self { unpacked: Box::new(Cursor::new(events)) }
    }

    /// Reads an event's body.
    pub fn open(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let mut compression = NONE;
        loop {
            let field = reader.length()? as u64;
            if field == END {
                break;
            }
            let value = reader.length_bytes()?;
            if field == COMPRESSION {
                compression = Reader::new(value).length()? as u64;
            }
        }
        let packed = Cursor::new(reader.rest().to_vec());
        let unpacked: Box<dyn Read + Send + Sync> = match compression {
            NONE => Box::new(packed),
            ZSTD => {
                let damaged = |_| Malformed("a compressed transaction cannot be read");
                let mut decoder = zstd::stream::read::Decoder::new(packed).map_err(damaged)?;
                decoder.window_log_max(WINDOW_BITS_MAX).map_err(damaged)?;
                Box::new(decoder)
            }
            _ => return Err(Malformed("a transaction is compressed in a way that is not known")),
        };
        Ok(Self { unpacked })
    }

    /// The next event, with its header and without a checksum; `None` at the end.
    pub fn next_event(&mut self) -> Result<Option<Vec<u8>>, Malformed> {
        let mut event = Vec::with_capacity(1024);
        let mut take = |event: &mut Vec<u8>, count: usize| {
            let before = event.len();
            let read = (&mut self.unpacked).take(count as u64).read_to_end(event);
            read.map_err(|_| Malformed("a compressed transaction is damaged"))?;
            Ok(event.len() - before == count)
        };
        if !take(&mut event, HEADER_BYTES)? {
            return if event.is_empty() { Ok(None) } else { Err(Malformed("a compressed transaction ends too early")) };
        }
        let size = event.get(9..13).and_then(|size| Some(u32::from_le_bytes(size.try_into().ok()?)));
        let size = size.and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        if !(HEADER_BYTES..=EVENT_BYTES_MAX).contains(&size) {
            return Err(Malformed("an event of a compressed transaction has an impossible length"));
        }
        let whole = take(&mut event, size - HEADER_BYTES)?;
        if whole { Ok(Some(event)) } else { Err(Malformed("a compressed transaction ends too early")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(data: &[u8], said: usize) -> Vec<u8> {
        let mut out = vec![0x84];
        out.extend((said as u32).to_be_bytes());
        out.extend(miniz_oxide::deflate::compress_to_vec_zlib(data, 6));
        out
    }

    fn event(size: u32, body: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        out[9..13].copy_from_slice(&size.to_le_bytes());
        out.extend(body);
        out
    }

    fn payload(events: &[u8], zstd: bool) -> Vec<u8> {
        let (mut body, compressed) = (vec![2, 1, if zstd { 0 } else { 250 }], zstd::encode_all(events, 3).unwrap());
        if !zstd {
            body = vec![2, 3, 0xfc, 255, 0];
        }
        body.extend([3, 3, 0xfd, 1, 1, 1][..2].iter().chain(&[0xfc, 9, 9]));
        body.push(0);
        body.extend(if zstd { &compressed } else { events });
        body
    }

    #[test]
    fn what_is_not_as_it_says_is_an_error() {
        let data = vec![b'x'; 10_000];
        assert_eq!(unpack(&packed(&data, 10_000)).unwrap(), data);
        for wrong in [packed(&data, 9_999), packed(&data, 10_001), packed(&data, 1 << 31), vec![0x94, 1], vec![]] {
            assert!(unpack(&wrong).is_err());
        }
        for (zstd, size) in [(true, 18), (true, u32::MAX), (false, 18), (true, 100)] {
            assert!(Payload::open(&payload(&event(size, b"abc"), zstd)).unwrap().next_event().is_err(), "{size}");
        }
    }

    #[test]
    fn a_transaction_is_its_events() {
        let events = [event(22, b"abc"), event(19, b""), event(19 + 70_000, &[7; 70_000])];
        for zstd in [true, false] {
            let mut payload = Payload::open(&payload(&events.concat(), zstd)).unwrap();
            for event in &events {
                assert_eq!(payload.next_event().unwrap().as_ref(), Some(event));
            }
            assert_eq!(payload.next_event().unwrap(), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_or_an_error(body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = unpack(&body);
            if let Ok(mut payload) = Payload::open(&body) {
                while let Ok(Some(_)) = payload.next_event() {}
            }
        }

        #[test]
        fn what_was_packed_comes_out(data in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(unpack(&packed(&data, data.len())).unwrap(), data);
        }
    }
}

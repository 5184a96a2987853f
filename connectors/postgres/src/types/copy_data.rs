//! The payloads of a binary COPY, tuple by tuple: file header, tuples, end mark.
//!
//! A server puts one tuple into a message, which is then decoded where it lies. The protocol does not promise it, so the
//! rest of a payload is kept until the next one has come.

use super::binary::{Malformed, Tuple, bytes_wanted};

/// Bytes of the file header without an extension, which no version of the server sends.
const HEADER_BYTES: usize = 19;
/// Bytes of the end mark.
const END_BYTES: usize = 2;

/// How far the data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Header,
    Tuples,
    End,
}

/// What is between two payloads.
#[derive(Debug)]
pub struct CopyData {
    phase: Phase,
    /// The beginning of a tuple.
    pending: Vec<u8>,
    /// How much of it must be there before it is worth trying again.
    wanted: usize,
}

impl Default for CopyData {
    /// Before the first payload.
    fn default() -> Self {
        Self { phase: Phase::Header, pending: vec![], wanted: HEADER_BYTES }
    }
}

impl CopyData {
    /// Before the first payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands out every tuple that the payload completes: `decode` gets the bytes from its beginning on, of which there
    /// may be more or less than the tuple has, and says what it was.
    #[inline]
    pub fn take(
        &mut self,
        payload: &[u8],
        mut decode: impl FnMut(&[u8]) -> Result<Tuple, Malformed>,
    ) -> Result<(), Malformed> {
        if self.is_between_tuples() {
            let taken = self.decode_all(payload, &mut decode)?;
            self.keep(payload.get(taken..).unwrap_or_default());
            return Ok(());
        }
        self.pending.extend_from_slice(payload);
        if self.pending.len() < self.wanted {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.pending);
        let mut rest = bytes.as_slice();
        if self.phase == Phase::Header {
            rest = strip_header(rest).ok_or(Malformed)?;
            self.phase = Phase::Tuples;
        }
        let taken = self.decode_all(rest, &mut decode)?;
        self.keep(rest.get(taken..).unwrap_or_default());
        Ok(())
    }

    /// Whether the next message begins with a tuple.
    #[inline]
    pub fn is_between_tuples(&self) -> bool {
        self.pending.is_empty() && self.phase == Phase::Tuples
    }

    /// Whether the data were complete, nothing missing and nothing left.
    pub fn finish(&self) -> Result<(), Malformed> {
        if self.phase == Phase::End && self.pending.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    fn decode_all(
        &mut self,
        bytes: &[u8],
        decode: &mut impl FnMut(&[u8]) -> Result<Tuple, Malformed>,
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.phase == Phase::Tuples {
            match decode(bytes.get(at..).unwrap_or_default())? {
                Tuple::Row(count) | Tuple::Unfit { bytes: count, .. } => at += count,
                Tuple::Incomplete => break,
                Tuple::End => {
                    self.phase = Phase::End;
                    at += END_BYTES;
                }
            }
        }
        Ok(at)
    }

    fn keep(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            self.pending.extend_from_slice(rest);
            self.wanted = bytes_wanted(rest);
        }
    }
}

/// Cuts the file header off: signature, flags, and an extension that is skipped.
fn strip_header(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(b"PGCOPY\n\xff\r\n\0")?;
    let (_flags, rest) = rest.split_first_chunk::<4>()?;
    let (extension, rest) = rest.split_first_chunk::<4>()?;
    rest.get(usize::try_from(i32::from_be_bytes(*extension)).ok()?..)
}

#[cfg(test)]
mod tests {
    use millrace_core::{ColumnType, Columns};
    use proptest::prelude::*;

    use super::*;
    use crate::types::{PgType, Scalar, binary::TupleDecoder};

    fn data(texts: &[String]) -> Vec<u8> {
        let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for text in texts {
            bytes.extend(1_i16.to_be_bytes());
            bytes.extend((text.len() as i32).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend((-1_i16).to_be_bytes());
        bytes
    }

    fn read<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, Malformed> {
        let mut decoder = TupleDecoder::new(vec![PgType::Scalar(Scalar::Text)], vec![], 1 << 20);
        let mut columns = Columns::new([&ColumnType::Text]);
        let mut data = CopyData::new();
        for payload in payloads {
            data.take(payload, |bytes| decoder.decode(bytes, &mut columns))?;
        }
        data.finish()?;
        Ok((0..columns.rows())
            .filter_map(|row| columns.columns()[0].cell_text(row))
            .map(|text| text.to_string())
            .collect())
    }

    proptest! {
        /// However the bytes are cut, the rows are the same; and bytes that miss something are an error.
        #[test]
        fn rows_come_whole_from_any_payloads(texts in prop::collection::vec("[a-zä]{0,40}", 0..20), cut in 1_usize..60, short in 1_usize..30) {
            let bytes = data(&texts);
            prop_assert_eq!(read(bytes.chunks(cut)).unwrap(), texts);
            prop_assert_eq!(read(bytes[..bytes.len().saturating_sub(short)].chunks(cut)), Err(Malformed));
            let longer = [bytes, vec![0]].concat();
            prop_assert_eq!(read(longer.chunks(cut)), Err(Malformed));
        }

        #[test]
        fn any_bytes_are_rows_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1_usize..60) {
            let _ = read(bytes.chunks(cut));
            let _ = read([data(&[])[..HEADER_BYTES].to_vec(), bytes].concat().chunks(cut));
        }
    }
}

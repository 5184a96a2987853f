//! Many rows of a binary COPY at once, column by column: the usual case of [`super::binary`], at half its cost.
//!
//! Row by row every value pays for finding out its type, its column and whether it is the column's first null. Here the
//! places of all values are noted first, where they lie among the received messages; then a column takes all of its
//! values in one loop of its type. What is unusual is left to the other way: a message that does not hold exactly one row,
//! a row that is not whole yet or holds a value that is too long, and a whole block in which some value does not fit its
//! column.

use millrace_core::{ColumnVec, Columns};

use super::{
    PgType, Scalar,
    binary::{Trouble, TupleDecoder, date, decimal, push, time, timestamp},
};

/// Rows that are taken at once: the places of 16 columns fit a core's first cache.
const BLOCK_ROWS: usize = 128;
/// Tag and length of a CopyData message.
pub const MESSAGE_HEAD_BYTES: usize = 5;
/// The same with the number of fields.
const HEAD_BYTES: usize = MESSAGE_HEAD_BYTES + 2;

/// Where a value lies among the received bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    at: u32,
    /// -1 for null.
    len: i32,
}

impl Place {
    #[inline]
    fn value(self, bytes: &[u8]) -> Result<&[u8], Trouble> {
        let (at, len) = (self.at as usize, usize::try_from(self.len).map_err(|_| Trouble::Malformed)?);
        bytes.get(at..at + len).ok_or(Trouble::Malformed)
    }

    #[inline]
    fn fixed<const N: usize>(self, bytes: &[u8]) -> Result<[u8; N], Trouble> {
        let value = bytes.get(self.at as usize..).and_then(<[u8]>::first_chunk::<N>);
        value.filter(|_| self.len == N as i32).copied().ok_or(Trouble::Malformed)
    }
}

/// Places of a block's values, kept for the next one: all of the first column, then those of the second.
#[derive(Debug, Default)]
pub struct Places(Vec<Place>);

/// What became of the messages at the front.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Block {
    /// Rows that are in the columns.
    pub rows: usize,
    /// Bytes of their messages.
    pub bytes: usize,
    /// So many rows must be decoded one by one, because at least one of them is unusual. Then the others are 0.
    pub refused: usize,
}

impl TupleDecoder {
    /// Adds the rows of whole CopyData messages at the front of the bytes to the columns: at most `rows_max`, and none
    /// behind `bytes_max`.
    pub fn decode_block(&mut self, bytes: &[u8], rows_max: usize, bytes_max: usize, columns: &mut Columns) -> Block {
        let mut places = std::mem::take(&mut self.places);
        places.0.resize(self.types.len() * BLOCK_ROWS, Place::default());
        let mut block = Block::default();
        while block.rows < rows_max.min(BLOCK_ROWS) && block.bytes < bytes_max {
            let Some(end) = self.place(bytes, block.bytes, block.rows, &mut places) else { break };
            (block.rows, block.bytes) = (block.rows + 1, end);
        }
        let mut all = places.0.chunks_exact(BLOCK_ROWS).map(|column| column.get(..block.rows).unwrap_or_default());
        let fits = self.types.iter().enumerate().all(|(index, ty)| {
            let places = all.next().unwrap_or_default();
            take(columns.column_mut(index), *ty, places, bytes, &mut self.scratch).is_ok()
        });
        self.places = places;
        if fits {
            columns.end_rows(block.rows);
            return block;
        }
        columns.abort_row();
        Block { refused: block.rows, ..Block::default() }
    }

    /// Notes where the values of the message's only row are; gives where the message ends. `None` if it is unusual.
    #[inline]
    fn place(&self, bytes: &[u8], from: usize, row: usize, places: &mut Places) -> Option<usize> {
        let &[tag, a, b, c, d, high, low] = bytes.get(from..)?.first_chunk::<HEAD_BYTES>()?;
        let end = from + 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        let message = bytes.get(..end)?;
        if tag != b'd' || usize::from(u16::from_be_bytes([high, low])) != self.types.len() {
            return None;
        }
        let mut at = from + HEAD_BYTES;
        for place in places.0.iter_mut().skip(row).step_by(BLOCK_ROWS) {
            let len = i32::from_be_bytes(*message.get(at..)?.first_chunk::<4>()?);
            at += 4;
            *place = Place { at: u32::try_from(at).ok()?, len };
            if len > 0 {
                at = at.checked_add(len as usize).filter(|_| len as usize <= self.value_bytes_max)?;
            } else if len < -1 {
                return None;
            }
        }
        (at == end).then_some(end)
    }
}

/// Adds the values of one column, or says that one of them does not fit.
fn take(
    column: &mut ColumnVec,
    ty: PgType,
    places: &[Place],
    bytes: &[u8],
    scratch: &mut String,
) -> Result<(), Trouble> {
    let values = places.iter();
    if places.iter().any(|place| place.len < 0) {
        return one_by_one(column, ty, places, bytes, scratch);
    }
    match ty {
        PgType::Scalar(Scalar::Int2) => column.extend_i16(values.map(|at| at.fixed(bytes).map(i16::from_be_bytes))),
        PgType::Scalar(Scalar::Int4) => column.extend_i32(values.map(|at| at.fixed(bytes).map(i32::from_be_bytes))),
        PgType::Scalar(Scalar::Int8) => column.extend_i64(values.map(|at| at.fixed(bytes).map(i64::from_be_bytes))),
        PgType::Scalar(Scalar::Date) => column.extend_i32(values.map(|at| date(i32::from_be_bytes(at.fixed(bytes)?)))),
        PgType::Scalar(Scalar::Time) => column.extend_i64(values.map(|at| time(i64::from_be_bytes(at.fixed(bytes)?)))),
        PgType::Scalar(Scalar::Timestamp | Scalar::TimestampTz) => {
            column.extend_i64(values.map(|at| timestamp(i64::from_be_bytes(at.fixed(bytes)?))))
        }
        PgType::Scalar(Scalar::Decimal { precision, scale }) => {
            column.extend_decimals(values.map(|at| decimal(at.value(bytes)?, precision, scale)))
        }
        PgType::Scalar(Scalar::Text | Scalar::Char | Scalar::Other) => {
            column.extend_text(values.map(|at| at.value(bytes)))?.then_some(()).ok_or(Trouble::Malformed)
        }
        _ => one_by_one(column, ty, places, bytes, scratch),
    }
}

fn one_by_one(
    column: &mut ColumnVec,
    ty: PgType,
    places: &[Place],
    bytes: &[u8],
    scratch: &mut String,
) -> Result<(), Trouble> {
    for place in places {
        if place.len < 0 {
            column.push_null();
        } else {
            push(column, ty, place.value(bytes)?, scratch)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::binary::{Malformed, Tuple};

    const TYPES: [PgType; 10] = [
        PgType::Scalar(Scalar::Int2),
        PgType::Scalar(Scalar::Int4),
        PgType::Scalar(Scalar::Int8),
        PgType::Scalar(Scalar::Bool),
        PgType::Scalar(Scalar::Text),
        PgType::Scalar(Scalar::Date),
        PgType::Scalar(Scalar::Timestamp),
        PgType::Scalar(Scalar::Decimal { precision: 9, scale: 2 }),
        PgType::Scalar(Scalar::Bytea),
        PgType::Array(Scalar::Int4),
    ];
    const VALUE_BYTES_MAX: usize = 20;

    type Row = Vec<Option<Vec<u8>>>;

    /// What the type's send function makes, seldom something that does not fit, or that is no such value.
    fn any_value(ty: PgType) -> BoxedStrategy<Option<Vec<u8>>> {
        let number = prop_oneof![8 => -9999..9999_i64, 1 => any::<i64>(), 1 => Just(i64::MAX), 1 => Just(i64::MIN)];
        let usual = match ty {
            PgType::Scalar(Scalar::Int2) => any::<i16>().prop_map(|v| v.to_be_bytes().to_vec()).boxed(),
            PgType::Scalar(Scalar::Int4) => any::<i32>().prop_map(|v| v.to_be_bytes().to_vec()).boxed(),
            PgType::Scalar(Scalar::Date) => {
                number.prop_map(|v| (v.clamp(i32::MIN.into(), i32::MAX.into()) as i32).to_be_bytes().to_vec()).boxed()
            }
            PgType::Scalar(Scalar::Bool) => any::<bool>().prop_map(|v| vec![u8::from(v)]).boxed(),
            PgType::Scalar(Scalar::Text) => "[a-zä]{0,11}".prop_map(String::into_bytes).boxed(),
            PgType::Scalar(Scalar::Decimal { .. }) => (0..9999_u16, prop_oneof![5 => -1..1_i16, 1 => -3..4_i16])
                .prop_map(|(group, weight)| {
                    let head = [1, weight as u16, 0, 2, group];
                    head.iter().flat_map(|half| half.to_be_bytes()).collect()
                })
                .boxed(),
            PgType::Scalar(Scalar::Bytea) => prop::collection::vec(any::<u8>(), 0..22).boxed(),
            PgType::Scalar(_) => number.prop_map(|v| v.to_be_bytes().to_vec()).boxed(),
            PgType::Array(_) => Just(vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23]).boxed(),
        };
        let odd = prop::collection::vec(any::<u8>(), 0..24);
        prop_oneof![400 => usual.prop_map(Some), 10 => Just(None), 1 => odd.prop_map(Some)].boxed()
    }

    fn any_rows() -> impl Strategy<Value = (Vec<PgType>, Vec<Row>)> {
        prop::collection::vec(prop::sample::select(&TYPES[..]), 0..5).prop_flat_map(|types| {
            let row: Vec<_> = types.iter().map(|ty| any_value(*ty)).collect();
            (Just(types), prop::collection::vec(row, 0..300))
        })
    }

    fn message(row: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut tuple = (row.len() as u16).to_be_bytes().to_vec();
        for value in row {
            tuple.extend(value.as_ref().map_or(-1, |value| value.len() as i32).to_be_bytes());
            tuple.extend(value.iter().flatten());
        }
        let mut message = vec![b'd'];
        message.extend((tuple.len() as u32 + 4).to_be_bytes());
        message.extend(tuple);
        message
    }

    /// The rows, in how many steps each was found out of, and an error.
    fn read(types: &[PgType], bytes: &[u8], by_blocks: bool) -> (Columns, Vec<Tuple>, Option<Malformed>) {
        let mut decoder = TupleDecoder::new(types.to_vec(), vec![], VALUE_BYTES_MAX);
        let mut columns = Columns::new(types.iter().map(|ty| ty.column_type()).collect::<Vec<_>>().iter());
        let (mut at, mut unfit, mut one_by_one) = (0, vec![], 0);
        while at < bytes.len() {
            if by_blocks && one_by_one == 0 {
                let block = decoder.decode_block(&bytes[at..], usize::MAX, usize::MAX, &mut columns);
                (at, one_by_one) = (at + block.bytes, block.refused);
                if block.rows > 0 {
                    continue;
                }
            }
            one_by_one = one_by_one.saturating_sub(1);
            let Some(tuple) = bytes.get(at + 5..) else { break };
            match decoder.decode(tuple, &mut columns) {
                Ok(Tuple::Row(count)) => at += count + 5,
                Ok(tuple @ Tuple::Unfit { bytes: count, .. }) => {
                    unfit.push(tuple);
                    at += count + 5;
                }
                Ok(_) => break,
                Err(error) => return (columns, unfit, Some(error)),
            }
        }
        (columns, unfit, None)
    }

    proptest! {
        /// Rows that do not fit, values that are none, and ends within a message included.
        #[test]
        fn blocks_hold_what_rows_one_by_one_do((types, rows) in any_rows(), cut in 0..40_usize) {
            let bytes: Vec<u8> = rows.iter().flat_map(|row| message(row)).collect();
            let bytes = &bytes[..bytes.len().saturating_sub(cut)];
            let (columns, unfit, error) = read(&types, bytes, true);
            let (expected, unfit_expected, error_expected) = read(&types, bytes, false);
            prop_assert_eq!((unfit, error), (unfit_expected, error_expected));
            if error.is_none() {
                prop_assert_eq!(columns, expected);
            }
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), width in 0..3_u8) {
            let types = vec![PgType::Scalar(Scalar::Text); usize::from(width)];
            let mut columns = Columns::new(types.iter().map(|ty| ty.column_type()).collect::<Vec<_>>().iter());
            let mut decoder = TupleDecoder::new(types, vec![], VALUE_BYTES_MAX);
            let length = (bytes.len() as u32 + 6).to_be_bytes();
            let framed = [b"d", &length[..], &[0, width], &bytes].concat();
            for bytes in [&bytes[..], &framed] {
                let block = decoder.decode_block(bytes, usize::MAX, usize::MAX, &mut columns);
                prop_assert!(block.bytes <= bytes.len());
                prop_assert!(columns.columns().iter().all(|column| column.len() == columns.rows()));
            }
        }
    }

    #[test]
    fn a_block_ends_where_the_batch_is_full() {
        let mut decoder = TupleDecoder::new(vec![TYPES[1]], vec![], VALUE_BYTES_MAX);
        let mut columns = Columns::new([&TYPES[1].column_type()]);
        let one = message(&[Some(vec![0, 0, 0, 7])]);
        let bytes = one.repeat(2 * BLOCK_ROWS);
        let mut take = |rows_max, bytes_max| decoder.decode_block(&bytes, rows_max, bytes_max, &mut columns).rows;
        assert_eq!(
            [take(3, usize::MAX), take(9, one.len() + 1), take(999, usize::MAX), take(0, 9)],
            [3, 2, BLOCK_ROWS, 0]
        );
        assert_eq!(columns.rows(), 5 + BLOCK_ROWS);
    }

    #[test]
    fn a_message_that_is_not_one_row_is_left_to_the_other_way() {
        let mut decoder = TupleDecoder::new(vec![TYPES[1]], vec![], VALUE_BYTES_MAX);
        let mut columns = Columns::new([&TYPES[1].column_type()]);
        let one = message(&[Some(vec![0, 0, 0, 7])]);
        let longer = |more: &[u8]| {
            let mut bytes = [&one, more].concat();
            bytes[4] += more.len() as u8;
            bytes
        };
        let notice = [b"N", &one[1..]].concat();
        for odd in [longer(&one[5..]), longer(&[0]), notice, message(&[None, None])] {
            let bytes = [&one, &odd[..], &one].concat();
            let block = decoder.decode_block(&bytes, usize::MAX, usize::MAX, &mut columns);
            assert_eq!(block, Block { rows: 1, bytes: one.len(), refused: 0 }, "{odd:?}");
        }
    }
}

//! Binary values as COPY sends them, straight into columns.
//!
//! A tuple of `COPY … (FORMAT binary)` is a count of fields (16 bits, -1 ends the data), and per field a length (32
//! bits, -1 is null) and the bytes that the type's `*_send` function made. Manual: SQL COPY, "Binary Format".
//!
//! Bytes come from outside: whatever they are, the answer is a value, [`Trouble::Unfit`] (the row goes to the dead
//! letters) or [`Trouble::Malformed`] (the load stops), never a panic. Nothing is allocated per cell.

use millrace_core::{ColumnVec, Columns, Unfit};

use super::{PgType, Scalar, block::Places, render, text::TIMESTAMP_MAX_US, unfit};

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// Microseconds of a day.
pub(super) const DAY_US: i64 = 86_400_000_000;
/// Days from 1970-01-01 to 0001-01-01.
const FIRST_DAY: i32 = -719_162;

/// The reason for which a value that is too long is refused.
const TOO_LONG: &str = "it is longer than max-value";

/// Why a value was not taken. The sentences are those of [`super::text`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Its column cannot hold it; the sentence says why.
    Unfit(&'static str),
    /// These are no bytes of this type.
    Malformed,
}

/// What one tuple was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuple {
    /// A row of so many bytes; it is in the columns.
    Row(usize),
    /// A row that was not taken, because of one column.
    Unfit {
        /// Bytes of the tuple.
        bytes: usize,
        /// Which column.
        column: usize,
        /// Why, one sentence.
        reason: &'static str,
    },
    /// The bytes end within the tuple.
    Incomplete,
    /// The end of the data.
    End,
}

/// Bytes that are no COPY data of the expected columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no binary COPY data of these columns")]
pub struct Malformed;

/// Takes tuples apart.
#[derive(Debug)]
pub struct TupleDecoder {
    pub(super) types: Vec<PgType>,
    /// What becomes of values that do not fit; of columns behind its end, the default.
    policies: Vec<Unfit>,
    pub(super) value_bytes_max: usize,
    pub(super) scratch: String,
    pub(super) places: Places,
}

impl TupleDecoder {
    /// For columns of these types (after their casts); a longer value than `value_bytes_max` does not fit, whatever the
    /// policies say.
    pub fn new(types: Vec<PgType>, policies: Vec<Unfit>, value_bytes_max: usize) -> Self {
        Self { types, policies, value_bytes_max, scratch: String::new(), places: Places::default() }
    }

    /// The sentence for people, with the limit where that is the reason.
    pub fn explain(&self, reason: &str) -> String {
        if reason == TOO_LONG { format!("{reason} ({} bytes)", self.value_bytes_max) } else { reason.into() }
    }

    /// Adds the row of the tuple at the front of the bytes to the columns, or nothing of it.
    pub fn decode(&mut self, bytes: &[u8], columns: &mut Columns) -> Result<Tuple, Malformed> {
        let Some((count, mut rest)) = bytes.split_first_chunk::<2>() else { return Ok(Tuple::Incomplete) };
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            return Ok(Tuple::End);
        }
        if usize::try_from(count) != Ok(self.types.len()) {
            return Err(Malformed);
        }
        let mut unfit = None;
        for index in 0..self.types.len() {
            let Some(&ty) = self.types.get(index) else { break };
            let (value, after) = match next_field(rest) {
                Field::Incomplete => {
                    columns.abort_row();
                    return Ok(Tuple::Incomplete);
                }
                Field::Malformed => return Err(Malformed),
                Field::Null(after) => (None, after),
                Field::Value(value, after) => (Some(value), after),
            };
            rest = after;
            if unfit.is_some() {
                continue;
            }
            let column = columns.column_mut(index);
            let Some(value) = value else {
                column.push_null();
                continue;
            };
            if value.len() > self.value_bytes_max {
                unfit = Some((index, TOO_LONG));
                continue;
            }
            match push(column, ty, value, &mut self.scratch) {
                Ok(()) => {}
                Err(Trouble::Unfit(reason)) => {
                    unfit = self.settle(index, ty, value, reason, columns).map(|reason| (index, reason));
                }
                Err(Trouble::Malformed) => return Err(Malformed),
            }
        }
        let bytes = bytes.len() - rest.len();
        if let Some((column, reason)) = unfit {
            columns.abort_row();
            return Ok(Tuple::Unfit { bytes, column, reason });
        }
        columns.end_row();
        Ok(Tuple::Row(bytes))
    }

    /// Does with a value that does not fit what the policy says; gives the reason where its row must go to the dead
    /// letters.
    #[cold]
    fn settle(
        &mut self,
        index: usize,
        ty: PgType,
        value: &[u8],
        reason: &'static str,
        columns: &mut Columns,
    ) -> Option<&'static str> {
        let policy = self.policies.get(index).copied().unwrap_or_default();
        self.scratch.clear();
        if policy == Unfit::DeadLetter || render::value(ty, value, &mut self.scratch).is_err() {
            return Some(reason);
        }
        if self.scratch.len() > self.value_bytes_max {
            return Some(TOO_LONG);
        }
        let taken = unfit::settle(policy, index, &ty.column_type(), self.scratch.as_bytes(), columns);
        (!taken).then_some(reason)
    }
}

/// How many bytes must be there before it is worth trying the tuple at the front again.
pub fn bytes_wanted(bytes: &[u8]) -> usize {
    let Some((count, mut rest)) = bytes.split_first_chunk::<2>() else { return 2 };
    for _ in 0..i16::from_be_bytes(*count).max(0) {
        let Some((length, after)) = rest.split_first_chunk::<4>() else { return bytes.len() - rest.len() + 4 };
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        match after.get(length..) {
            Some(next) => rest = next,
            None => return bytes.len() - after.len() + length,
        }
    }
    bytes.len() - rest.len()
}

/// A field and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// Null.
    Null(&'a [u8]),
    /// A value, and what follows it.
    Value(&'a [u8], &'a [u8]),
    /// The bytes end within it.
    Incomplete,
    /// It has an impossible length.
    Malformed,
}

/// The field at the front.
pub fn next_field(bytes: &[u8]) -> Field<'_> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Field::Incomplete };
    let length = i32::from_be_bytes(*length);
    let Ok(count) = usize::try_from(length) else {
        return if length == -1 { Field::Null(rest) } else { Field::Malformed };
    };
    rest.split_at_checked(count).map_or(Field::Incomplete, |(value, rest)| Field::Value(value, rest))
}

/// The fields of a whole tuple; `None` for null. Ends early where the bytes do.
pub fn fields(tuple: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = tuple.get(2..).unwrap_or_default();
    std::iter::from_fn(move || match next_field(rest) {
        Field::Null(after) => {
            rest = after;
            Some(None)
        }
        Field::Value(value, after) => {
            rest = after;
            Some(Some(value))
        }
        Field::Incomplete | Field::Malformed => None,
    })
}

/// Adds one value that is not null.
#[inline]
pub(super) fn push(column: &mut ColumnVec, ty: PgType, value: &[u8], scratch: &mut String) -> Result<(), Trouble> {
    match ty {
        PgType::Scalar(scalar) => push_scalar(column, scalar, value, scratch),
        PgType::Array(item) => push_array(column, item, value, scratch),
    }
}

#[inline]
fn push_scalar(column: &mut ColumnVec, scalar: Scalar, value: &[u8], scratch: &mut String) -> Result<(), Trouble> {
    match scalar {
        Scalar::Bool => column.push_bool(u8::from_be_bytes(fixed(value)?) != 0),
        Scalar::Int2 => column.push_i16(i16::from_be_bytes(fixed(value)?)),
        Scalar::Int4 => column.push_i32(i32::from_be_bytes(fixed(value)?)),
        Scalar::Int8 => column.push_i64(i64::from_be_bytes(fixed(value)?)),
        Scalar::Float4 => column.push_f32(f32::from_be_bytes(fixed(value)?)),
        Scalar::Float8 => column.push_f64(f64::from_be_bytes(fixed(value)?)),
        Scalar::Decimal { precision, scale } => column.push_decimal(decimal(value, precision, scale)?),
        Scalar::Text | Scalar::Char | Scalar::Other => push_text(column, value)?,
        Scalar::Jsonb => match value.split_first() {
            Some((1, text)) => push_text(column, text)?,
            _ => return Err(Trouble::Malformed),
        },
        Scalar::Bytea => column.push_bytes(value),
        Scalar::Date => column.push_i32(date(i32::from_be_bytes(fixed(value)?))?),
        Scalar::Time => column.push_i64(time(i64::from_be_bytes(fixed(value)?))?),
        Scalar::Timestamp | Scalar::TimestampTz => {
            column.push_i64(timestamp(i64::from_be_bytes(fixed(value)?))?);
        }
        Scalar::Numeric | Scalar::Interval | Scalar::Uuid => {
            scratch.clear();
            render::scalar(scalar, value, scratch).map_err(|Malformed| Trouble::Malformed)?;
            column.push_str(scratch);
        }
    }
    Ok(())
}

fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], Trouble> {
    value.try_into().map_err(|_| Trouble::Malformed)
}

/// The server sends what it stores, and a database of encoding SQL_ASCII stores anything.
#[inline]
fn push_text(column: &mut ColumnVec, value: &[u8]) -> Result<(), Trouble> {
    // Most text is ASCII, which is told faster.
    if !value.is_ascii() && std::str::from_utf8(value).is_err() {
        return Err(Trouble::Unfit("it is not UTF-8"));
    }
    column.push_utf8(value);
    Ok(())
}

fn push_array(column: &mut ColumnVec, item: Scalar, value: &[u8], scratch: &mut String) -> Result<(), Trouble> {
    let array = ArrayHeader::read(value).ok_or(Trouble::Malformed)?;
    let count = match array.dimensions() {
        [] => 0,
        dimensions if dimensions.iter().any(|(_, first)| *first != 1) => {
            return Err(Trouble::Unfit("an array whose first index is not 1 is out of range"));
        }
        [(count, _)] => *count,
        _ => return Err(Trouble::Unfit("an array of several dimensions is out of range")),
    };
    let mut rest = array.items;
    column.push_list(|items| {
        for _ in 0..count {
            match next_field(rest) {
                Field::Null(after) => {
                    rest = after;
                    items.push_null();
                }
                Field::Value(value, after) => {
                    rest = after;
                    push_scalar(items, item, value, scratch)?;
                }
                Field::Incomplete | Field::Malformed => return Err(Trouble::Malformed),
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Trouble::Malformed) }
    })
}

/// `MAXDIM` in `src/include/utils/array.h`.
const DIMENSIONS_MAX: usize = 6;

/// The head of a binary array (`array_send`): dimensions, a flag, the items' type, and per dimension size and first index.
#[derive(Debug)]
pub(super) struct ArrayHeader<'a> {
    count: usize,
    dimensions: [(u32, i32); DIMENSIONS_MAX],
    /// The items, as fields.
    pub(super) items: &'a [u8],
}

impl<'a> ArrayHeader<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<4>()?;
        let (_flag, rest) = rest.split_first_chunk::<4>()?;
        let (_type, mut items) = rest.split_first_chunk::<4>()?;
        let count = usize::try_from(i32::from_be_bytes(*count)).ok()?;
        let mut dimensions = [(0, 1); DIMENSIONS_MAX];
        for dimension in dimensions.get_mut(..count)? {
            let (size, rest) = items.split_first_chunk::<4>()?;
            let (first, rest) = rest.split_first_chunk::<4>()?;
            *dimension = (u32::try_from(i32::from_be_bytes(*size)).ok()?, i32::from_be_bytes(*first));
            items = rest;
        }
        Some(Self { count, dimensions, items })
    }

    /// Size and first index of each dimension.
    pub(super) fn dimensions(&self) -> &[(u32, i32)] {
        self.dimensions.get(..self.count).unwrap_or_default()
    }
}

/// The head of a binary numeric (`numeric_send`): groups of four decimal digits, the first worth 10000^weight.
#[derive(Debug)]
pub(super) struct NumericHeader<'a> {
    /// Groups, two bytes each.
    pub(super) groups: &'a [u8],
    /// Exponent of the first group.
    pub(super) weight: i32,
    /// One of the `SIGN_*`.
    pub(super) sign: u16,
    /// Digits shown behind the point.
    pub(super) scale_shown: u16,
}

impl<'a> NumericHeader<'a> {
    /// Below zero.
    pub(super) const SIGN_NEGATIVE: u16 = 0x4000;
    /// Not a number.
    pub(super) const SIGN_NAN: u16 = 0xC000;
    /// Infinity (PostgreSQL 14).
    pub(super) const SIGN_INFINITY: u16 = 0xD000;
    /// Minus infinity (PostgreSQL 14).
    pub(super) const SIGN_MINUS_INFINITY: u16 = 0xF000;

    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<2>()?;
        let (weight, rest) = rest.split_first_chunk::<2>()?;
        let (sign, rest) = rest.split_first_chunk::<2>()?;
        let (scale, groups) = rest.split_first_chunk::<2>()?;
        let header = Self {
            groups,
            weight: i32::from(i16::from_be_bytes(*weight)),
            sign: u16::from_be_bytes(*sign),
            scale_shown: u16::from_be_bytes(*scale),
        };
        let known = [0, Self::SIGN_NEGATIVE, Self::SIGN_NAN, Self::SIGN_INFINITY, Self::SIGN_MINUS_INFINITY];
        let sound = groups.len() == 2 * usize::from(u16::from_be_bytes(*count)) && known.contains(&header.sign);
        sound.then_some(header)
    }

    /// The groups, each below 10000; `None` stands for one that is not.
    pub(super) fn groups(&self) -> impl Iterator<Item = Option<u16>> + '_ {
        self.groups.as_chunks::<2>().0.iter().map(|group| {
            let group = u16::from_be_bytes(*group);
            (group < 10_000).then_some(group)
        })
    }
}

const POWERS: [i128; 39] = {
    let mut powers = [1; 39];
    let mut index = 1;
    while index < 39 {
        powers[index] = powers[index - 1] * 10;
        index += 1;
    }
    powers
};

fn power(exponent: i32) -> Option<i128> {
    POWERS.get(usize::try_from(exponent).ok()?).copied()
}

/// The unscaled value of a numeric at the column's scale.
#[inline]
pub(super) fn decimal(bytes: &[u8], precision: u8, scale: u8) -> Result<i128, Trouble> {
    let limit = power(i32::from(precision)).ok_or(TOO_LARGE)?;
    if let Some((value, is_negative)) = short_decimal(bytes, scale)
        && i128::from(value) < limit
    {
        return Ok(if is_negative { -i128::from(value) } else { i128::from(value) });
    }
    any_decimal(bytes, limit, scale)
}

fn any_decimal(bytes: &[u8], limit: i128, scale: u8) -> Result<i128, Trouble> {
    let header = NumericHeader::read(bytes).ok_or(Trouble::Malformed)?;
    match header.sign {
        NumericHeader::SIGN_NAN => return Err(Trouble::Unfit("NaN is not a decimal")),
        NumericHeader::SIGN_INFINITY | NumericHeader::SIGN_MINUS_INFINITY => {
            return Err(Trouble::Unfit("infinity is not a decimal"));
        }
        _ => {}
    }
    let value = magnitude(&header, scale)?;
    if value >= limit {
        return Err(TOO_LARGE);
    }
    Ok(if header.sign == NumericHeader::SIGN_NEGATIVE { -value } else { value })
}

const TOO_LARGE: Trouble = Trouble::Unfit("it has more digits than its column");

/// The absolute unscaled value of a numeric of at most four groups, and whether it is below zero: the usual case, in 64
/// bits. The 128-bit divisions of [`magnitude`] cost as much as all the rest of it. `None` where that does not do.
#[inline]
fn short_decimal(bytes: &[u8], scale: u8) -> Option<(u64, bool)> {
    let (head, groups) = bytes.split_first_chunk::<8>()?;
    let head = u64::from_be_bytes(*head);
    let (count, weight, sign) = ((head >> 48) as usize, (head >> 32) as i16, (head >> 16) as u16);
    let is_negative = sign == NumericHeader::SIGN_NEGATIVE;
    if count > 4 || groups.len() != 2 * count || sign != 0 && !is_negative {
        return None;
    }
    if count == 0 {
        return Some((0, is_negative));
    }
    let mut value = 0_u64;
    for group in groups.as_chunks::<2>().0 {
        let group = u16::from_be_bytes(*group);
        if group >= 10_000 {
            return None;
        }
        value = value * 10_000 + u64::from(group);
    }
    // The lowest power of ten in the last group, counted from the column's last digit.
    let exponent = 4 * (i32::from(weight) - count as i32 + 1) + i32::from(scale);
    let power = u64::try_from(power(exponent.abs())?).ok()?;
    let value = match exponent {
        0.. => value.checked_mul(power)?,
        _ if value.is_multiple_of(power) => value / power,
        _ => return None,
    };
    Some((value, is_negative))
}

/// The absolute unscaled value of any numeric.
fn magnitude(header: &NumericHeader<'_>, scale: u8) -> Result<i128, Trouble> {
    // The lowest power of ten in the group, counted from the column's last digit.
    let mut exponent = 4 * header.weight + i32::from(scale);
    let mut value: i128 = 0;
    for group in header.groups() {
        let group = i128::from(group.ok_or(Trouble::Malformed)?);
        if exponent >= 0 {
            value = value.checked_mul(10_000).and_then(|value| value.checked_add(group)).ok_or(TOO_LARGE)?;
        } else if group != 0 {
            // Of this group only the upper digits belong to the column; the server has rounded the others away.
            let kept = power(4 + exponent).ok_or(TOO_LARGE)?;
            let dropped = power(-exponent).ok_or(TOO_LARGE)?;
            if group % dropped != 0 {
                return Err(TOO_LARGE);
            }
            value = value.checked_mul(kept).and_then(|value| value.checked_add(group / dropped)).ok_or(TOO_LARGE)?;
        } else if let Some(kept) = power(4 + exponent) {
            value = value.checked_mul(kept).ok_or(TOO_LARGE)?;
        }
        exponent -= 4;
    }
    // Trailing groups that are zero are not sent.
    let left = exponent + 4;
    if left > 0 && value != 0 {
        value = power(left).and_then(|power| value.checked_mul(power)).ok_or(TOO_LARGE)?;
    }
    Ok(value)
}

/// Days since 1970 from days since 2000.
pub(super) fn date(days: i32) -> Result<i32, Trouble> {
    if days == i32::MAX || days == i32::MIN {
        return Err(Trouble::Unfit("infinity is not a date or time"));
    }
    let days = days.checked_add(EPOCH_DAYS).ok_or(Trouble::Malformed)?;
    if days < FIRST_DAY { Err(Trouble::Unfit("a date before the year 1 is out of range")) } else { Ok(days) }
}

pub(super) fn time(us: i64) -> Result<i64, Trouble> {
    match us {
        0..DAY_US => Ok(us),
        DAY_US => Err(Trouble::Unfit("24:00:00 is not a time below 24 hours")),
        _ => Err(Trouble::Malformed),
    }
}

/// Microseconds since 1970 from microseconds since 2000.
pub(super) fn timestamp(us: i64) -> Result<i64, Trouble> {
    if us == i64::MAX || us == i64::MIN {
        return Err(Trouble::Unfit("infinity is not a date or time"));
    }
    let us = us.checked_add(i64::from(EPOCH_DAYS) * DAY_US).ok_or(Trouble::Unfit("the timestamp is out of range"))?;
    if us > TIMESTAMP_MAX_US {
        return Err(Trouble::Unfit("the timestamp is out of range"));
    }
    if us < i64::from(FIRST_DAY) * DAY_US {
        return Err(Trouble::Unfit("a date before the year 1 is out of range"));
    }
    Ok(us)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCALARS: [Scalar; 19] = [
        Scalar::Bool,
        Scalar::Int2,
        Scalar::Int4,
        Scalar::Int8,
        Scalar::Float4,
        Scalar::Float8,
        Scalar::Decimal { precision: 38, scale: 10 },
        Scalar::Decimal { precision: 5, scale: 5 },
        Scalar::Numeric,
        Scalar::Text,
        Scalar::Jsonb,
        Scalar::Bytea,
        Scalar::Uuid,
        Scalar::Date,
        Scalar::Time,
        Scalar::Timestamp,
        Scalar::TimestampTz,
        Scalar::Interval,
        Scalar::Other,
    ];

    fn numeric_bytes(groups: &[u16], weight: i16, sign: u16, scale: u16) -> Vec<u8> {
        let mut bytes = vec![];
        for word in [groups.len() as u16, weight as u16, sign, scale].iter().chain(groups) {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn decimals() {
        let value = |groups: &[u16], weight, precision, scale| {
            decimal(&numeric_bytes(groups, weight, 0, u16::from(scale)), precision, scale)
        };
        assert_eq!(value(&[], 0, 5, 2), Ok(0));
        assert_eq!(value(&[1], 0, 5, 2), Ok(100));
        assert_eq!(value(&[1234, 5600], 0, 6, 2), Ok(123_456));
        assert_eq!(value(&[5600], -1, 6, 2), Ok(56));
        assert_eq!(value(&[500], -1, 6, 2), Ok(5));
        assert_eq!(value(&[1], 2, 12, 2), Ok(10_000_000_000));
        assert_eq!(value(&[1, 0, 1], 2, 12, 2), Ok(10_000_000_100));
        assert_eq!(value(&[1], -2, 12, 8), Ok(1));
        assert_eq!(value(&[99, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999], 8, 38, 4), Ok(POWERS[38] - 1));
        assert_eq!(value(&[9999; 10], 8, 38, 4), Err(Trouble::Unfit("it has more digits than its column")));
        assert!(matches!(value(&[5601], -1, 6, 2), Err(Trouble::Unfit(_))));
        assert!(matches!(value(&[1], 9, 6, 2), Err(Trouble::Unfit(_))));
        assert!(matches!(value(&[1, 0], -9, 6, 2), Err(Trouble::Unfit(_))));
        assert_eq!(value(&[10_000], 0, 6, 2), Err(Trouble::Malformed));
        assert_eq!(decimal(&numeric_bytes(&[7], 0, 0x4000, 0), 3, 0), Ok(-7));
        assert!(matches!(decimal(&numeric_bytes(&[], 0, 0xC000, 0), 3, 0), Err(Trouble::Unfit(_))));
    }

    proptest! {
        /// A decimal's digits come out as they went in, whatever the split into groups.
        #[test]
        fn decimals_round_trip(value in -(POWERS[38] - 1)..POWERS[38], scale in 0u8..=38) {
            let mut digits = format!("{:039}", value.abs());
            digits.insert(39 - usize::from(scale), '.');
            let (whole, fraction) = digits.split_once('.').unwrap();
            let whole = format!("{whole:0>width$}", width = whole.len().div_ceil(4) * 4);
            let fraction = format!("{fraction:0<width$}", width = fraction.len().div_ceil(4) * 4);
            let mut groups: Vec<u16> = (whole.clone() + &fraction).as_bytes().chunks(4)
                .map(|group| std::str::from_utf8(group).unwrap().parse().unwrap()).collect();
            let mut weight = (whole.len() / 4) as i16 - 1;
            while groups.first() == Some(&0) { groups.remove(0); weight -= 1; }
            while groups.last() == Some(&0) { groups.pop(); }
            let sign = if value < 0 { 0x4000 } else { 0 };
            prop_assert_eq!(decimal(&numeric_bytes(&groups, weight, sign, u16::from(scale)), 38, scale), Ok(value));
        }

        #[test]
        fn any_bytes_are_answered(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            array in any::<bool>(),
            policy in prop_oneof![Just(Unfit::Companion), Just(Unfit::DeadLetter), Just(Unfit::Clamp)],
        ) {
            for scalar in SCALARS {
                let ty = if array { PgType::Array(scalar) } else { PgType::Scalar(scalar) };
                let mut column = ColumnVec::new(&ty.column_type());
                let pushed = push(&mut column, ty, &bytes, &mut String::new());
                prop_assert_eq!(column.len(), usize::from(pushed.is_ok()));
                let _ = render::value(ty, &bytes, &mut String::new());
                let mut columns = Columns::new([&ty.column_type()]);
                let decoded = TupleDecoder::new(vec![ty], vec![policy], 100).decode(&bytes, &mut columns);
                prop_assert_eq!(columns.rows(), usize::from(matches!(decoded, Ok(Tuple::Row(_)))));
                if decoded.is_ok() {
                    prop_assert_eq!(columns.columns()[0].len(), columns.rows());
                }
            }
            let _ = (bytes_wanted(&bytes), fields(&bytes).count());
        }

        /// The same with a frame that is right, so that the values are reached.
        #[test]
        fn any_values_are_answered(value in proptest::collection::vec(any::<u8>(), 0..40), which in 0..SCALARS.len()) {
            let mut array = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
            array.extend_from_slice(&(value.len() as u32).to_be_bytes());
            array.extend_from_slice(&value);
            let ty = PgType::Array(SCALARS[which]);
            let mut column = ColumnVec::new(&ty.column_type());
            let pushed = push(&mut column, ty, &array, &mut String::new());
            prop_assert_eq!(column.len(), usize::from(pushed.is_ok()));
            let _ = render::value(ty, &array, &mut String::new());
        }

        /// Numerics with a sound head and any weight and scale must not take time or memory out of proportion.
        #[test]
        fn any_numeric_is_answered(groups in proptest::collection::vec(any::<u16>(), 0..30), weight in any::<i16>(),
                                   sign in prop_oneof![Just(0u16), Just(0x4000), Just(0xC000)], scale in any::<u16>()) {
            let bytes = numeric_bytes(&groups, weight, sign, scale);
            let _ = decimal(&bytes, 38, 10);
            let mut text = String::new();
            let _ = render::scalar(Scalar::Numeric, &bytes, &mut text);
            prop_assert!(text.len() < 300_000);
        }
    }

    #[test]
    fn the_edges_of_time() {
        assert_eq!(date(-10_957 - 719_162), Ok(-719_162));
        assert!(matches!(date(-10_957 - 719_163), Err(Trouble::Unfit(_))));
        assert_eq!(time(DAY_US - 1), Ok(DAY_US - 1));
        assert!(matches!(time(DAY_US), Err(Trouble::Unfit(_))));
        assert_eq!(timestamp(0), Ok(946_684_800_000_000));
        assert!(matches!(timestamp(9_223_371_331_199_999_999), Err(Trouble::Unfit(_))));
        assert!(matches!(timestamp(i64::MIN), Err(Trouble::Unfit(_))));
    }

    fn tuple(text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 2, 0, 0, 0, 4, 0, 0, 0, 7];
        bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
        bytes.extend_from_slice(text);
        bytes
    }

    fn int_and_text() -> (TupleDecoder, Columns) {
        let types = vec![PgType::Scalar(Scalar::Int4), PgType::Scalar(Scalar::Text)];
        let columns = Columns::new(types.iter().map(|ty| ty.column_type()).collect::<Vec<_>>().iter());
        (TupleDecoder::new(types, vec![], 5), columns)
    }

    #[test]
    fn a_row_that_does_not_fit_leaves_nothing_behind() {
        let (mut decoder, mut columns) = int_and_text();
        assert_eq!(decoder.decode(&tuple(b"abcde"), &mut columns), Ok(Tuple::Row(19)));
        assert!(matches!(
            decoder.decode(&tuple(b"abcdef"), &mut columns),
            Ok(Tuple::Unfit { column: 1, bytes: 20, .. })
        ));
        assert!(matches!(decoder.decode(&tuple(b"\xff"), &mut columns), Ok(Tuple::Unfit { column: 1, .. })));
        assert_eq!(decoder.decode(&[0xff, 0xff], &mut columns), Ok(Tuple::End));
        assert_eq!(decoder.decode(&[0, 1], &mut columns), Err(Malformed));
        assert_eq!(columns.rows(), 1);
        assert!(columns.columns().iter().all(|column| column.len() == 1));
    }

    #[test]
    fn a_tuple_cut_anywhere_is_incomplete_and_asks_for_more() {
        let (mut decoder, mut columns) = int_and_text();
        let whole = tuple(b"abc");
        for end in 0..whole.len() {
            let part = &whole[..end];
            assert_eq!(decoder.decode(part, &mut columns), Ok(Tuple::Incomplete), "{end}");
            assert!((end + 1..=whole.len()).contains(&bytes_wanted(part)), "{end}");
        }
        assert_eq!(decoder.decode(&whole, &mut columns), Ok(Tuple::Row(whole.len())));
        assert_eq!(bytes_wanted(&whole), whole.len());
    }
}

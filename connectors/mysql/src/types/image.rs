//! Values of row images in the binary log (manual, "Binlog Event: Table_map" and "Rows_event"; the layouts of the temporal
//! types are in MySQL's `my_time.cc`, those of DECIMAL in `decimal.cc`).
//!
//! How long a value is follows from the type's number and metadata in the log alone; what it means, from the table's shape.

use std::{net::Ipv4Addr, sync::Arc};

use super::{
    SqlType,
    charset::Charset,
    json, text,
    value::{DAY_US, SECOND_US, Value, days, print_fraction},
};
use crate::{
    log::compressed,
    wire::{Malformed, Reader},
};

/// The numbers of types in the log (`enum_field_types`).
pub mod number {
    #![allow(missing_docs)]
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const TIME: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const VARCHAR: u8 = 15;
    pub const BIT: u8 = 16;
    pub const TIMESTAMP2: u8 = 17;
    pub const DATETIME2: u8 = 18;
    pub const TIME2: u8 = 19;
    /// MariaDB's columns that are declared COMPRESSED.
    pub const BLOB_COMPRESSED: u8 = 140;
    pub const VARCHAR_COMPRESSED: u8 = 141;
    pub const VECTOR: u8 = 242;
    pub const JSON: u8 = 245;
    pub const NEWDECIMAL: u8 = 246;
    pub const ENUM: u8 = 247;
    pub const SET: u8 = 248;
    pub const TINY_BLOB: u8 = 249;
    pub const BLOB: u8 = 252;
    pub const VAR_STRING: u8 = 253;
    pub const STRING: u8 = 254;
    pub const GEOMETRY: u8 = 255;
}
use number::*;

/// A column's type as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its number; that of ENUM and SET, which the log has as a STRING.
    pub number: u8,
    /// Length, precision and scale, or digits of a second.
    pub meta: u16,
}

impl Stored {
    /// Reads a type's metadata.
    pub fn read(number: u8, meta: &mut Reader<'_>) -> Result<Self, Malformed> {
        let stored = |meta| Ok(Self { number, meta });
        match number {
            TINY_BLOB..=BLOB
            | FLOAT
            | DOUBLE
            | TIMESTAMP2
            | DATETIME2
            | TIME2
            | JSON
            | GEOMETRY
            | VECTOR
            | BLOB_COMPRESSED => stored(u16::from(meta.u8()?)),
            VARCHAR | VAR_STRING | VARCHAR_COMPRESSED => stored(meta.u16()?),
            NEWDECIMAL => {
                let (precision, scale) = (meta.u8()?, meta.u8()?);
                stored(u16::from_be_bytes([precision, scale]))
            }
            BIT => {
                let (bits, bytes) = (meta.u8()?, meta.u8()?);
                stored(u16::from(bytes) * 8 + u16::from(bits))
            }
            STRING | ENUM | SET => {
                let (real, length) = (meta.u8()?, meta.u8()?);
                // Lengths above 255 have their upper bits, turned over, in the type's number.
                let upper = u16::from((real & 0x30) ^ 0x30) << 4;
                Ok(Self { number: real | 0x30, meta: u16::from(length) | upper })
            }
            TINY | SHORT | LONG | LONGLONG | INT24 | TIMESTAMP | DATE | TIME | DATETIME | YEAR => stored(0),
            _ => Err(Malformed("a column has a type that is not known")),
        }
    }

    /// Whether it is of those that have a character set in the log's metadata.
    pub fn is_character(&self) -> bool {
        matches!(self.number, VARCHAR | VAR_STRING | STRING | TINY_BLOB..=BLOB) || self.is_compressed()
    }

    /// How many bytes a value has, unpacked where it is compressed.
    pub fn whole_len(&self, bytes: &[u8]) -> usize {
        match bytes.split_first() {
            Some((0, rest)) if self.is_compressed() => rest.len(),
            Some((head, rest)) if self.is_compressed() => {
                Reader::new(rest).big(usize::from(head & 0x07)).map_or(usize::MAX, |length| length as usize)
            }
            _ => bytes.len(),
        }
    }

    fn is_compressed(&self) -> bool {
        matches!(self.number, BLOB_COMPRESSED | VARCHAR_COMPRESSED)
    }

    /// The bytes of the value at the front.
    #[inline]
    pub fn take<'a>(&self, reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
        let fraction = usize::from(self.meta.div_ceil(2));
        let count = match self.number {
            TINY | YEAR => 1,
            SHORT => 2,
            INT24 | DATE | TIME => 3,
            LONG | FLOAT | TIMESTAMP => 4,
            LONGLONG | DOUBLE | DATETIME => 8,
            TIMESTAMP2 => 4 + fraction,
            DATETIME2 => 5 + fraction,
            TIME2 => 3 + fraction,
            ENUM | SET => usize::from(self.meta),
            BIT => usize::from(self.meta.div_ceil(8)),
            NEWDECIMAL => decimal_bytes(self.meta),
            VARCHAR | VAR_STRING | STRING | VARCHAR_COMPRESSED => {
                reader.little(if self.meta > 255 { 2 } else { 1 })? as usize
            }
            _ => {
                let count = reader.little(usize::from(self.meta.clamp(1, 4)))?;
                usize::try_from(count).map_err(|_| Malformed("a length is impossible"))?
            }
        };
        reader.bytes(count)
    }

    /// Whether a column that is declared so is stored so.
    pub fn is_of(&self, ty: &SqlType) -> bool {
        match ty {
            SqlType::Int { bytes, .. } => {
                [(TINY, 1), (SHORT, 2), (INT24, 3), (LONG, 4), (LONGLONG, 8)].contains(&(self.number, *bytes))
            }
            SqlType::Year => self.number == YEAR,
            SqlType::Float => self.number == FLOAT,
            SqlType::Double => self.number == DOUBLE,
            SqlType::Decimal { precision, scale } => {
                self.number == NEWDECIMAL && self.meta == u16::from_be_bytes([*precision, *scale])
            }
            SqlType::Bit(bits) => self.number == BIT && self.meta == u16::from(*bits),
            SqlType::Date => self.number == DATE,
            SqlType::Time(digits) => self.is_time(TIME2, TIME, *digits),
            SqlType::Datetime(digits) => self.is_time(DATETIME2, DATETIME, *digits),
            SqlType::Timestamp(digits) => self.is_time(TIMESTAMP2, TIMESTAMP, *digits),
            SqlType::Text(_) | SqlType::Binary(None) => self.is_character(),
            SqlType::Binary(Some(length)) => self.number == STRING && usize::from(self.meta) == *length,
            SqlType::Enum(_) => self.number == ENUM,
            SqlType::Set(_) => self.number == SET,
            SqlType::Json => self.number == JSON,
            SqlType::Opaque => self.number == GEOMETRY || self.number == VECTOR,
            SqlType::Uuid | SqlType::Inet6 => self.number == STRING && self.meta == 16,
            SqlType::Inet4 => self.number == STRING && self.meta == 4,
        }
    }

    /// Whether the log tells whether it has a sign.
    pub fn is_number(&self) -> bool {
        [TINY, SHORT, INT24, LONG, LONGLONG, NEWDECIMAL, FLOAT, DOUBLE, YEAR].contains(&self.number)
    }

    fn is_time(&self, new: u8, old: u8, digits: u8) -> bool {
        (self.number == new && self.meta == u16::from(digits)) || (self.number == old && digits == 0)
    }
}

/// What a column's values are decoded with.
#[derive(Debug, Clone)]
pub struct ImageColumn {
    /// As the log stores it.
    pub stored: Stored,
    /// As it is declared.
    pub ty: SqlType,
    /// Of its text.
    pub charset: Option<Arc<Charset>>,
}

/// Where values are made that do not lie in the image as they are.
#[derive(Debug, Default)]
pub struct Scratch {
    text: String,
    bytes: Vec<u8>,
}

/// Interprets the bytes of one value. The outer error is a log that cannot be read, the inner one a value that must go to
/// the dead letters.
pub fn decode<'a>(
    column: &ImageColumn,
    bytes: &'a [u8],
    scratch: &'a mut Scratch,
) -> Result<Result<Value<'a>, &'static str>, Malformed> {
    let Scratch { text: scratch, bytes: whole } = scratch;
    scratch.clear();
    if column.stored.is_compressed() {
        *whole = uncompressed(bytes)?;
        return Ok(characters(column, whole, scratch));
    }
    let mut reader = Reader::new(bytes);
    let value = match &column.ty {
        SqlType::Int { bytes: width, unsigned: true } => Value::UInt(reader.little(usize::from(*width))?),
        SqlType::Int { bytes: width, .. } => {
            let unused = 64 - u32::from(*width) * 8;
            Value::Int(((reader.little(usize::from(*width))? << unused) as i64) >> unused)
        }
        SqlType::Year => match reader.u8()? {
            0 => Value::Int(0),
            since_1900 => Value::Int(1900 + i64::from(since_1900)),
        },
        SqlType::Float => Value::Float(f32::from_bits(reader.u32()?)),
        SqlType::Double => Value::Double(f64::from_bits(reader.u64()?)),
        SqlType::Decimal { precision, scale } => return decimal(bytes, *precision, *scale, scratch).map(Ok),
        SqlType::Bit(_) => Value::UInt(reader.big(bytes.len())?),
        SqlType::Date => {
            let packed = reader.little(3)? as u32;
            date((packed >> 9, packed >> 5 & 15, packed & 31), scratch)
        }
        SqlType::Time(digits) => Value::Time(time(column.stored, &mut reader)?, *digits),
        SqlType::Datetime(digits) => datetime(column.stored, &mut reader, *digits, scratch)?,
        SqlType::Timestamp(digits) => timestamp(column.stored, &mut reader, *digits, scratch)?,
        SqlType::Text(_) => return Ok(characters(column, bytes, scratch)),
        SqlType::Binary(Some(length)) if bytes.len() < *length => {
            // The log leaves trailing zeros out.
            whole.clear();
            whole.extend_from_slice(bytes);
            whole.resize(*length, 0);
            Value::Bytes(whole)
        }
        SqlType::Binary(_) | SqlType::Opaque => Value::Bytes(bytes),
        SqlType::Enum(labels) => {
            let index = reader.little(bytes.len())? as usize;
            match index.checked_sub(1) {
                // What was no label when it was stored.
                None => Value::Text(""),
                Some(index) => {
                    scratch.push_str(labels.get(index).ok_or(Malformed("an ENUM has no such label"))?);
                    Value::Text(scratch)
                }
            }
        }
        SqlType::Set(labels) => {
            let bits = reader.little(bytes.len())?;
            let chosen = labels.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1);
            let chosen: Vec<&str> = chosen.map(|(_, label)| label.as_str()).collect();
            scratch.push_str(&chosen.join(","));
            Value::Text(scratch)
        }
        SqlType::Json => match json::print(bytes, scratch) {
            Ok(()) => Value::Text(scratch),
            Err(_) => return Ok(Err("its binary JSON cannot be read")),
        },
        SqlType::Uuid | SqlType::Inet6 | SqlType::Inet4 => {
            address(&column.ty, bytes, scratch);
            Value::Text(scratch)
        }
    };
    Ok(Ok(value))
}

/// Text of the column's character set, or bytes.
fn characters<'a>(column: &ImageColumn, bytes: &'a [u8], scratch: &'a mut String) -> Result<Value<'a>, &'static str> {
    if !matches!(column.ty, SqlType::Text(_)) {
        return Ok(Value::Bytes(bytes));
    }
    let charset = column.charset.as_ref().ok_or("its character set is not known")?;
    if charset.decode(bytes, scratch) { Ok(Value::Text(scratch)) } else { Err("it is no text of its character set") }
}

/// A value of a compressed column: nothing, or a zero and the bytes themselves, or what [`compressed::unpack`] reads.
fn uncompressed(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    match bytes.split_first() {
        None => Ok(vec![]),
        Some((0, rest)) => Ok(rest.to_vec()),
        Some(_) => compressed::unpack(bytes),
    }
}

fn address(ty: &SqlType, bytes: &[u8], out: &mut String) {
    let mut whole = [0; 16];
    let length = bytes.len().min(16);
    whole[..length].copy_from_slice(&bytes[..length]);
    match ty {
        SqlType::Inet4 => out.push_str(&Ipv4Addr::new(whole[0], whole[1], whole[2], whole[3]).to_string()),
        SqlType::Inet6 => out.push_str(&text::inet6(whole)),
        _ => {
            for (index, byte) in whole.iter().enumerate() {
                if [4, 6, 8, 10].contains(&index) {
                    out.push('-');
                }
                out.push_str(&format!("{byte:02x}"));
            }
        }
    }
}

fn date<'a>((year, month, day): (u32, u32, u32), scratch: &'a mut String) -> Value<'a> {
    match days(year, month, day) {
        Some(days) => Value::Date(days),
        None => {
            scratch.push_str(&format!("{year:04}-{month:02}-{day:02}"));
            Value::Text(scratch)
        }
    }
}

/// The fraction of a second behind a packed time, in microseconds.
fn fraction(stored: Stored, reader: &mut Reader<'_>) -> Result<i64, Malformed> {
    let bytes = u32::from(stored.meta.div_ceil(2));
    let read = reader.big(bytes as usize)? as i64;
    Ok(read * 10_i64.pow(6_u32.saturating_sub(bytes * 2)))
}

fn datetime<'a>(
    stored: Stored,
    reader: &mut Reader<'_>,
    digits: u8,
    scratch: &'a mut String,
) -> Result<Value<'a>, Malformed> {
    let (date, seconds, micros) = if stored.number == DATETIME {
        let all = reader.u64()?;
        let part = |unit: u64, modulus: u64| (all / unit % modulus) as u32;
        let seconds = part(10_000, 100) * 3600 + part(100, 100) * 60 + part(1, 100);
        ((part(10_000_000_000, 10_000), part(100_000_000, 100), part(1_000_000, 100)), seconds, 0)
    } else {
        let packed = reader.big(5)? & 0x7f_ffff_ffff;
        let part = |shift: u32, bits: u32| (packed >> shift) as u32 & ((1 << bits) - 1);
        let months = part(22, 17);
        let seconds = part(12, 5) * 3600 + part(6, 6) * 60 + part(0, 6);
        ((months / 13, months % 13, part(17, 5)), seconds, fraction(stored, reader)?)
    };
    let of_day = i64::from(seconds) * SECOND_US + micros;
    Ok(match days(date.0, date.1, date.2) {
        Some(days) => Value::Moment(i64::from(days) * DAY_US + of_day, digits),
        None => {
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let (year, month, day) = date;
            *scratch = format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{:02}", seconds % 60);
            print_fraction(micros, digits, scratch);
            Value::Text(scratch)
        }
    })
}

fn timestamp<'a>(
    stored: Stored,
    reader: &mut Reader<'_>,
    digits: u8,
    scratch: &'a mut String,
) -> Result<Value<'a>, Malformed> {
    let (seconds, micros) = if stored.number == TIMESTAMP {
        (reader.u32()?, 0)
    } else {
        (reader.big(4)? as u32, fraction(stored, reader)?)
    };
    if seconds == 0 && micros == 0 {
        scratch.push_str("0000-00-00 00:00:00");
        print_fraction(0, digits, scratch);
        return Ok(Value::Text(scratch));
    }
    Ok(Value::Moment(i64::from(seconds) * SECOND_US + micros, digits))
}

fn time(stored: Stored, reader: &mut Reader<'_>) -> Result<i64, Malformed> {
    if stored.number == TIME {
        let packed = ((reader.little(3)? as i64) << 40) >> 40;
        let all = packed.abs();
        let micros = (all / 10_000 * 3600 + all / 100 % 100 * 60 + all % 100) * SECOND_US;
        return Ok(if packed < 0 { -micros } else { micros });
    }
    // The whole number, fraction included, is kept with half of its range added, so that bytes sort as times do.
    let bytes = 3 + usize::from(stored.meta.div_ceil(2));
    let packed = reader.big(bytes)? as i64 - (1 << (bytes * 8 - 1));
    let all = packed.abs();
    let below = (bytes - 3) * 8;
    let (whole, part) = (all >> below, all & ((1 << below) - 1));
    let seconds = (whole >> 12 & 0x3ff) * 3600 + (whole >> 6 & 0x3f) * 60 + (whole & 0x3f);
    let micros = seconds * SECOND_US + part * 10_i64.pow(6_u32.saturating_sub((bytes as u32 - 3) * 2));
    Ok(if packed < 0 { -micros } else { micros })
}

/// Bytes that so many digits below nine take.
const DIGIT_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

fn decimal_bytes(meta: u16) -> usize {
    let [precision, scale] = meta.to_be_bytes().map(usize::from);
    let part = |digits: usize| digits / 9 * 4 + DIGIT_BYTES[digits % 9];
    part(precision.saturating_sub(scale)) + part(scale)
}

/// Groups of nine digits in four bytes, the incomplete ones outermost; a negative number has all bits turned over, and the
/// first bit of a positive one is set.
pub(super) fn decimal<'a>(
    bytes: &[u8],
    precision: u8,
    scale: u8,
    scratch: &'a mut String,
) -> Result<Value<'a>, Malformed> {
    // Columns have 65 digits at most; in JSON a few more are made room for.
    if precision > 81 || scale > precision {
        return Err(Malformed("a DECIMAL has impossible digits"));
    }
    let negative = bytes.first().is_some_and(|first| first & 0x80 == 0);
    let mask = if negative { 0xff } else { 0 };
    let mut plain = [0_u8; 36];
    let plain = plain.get_mut(..bytes.len()).ok_or(Malformed("a DECIMAL is too long"))?;
    plain.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte ^ mask);
    if let Some(first) = plain.first_mut() {
        *first ^= 0x80;
    }
    let whole = usize::from(precision.saturating_sub(scale));
    let mut reader = Reader::new(plain);
    let mut groups = vec![whole % 9];
    groups.extend(std::iter::repeat_n(9, whole / 9 + usize::from(scale) / 9));
    groups.push(usize::from(scale) % 9);
    let exact = precision <= 38;
    let mut unscaled: i128 = 0;
    let mut digits = String::new();
    for count in groups.into_iter().filter(|&count| count > 0) {
        let group = reader.big(DIGIT_BYTES[count])?;
        if group >= 10_u64.pow(count as u32) {
            return Err(Malformed("a DECIMAL has digits that are none"));
        }
        if exact {
            unscaled = unscaled * 10_i128.pow(count as u32) + i128::from(group);
        } else {
            digits.push_str(&format!("{group:0count$}"));
        }
    }
    if exact {
        return Ok(Value::Decimal(if negative { -unscaled } else { unscaled }, scale));
    }
    let (head, tail) = digits.split_at_checked(whole).ok_or(Malformed("a DECIMAL is too short"))?;
    let head = head.trim_start_matches('0');
    scratch.push_str(if negative { "-" } else { "" });
    scratch.push_str(if head.is_empty() { "0" } else { head });
    if scale > 0 {
        scratch.push('.');
        scratch.push_str(tail);
    }
    Ok(Value::Text(scratch))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(declared: &str, number: u8, meta: u16, bytes: &[u8]) -> String {
        let charset = Some(Arc::new(Charset::Utf8));
        let column = ImageColumn { stored: Stored { number, meta }, ty: SqlType::parse(declared).unwrap(), charset };
        assert!(column.stored.is_of(&column.ty), "{declared}");
        format!("{:?}", decode(&column, bytes, &mut Scratch::default()).unwrap())
    }

    #[test]
    fn values_are_read() {
        for (declared, number, meta, bytes, expected) in [
            ("mediumint(9)", INT24, 0, &b"\xff\xff\xff"[..], "Ok(Int(-1))"),
            ("bigint(20) unsigned", LONGLONG, 0, &[0xff; 8], "Ok(UInt(18446744073709551615))"),
            ("decimal(4,2)", NEWDECIMAL, 0x0402, b"\x8c\x22", "Ok(Decimal(1234, 2))"),
            ("decimal(4,2)", NEWDECIMAL, 0x0402, b"\x73\xdd", "Ok(Decimal(-1234, 2))"),
            ("bit(10)", BIT, 10, b"\x03\x01", "Ok(UInt(769))"),
            ("date", DATE, 0, b"\x5d\xd0\x0f", "Ok(Date(19782))"),
            ("date", DATE, 0, b"\0\0\0", "Ok(Text(\"0000-00-00\"))"),
            ("time", TIME2, 0, b"\x4b\x91\x05", "Ok(Time(-3020399000000, 0))"),
            ("time(2)", TIME2, 2, b"\x7f\xff\xff\xff", "Ok(Time(-10000, 2))"),
            ("datetime(6)", DATETIME2, 6, b"\x80\0\0\0\0\0\0\0", "Ok(Text(\"0000-00-00 00:00:00.000000\"))"),
            ("timestamp", TIMESTAMP2, 0, b"\0\0\0\x01", "Ok(Moment(1000000, 0))"),
            ("timestamp", TIMESTAMP2, 0, b"\0\0\0\0", "Ok(Text(\"0000-00-00 00:00:00\"))"),
            ("year", YEAR, 0, b"\x7c", "Ok(Int(2024))"),
            ("binary(4)", STRING, 4, b"A", "Ok(Bytes([65, 0, 0, 0]))"),
            ("enum('a','b')", ENUM, 1, b"\x02", "Ok(Text(\"b\"))"),
            ("enum('a','b')", ENUM, 1, b"\0", "Ok(Text(\"\"))"),
            ("set('x','y')", SET, 1, b"\x03", "Ok(Text(\"x,y\"))"),
            ("inet6", STRING, 16, b"", "Ok(Text(\"::\"))"),
            ("inet4", STRING, 4, b"\x01\x02\x03\x04", "Ok(Text(\"1.2.3.4\"))"),
            ("varchar(9) character set utf8mb4", VARCHAR, 36, b"\xff", "Err(\"it is no text of its character set\")"),
        ] {
            assert_eq!(read(declared, number, meta, bytes), expected, "{declared} {bytes:?}");
        }
        let long = read(
            "decimal(65,30)",
            NEWDECIMAL,
            0x411e,
            &[&[0x80][..], &[0; 28], &[0x3b, 0x9a, 0xc9, 0xff]].concat()[..30],
        );
        assert!(long.starts_with("Ok(Text(\"0.00"), "{long}");
    }

    proptest! {
        /// Whatever the log says, nothing panics.
        #[test]
        fn any_bytes_are_a_value_or_an_error(number: u8, meta: [u8; 2], bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let Ok(stored) = Stored::read(number, &mut Reader::new(&meta)) else { return Ok(()) };
            let Ok(value) = stored.take(&mut Reader::new(&bytes)) else { return Ok(()) };
            for declared in ["int(11)", "decimal(65,30)", "decimal(10,2)", "time(6)", "datetime(6)", "timestamp(6)", "enum('a')", "set('a')",
                "date", "year", "uuid", "binary(9)", "bit(64)", "double", "varchar(9) character set utf8mb4"] {
                let charset = Some(Arc::new(Charset::Utf8));
                let column = ImageColumn { stored, ty: SqlType::parse(declared).unwrap(), charset };
                if stored.is_of(&column.ty) {
                    let _ = decode(&column, value, &mut Scratch::default());
                }
            }
        }
    }
}

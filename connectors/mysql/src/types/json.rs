//! MySQL's binary JSON, as the log has it, printed as the server prints it (the layout is described at the head of MySQL's
//! `sql-common/json_binary.h`; the text is that of `Json_wrapper::to_string`). MariaDB's JSON is a text and is not for here.
//!
//! A container begins with the number of its elements and its size, then come the places of its keys (an object's), and
//! then the types and places of its values, or small values themselves. All places count from the container's beginning.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use std::{fmt::Write, iter};

use super::{image, value};
use crate::wire::{Malformed, Reader};

/// Containers within each other, as the server allows (`JSON_DOCUMENT_MAX_DEPTH`).
pub(super) const DEPTH_MAX: usize = 100;

mod kind {
    pub const OBJECT: u8 = 0;
    pub const LARGE_OBJECT: u8 = 1;
    pub const ARRAY: u8 = 2;
    pub const LARGE_ARRAY: u8 = 3;
    pub const LITERAL: u8 = 4;
    pub const INT16: u8 = 5;
    pub const UINT16: u8 = 6;
    pub const INT32: u8 = 7;
    pub const UINT32: u8 = 8;
    pub const INT64: u8 = 9;
    pub const UINT64: u8 = 10;
    pub const DOUBLE: u8 = 11;
    pub const STRING: u8 = 12;
    pub const OPAQUE: u8 = 15;
}

/// Prints a document.
pub fn print(document: &[u8], out: &mut String) -> Result<(), Malformed> {
    Printer::new(document, out).print(Binary::document(document), 0)
}

/// A value in a document: its type, and its bytes with whatever follows them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binary<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl<'a> Binary<'a> {
    /// The whole of a document; one without any bytes is null, as the server reads it.
    pub fn document(bytes: &'a [u8]) -> Self {
        let (&kind, bytes) = bytes.split_first().unwrap_or((&kind::LITERAL, &[0]));
        Self { kind, bytes }
    }

    /// Its elements, if it is a container.
    pub fn container(self) -> Result<Option<Container<'a>>, Malformed> {
        let (is_object, width) = match self.kind {
            kind::OBJECT => (true, 2),
            kind::LARGE_OBJECT => (true, 4),
            kind::ARRAY => (false, 2),
            kind::LARGE_ARRAY => (false, 4),
            _ => return Ok(None),
        };
        let mut reader = Reader::new(self.bytes);
        let count = reader.little(width)? as usize;
        let size = reader.little(width)? as usize;
        let whole = Reader::new(self.bytes).bytes(size)?;
        let mut reader = Reader::new(whole);
        reader.bytes(2 * width)?;
        let keys = reader.bytes(if is_object { count * (width + 2) } else { 0 })?;
        let values = reader.bytes(count * (width + 1))?;
        Ok(Some(Container { is_object, width, count, whole, keys, values }))
    }
}

/// An object or an array.
#[derive(Debug, Clone, Copy)]
pub(super) struct Container<'a> {
    /// Its elements have keys.
    pub is_object: bool,
    /// Number of elements.
    pub count: usize,
    /// Bytes of a place: 2 or 4.
    width: usize,
    whole: &'a [u8],
    keys: &'a [u8],
    values: &'a [u8],
}

impl<'a> Container<'a> {
    /// The key of an element; empty in an array.
    pub fn key(&self, index: usize) -> Result<&'a str, Malformed> {
        if !self.is_object {
            return Ok("");
        }
        let mut entry = entry(self.keys, index, self.width + 2)?;
        let (place, length) = (entry.little(self.width)? as usize, usize::from(entry.u16()?));
        text(self.at(place)?.get(..length).ok_or(OUTSIDE)?)
    }

    /// An element.
    pub fn value(&self, index: usize) -> Result<Binary<'a>, Malformed> {
        let mut entry = entry(self.values, index, self.width + 1)?;
        let kind = entry.u8()?;
        let is_inline = match kind {
            kind::LITERAL | kind::INT16 | kind::UINT16 => true,
            kind::INT32 | kind::UINT32 => self.width == 4,
            _ => false,
        };
        let bytes = if is_inline { entry.rest() } else { self.at(entry.little(self.width)? as usize)? };
        Ok(Binary { kind, bytes })
    }

    fn at(&self, place: usize) -> Result<&'a [u8], Malformed> {
        self.whole.get(place..).ok_or(OUTSIDE)
    }

    fn head_bytes(&self) -> usize {
        2 * self.width + self.keys.len() + self.values.len()
    }
}

const OUTSIDE: Malformed = Malformed("a place in JSON is outside of its container");

fn entry(entries: &[u8], index: usize, width: usize) -> Result<Reader<'_>, Malformed> {
    let mut reader = Reader::new(entries);
    reader.bytes(index * width)?;
    reader.bytes(width).map(Reader::new)
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("a text in JSON is none"))
}

/// A length in groups of seven bits, the lowest first.
fn length(reader: &mut Reader<'_>) -> Result<usize, Malformed> {
    let mut length = 0;
    for shift in (0..35).step_by(7) {
        let byte = reader.u8()?;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(Malformed("a length in JSON has no end"))
}

/// Prints values of one document.
pub(super) struct Printer<'a> {
    out: &'a mut String,
    /// Bytes that are left to read. No two values share any, so a document that takes more than it has goes in circles.
    budget: usize,
}

impl<'a> Printer<'a> {
    /// For values of a document of so many bytes.
    pub fn new(document: &[u8], out: &'a mut String) -> Self {
        Self { out, budget: document.len() }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.budget = self.budget.checked_sub(bytes).ok_or(Malformed("values in JSON overlap"))?;
        Ok(())
    }

    /// Prints one value, which lies in so many containers.
    pub fn print(&mut self, value: Binary<'_>, depth: usize) -> Result<(), Malformed> {
        let Some(container) = value.container()? else { return self.scalar(value) };
        if depth == DEPTH_MAX {
            return Err(Malformed("JSON is too deep"));
        }
        self.spend(container.head_bytes())?;
        self.out.push(if container.is_object { '{' } else { '[' });
        for index in 0..container.count {
            if index > 0 {
                self.out.push_str(", ");
            }
            if container.is_object {
                let key = container.key(index)?;
                self.spend(key.len())?;
                quote(key, self.out);
                self.out.push_str(": ");
            }
            self.print(container.value(index)?, depth + 1)?;
        }
        self.out.push(if container.is_object { '}' } else { ']' });
        Ok(())
    }

    fn scalar(&mut self, value: Binary<'_>) -> Result<(), Malformed> {
        let mut reader = Reader::new(value.bytes);
        // Writing to a String cannot fail.
        let _ = match value.kind {
            kind::LITERAL => {
                self.out.push_str(match reader.u8()? {
                    0 => "null",
                    1 => "true",
                    2 => "false",
                    _ => return Err(Malformed("a literal in JSON is not known")),
                });
                Ok(())
            }
            kind::INT16 => write!(self.out, "{}", reader.u16()? as i16),
            kind::UINT16 => write!(self.out, "{}", reader.u16()?),
            kind::INT32 => write!(self.out, "{}", reader.u32()? as i32),
            kind::UINT32 => write!(self.out, "{}", reader.u32()?),
            kind::INT64 => write!(self.out, "{}", reader.u64()? as i64),
            kind::UINT64 => write!(self.out, "{}", reader.u64()?),
            kind::DOUBLE => {
                double(f64::from_bits(reader.u64()?), self.out);
                Ok(())
            }
            kind::STRING => {
                let length = length(&mut reader)?;
                self.spend(length)?;
                quote(text(reader.bytes(length)?)?, self.out);
                Ok(())
            }
            kind::OPAQUE => {
                let number = reader.u8()?;
                let length = length(&mut reader)?;
                self.spend(length)?;
                return opaque(number, reader.bytes(length)?, self.out);
            }
            _ => return Err(Malformed("a value in JSON has a type that is not known")),
        };
        Ok(())
    }
}

/// A text as the server quotes it.
pub(super) fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        let short = match c {
            '"' | '\\' => c,
            '\u{8}' => 'b',
            '\u{c}' => 'f',
            '\n' => 'n',
            '\r' => 'r',
            '\t' => 't',
            '\0'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
                continue;
            }
            _ => {
                out.push(c);
                continue;
            }
        };
        out.push('\\');
        out.push(short);
    }
    out.push('"');
}

/// The shortest digits that tell the number, with an exponent from 10^15 on and below 10^-15 (`my_gcvt`).
fn double(number: f64, out: &mut String) {
    let shortest = format!("{:e}", number.abs());
    let count = shortest.bytes().take_while(|&byte| byte != b'e').filter(u8::is_ascii_digit).count();
    // Of two texts that are as short and as near, the server takes the one whose last digit is even. Beside a power of two
    // the nearest one of as many digits can be another number.
    let nearest = format!("{:.*e}", count.saturating_sub(1), number.abs());
    let text = if nearest.parse() == Ok(number.abs()) { nearest } else { shortest };
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    // Digits before the point.
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    out.push_str(if number.is_sign_negative() { "-" } else { "" });
    if !((-14..=15).contains(&point) || (15..count as i32).contains(&point)) {
        let _ = write!(out, "{digits}e{exponent}");
        return;
    }
    let digits = || digits.chars().filter(|&c| c != '.');
    if point <= 0 {
        out.push_str("0.");
        out.extend(iter::repeat_n('0', point.unsigned_abs() as usize).chain(digits()));
        return;
    }
    let point = point as usize;
    out.extend(digits().chain(iter::repeat('0')).take(point));
    out.push('.');
    out.extend(digits().skip(point));
    out.push_str(if count <= point { "0" } else { "" });
}

/// A value of another type of SQL.
fn opaque(number: u8, bytes: &[u8], out: &mut String) -> Result<(), Malformed> {
    use image::number::{DATE, DATETIME, NEWDECIMAL, TIME, TIMESTAMP, VAR_STRING};
    let mut reader = Reader::new(bytes);
    match number {
        NEWDECIMAL => {
            let (precision, scale) = (reader.u8()?, reader.u8()?);
            let mut scratch = String::new();
            image::decimal(reader.rest(), precision, scale, &mut scratch)?.print(out);
        }
        DATE | DATETIME | TIMESTAMP => {
            let packed = reader.u64()?;
            let part = |shift: u32, bits: u32| (packed >> shift) & ((1 << bits) - 1);
            let months = part(46, 17);
            let _ = write!(out, "\"{:04}-{:02}-{:02}", months / 13, months % 13, part(41, 5));
            if number != DATE {
                let seconds = part(36, 5) * 3600 + part(30, 6) * 60 + part(24, 6);
                out.push(' ');
                value::Value::Time((seconds * 1_000_000 + part(0, 24)) as i64, 6).print(out);
            }
            out.push('"');
        }
        TIME => {
            let packed = reader.u64()? as i64;
            let all = packed.unsigned_abs();
            let seconds = (all >> 36 & 0x3ff) * 3600 + (all >> 30 & 0x3f) * 60 + (all >> 24 & 0x3f);
            let micros = (seconds * 1_000_000 + (all & 0xff_ffff)) as i64;
            out.push('"');
            value::Value::Time(if packed < 0 { -micros } else { micros }, 6).print(out);
            out.push('"');
        }
        VAR_STRING => quote(text(bytes)?, out),
        _ => {
            let _ = write!(out, "\"base64:type{number}:");
            base64(bytes, out);
            out.push('"');
        }
    }
    Ok(())
}

/// In lines of 76 characters, between which stands a quoted line feed.
fn base64(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (index, three) in bytes.chunks(3).enumerate() {
        if index > 0 && index.is_multiple_of(19) {
            out.push_str("\\n");
        }
        let all = three.iter().fold(0_usize, |all, &byte| all << 8 | usize::from(byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS.get(all >> (18 - 6 * place) & 63).copied().unwrap_or_default();
            out.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed(document: &[u8]) -> Result<String, Malformed> {
        let mut text = String::new();
        print(document, &mut text).map(|()| text)
    }

    /// What a test encodes.
    #[derive(Debug, Clone)]
    enum Json {
        Literal(u8),
        Int(i64),
        Text(String),
        Array(Vec<Json>),
        Object(Vec<(String, Json)>),
    }

    impl Json {
        /// As the server prints it.
        fn text(&self) -> String {
            let quoted = |text: &str| {
                let mut out = String::new();
                quote(text, &mut out);
                out
            };
            match self {
                Self::Literal(literal) => ["null", "true", "false"][usize::from(*literal)].into(),
                Self::Int(number) => number.to_string(),
                Self::Text(text) => quoted(text),
                Self::Array(values) => format!("[{}]", values.iter().map(Self::text).collect::<Vec<_>>().join(", ")),
                Self::Object(members) => {
                    let member = |(key, value): &(String, Self)| format!("{}: {}", quoted(key), value.text());
                    format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(", "))
                }
            }
        }

        /// Type and bytes, in places of 2 or 4 bytes.
        fn encode(&self, wide: bool) -> (u8, Vec<u8>) {
            match self {
                Self::Literal(literal) => (kind::LITERAL, vec![*literal, 0]),
                Self::Int(number) => match i16::try_from(*number) {
                    Ok(small) => (kind::INT16, small.to_le_bytes().to_vec()),
                    Err(_) => (kind::INT64, number.to_le_bytes().to_vec()),
                },
                Self::Text(text) => {
                    let (low, high) = ((text.len() & 127) as u8, (text.len() >> 7) as u8);
                    let length = if high == 0 { vec![low] } else { vec![low | 128, high] };
                    (kind::STRING, [&length, text.as_bytes()].concat())
                }
                Self::Array(values) => {
                    (kind::ARRAY + u8::from(wide), container(&[], &values.iter().collect::<Vec<_>>(), wide))
                }
                Self::Object(members) => {
                    let (keys, values): (Vec<_>, Vec<_>) = members.iter().map(|(key, value)| (key, value)).unzip();
                    (kind::OBJECT + u8::from(wide), container(&keys, &values, wide))
                }
            }
        }
    }

    fn container(keys: &[&String], values: &[&Json], wide: bool) -> Vec<u8> {
        let width = if wide { 4 } else { 2 };
        let place = |number: usize| number.to_le_bytes()[..width].to_vec();
        let mut at = 2 * width + keys.len() * (width + 2) + values.len() * (width + 1);
        let (mut entries, mut data) = (vec![], vec![]);
        for key in keys {
            entries.extend([place(at), (key.len() as u16).to_le_bytes().to_vec()].concat());
            data.extend(key.as_bytes());
            at += key.len();
        }
        for value in values {
            let (kind, mut bytes) = value.encode(wide);
            entries.push(kind);
            if matches!(kind, kind::LITERAL | kind::INT16) {
                bytes.resize(width, 0);
                entries.extend(bytes);
            } else {
                entries.extend(place(at));
                at += bytes.len();
                data.extend(bytes);
            }
        }
        [place(values.len()), place(at), entries, data].concat()
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            (0..3_u8).prop_map(Json::Literal),
            any::<i16>().prop_map(|number| Json::Int(number.into())),
            any::<i64>().prop_map(Json::Int),
            ".{0,200}".prop_map(Json::Text),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Json::Array),
                prop::collection::vec((".{0,9}", inner), 0..5).prop_map(Json::Object),
            ]
        })
    }

    #[test]
    fn numbers_are_printed_as_the_server_does() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1e14, "100000000000000.0"),
            (1e15, "1e15"),
            (123456789012345.6, "123456789012345.6"),
            (1234567890123456.0, "1.234567890123456e15"),
            (1234567890123456.0 + 0.25, "1234567890123456.2"),
            (1234567890123456.0 + 0.75, "1234567890123456.8"),
            (1e-15, "0.000000000000001"),
            (-1.5e-16, "-1.5e-16"),
            (f64::MAX, "1.7976931348623157e308"),
            (5e-324, "5e-324"),
            (2_f64.powi(89), "6.189700196426902e26"),
            (2_f64.powi(-24), "0.00000005960464477539063"),
            (2_f64.powi(-44), "0.00000000000005684341886080802"),
            (-120.0, "-120.0"),
            (1.5, "1.5"),
        ] {
            let document = [&[kind::DOUBLE][..], &f64::to_le_bytes(number)].concat();
            assert_eq!(printed(&document).unwrap(), expected);
        }
    }

    #[test]
    fn other_types_of_sql_are_printed() {
        assert_eq!(printed(b"\x0f\xf6\x08\x0c\x03\x7f\xff\xff\xff\xff\xfe").unwrap(), "-0.001");
        assert_eq!(printed(b"\x0f\xfc\x02\x00\xff").unwrap(), "\"base64:type252:AP8=\"");
        assert_eq!(printed(&[&[15, 11, 8][..], &(-1_i64).to_le_bytes()].concat()).unwrap(), "\"-00:00:00.000001\"");
        let mut long = String::new();
        base64(&[0; 58], &mut long);
        assert_eq!((long.len(), &long[76..]), (82, "\\nAA=="));
        assert_eq!(printed(b"").unwrap(), "null");
    }

    #[test]
    fn what_goes_in_circles_is_refused() {
        // An array whose three elements are the array itself.
        let array = b"\x03\0\x0d\0\x02\0\0\x02\0\0\x02\0\0";
        assert!(printed(&[&[kind::ARRAY][..], array].concat()).is_err());
    }

    proptest! {
        #[test]
        fn documents_are_printed(json in any_json(), wide: bool) {
            let (kind, bytes) = json.encode(wide);
            prop_assert_eq!(printed(&[&[kind][..], &bytes].concat()).unwrap(), json.text());
        }

        #[test]
        fn any_bytes_are_json_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..16_u8) {
            let _ = printed(&[&[kind][..], &bytes].concat());
        }
    }
}

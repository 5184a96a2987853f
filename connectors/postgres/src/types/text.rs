//! Decodes the server's text, as pgoutput sends it, into columns.
//!
//! The text is what a session prints with TimeZone UTC, DateStyle ISO, IntervalStyle postgres and bytea_output hex
//! (`wire::connection` pins them). A value that its column cannot hold is refused with a reason that does not contain
//! the value. On the hot path: parsers are written by hand, and nothing is allocated per cell.
//!
//! Manual: chapter 8 "Data Types", section 8.15.6 "Array Input and Output Syntax".

use std::cell::Cell;

use millrace_core::{ColumnType, ColumnVec};

type Refused = &'static str;

/// Adds the value to the column; on an error the column is as before.
pub fn decode(ty: &ColumnType, text: &[u8], out: &mut ColumnVec) -> Result<(), String> {
    decode_into(ty, text, out).map_err(String::from)
}

/// Adds the nearest value that the column can hold; an error where none is near (NaN, an array of another shape).
pub fn clamp(ty: &ColumnType, text: &[u8], out: &mut ColumnVec) -> Result<(), String> {
    clamp_into(ty, text, out).map_err(String::from)
}

fn clamp_into(ty: &ColumnType, text: &[u8], out: &mut ColumnVec) -> Result<(), Refused> {
    let refused = match ty {
        ColumnType::List(item) => return array(item, text, out, clamp_into),
        _ => match decode_into(ty, text, out) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        },
    };
    let is_low = text.starts_with(b"-") || text.ends_with(b" BC");
    match ty {
        ColumnType::Decimal { precision, scale } => {
            out.push_decimal(nearest_decimal(text, *precision, *scale).ok_or(refused)?);
        }
        ColumnType::Date if is_date(text) => out.push_i32(if is_low { DAY_MIN } else { DAY_MAX }),
        ColumnType::Time if text.starts_with(b"24:00:00") => out.push_i64(DAY_US - 1),
        ColumnType::Timestamp | ColumnType::TimestampTz if is_date(text) => {
            out.push_i64(if is_low { i64::from(DAY_MIN) * DAY_US } else { TIMESTAMP_MAX_US });
        }
        _ => return Err(refused),
    }
    Ok(())
}

/// Whether a date or timestamp that was refused was so because of its size.
fn is_date(text: &[u8]) -> bool {
    matches!(text, b"infinity" | b"-infinity") || text.first().is_some_and(u8::is_ascii_digit)
}

/// The unscaled value that is nearest: rounded half away from zero, as the server rounds, and within the precision.
fn nearest_decimal(text: &[u8], precision: u8, scale: u8) -> Option<i128> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let limit = 10_i128.checked_pow(u32::from(precision))? - 1;
    let nearest = if digits == b"Infinity" {
        limit
    } else {
        let point = digits.iter().position(|&byte| byte == b'.').unwrap_or(digits.len());
        let (whole, fraction) = digits.split_at_checked(point)?;
        let fraction = fraction.strip_prefix(b".").unwrap_or(fraction);
        if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
            return None;
        }
        let kept = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(usize::from(scale));
        let mut value = 0_i128;
        for digit in whole.iter().copied().chain(kept) {
            value = value.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
        }
        let rounds_up = fraction.get(usize::from(scale)).is_some_and(|&digit| digit >= b'5');
        value.saturating_add(i128::from(rounds_up)).min(limit)
    };
    Some(if negative { -nearest } else { nearest })
}

#[inline]
fn decode_into(ty: &ColumnType, text: &[u8], out: &mut ColumnVec) -> Result<(), Refused> {
    match ty {
        ColumnType::Boolean => match text {
            b"t" => out.push_bool(true),
            b"f" => out.push_bool(false),
            _ => return Err("it is not a boolean"),
        },
        ColumnType::Int16 => out.push_i16(integer(text)?.try_into().map_err(|_| "it does not fit 16 bits")?),
        ColumnType::Int32 => out.push_i32(integer(text)?.try_into().map_err(|_| "it does not fit 32 bits")?),
        ColumnType::Int64 => out.push_i64(integer(text)?),
        ColumnType::Float32 => out.push_f32(utf8(text)?.parse().map_err(|_| "it is not a number")?),
        ColumnType::Float64 => out.push_f64(utf8(text)?.parse().map_err(|_| "it is not a number")?),
        ColumnType::Decimal { precision, scale } => out.push_decimal(decimal(text, *precision, *scale)?),
        ColumnType::Text => out.push_str(utf8(text)?),
        ColumnType::Binary => return with_scratch(&HEX, |bytes| hex(text, bytes).map(|()| out.push_bytes(bytes))),
        ColumnType::Date => {
            let (days, rest) = date(text)?;
            end(rest)?;
            out.push_i32(i32::try_from(days).map_err(|_| "the date is out of range")?);
        }
        ColumnType::Time => {
            let (time_us, rest) = time(text)?;
            end(rest)?;
            if time_us >= DAY_US {
                return Err("24:00:00 is not a time below 24 hours");
            }
            out.push_i64(time_us);
        }
        ColumnType::Timestamp => out.push_i64(timestamp(text, false)?),
        ColumnType::TimestampTz => out.push_i64(timestamp(text, true)?),
        ColumnType::List(item) => return array(item, text, out, decode_into),
    }
    Ok(())
}

const DAY_US: i64 = 86_400_000_000;
/// 0001-01-01, the first day of a date or timestamp: readers have no years before it.
const DAY_MIN: i32 = -719_162;
/// 5874897-12-31, the server's last day.
const DAY_MAX: i32 = 2_145_042_905;
/// 294247-01-10 04:00:54.775806: one microsecond more is what DuckDB takes for infinity.
pub(super) const TIMESTAMP_MAX_US: i64 = i64::MAX - 1;

thread_local! {
    /// Bytes of a bytea whose digits are being read.
    static HEX: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// An array's item without its backslashes.
    static ITEM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends a buffer that is used again and again, so that no cell allocates one.
fn with_scratch<T>(scratch: &'static std::thread::LocalKey<Cell<Vec<u8>>>, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut buffer = scratch.take();
    buffer.clear();
    let result = work(&mut buffer);
    // A huge value must not hold its memory for ever.
    if buffer.capacity() <= 1 << 20 {
        scratch.set(buffer);
    }
    result
}

fn utf8(text: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(text).map_err(|_| "it is not UTF-8")
}

fn end(rest: &[u8]) -> Result<(), Refused> {
    match rest {
        [] => Ok(()),
        b" BC" => Err("a date before the year 1 is out of range"),
        _ => Err("it goes on behind its end"),
    }
}

fn integer(text: &[u8]) -> Result<i64, Refused> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 {
        return Err("it is not an integer of 64 bits");
    }
    let mut value = 0_u64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err("it is not an integer");
        }
        // 19 digits fit 64 bits unsigned.
        value = value * 10 + u64::from(digit);
    }
    let signed = if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() };
    signed.ok_or("it does not fit 64 bits")
}

/// The unscaled value of an exact decimal.
fn decimal(text: &[u8], precision: u8, scale: u8) -> Result<i128, Refused> {
    let (negative, rest) = match text {
        b"NaN" => return Err("NaN is not a decimal"),
        b"Infinity" | b"-Infinity" => return Err("infinity is not a decimal"),
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut value = 0_u128;
    let mut significant = 0_u32;
    let mut behind_point: Option<u8> = None;
    let mut any = false;
    for byte in rest {
        match byte {
            b'0'..=b'9' => {
                any = true;
                if let Some(count) = &mut behind_point {
                    if *count == scale {
                        if *byte != b'0' {
                            return Err("it has more digits than its column");
                        }
                        continue;
                    }
                    *count += 1;
                }
                significant += u32::from(significant > 0 || *byte != b'0');
                if significant > 38 {
                    return Err("it has more digits than its column");
                }
                value = value * 10 + u128::from(byte - b'0');
            }
            b'.' if behind_point.is_none() => behind_point = Some(0),
            _ => return Err("it is not a decimal"),
        }
    }
    if !any {
        return Err("it is not a decimal");
    }
    let missing = u32::from(scale - behind_point.unwrap_or(0));
    let digits = if value == 0 { 0 } else { significant + missing };
    if digits > u32::from(precision) {
        return Err("it has more digits than its column");
    }
    // At most 38 digits: below 2^127.
    let value = (value * 10_u128.pow(if value == 0 { 0 } else { missing })) as i128;
    Ok(if negative { -value } else { value })
}

fn hex(text: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
    let [b'\\', b'x', digits @ ..] = text else { return Err("it is not bytea in hexadecimal") };
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err("it is not bytea in hexadecimal"),
    };
    let (pairs, []) = digits.as_chunks::<2>() else { return Err("it is not bytea in hexadecimal") };
    out.reserve(pairs.len());
    for [high, low] in pairs {
        out.push(nibble(*high)? << 4 | nibble(*low)?);
    }
    Ok(())
}

/// Takes a run of digits: its value and how many there are.
#[inline]
fn digits(text: &[u8]) -> Result<(i64, usize, &[u8]), Refused> {
    let mut value = 0_i64;
    let mut count = 0;
    while let Some(byte @ b'0'..=b'9') = text.get(count) {
        if count == 9 {
            return Err("a number in it is too long");
        }
        value = value * 10 + i64::from(byte - b'0');
        count += 1;
    }
    if count == 0 { Err("a number in it is missing") } else { Ok((value, count, &text[count..])) }
}

#[inline]
fn two_digits(text: &[u8]) -> Result<(i64, &[u8]), Refused> {
    match text {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9', rest @ ..] => {
            Ok((i64::from(tens - b'0') * 10 + i64::from(ones - b'0'), rest))
        }
        _ => Err("it is not a date or time in ISO form"),
    }
}

#[inline]
fn skip(text: &[u8], byte: u8) -> Result<&[u8], Refused> {
    match text {
        [first, rest @ ..] if *first == byte => Ok(rest),
        _ => Err("it is not a date or time in ISO form"),
    }
}

/// `YYYY-MM-DD`, with more digits behind the year 9999: days since 1970-01-01.
fn date(text: &[u8]) -> Result<(i64, &[u8]), Refused> {
    if matches!(text, b"infinity" | b"-infinity") {
        return Err("infinity is not a date or time");
    }
    let (year, count, rest) = digits(text)?;
    let (month, rest) = two_digits(skip(rest, b'-')?)?;
    let (day, rest) = two_digits(skip(rest, b'-')?)?;
    if count < 4 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err("it is not a date in ISO form");
    }
    // Of a date, BC stands at the very end; of a timestamp too, where the time lies in between.
    if text.ends_with(b" BC") {
        return Err("a date before the year 1 is out of range");
    }
    Ok((days_from_civil(year, month, day), rest))
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `days_from_civil`), for years from 1 on.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// `HH:MM:SS[.ffffff]`: microseconds since midnight, up to 24:00:00.
fn time(text: &[u8]) -> Result<(i64, &[u8]), Refused> {
    let (hours, rest) = two_digits(text)?;
    let (minutes, rest) = two_digits(skip(rest, b':')?)?;
    let (seconds, rest) = two_digits(skip(rest, b':')?)?;
    if hours > 24 || minutes > 59 || seconds > 60 {
        return Err("it is not a time in ISO form");
    }
    let (fraction_us, rest) = match rest {
        [b'.', rest @ ..] => {
            let (value, count, rest) = digits(rest)?;
            let missing = u32::try_from(count).ok().and_then(|count| 6_u32.checked_sub(count));
            (value * 10_i64.pow(missing.ok_or("it has more than six digits of a second")?), rest)
        }
        rest => (0, rest),
    };
    Ok((((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction_us, rest))
}

/// A date and a time, and with `zone` the distance from UTC: microseconds since 1970-01-01 (UTC).
fn timestamp(text: &[u8], zone: bool) -> Result<i64, Refused> {
    let (days, rest) = date(text)?;
    let (time_us, mut rest) = time(skip(rest, b' ')?)?;
    let mut offset_s = 0;
    if zone {
        (offset_s, rest) = utc_offset(rest)?;
    }
    end(rest)?;
    days.checked_mul(DAY_US)
        .and_then(|day_us| day_us.checked_add(time_us))
        .and_then(|local_us| local_us.checked_sub(offset_s * 1_000_000))
        .filter(|us| *us <= TIMESTAMP_MAX_US)
        .ok_or("the timestamp is out of range")
}

/// `+HH[:MM[:SS]]` in seconds.
fn utc_offset(text: &[u8]) -> Result<(i64, &[u8]), Refused> {
    let (sign, rest) = match text {
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return Err("it has no time zone"),
    };
    let (hours, mut rest) = two_digits(rest)?;
    let mut offset_s = hours * 3600;
    for unit_s in [60, 1] {
        if let [b':', more @ ..] = rest {
            let (value, more) = two_digits(more)?;
            offset_s += value * unit_s;
            rest = more;
        }
    }
    Ok((sign * offset_s, rest))
}

/// How one item is added.
trait Take: Fn(&ColumnType, &[u8], &mut ColumnVec) -> Result<(), Refused> + Copy {}
impl<T: Fn(&ColumnType, &[u8], &mut ColumnVec) -> Result<(), Refused> + Copy> Take for T {}

fn array(item: &ColumnType, text: &[u8], out: &mut ColumnVec, take: impl Take) -> Result<(), Refused> {
    let inner = match text {
        [b'{', inner @ .., b'}'] => inner,
        [b'[', ..] => return Err("an array whose first index is not 1 is out of range"),
        _ => return Err("it is not an array"),
    };
    out.push_list(|items| {
        let mut rest = inner;
        while !rest.is_empty() {
            rest = array_item(item, rest, items, take)?;
            rest = match rest {
                [] => rest,
                [b',', more @ ..] if !more.is_empty() => more,
                _ => return Err("it is not an array"),
            };
        }
        Ok(())
    })
}

/// Takes one item; gives what follows it.
fn array_item<'a>(
    item: &ColumnType,
    text: &'a [u8],
    items: &mut ColumnVec,
    take: impl Take,
) -> Result<&'a [u8], Refused> {
    match text {
        [b'{', ..] => Err("an array of several dimensions is out of range"),
        [b'"', quoted @ ..] => {
            let end = quoted.iter().position(|byte| matches!(byte, b'"' | b'\\')).ok_or("it is not an array")?;
            if quoted[end] == b'"' {
                take(item, &quoted[..end], items)?;
                return Ok(&quoted[end + 1..]);
            }
            with_scratch(&ITEM, |plain| {
                let rest = unquote(quoted, plain)?;
                take(item, plain, items)?;
                Ok(rest)
            })
        }
        _ => {
            let end = text.iter().position(|&byte| byte == b',').unwrap_or(text.len());
            match &text[..end] {
                b"" => return Err("it is not an array"),
                bare if bare.eq_ignore_ascii_case(b"NULL") => items.push_null(),
                bare => take(item, bare, items)?,
            }
            Ok(&text[end..])
        }
    }
}

/// Takes the backslashes out up to the closing quote; gives what follows it.
fn unquote<'a>(mut quoted: &'a [u8], plain: &mut Vec<u8>) -> Result<&'a [u8], Refused> {
    loop {
        quoted = match quoted {
            [b'"', rest @ ..] => return Ok(rest),
            [b'\\', byte, rest @ ..] | [byte, rest @ ..] => {
                plain.push(*byte);
                rest
            }
            [] => return Err("it is not an array"),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(item: ColumnType) -> ColumnType {
        ColumnType::List(Box::new(item))
    }

    fn one(ty: &ColumnType, text: &str) -> Result<String, String> {
        let mut out = ColumnVec::new(ty);
        match decode(ty, text.as_bytes(), &mut out) {
            Ok(()) => {
                assert_eq!(out.len(), 1);
                Ok(out.cell_text(0).expect("a value is not null"))
            }
            Err(reason) => {
                assert!(out.is_empty(), "a refused value leaves nothing: {ty:?} {text}");
                Err(reason)
            }
        }
    }

    #[test]
    fn values_by_type() {
        use ColumnType::*;
        let decimal = |precision, scale| Decimal { precision, scale };
        let nines = "9".repeat(38);
        let nines_scaled = format!("-0.{nines}");
        let nines_negative = format!("-{nines}");
        for (ty, text, expected) in [
            (Boolean, "t", "true"),
            (Boolean, "f", "false"),
            (Int16, "-32768", "-32768"),
            (Int32, "2147483647", "2147483647"),
            (Int64, "-9223372036854775808", "-9223372036854775808"),
            (Int64, "9223372036854775807", "9223372036854775807"),
            (Float32, "1.1", "1.1"),
            (Float32, "NaN", "NaN"),
            (Float64, "-Infinity", "-inf"),
            (Float64, "-0", "-0"),
            (decimal(10, 2), "12.34", "1234"),
            (decimal(10, 2), "-0.05", "-5"),
            (decimal(10, 2), "7", "700"),
            (decimal(10, 2), "7.1", "710"),
            (decimal(10, 2), "7.100", "710"),
            (decimal(10, 2), "0.00", "0"),
            (decimal(10, 2), "99999999.99", "9999999999"),
            (decimal(38, 0), nines_negative.as_str(), nines_negative.as_str()),
            (decimal(38, 38), nines_scaled.as_str(), nines_negative.as_str()),
            (decimal(38, 38), "0", "0"),
            (Text, "a\\b\"ü", "a\\b\"ü"),
            (Text, "", ""),
            (Binary, "\\x", "\\x"),
            (Binary, "\\x00fFA0", "\\x00ffa0"),
            (Date, "1970-01-01", "0"),
            (Date, "0001-01-01", "-719162"),
            (Date, "2000-02-29", "11016"),
            (Date, "5874897-12-31", "2145042905"),
            (Time, "00:00:00", "0"),
            (Time, "23:59:59.999999", "86399999999"),
            (Time, "01:02:03.5", "3723500000"),
            (Timestamp, "1969-12-31 23:59:59.999999", "-1"),
            (Timestamp, "294246-12-31 00:00:00", "9223371158400000000"),
            (TimestampTz, "2026-11-23 15:00:00.25+00", "1795446000250000"),
            (TimestampTz, "2026-11-23 15:00:00+05:30", "1795426200000000"),
            (TimestampTz, "1883-11-18 12:03:58-04:56:02", "-2717650800000000"),
            (list(Int32), "{}", "{}"),
            (list(Int32), "{1,NULL,-3}", "{\"1\",NULL,\"-3\"}"),
            (list(Text), r#"{a,"b c","NULL",null,"x\"y\\z",""}"#, r#"{"a","b c","NULL",NULL,"x\"y\\z",""}"#),
            (list(Binary), r#"{"\\x01ff"}"#, r#"{"\\x01ff"}"#),
            (list(Timestamp), r#"{"1970-01-01 00:00:01"}"#, r#"{"1000000"}"#),
            (list(decimal(5, 1)), "{1.5,2.0}", r#"{"15","20"}"#),
        ] {
            assert_eq!(one(&ty, text).as_deref(), Ok(expected), "{ty:?} {text}");
        }
    }

    #[test]
    fn refused_values() {
        use ColumnType::*;
        let decimal = |precision, scale| Decimal { precision, scale };
        for (ty, text) in [
            (Boolean, "true"),
            (Int16, "32768"),
            (Int32, "-2147483649"),
            (Int64, "9223372036854775808"),
            (Int64, "-"),
            (Int64, "1a"),
            (Float64, "x"),
            (decimal(10, 2), "NaN"),
            (decimal(10, 2), "-Infinity"),
            (decimal(4, 2), "123.45"),
            (decimal(4, 2), "100"),
            (decimal(4, 2), "1.234"),
            (decimal(4, 2), "1.2.3"),
            (decimal(4, 2), ""),
            (decimal(4, 2), "."),
            (decimal(38, 0), "100000000000000000000000000000000000000"),
            (Binary, "abc"),
            (Binary, "\\xabc"),
            (Binary, "\\xgg"),
            (Date, "infinity"),
            (Date, "-infinity"),
            (Date, "0044-03-15 BC"),
            (Date, "1970-13-01"),
            (Date, "99999999-01-01"),
            (Time, "24:00:00"),
            (Time, "12:00:00.1234567"),
            (Timestamp, "infinity"),
            (Timestamp, "0044-03-15 00:00:00 BC"),
            (Timestamp, "294276-12-31 23:59:59.999999"),
            (TimestampTz, "0044-03-15 00:00:00+00 BC"),
            (TimestampTz, "1970-01-01 00:00:00"),
            (list(Int32), "{{1,2},{3,4}}"),
            (list(Int32), "[0:1]={1,2}"),
            (list(Int32), "{1,}"),
            (list(Int32), "{1"),
            (list(Text), "{\"a}"),
            (list(Date), "{1970-01-01,infinity}"),
        ] {
            let refused = one(&ty, text);
            let reason = refused.expect_err(&format!("{ty:?} {text}"));
            assert!(
                text.len() < 4
                    || !reason.contains(text)
                    || text.ends_with("infinity")
                    || text == "NaN"
                    || text == "24:00:00",
                "{reason}"
            );
        }
        let mut out = ColumnVec::new(&Text);
        assert_eq!(decode(&Text, b"\xff", &mut out), Err("it is not UTF-8".into()));
    }

    #[test]
    fn the_nearest_values() {
        use ColumnType::*;
        let decimal = |precision, scale| Decimal { precision, scale };
        let clamped = |ty: &ColumnType, text: &str| {
            let mut out = ColumnVec::new(ty);
            let result = clamp(ty, text.as_bytes(), &mut out);
            assert_eq!(out.len(), usize::from(result.is_ok()));
            out.cell_text(0)
        };
        let (first, last) = ("-62135596800000000", "9223372036854775806");
        for (ty, text, expected) in [
            (decimal(4, 2), "Infinity", Some("9999")),
            (decimal(4, 2), "-Infinity", Some("-9999")),
            (decimal(4, 2), "123.45", Some("9999")),
            (decimal(4, 2), "-1e5", None),
            (decimal(4, 2), "1.245", Some("125")),
            (decimal(4, 2), "-1.245", Some("-125")),
            (decimal(4, 2), "0.0049", Some("0")),
            (decimal(2, 0), "99.5", Some("99")),
            (decimal(38, 38), "123456789012345678901234567890", Some(&"9".repeat(38))),
            (decimal(4, 2), "NaN", None),
            (Date, "infinity", Some("2145042905")),
            (Date, "-infinity", Some("-719162")),
            (Date, "0044-03-15 BC", Some("-719162")),
            (Date, "rubbish", None),
            (Time, "24:00:00", Some("86399999999")),
            (Timestamp, "infinity", Some(last)),
            (Timestamp, "294276-12-31 23:59:59.999999", Some(last)),
            (Timestamp, "0044-03-15 00:00:00 BC", Some(first)),
            (TimestampTz, "-infinity", Some(first)),
            (TimestampTz, "2026-11-23 15:00:00.25+00", Some("1795446000250000")),
            (list(Date), "{infinity,NULL,1970-01-02}", Some("{\"2145042905\",NULL,\"1\"}")),
            (list(Int32), "[0:0]={1}", None),
            (list(Int32), "{{1},{2}}", None),
            (list(decimal(4, 2)), "{NaN}", None),
        ] {
            assert_eq!(clamped(&ty, text).as_deref(), expected, "{ty:?} {text}");
        }
    }

    /// How the server prints an array of text.
    fn print_array(items: &[Option<String>]) -> String {
        let printed: Vec<String> = items
            .iter()
            .map(|item| match item {
                None => "NULL".into(),
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            })
            .collect();
        format!("{{{}}}", printed.join(","))
    }

    proptest! {
        #[test]
        fn integers_round_trip(value in any::<i64>()) {
            prop_assert_eq!(one(&ColumnType::Int64, &value.to_string()), Ok(value.to_string()));
        }

        #[test]
        fn decimals_round_trip(unscaled in -10_i128.pow(38) + 1..10_i128.pow(38), scale in 0_u8..=38) {
            let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
            let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
            let sign = if unscaled < 0 { "-" } else { "" };
            let text = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") };
            prop_assert_eq!(one(&ColumnType::Decimal { precision: 38, scale }, &text), Ok(unscaled.to_string()));
        }

        #[test]
        fn bytes_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let text = bytes.iter().fold("\\x".to_string(), |text, byte| format!("{text}{byte:02x}"));
            prop_assert_eq!(one(&ColumnType::Binary, &text), Ok(text));
        }

        #[test]
        fn floats_round_trip(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let mut out = ColumnVec::new(&ColumnType::Float64);
            decode(&ColumnType::Float64, format!("{value:?}").as_bytes(), &mut out).unwrap();
            let millrace_core::Values::Float64(values) = out.values() else { unreachable!() };
            prop_assert_eq!(values[0].to_bits(), bits);
        }

        /// Days count up by one from one day of the calendar to the next.
        #[test]
        fn days_are_consecutive(day in -719_162_i64..2_145_042_905) {
            let (year, month, date) = civil_from_days(day);
            prop_assert_eq!(days_from_civil(year, month, date), day);
        }

        #[test]
        fn arrays_round_trip(items in prop::collection::vec(prop::option::of("\\PC{0,8}"), 0..6)) {
            let ty = list(ColumnType::Text);
            let mut out = ColumnVec::new(&ty);
            decode(&ty, print_array(&items).as_bytes(), &mut out).unwrap();
            let millrace_core::Values::List { items: read, .. } = out.values() else { unreachable!() };
            let read: Vec<_> = (0..read.len()).map(|row| read.cell_text(row)).collect();
            prop_assert_eq!(read, items);
        }

        /// Foreign text never panics, and a refused value leaves the column alone.
        #[test]
        fn arbitrary_text_does_no_harm(text in prop::collection::vec(any::<u8>(), 0..40), plain in "[0-9:. +{}\",BCT\\\\x-]{0,30}") {
            for ty in [
                ColumnType::Boolean, ColumnType::Int16, ColumnType::Int64, ColumnType::Float32, ColumnType::Text,
                ColumnType::Decimal { precision: 38, scale: 9 }, ColumnType::Binary, ColumnType::Date, ColumnType::Time,
                ColumnType::Timestamp, ColumnType::TimestampTz, list(ColumnType::Int32), list(ColumnType::Text),
            ] {
                for text in [&text[..], plain.as_bytes()] {
                    let mut out = ColumnVec::new(&ty);
                    let result = decode(&ty, text, &mut out);
                    prop_assert_eq!(out.len(), usize::from(result.is_ok()));
                    let clamped = clamp(&ty, text, &mut out);
                    prop_assert_eq!(out.len(), usize::from(result.is_ok()) + usize::from(clamped.is_ok()));
                }
            }
        }
    }

    /// The inverse of `days_from_civil`, from the same paper.
    fn civil_from_days(days: i64) -> (i64, i64, i64) {
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
        let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }
}

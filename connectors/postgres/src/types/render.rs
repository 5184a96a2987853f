//! Values as the text that the server prints, with TimeZone UTC, DateStyle ISO, IntervalStyle postgres and bytea_output
//! hex: binary ones for columns that keep the text and for dead letters, those of columns for keys.
//!
//! Sources: the `*_out` functions in `src/backend/utils/adt` (`numeric.c`, `datetime.c`, `float.c`, `arrayfuncs.c`).

use std::fmt::Write;

use millrace_core::{ColumnType, ColumnVec, Values};

use super::{
    PgType, Scalar,
    binary::{ArrayHeader, DAY_US, EPOCH_DAYS, Field, Malformed, NumericHeader, next_field},
};

/// Writing to a `String` does not fail.
impl From<std::fmt::Error> for Malformed {
    fn from(_: std::fmt::Error) -> Self {
        Self
    }
}

/// Appends the text of a value that is not null.
pub fn value(ty: PgType, bytes: &[u8], out: &mut String) -> Result<(), Malformed> {
    match ty {
        PgType::Scalar(ty) => scalar(ty, bytes, out),
        PgType::Array(item) => array(item, bytes, out),
    }
}

/// Appends the text of one value; text that is no UTF-8 is malformed here.
pub fn scalar(ty: Scalar, bytes: &[u8], out: &mut String) -> Result<(), Malformed> {
    match ty {
        Scalar::Bool => out.push(if u8::from_be_bytes(fixed(bytes)?) == 0 { 'f' } else { 't' }),
        Scalar::Int2 => write!(out, "{}", i16::from_be_bytes(fixed(bytes)?))?,
        Scalar::Int4 => write!(out, "{}", i32::from_be_bytes(fixed(bytes)?))?,
        Scalar::Int8 => write!(out, "{}", i64::from_be_bytes(fixed(bytes)?))?,
        Scalar::Float4 => {
            let float = f32::from_be_bytes(fixed(bytes)?);
            let same = |text: &str| text.parse() == Ok(float.abs());
            let rounded = |digits: usize| format!("{:.digits$e}", float.abs());
            floating(f64::from(float), &shortest(format!("{:e}", float.abs()), rounded, same), 6, out)?;
        }
        Scalar::Float8 => {
            let float = f64::from_be_bytes(fixed(bytes)?);
            let same = |text: &str| text.parse() == Ok(float.abs());
            let rounded = |digits: usize| format!("{:.digits$e}", float.abs());
            floating(float, &shortest(format!("{:e}", float.abs()), rounded, same), 15, out)?;
        }
        Scalar::Decimal { .. } | Scalar::Numeric => numeric(bytes, out)?,
        Scalar::Text | Scalar::Char | Scalar::Other => out.push_str(std::str::from_utf8(bytes).map_err(|_| Malformed)?),
        Scalar::Jsonb => match bytes.split_first() {
            Some((1, text)) => out.push_str(std::str::from_utf8(text).map_err(|_| Malformed)?),
            _ => return Err(Malformed),
        },
        Scalar::Bytea => {
            out.push_str("\\x");
            hex(bytes, out);
        }
        Scalar::Uuid => uuid(fixed(bytes)?, out),
        Scalar::Date => date(i32::from_be_bytes(fixed(bytes)?), out)?,
        Scalar::Time => time(i64::from_be_bytes(fixed(bytes)?), out)?,
        Scalar::Timestamp => timestamp(i64::from_be_bytes(fixed(bytes)?), "", out)?,
        Scalar::TimestampTz => timestamp(i64::from_be_bytes(fixed(bytes)?), "+00", out)?,
        Scalar::Interval => interval(fixed(bytes)?, out)?,
    }
    Ok(())
}

/// The text of a cell, which the server reads back as the same value; `None` if it is null.
pub fn cell(column: &ColumnVec, row: usize) -> Option<String> {
    if column.is_null(row) || row >= column.len() {
        return None;
    }
    let mut out = String::new();
    match (column.values(), column.ty()) {
        (Values::Decimal(unscaled), ColumnType::Decimal { scale, .. }) => {
            decimal(*unscaled.get(row)?, usize::from(*scale), &mut out);
        }
        (Values::Int32(days), ColumnType::Date) => {
            let suffix = calendar(i64::from(*days.get(row)?), &mut out).ok()?;
            out.push_str(suffix);
        }
        (Values::Int64(us), ColumnType::Time) => time(*us.get(row)?, &mut out).ok()?,
        (Values::Int64(us), ColumnType::Timestamp) => moment(*us.get(row)?, 0, "", &mut out).ok()?,
        (Values::Int64(us), ColumnType::TimestampTz) => moment(*us.get(row)?, 0, "+00", &mut out).ok()?,
        (Values::Boolean(bits), _) => out.push(if bits.get(row) { 't' } else { 'f' }),
        (Values::Float32(values), _) => scalar(Scalar::Float4, &values.get(row)?.to_be_bytes(), &mut out).ok()?,
        (Values::Float64(values), _) => scalar(Scalar::Float8, &values.get(row)?.to_be_bytes(), &mut out).ok()?,
        (Values::List { offsets, items }, _) => {
            let (start, end) =
                (usize::try_from(*offsets.get(row)?).ok()?, usize::try_from(*offsets.get(row + 1)?).ok()?);
            out.push('{');
            for item in start..end {
                if item > start {
                    out.push(',');
                }
                match cell(items, item) {
                    Some(text) => array_item(&text, &mut out),
                    None => out.push_str("NULL"),
                }
            }
            out.push('}');
        }
        _ => return column.cell_text(row),
    }
    Some(out)
}

fn decimal(unscaled: i128, scale: usize, out: &mut String) {
    let mut digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    if scale > 0 {
        digits.insert(digits.len() - scale, '.');
    }
    if unscaled < 0 {
        out.push('-');
    }
    out.push_str(&digits);
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Malformed> {
    bytes.try_into().map_err(|_| Malformed)
}

/// Appends two hexadecimal digits per byte.
pub fn hex(bytes: &[u8], out: &mut String) {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

fn uuid(bytes: [u8; 16], out: &mut String) {
    let mut rest = bytes.as_slice();
    for (index, len) in [4, 2, 2, 2, 6].into_iter().enumerate() {
        let (part, after) = rest.split_at(len);
        if index > 0 {
            out.push('-');
        }
        hex(part, out);
        rest = after;
    }
}

/// `get_str_from_var`: all digits before the point, and exactly the shown scale behind it.
fn numeric(bytes: &[u8], out: &mut String) -> Result<(), Malformed> {
    let header = NumericHeader::read(bytes).ok_or(Malformed)?;
    match header.sign {
        NumericHeader::SIGN_NAN => out.push_str("NaN"),
        NumericHeader::SIGN_INFINITY => out.push_str("Infinity"),
        NumericHeader::SIGN_MINUS_INFINITY => out.push_str("-Infinity"),
        sign => {
            if sign == NumericHeader::SIGN_NEGATIVE {
                out.push('-');
            }
            numeric_digits(&header, out)?;
        }
    }
    Ok(())
}

fn numeric_digits(header: &NumericHeader<'_>, out: &mut String) -> Result<(), Malformed> {
    let mut groups = header.groups();
    let mut next = || groups.next().unwrap_or(Some(0)).ok_or(Malformed);
    if header.weight < 0 {
        out.push('0');
    } else {
        write!(out, "{}", next()?)?;
        for _ in 0..header.weight {
            write!(out, "{:04}", next()?)?;
        }
    }
    let shown = usize::from(header.scale_shown);
    if shown == 0 {
        return Ok(());
    }
    out.push('.');
    let end = out.len() + shown;
    for _ in header.weight..-1 {
        if out.len() >= end {
            break;
        }
        out.push_str("0000");
    }
    while out.len() < end {
        write!(out, "{:04}", next()?)?;
    }
    out.truncate(end);
    Ok(())
}

/// The shortest digits that lie strictly nearer to the value than to its neighbours. Rust's own shortest digits may lie
/// exactly between two values (and be read back as the even one), which PostgreSQL avoids (`d2s.c`, `acceptBounds`).
fn shortest(shortest: String, rounded: impl Fn(usize) -> String, same: impl Fn(&str) -> bool) -> String {
    // More digits than any value half-way between two doubles has.
    const NUDGE_DIGITS: usize = 800;
    let digits_of = |text: &str| text.split('e').next().map_or(0, |mantissa| mantissa.replace('.', "").len());
    let is_inside = |text: &str| {
        let Some((mantissa, exponent)) = text.split_once('e') else { return true };
        let (Ok(digits), Ok(exponent)) = (mantissa.replace('.', "").parse::<u64>(), exponent.parse::<i64>()) else {
            return true;
        };
        let exponent = exponent - digits_of(text) as i64 + 1;
        let above = format!("{digits}.{}1e{exponent}", "0".repeat(NUDGE_DIGITS));
        let below = format!("{}.{}e{exponent}", digits.saturating_sub(1), "9".repeat(NUDGE_DIGITS));
        digits == 0 || (same(&above) && same(&below))
    };
    // As many digits as Rust's, but to even where two decimals are equally near; and more where those are at the edge.
    let count = digits_of(&shortest).saturating_sub(1);
    let found = (count..17).map(rounded).find(|text| same(text) && is_inside(text));
    found.unwrap_or(shortest)
}

/// `float8out`: an exponent below 1e-4 and from `digits` digits on. `shortest` has no sign.
fn floating(value: f64, shortest: &str, digits: i32, out: &mut String) -> Result<(), Malformed> {
    if value.is_nan() {
        out.push_str("NaN");
        return Ok(());
    }
    if value.is_sign_negative() {
        out.push('-');
    }
    if value.is_infinite() {
        out.push_str("Infinity");
        return Ok(());
    }
    let (mantissa, exponent) = shortest.split_once('e').ok_or(Malformed)?;
    let exponent: i32 = exponent.parse().map_err(|_| Malformed)?;
    if (-4..digits).contains(&exponent) {
        let unsigned = mantissa.replace('.', "");
        let point = exponent + 1;
        match usize::try_from(point) {
            Ok(0) => write!(out, "0.{unsigned}")?,
            Ok(point) if point >= unsigned.len() => write!(out, "{unsigned:0<point$}")?,
            Ok(point) => {
                let (whole, fraction) = unsigned.split_at(point);
                write!(out, "{whole}.{fraction}")?;
            }
            Err(_) => {
                out.push_str("0.");
                (0..-point).for_each(|_| out.push('0'));
                out.push_str(&unsigned);
            }
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{mantissa}e{sign}{:02}", exponent.abs())?;
    }
    Ok(())
}

/// Year (astronomical: 0 is 1 BC), month and day of a count of days since 1970-01-01; Howard Hinnant's
/// `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Appends the date; gives what must follow at the end.
fn calendar(days: i64, out: &mut String) -> Result<&'static str, Malformed> {
    let (year, month, day) = civil(days);
    let (shown, suffix) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    write!(out, "{shown:04}-{month:02}-{day:02}")?;
    Ok(suffix)
}

fn date(days: i32, out: &mut String) -> Result<(), Malformed> {
    match days {
        i32::MAX => out.push_str("infinity"),
        i32::MIN => out.push_str("-infinity"),
        _ => {
            let suffix = calendar(i64::from(days) + i64::from(EPOCH_DAYS), out)?;
            out.push_str(suffix);
        }
    }
    Ok(())
}

fn time(us: i64, out: &mut String) -> Result<(), Malformed> {
    let (hours, minutes) = (us / 3_600_000_000, us / 60_000_000 % 60);
    if !(0..=24).contains(&hours) || us < 0 {
        return Err(Malformed);
    }
    write!(out, "{hours:02}:{minutes:02}:")?;
    seconds(us.unsigned_abs() % 60_000_000, out)
}

/// `AppendSeconds`: two digits, and the fraction without trailing zeros.
fn seconds(us: u64, out: &mut String) -> Result<(), Malformed> {
    write!(out, "{:02}", us / 1_000_000)?;
    let fraction = us % 1_000_000;
    if fraction != 0 {
        write!(out, ".{fraction:06}")?;
        out.truncate(out.trim_end_matches('0').len());
    }
    Ok(())
}

fn timestamp(us: i64, zone: &str, out: &mut String) -> Result<(), Malformed> {
    match us {
        i64::MAX => out.push_str("infinity"),
        i64::MIN => out.push_str("-infinity"),
        _ => moment(us, EPOCH_DAYS, zone, out)?,
    }
    Ok(())
}

/// Microseconds since an epoch that is so many days after 1970-01-01.
fn moment(us: i64, epoch_days: i32, zone: &str, out: &mut String) -> Result<(), Malformed> {
    let suffix = calendar(us.div_euclid(DAY_US) + i64::from(epoch_days), out)?;
    out.push(' ');
    time(us.rem_euclid(DAY_US), out)?;
    out.push_str(zone);
    out.push_str(suffix);
    Ok(())
}

/// `EncodeInterval` in style `postgres`: each field has its own sign, and one that follows a negative field shows its plus.
fn interval(bytes: [u8; 16], out: &mut String) -> Result<(), Malformed> {
    let (us, rest) = bytes.split_first_chunk::<8>().ok_or(Malformed)?;
    let (days, months) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
    let (us, days, months) = (i64::from_be_bytes(*us), i32::from_be_bytes(*days), i32::from_be_bytes(fixed(months)?));
    // PostgreSQL 17 stores infinity so.
    match (us, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => {
            out.push_str("infinity");
            return Ok(());
        }
        (i64::MIN, i32::MIN, i32::MIN) => {
            out.push_str("-infinity");
            return Ok(());
        }
        _ => {}
    }
    let (mut empty, mut after_negative) = (true, false);
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count == 0 {
            continue;
        }
        let space = if empty { "" } else { " " };
        let plus = if after_negative && count > 0 { "+" } else { "" };
        let plural = if count == 1 { "" } else { "s" };
        write!(out, "{space}{plus}{count} {unit}{plural}")?;
        (empty, after_negative) = (false, count < 0);
    }
    if empty || us != 0 {
        let space = if empty { "" } else { " " };
        let sign = match us {
            ..0 => "-",
            _ if after_negative => "+",
            _ => "",
        };
        let us = us.unsigned_abs();
        write!(out, "{space}{sign}{:02}:{:02}:", us / 3_600_000_000, us / 60_000_000 % 60)?;
        seconds(us % 60_000_000, out)?;
    }
    Ok(())
}

/// `array_out`: first indexes where one is not 1, nested braces, quoted items.
fn array(item: Scalar, bytes: &[u8], out: &mut String) -> Result<(), Malformed> {
    let header = ArrayHeader::read(bytes).ok_or(Malformed)?;
    let dimensions = header.dimensions();
    let count = dimensions.iter().try_fold(1_u64, |count, (size, _)| count.checked_mul(u64::from(*size)));
    if dimensions.is_empty() || count == Some(0) {
        out.push_str("{}");
        return Ok(());
    }
    if dimensions.iter().any(|(_, first)| *first != 1) {
        for (size, first) in dimensions {
            write!(out, "[{first}:{}]", i64::from(*first) + i64::from(*size) - 1)?;
        }
        out.push('=');
    }
    let mut rest = header.items;
    array_level(item, dimensions, &mut rest, out, &mut String::new())
}

fn array_level(
    item: Scalar,
    dimensions: &[(u32, i32)],
    rest: &mut &[u8],
    out: &mut String,
    scratch: &mut String,
) -> Result<(), Malformed> {
    let Some(((size, _), inner)) = dimensions.split_first() else { return Err(Malformed) };
    out.push('{');
    for index in 0..*size {
        if index > 0 {
            out.push(',');
        }
        if !inner.is_empty() {
            array_level(item, inner, rest, out, scratch)?;
            continue;
        }
        match next_field(rest) {
            Field::Incomplete | Field::Malformed => return Err(Malformed),
            Field::Null(after) => {
                *rest = after;
                out.push_str("NULL");
            }
            Field::Value(value, after) => {
                *rest = after;
                scratch.clear();
                scalar(item, value, scratch)?;
                array_item(scratch, out);
            }
        }
    }
    out.push('}');
    Ok(())
}

fn array_item(text: &str, out: &mut String) {
    let special = |c: char| matches!(c, '"' | '\\' | '{' | '}' | ',' | ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
    if !text.is_empty() && !text.eq_ignore_ascii_case("NULL") && !text.contains(special) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ty: Scalar, bytes: &[u8]) -> String {
        let mut out = String::new();
        scalar(ty, bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn floats_as_the_server_prints_them() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (-1234.5, "-1234.5"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(text(Scalar::Float8, &f64::to_be_bytes(value)), expected);
        }
        assert_eq!(
            text(Scalar::Float4, &236_157_792_f32.to_be_bytes()),
            "2.3615779e+08",
            "not the even neighbour's edge"
        );
        assert_eq!(text(Scalar::Float4, &1e6_f32.to_be_bytes()), "1e+06");
        assert_eq!(text(Scalar::Float4, &123_456_f32.to_be_bytes()), "123456");
    }

    #[test]
    fn dates_before_and_after() {
        for (days, expected) in
            [(0, "2000-01-01"), (59, "2000-02-29"), (-730_120, "0001-12-31 BC"), (2_921_940, "10000-01-01")]
        {
            assert_eq!(text(Scalar::Date, &i32::to_be_bytes(days)), expected);
        }
        assert_eq!(text(Scalar::TimestampTz, &(-1_i64).to_be_bytes()), "1999-12-31 23:59:59.999999+00");
    }
}

//! The usual values of the text protocol, read straight into their column. Everything else, also what is wrong, is left to
//! [`text::decode`](super::text::decode), and both give the same.

use millrace_core::{ColumnType, ColumnVec};

use super::{
    SqlType,
    value::{DAY_US, SECOND_US, days},
};

/// How many digits fit into 64 bits, whatever they are.
const DIGITS_MAX: usize = 18;

/// How the usual values of a column are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// A whole number, with a sign or without.
    Int16(Sign),
    /// Likewise.
    Int32(Sign),
    /// Likewise.
    Int64(Sign),
    /// A number below this with so many digits behind the point, as the server always prints them.
    Decimal(i64, usize),
    /// `2024-01-02`.
    Date,
    /// `2024-01-02 03:04:05`, with or without six digits more.
    Moment,
    /// Text.
    Text,
    /// Bytes.
    Bytes,
    /// There is no short way.
    None,
}

/// Whether a number can have a sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It can.
    Maybe,
    /// It cannot.
    Never,
}

impl Direct {
    /// The way for a type of the server and what it becomes.
    pub fn of(sql: &SqlType, column: &ColumnType) -> Self {
        let sign = match sql {
            SqlType::Int { unsigned: true, .. } => Sign::Never,
            _ => Sign::Maybe,
        };
        match (sql, column) {
            (SqlType::Int { .. } | SqlType::Year, ColumnType::Int16) => Self::Int16(sign),
            (SqlType::Int { .. } | SqlType::Year, ColumnType::Int32) => Self::Int32(sign),
            (SqlType::Int { .. } | SqlType::Year, ColumnType::Int64) => Self::Int64(sign),
            (SqlType::Decimal { precision, scale }, ColumnType::Decimal { precision: p, scale: s })
                if precision <= p && scale == s =>
            {
                Self::Decimal(10_i64.pow(u32::from(*precision).min(DIGITS_MAX as u32)), usize::from(*scale))
            }
            (SqlType::Date, ColumnType::Date) => Self::Date,
            (SqlType::Datetime(_), ColumnType::Timestamp) => Self::Moment,
            (SqlType::Timestamp(_), ColumnType::TimestampTz) => Self::Moment,
            (
                SqlType::Text(_)
                | SqlType::Enum(_)
                | SqlType::Set(_)
                | SqlType::Json
                | SqlType::Uuid
                | SqlType::Inet6
                | SqlType::Inet4,
                ColumnType::Text,
            ) => Self::Text,
            (SqlType::Binary(_) | SqlType::Opaque, ColumnType::Binary) => Self::Bytes,
            _ => Self::None,
        }
    }

    /// Adds the value, if this is the way for it; if not, nothing is added.
    #[inline]
    pub fn push(self, bytes: &[u8], column: &mut ColumnVec) -> bool {
        let pushed = match self {
            Self::Int16(sign) => integer(bytes, sign).and_then(|v| i16::try_from(v).ok()).map(|v| column.push_i16(v)),
            Self::Int32(sign) => integer(bytes, sign).and_then(|v| i32::try_from(v).ok()).map(|v| column.push_i32(v)),
            Self::Int64(sign) => integer(bytes, sign).map(|value| column.push_i64(value)),
            Self::Decimal(bound, scale) => {
                decimal(bytes, scale).filter(|value| value.abs() < bound).map(|value| column.push_decimal(value.into()))
            }
            Self::Date => date(bytes).map(|days| column.push_i32(days)),
            Self::Moment => moment(bytes).map(|micros| column.push_i64(micros)),
            Self::Text => std::str::from_utf8(bytes).ok().map(|text| column.push_str(text)),
            Self::Bytes => {
                column.push_bytes(bytes);
                Some(())
            }
            Self::None => None,
        };
        pushed.is_some()
    }
}

/// One to 18 digits.
#[inline]
fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > DIGITS_MAX {
        return None;
    }
    let mut value = 0_i64;
    for byte in bytes {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(value)
}

#[inline]
fn integer(bytes: &[u8], sign: Sign) -> Option<i64> {
    match (bytes.strip_prefix(b"-"), sign) {
        (Some(rest), Sign::Maybe) => digits(rest).map(|value| -value),
        _ => digits(bytes),
    }
}

#[inline]
fn decimal(bytes: &[u8], scale: usize) -> Option<i64> {
    if scale == 0 {
        return integer(bytes, Sign::Maybe);
    }
    let (negative, rest) = bytes.strip_prefix(b"-").map_or((false, bytes), |rest| (true, rest));
    let (whole, fraction) = rest.split_at_checked(rest.len().checked_sub(scale + 1)?)?;
    let fraction = fraction.strip_prefix(b".")?;
    if whole.len() + scale > DIGITS_MAX {
        return None;
    }
    let value = digits(whole)? * 10_i64.pow(scale as u32) + digits(fraction)?;
    Some(if negative { -value } else { value })
}

/// A number of two digits.
#[inline]
fn pair(bytes: [u8; 2]) -> Option<u32> {
    let [tens, ones] = bytes.map(|byte| byte.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then_some(u32::from(tens) * 10 + u32::from(ones))
}

#[inline]
fn date(bytes: &[u8]) -> Option<i32> {
    let &[a, b, c, d, b'-', e, f, b'-', g, h] = bytes else { return None };
    days(pair([a, b])? * 100 + pair([c, d])?, pair([e, f])?, pair([g, h])?)
}

#[inline]
fn moment(bytes: &[u8]) -> Option<i64> {
    let (day, time) = bytes.split_at_checked(10)?;
    let (&[b' ', a, b, b':', c, d, b':', e, f], fraction) = time.split_first_chunk::<9>()? else { return None };
    let micros = match fraction {
        [] => 0,
        [b'.', six @ ..] if six.len() == 6 => digits(six)?,
        _ => return None,
    };
    let seconds = pair([a, b])? * 3600 + pair([c, d])? * 60 + pair([e, f])?;
    Some(i64::from(date(day)?) * DAY_US + i64::from(seconds) * SECOND_US + micros)
}

#[cfg(test)]
mod tests {
    use millrace_core::{Columns, Unfit};
    use proptest::prelude::*;

    use super::*;
    use crate::types::text;

    /// Types whose values have a short way.
    const DECLARED: [&str; 12] = [
        "tinyint(3) unsigned",
        "smallint(6)",
        "int(11)",
        "int(10) unsigned",
        "bigint(20)",
        "year(4)",
        "decimal(15,2)",
        "decimal(38,0)",
        "decimal(30,20)",
        "date",
        "datetime(6)",
        "varchar(20) character set utf8mb4",
    ];

    /// What the short way adds is what the long way adds.
    fn same(declared: &str, bytes: &[u8]) {
        let sql = SqlType::parse(declared).unwrap();
        let ty = sql.column_type();
        let direct = Direct::of(&sql, &ty);
        assert_ne!(direct, Direct::None, "{declared}");
        let (mut short, mut long) = (Columns::new([&ty]), Columns::new([&ty]));
        if !direct.push(bytes, short.column_mut(0)) {
            assert_eq!(short.columns()[0].len(), 0);
            return;
        }
        let value = text::decode(&sql, bytes).unwrap_or_else(|why| panic!("{declared} {bytes:?}: {why}"));
        value.push(0, Unfit::DeadLetter, &mut long).unwrap();
        assert_eq!(short.columns()[0], long.columns()[0], "{declared} {bytes:?}");
    }

    #[test]
    fn usual_values_have_a_short_way() {
        for (declared, value) in [
            ("tinyint(3) unsigned", "255"),
            ("smallint(6)", "-32768"),
            ("int(10) unsigned", "4294967295"),
            ("bigint(20)", "-123456789012345678"),
            ("decimal(15,2)", "-0.05"),
            ("decimal(15,2)", "9999999999999.99"),
            ("date", "2024-02-29"),
            ("datetime", "1969-12-31 23:59:59"),
            ("timestamp(6)", "9999-12-31 23:59:59.999999"),
            ("varchar(20) character set utf8mb4", "Zoë"),
            ("binary(3)", "abc"),
        ] {
            let sql = SqlType::parse(declared).unwrap();
            let mut columns = Columns::new([&sql.column_type()]);
            assert!(Direct::of(&sql, &sql.column_type()).push(value.as_bytes(), columns.column_mut(0)), "{declared}");
            same(declared, value.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn both_ways_give_the_same(
            which in 0..DECLARED.len(),
            text in prop_oneof![
                "-?[0-9]{1,20}",
                "-?[0-9]{1,16}\\.[0-9]{1,4}",
                "-?[0-9]{1,9}\\.[0-9]{20}",
                "[0-9]{4}-[01][0-9]-[0-3][0-9]",
                "[0-9]{4}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?",
                "\\PC{0,20}",
                "[-0-9.: ]{0,20}",
            ],
        ) {
            same(DECLARED[which], text.as_bytes());
        }

        #[test]
        fn any_bytes_are_a_value_or_left_alone(which in 0..DECLARED.len(), bytes: Vec<u8>) {
            same(DECLARED[which], &bytes);
        }
    }
}

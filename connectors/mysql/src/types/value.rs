//! One value of the server, and how it gets into its column. Loads and the log end here alike, so that both give the same.

use std::fmt::Write;

use millrace_core::{ColumnType, Columns, Unfit, batch::Cell};

/// Microseconds of a second.
pub const SECOND_US: i64 = 1_000_000;
/// Microseconds of a day.
pub const DAY_US: i64 = 86_400 * SECOND_US;

/// A value that is not null.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A whole number, or YEAR.
    Int(i64),
    /// A whole number without a sign, or BIT.
    UInt(u64),
    /// FLOAT.
    Float(f32),
    /// DOUBLE.
    Double(f64),
    /// DECIMAL of at most 38 digits: unscaled, and its scale.
    Decimal(i128, u8),
    /// DATE: days since 1970-01-01.
    Date(i32),
    /// DATETIME or TIMESTAMP: microseconds since 1970-01-01 00:00:00, and the digits that are shown of a second.
    Moment(i64, u8),
    /// TIME: microseconds, and the digits that are shown of a second.
    Time(i64, u8),
    /// A date or a moment that is in no calendar (`0000-00-00`, `2024-00-10`), as the server prints it; and text, labels,
    /// JSON, addresses, DECIMAL of more digits.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Value<'_> {
    /// As the server prints it.
    pub fn print(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = match *self {
            Self::Int(value) => write!(out, "{value}"),
            Self::UInt(value) => write!(out, "{value}"),
            Self::Float(value) => write!(out, "{value}"),
            Self::Double(value) => write!(out, "{value}"),
            Self::Decimal(unscaled, scale) => {
                print_decimal(unscaled, scale, out);
                Ok(())
            }
            Self::Date(days) => {
                let (year, month, day) = civil(i64::from(days));
                write!(out, "{year:04}-{month:02}-{day:02}")
            }
            Self::Moment(micros, digits) => {
                let (year, month, day) = civil(micros.div_euclid(DAY_US));
                let _ = write!(out, "{year:04}-{month:02}-{day:02} ");
                print_time(micros.rem_euclid(DAY_US), digits, out);
                Ok(())
            }
            Self::Time(micros, digits) => {
                if micros < 0 {
                    out.push('-');
                }
                print_time(micros.abs(), digits, out);
                Ok(())
            }
            Self::Text(text) => {
                out.push_str(text);
                Ok(())
            }
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}")),
        };
    }

    /// For the dead letters.
    pub fn cell(&self) -> Cell {
        let mut text = String::new();
        self.print(&mut text);
        if matches!(self, Self::Bytes(_)) { Cell::Hex(text) } else { Cell::Text(text) }
    }

    /// Adds the value to its column, or beside it where the column cannot hold it. An error is the reason why the row must
    /// go to the dead letters; nothing is added then.
    pub fn push(&self, index: usize, policy: Unfit, columns: &mut Columns) -> Result<(), &'static str> {
        if self.fit(columns.column_mut(index).ty().clone(), index, columns) {
            return Ok(());
        }
        match policy {
            Unfit::DeadLetter => Err("its column cannot hold the value"),
            Unfit::Clamp if self.clamp(index, columns) => Ok(()),
            Unfit::Clamp | Unfit::Companion | Unfit::Text => {
                if matches!(self, Self::Bytes(_)) {
                    return Err("its column cannot hold the value");
                }
                let mut text = String::new();
                self.print(&mut text);
                columns.push_exact(index, &text);
                Ok(())
            }
        }
    }

    /// Adds it where the column's type can hold it.
    fn fit(&self, ty: ColumnType, index: usize, columns: &mut Columns) -> bool {
        let column = columns.column_mut(index);
        let whole = match *self {
            Self::Int(value) => Some(i128::from(value)),
            Self::UInt(value) => Some(i128::from(value)),
            _ => None,
        };
        match (ty, *self, whole) {
            (ColumnType::Int16, _, Some(value)) => i16::try_from(value).map(|v| column.push_i16(v)).is_ok(),
            (ColumnType::Int32, _, Some(value)) => i32::try_from(value).map(|v| column.push_i32(v)).is_ok(),
            (ColumnType::Int64, _, Some(value)) => i64::try_from(value).map(|v| column.push_i64(v)).is_ok(),
            (ColumnType::Boolean, _, Some(value)) => {
                column.push_bool(value != 0);
                true
            }
            (ColumnType::Decimal { precision, scale }, value, whole) => {
                let unscaled = match (value, whole) {
                    (Self::Decimal(unscaled, own), _) => rescale(unscaled, own, scale),
                    (Self::Text(text), _) => parse_decimal(text, scale),
                    (_, Some(value)) => rescale(value, 0, scale),
                    _ => None,
                };
                let fits = unscaled.filter(|value| value.unsigned_abs() < 10_u128.pow(u32::from(precision)));
                fits.map(|value| column.push_decimal(value)).is_some()
            }
            (ColumnType::Float32, Self::Float(value), _) => {
                column.push_f32(value);
                true
            }
            (ColumnType::Float64, Self::Double(value), _) => {
                column.push_f64(value);
                true
            }
            (ColumnType::Date, Self::Date(days), _) => {
                column.push_i32(days);
                true
            }
            (ColumnType::Timestamp | ColumnType::TimestampTz, Self::Moment(micros, _), _) => {
                column.push_i64(micros);
                true
            }
            (ColumnType::Time, Self::Time(micros, _), _) if (0..DAY_US).contains(&micros) => {
                column.push_i64(micros);
                true
            }
            (ColumnType::Text, Self::Text(text), _) => {
                column.push_str(text);
                true
            }
            (ColumnType::Binary, Self::Bytes(bytes), _) => {
                column.push_bytes(bytes);
                true
            }
            (ColumnType::Text, value, _) => {
                let mut text = String::new();
                value.print(&mut text);
                column.push_str(&text);
                true
            }
            _ => false,
        }
    }

    /// The nearest value that the column can hold, where there is one.
    fn clamp(&self, index: usize, columns: &mut Columns) -> bool {
        let column = columns.column_mut(index);
        match (column.ty().clone(), self) {
            (ColumnType::Time, Self::Time(micros, _)) => column.push_i64(if *micros < 0 { 0 } else { DAY_US - 1 }),
            (ColumnType::Decimal { precision, .. }, Self::Decimal(..) | Self::Text(_)) => {
                let negative = match self {
                    Self::Decimal(unscaled, _) => *unscaled < 0,
                    Self::Text(text) => text.starts_with('-'),
                    _ => false,
                };
                let largest = 10_i128.pow(u32::from(precision)) - 1;
                column.push_decimal(if negative { -largest } else { largest });
            }
            _ => return false,
        }
        true
    }
}

fn rescale(unscaled: i128, own: u8, wanted: u8) -> Option<i128> {
    let factor = 10_i128.checked_pow(u32::from(own.abs_diff(wanted)))?;
    if own <= wanted {
        return unscaled.checked_mul(factor);
    }
    (unscaled % factor == 0).then_some(unscaled / factor)
}

/// The unscaled value of a decimal's text; `None` if digits would be lost or there are too many.
pub fn parse_decimal(text: &str, scale: u8) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > usize::from(scale) {
        return None;
    }
    let mut value: i128 = 0;
    let zeros = std::iter::repeat_n(b'0', usize::from(scale) - fraction.len());
    for digit in whole.bytes().chain(fraction.bytes()).chain(zeros) {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    Some(if negative { -value } else { value })
}

fn print_decimal(unscaled: i128, scale: u8, out: &mut String) {
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
    let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
    let sign = if unscaled < 0 { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    let _ = write!(out, "{sign}{whole}{point}{fraction}");
}

fn print_time(micros: i64, digits: u8, out: &mut String) {
    let seconds = micros / SECOND_US;
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    print_fraction(micros % SECOND_US, digits, out);
}

/// The digits of a second that are shown.
pub fn print_fraction(micros: i64, digits: u8, out: &mut String) {
    if digits > 0 {
        let all = format!("{micros:06}");
        let _ = write!(out, ".{}", all.get(..usize::from(digits.min(6))).unwrap_or_default());
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar, which is the server's; `None` if it is in no
/// calendar. (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".)
pub fn days(year: u32, month: u32, day: u32) -> Option<i32> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let last = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day == 0 || day > last || year > 9999 {
        return None;
    }
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((i64::from(month) + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    i32::try_from(days).ok()
}

/// Year, month and day.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use millrace_core::ColumnVec;
    use proptest::prelude::*;

    use super::*;

    fn printed(value: Value<'_>) -> String {
        let mut text = String::new();
        value.print(&mut text);
        text
    }

    #[test]
    fn values_are_printed_as_the_server_does() {
        assert_eq!(printed(Value::Decimal(-5, 2)), "-0.05");
        assert_eq!(printed(Value::Decimal(1234, 0)), "1234");
        assert_eq!(printed(Value::Time(-(838 * 3600 + 59 * 60 + 59) * SECOND_US, 0)), "-838:59:59");
        assert_eq!(printed(Value::Time(1_500_000, 3)), "00:00:01.500");
        assert_eq!(printed(Value::Moment(-1, 6)), "1969-12-31 23:59:59.999999");
        assert_eq!(printed(Value::Date(days(2024, 2, 29).unwrap())), "2024-02-29");
        assert_eq!(days(2023, 2, 29), None);
        assert_eq!((days(0, 0, 0), days(2024, 0, 10), days(1970, 1, 1)), (None, None, Some(0)));
    }

    #[test]
    fn what_does_not_fit_stands_beside_its_column() {
        let types = [ColumnType::Time, ColumnType::Date, ColumnType::Int16];
        let mut columns = Columns::new(&types);
        Value::Time(-1, 6).push(0, Unfit::Companion, &mut columns).unwrap();
        Value::Text("0000-00-00").push(1, Unfit::Clamp, &mut columns).unwrap();
        Value::Int(7).push(2, Unfit::Companion, &mut columns).unwrap();
        columns.end_row();
        let exact: Vec<_> = columns.exact_cells().collect();
        assert_eq!(exact, [(0, 0, "-00:00:00.000001"), (0, 1, "0000-00-00")]);
        Value::Time(DAY_US, 0).push(0, Unfit::Clamp, &mut columns).unwrap();
        assert_eq!(columns.columns()[0].cell_text(1), Some((DAY_US - 1).to_string()));
        assert!(Value::Text("2024-00-00").push(1, Unfit::DeadLetter, &mut columns).is_err());
        assert_eq!(columns.columns().iter().map(ColumnVec::len).collect::<Vec<_>>(), [2, 1, 1]);
    }

    proptest! {
        #[test]
        fn decimals_round_trip(value in -10_i128.pow(37)..10_i128.pow(37), scale in 0_u8..=30) {
            prop_assert_eq!(parse_decimal(&printed(Value::Decimal(value, scale)), scale), Some(value));
        }

        #[test]
        fn dates_round_trip(day in -719_528_i32..2_932_896) {
            let (year, month, of_month) = civil(i64::from(day));
            prop_assert_eq!(days(year as u32, month as u32, of_month as u32), Some(day));
        }
    }
}

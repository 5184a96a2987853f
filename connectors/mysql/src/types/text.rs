//! Values of the text protocol (manual, "ProtocolText::ResultsetRow"), in a session whose zone is UTC.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    SqlType,
    value::{DAY_US, SECOND_US, Value, days, parse_decimal},
};

/// Reads a value as the server prints it; an error is a reason without the value.
pub fn decode<'a>(ty: &SqlType, bytes: &'a [u8]) -> Result<Value<'a>, &'static str> {
    match ty {
        SqlType::Binary(_) | SqlType::Opaque => return Ok(Value::Bytes(bytes)),
        SqlType::Bit(_) => {
            let value = bytes.iter().fold(0, |value: u64, &byte| value << 8 | u64::from(byte));
            return Ok(Value::UInt(value));
        }
        _ => {}
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no valid text")?;
    let none = "the server printed it in a way that is not known";
    Ok(match ty {
        SqlType::Int { unsigned: true, .. } => Value::UInt(text.parse().map_err(|_| none)?),
        SqlType::Int { .. } | SqlType::Year => Value::Int(text.parse().map_err(|_| none)?),
        SqlType::Float => Value::Float(text.parse::<f64>().map_err(|_| none)? as f32),
        SqlType::Double => Value::Double(text.parse().map_err(|_| none)?),
        SqlType::Decimal { precision, scale } if *precision <= 38 => {
            Value::Decimal(parse_decimal(text, *scale).ok_or(none)?, *scale)
        }
        SqlType::Date => match date(text) {
            Some(days) => Value::Date(days),
            None => Value::Text(text),
        },
        SqlType::Datetime(digits) | SqlType::Timestamp(digits) => match moment(text) {
            Some(micros) => Value::Moment(micros, *digits),
            None => Value::Text(text),
        },
        SqlType::Time(digits) => Value::Time(time(text).ok_or(none)?, *digits),
        SqlType::Decimal { .. } => Value::Text(without_zeros(text)),
        _ => Value::Text(text),
    })
}

/// Without the zeros in front that ZEROFILL prints; one stays before the point.
fn without_zeros(text: &str) -> &str {
    let zeros = text.find(|c| c != '0').unwrap_or(text.len());
    let rest = &text[zeros..];
    if zeros > 0 && !rest.starts_with(|c: char| c.is_ascii_digit()) { &text[zeros - 1..] } else { rest }
}

fn date(text: &str) -> Option<i32> {
    let mut parts = text.splitn(3, '-').map(|part| part.parse().ok());
    days(parts.next()??, parts.next()??, parts.next()??)
}

fn moment(text: &str) -> Option<i64> {
    let (date_text, time_text) = text.split_once(' ')?;
    Some(i64::from(date(date_text)?) * DAY_US + time(time_text)?)
}

fn time(text: &str) -> Option<i64> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let seconds = parts.next()?? * 3600 + parts.next()?? * 60 + parts.next()??;
    let micros = match fraction.len() {
        0 => 0,
        count @ 1..=6 => fraction.parse::<i64>().ok()? * 10_i64.pow(6 - count as u32),
        _ => return None,
    };
    let value = seconds * SECOND_US + micros;
    Some(if negative { -value } else { value })
}

/// An address as MariaDB prints it (manual, INET6): the first longest gap of zeros is left out, even if it is a single one,
/// and the last four bytes are in dots behind a gap of six, and behind one of five and `ffff`.
pub fn inet6(bytes: [u8; 16]) -> String {
    let groups = Ipv6Addr::from(bytes).segments();
    let (mut gap, mut start) = (0..0, 0);
    for (index, &group) in groups.iter().enumerate() {
        if group != 0 {
            start = index + 1;
        } else if index + 1 - start > gap.len() {
            gap = start..index + 1;
        }
    }
    let joined = |groups: &[u16]| groups.iter().map(|group| format!("{group:x}")).collect::<Vec<_>>().join(":");
    let [.., a, b, c, d] = bytes;
    match (gap == (0..6), gap == (0..5) && groups[5] == 0xffff) {
        (true, _) => format!("::{}", Ipv4Addr::new(a, b, c, d)),
        (_, true) => format!("::ffff:{}", Ipv4Addr::new(a, b, c, d)),
        _ if gap.is_empty() => joined(&groups),
        _ => format!("{}::{}", joined(&groups[..gap.start]), joined(&groups[gap.end..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        let read = |declared: &str, text: &str| {
            let ty = SqlType::parse(declared).unwrap();
            format!("{:?}", decode(&ty, text.as_bytes()))
        };
        for (declared, text, expected) in [
            ("bigint(20) unsigned", "18446744073709551615", "Ok(UInt(18446744073709551615))"),
            ("decimal(5,2)", "-1.50", "Ok(Decimal(-150, 2))"),
            ("decimal(65,30)", "0.5", "Ok(Text(\"0.5\"))"),
            ("decimal(60,2) unsigned zerofill", "00012.30", "Ok(Text(\"12.30\"))"),
            ("decimal(60,2) unsigned zerofill", "000.00", "Ok(Text(\"0.00\"))"),
            ("decimal(60,0) unsigned zerofill", "0000", "Ok(Text(\"0\"))"),
            ("decimal(60,0)", "-10", "Ok(Text(\"-10\"))"),
            ("date", "1970-01-02", "Ok(Date(1))"),
            ("date", "2024-00-10", "Ok(Text(\"2024-00-10\"))"),
            ("datetime(3)", "1970-01-01 00:00:01.500", "Ok(Moment(1500000, 3))"),
            ("timestamp", "0000-00-00 00:00:00", "Ok(Text(\"0000-00-00 00:00:00\"))"),
            ("time", "-838:59:59", "Ok(Time(-3020399000000, 0))"),
            ("float", "1.100000023841858", "Ok(Float(1.1))"),
            ("bit(9)", "\u{1}\u{1}", "Ok(UInt(257))"),
            ("int(11)", "x", "Err(\"the server printed it in a way that is not known\")"),
        ] {
            assert_eq!(read(declared, text), expected, "{declared} {text}");
        }
        assert!(decode(&SqlType::Text("utf8mb4".into()), b"\xff").is_err());
    }

    #[test]
    fn addresses_are_printed_as_the_server_does() {
        for (address, printed) in [
            ("1:0:2:3:4:5:6:7", "1::2:3:4:5:6:7"),
            ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
            ("0:0:1::", "0:0:1::"),
            ("::", "::"),
            ("::5", "::5"),
            ("::1:2", "::0.1.0.2"),
            ("::ffff:0:0", "::ffff:0.0.0.0"),
            ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ] {
            assert_eq!(inet6(address.parse::<Ipv6Addr>().unwrap().octets()), printed);
        }
    }
}

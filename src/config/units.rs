//! Durations and sizes with their units: `500ms`, `60s`, `5m`, `24h`, `7d`; `64MiB`, `8GB`. A bare number is refused: nobody
//! remembers which unit was meant.

use std::time::Duration;

const DURATIONS_MS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// A duration, to the millisecond.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATIONS_MS).map(Duration::from_millis)
}

/// A size in bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZES)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Bytes for people, with one digit behind the point: `1.5 GiB`.
pub fn show_bytes(bytes: u64) -> String {
    let (unit, factor) = SIZES[5..].iter().rev().find(|(_, factor)| bytes >= *factor).unwrap_or(&SIZES[0]);
    if *factor == 1 { format!("{bytes} B") } else { format!("{:.1} {unit}", bytes as f64 / *factor as f64) }
}

/// A duration for people, in its two largest units: `3d 4h`, `5m 7s`, `12s`, `300ms`.
pub fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let Some(first) = (1..DURATIONS_MS.len()).rev().find(|&unit| ms >= DURATIONS_MS[unit].1) else {
        return format!("{ms}ms");
    };
    let (name, factor) = DURATIONS_MS[first];
    let rest = ms % factor / DURATIONS_MS[first - 1].1;
    if first == 1 || rest == 0 {
        return format!("{}{name}", ms / factor);
    }
    format!("{}{name} {rest}{}", ms / factor, DURATIONS_MS[first - 1].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_demanded_and_overflow_is_refused() {
        for (text, expected) in [
            ("60s", Some(60_000)),
            ("500ms", Some(500)),
            ("7d", Some(604_800_000)),
            ("24 h", Some(86_400_000)),
            ("60", None),
            ("s", None),
            ("-5s", None),
            ("1.5h", None),
            ("5min", None),
            ("99999999999999999d", None),
            ("", None),
        ] {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        }
        for (text, expected) in [
            ("64MiB", Some(64 << 20)),
            ("8GB", Some(8_000_000_000)),
            ("0B", Some(0)),
            ("64", None),
            ("64mib", None),
            ("20000000TiB", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text}");
        }
    }

    #[test]
    fn people_read_two_units() {
        for (ms, text) in
            [(300, "300ms"), (12_900, "12s"), (307_000, "5m 7s"), (7_200_000, "2h"), (273_600_000, "3d 4h")]
        {
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (3 << 40, "3.0 TiB")]
        {
            assert_eq!(show_bytes(bytes), text);
        }
    }
}

//! A table divided into ranges of its key, to be read side by side.
//!
//! Keys are in the server's order, which for text depends on a collation. So a place between two keys is only guessed here,
//! and the server says which key is the first from there on: every bound is a key of the table, and the server compares.

use millrace_core::{
    Error, Kind, Result, Table,
    source::{LoadPlan, Segment},
};

use crate::{
    discover::{quote_literal, quote_name, quote_table},
    types::{
        SqlType,
        value::{SECOND_US, Value, days},
    },
    wire::Connection,
};

/// A part is not divided below so many rows.
const PART_ROWS_MIN: u64 = 20_000;
/// Bytes, or characters, behind what two keys have in common that a place between them is guessed by.
const GUESSED: usize = 8;

/// As many guesses for one division.
const GUESSES_MAX: usize = 80;
/// Two parts are alike if the smaller one has such a share of the whole.
const ALIKE: u64 = 8;

/// A range of the key's first column: from one of its keys on, up to before another.
#[derive(Debug, Clone)]
struct Part {
    from: String,
    /// `None` where it goes to the end.
    to: Option<String>,
    /// No key of it is behind that.
    last: String,
    rows: u64,
    /// Nothing was found between.
    is_whole: bool,
}

/// How the key's first column is asked for and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Number,
    Text,
    Bytes,
    Date,
    Moment,
}

impl Form {
    fn of(ty: &SqlType) -> Option<Self> {
        match ty {
            SqlType::Int { .. } | SqlType::Decimal { .. } => Some(Self::Number),
            SqlType::Text(_) => Some(Self::Text),
            SqlType::Binary(_) => Some(Self::Bytes),
            SqlType::Date => Some(Self::Date),
            SqlType::Datetime(_) | SqlType::Timestamp(_) => Some(Self::Moment),
            _ => None,
        }
    }

    /// What to select, so that a key comes as text.
    fn selected(self, expression: &str) -> String {
        if self == Self::Bytes { format!("HEX({expression})") } else { expression.to_string() }
    }

    fn literal(self, key: &str) -> String {
        match self {
            Self::Number => key.to_string(),
            Self::Text | Self::Date | Self::Moment => quote_literal(key),
            Self::Bytes => format!("x'{key}'"),
        }
    }

    /// Places between two keys, the likelier ones first.
    fn between(self, from: &str, to: &str) -> Vec<String> {
        match self {
            Self::Number => numbers_between(from, to).into_iter().collect(),
            Self::Bytes => {
                let whole = |hex: String| if hex.len() % 2 == 1 { hex + "0" } else { hex };
                middle(from, to, 16, |c| c.to_digit(16)).map(whole).into_iter().collect()
            }
            Self::Date | Self::Moment => moments_between(self, from, to).into_iter().collect(),
            // By their bytes, and by letters and digits without case, as most collations do.
            Self::Text => [
                middle(from, to, 95, ascii),
                middle(&from.to_ascii_lowercase(), &to.to_ascii_lowercase(), 36, alphanumeric),
            ]
            .into_iter()
            .flatten()
            .collect(),
        }
    }
}

fn ascii(c: char) -> Option<u32> {
    u32::from(c).checked_sub(0x20).filter(|&digit| digit < 95)
}

fn alphanumeric(c: char) -> Option<u32> {
    c.to_digit(36)
}

fn numbers_between(from: &str, to: &str) -> Option<String> {
    let whole = |text: &str| text.split('.').next().unwrap_or_default().parse::<i128>().ok();
    let (from, to) = (whole(from)?, whole(to)?);
    let apart = to.checked_sub(from).filter(|&apart| apart > 0)?;
    Some((from + (apart - apart / 2)).to_string())
}

/// In whole days or seconds. A date with zeros in it lies where the first day of its month or year does.
fn moments_between(form: Form, from: &str, to: &str) -> Option<String> {
    let seconds = |text: &str| -> Option<i64> {
        let part = |from: usize, to: usize| text.get(from..to).unwrap_or("0").parse::<u32>().ok();
        let day = days(part(0, 4)?, part(5, 7)?.max(1), part(8, 10)?.max(1))?;
        Some(i64::from(day) * 86_400 + i64::from(part(11, 13)? * 3600 + part(14, 16)? * 60 + part(17, 19)?))
    };
    let unit = if form == Form::Date { 86_400 } else { 1 };
    let (from, to) = (seconds(from)?.div_euclid(unit), seconds(to)?.div_euclid(unit));
    let apart = to.checked_sub(from).filter(|&apart| apart > 0)?;
    let place = from + (apart - apart / 2);
    let value = match form {
        Form::Date => Value::Date(i32::try_from(place).ok()?),
        _ => Value::Moment(place * SECOND_US, 0),
    };
    let mut text = String::new();
    value.print(&mut text);
    Some(text)
}

/// The text in the middle of two, of digits of some base, by what follows what they have in common.
fn middle(from: &str, to: &str, base: u32, digit: impl Fn(char) -> Option<u32>) -> Option<String> {
    let common: String = from.chars().zip(to.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    // What is no digit may be anywhere: it puts the two as far apart as can be.
    let value = |text: &str, other: u32| {
        let digits = text[common.len()..].chars().map(|c| digit(c).unwrap_or(other)).chain(std::iter::repeat(0));
        digits.take(GUESSED).fold(0_u64, |value, digit| value * u64::from(base) + u64::from(digit))
    };
    let (from, to) = (value(from, 0), value(to, base - 1));
    let mut rest = (from < to).then(|| from + (to - from).div_ceil(2))?;
    let mut digits = vec![];
    for _ in 0..GUESSED {
        let digit = (rest % u64::from(base)) as u32;
        let shown = if base <= 36 { char::from_digit(digit, base) } else { char::from_u32(digit + 0x20) };
        digits.push(shown.unwrap_or('0'));
        rest /= u64::from(base);
    }
    digits.reverse();
    Some(common + digits.into_iter().collect::<String>().trim_end_matches(' '))
}

/// Divides the table by the first column of its key, if that is a number, a text, bytes, a date or a moment: the largest part is halved until
/// there are enough. The server's estimate of a range costs it a look into the index, and so does the first key from a place
/// on, so gaps of any size do no harm.
pub async fn divide(session: &mut Connection, table: &Table, wanted: usize) -> Result<LoadPlan> {
    let plan = |segments| LoadPlan { storage_id: table.storage_id, segments };
    let whole = vec![Segment { range: "TRUE".into(), estimated_rows: table.estimated_rows }];
    let column = table.key.first().and_then(|&index| table.columns.get(index));
    let form = column.and_then(|column| Form::of(&SqlType::parse(&column.source_type)?));
    let (Some(column), Some(form), true) = (column, form, wanted > 1) else { return Ok(plan(whole)) };
    let key = Key { name: quote_name(&column.name), from: quote_table(&table.name), form };
    let (first, last) = (key.ask(session, "MIN", "TRUE").await?, key.ask(session, "MAX", "TRUE").await?);
    let (Some(first), Some(last)) = (first, last) else { return Ok(plan(whole)) };
    let rows = table.estimated_rows.max(1);
    let mut parts = vec![Part { from: first, to: None, last, rows, is_whole: false }];
    while parts.len() < wanted {
        let size = |part: &Part| if part.is_whole { 0 } else { part.rows };
        let largest = (0..parts.len()).max_by_key(|&index| size(&parts[index])).unwrap_or_default();
        if size(&parts[largest]) < 2 * PART_ROWS_MIN {
            break;
        }
        match key.halves(session, &parts[largest]).await? {
            Some(halves) => drop(parts.splice(largest..=largest, halves)),
            None => parts[largest].is_whole = true,
        }
    }
    Ok(plan(key.ranges(&parts)))
}

/// The key's first column.
struct Key {
    name: String,
    from: String,
    form: Form,
}

impl Key {
    async fn ask(&self, session: &mut Connection, which: &str, condition: &str) -> Result<Option<String>> {
        let selected = self.form.selected(&format!("{which}({})", self.name));
        let rows = session.query(&format!("SELECT {selected} FROM {} WHERE {condition}", self.from)).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()?))
    }

    /// Two parts of one, as alike as some guesses can make them; `None` where no key was found to divide it at. Where nothing is
    /// behind a guessed place, or little on one of its sides, the next guess is on the other: single keys far from all others
    /// do no harm.
    async fn halves(&self, session: &mut Connection, part: &Part) -> Result<Option<[Part; 2]>> {
        let (mut low, mut high) = (part.from.clone(), part.last.clone());
        let mut best: Option<[Part; 2]> = None;
        let smaller = |halves: &[Part; 2]| halves[0].rows.min(halves[1].rows);
        for _ in 0..GUESSES_MAX {
            let places = self.form.between(&low, &high);
            let Some(first) = places.first().cloned() else { break };
            let mut found: Option<[Part; 2]> = None;
            for place in places {
                let Some(halves) = self.halves_at(session, part, place).await? else { continue };
                if found.as_ref().is_none_or(|found| smaller(&halves) > smaller(found)) {
                    found = Some(halves);
                }
            }
            let Some(halves) = found else {
                high = first;
                continue;
            };
            (low, high) = match halves[0].rows < halves[1].rows {
                true => (halves[1].from.clone(), high),
                false => (low, halves[0].last.clone()),
            };
            if best.as_ref().is_none_or(|best| smaller(&halves) > smaller(best)) {
                best = Some(halves);
            }
            if best.as_ref().is_some_and(|best| smaller(best) >= part.rows / ALIKE) {
                break;
            }
        }
        Ok(best)
    }

    /// Two parts, divided at the first key from a place on.
    async fn halves_at(&self, session: &mut Connection, part: &Part, place: String) -> Result<Option<[Part; 2]>> {
        // The server may see the place before the part.
        let behind = format!("{} > {}", self.name, self.form.literal(&part.from));
        let condition = format!("{} AND {behind}", self.condition(Some(&place), part.to.as_deref()));
        let found = self.ask(session, "MIN", &condition).await?;
        let Some(bound) = found.filter(|bound| *bound != part.from) else { return Ok(None) };
        let mut halves =
            [Part { to: Some(bound.clone()), last: place, ..part.clone() }, Part { from: bound, ..part.clone() }];
        for half in &mut halves {
            let condition = self.condition(Some(&half.from), half.to.as_deref());
            half.rows = estimate(session, &format!("SELECT 1 FROM {} WHERE {condition}", self.from)).await?;
        }
        // InnoDB expects no more than half of a table in any range, so the larger one may be estimated too low.
        let [one, other] = &mut halves;
        let (small, large) = if one.rows < other.rows { (one, other) } else { (other, one) };
        large.rows = large.rows.max(part.rows.saturating_sub(small.rows));
        Ok(Some(halves))
    }

    fn condition(&self, from: Option<&str>, to: Option<&str>) -> String {
        let compared = |sign: &str, key: &str| format!("{} {sign} {}", self.name, self.form.literal(key));
        match (from, to) {
            (None, None) => "TRUE".into(),
            (Some(from), None) => compared(">=", from),
            (None, Some(to)) => compared("<", to),
            (Some(from), Some(to)) => format!("{} AND {}", compared(">=", from), compared("<", to)),
        }
    }

    /// The first part has no beginning and the last no end, so that every row is in one of them.
    fn ranges(&self, parts: &[Part]) -> Vec<Segment> {
        let segment = |(index, part): (usize, &Part)| {
            let from = (index > 0).then_some(part.from.as_str());
            Segment { range: self.condition(from, part.to.as_deref()), estimated_rows: part.rows }
        };
        parts.iter().enumerate().map(segment).collect()
    }
}

/// How many rows the server expects.
async fn estimate(session: &mut Connection, select: &str) -> Result<u64> {
    // MySQL has two columns more than MariaDB, and prints a tree where nothing else is said.
    let (explain, place) = if session.is_mariadb() { ("EXPLAIN", 8) } else { ("EXPLAIN FORMAT=TRADITIONAL", 9) };
    let rows = session.query(&format!("{explain} {select}")).await?;
    let row = rows.first().ok_or_else(|| Error::new(Kind::Protocol, "asking for an estimate"))?;
    Ok(row.get(place).and_then(|number| number.as_ref()?.parse().ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_between_keys_are_guessed() {
        assert_eq!(Form::Number.between("1", "10"), ["6"]);
        assert_eq!(Form::Number.between("-5", "-4"), ["-4"]);
        assert_eq!(Form::Number.between("0", "18446744073709551615"), ["9223372036854775808"]);
        assert_eq!(Form::Number.between("0.25", "100000000000000000000.75"), ["50000000000000000000"]);
        assert_eq!(Form::Number.between("7", "7"), [] as [&str; 0]);
        assert_eq!(Form::Bytes.between("00", "80"), ["40000000"]);
        assert_eq!(Form::Bytes.between("ABCD00", "ABCD"), [] as [&str; 0]);
        assert_eq!(Form::Text.between("order-0001", "order-9999"), ["order-4d4dOOOP", "order-4mmn0000"]);
        assert_eq!(Form::Date.between("2024-02-01", "2024-03-31"), ["2024-03-02"]);
        assert_eq!(Form::Date.between("0000-00-00", "2024-00-10"), ["1012-01-06"]);
        assert_eq!(Form::Date.between("2024-02-01", "2024-02-01"), [] as [&str; 0]);
        assert_eq!(Form::Moment.between("1969-12-31 23:59:58.5", "1970-01-01 00:00:02"), ["1970-01-01 00:00:00"]);
        // By a collation without case the first is the smaller one.
        assert_eq!(Form::Text.between("a", "B"), ["ai000000"]);
    }

    #[test]
    fn parts_cover_every_key() {
        let part = |from: &str, to: Option<&str>| Part {
            from: from.into(),
            to: to.map(Into::into),
            last: "z".into(),
            rows: 1,
            is_whole: false,
        };
        let of = |form, parts: &[Part]| {
            let key = Key { name: "`k`".into(), from: "`t`".into(), form };
            key.ranges(parts).into_iter().map(|segment| segment.range).collect::<Vec<_>>()
        };
        assert_eq!(of(Form::Number, &[part("1", None)]), ["TRUE"]);
        let parts = [part("-5", Some("4")), part("4", Some("7")), part("7", None)];
        assert_eq!(of(Form::Number, &parts), ["`k` < 4", "`k` >= 4 AND `k` < 7", "`k` >= 7"]);
        let parts = [part("A", Some("it's")), part("it's", None)];
        assert_eq!(of(Form::Text, &parts), ["`k` < 'it''s'", "`k` >= 'it''s'"]);
        assert_eq!(
            of(Form::Bytes, &[part("00", Some("FF00")), part("FF00", None)]),
            ["`k` < x'FF00'", "`k` >= x'FF00'"]
        );
    }

    proptest! {
        #[test]
        fn any_two_keys_have_places_between_or_none(from in ".{0,12}", to in ".{0,12}") {
            for form in [Form::Number, Form::Text, Form::Bytes, Form::Date, Form::Moment] {
                let _ = form.between(&from, &to);
            }
        }

        #[test]
        fn a_place_between_ascii_texts_is_behind_the_first(from in "[ -~]{0,9}", to in "[ -~]{0,9}") {
            if let Some(place) = middle(&from, &to, 95, ascii) {
                prop_assert!(place.trim_end() > from.trim_end(), "{:?} {:?} {:?}", from, place, to);
            }
        }
    }
}

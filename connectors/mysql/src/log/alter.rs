//! Changes of a table's columns that are followed without a look at its rows: columns that are added, dropped, renamed, or
//! declared otherwise without any value becoming another one. The statement tells which column is which, and what it is
//! declared as now; the catalog, which may be ahead of the log, tells the types of new columns.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use millrace_core::{Column, ColumnType, Table};

use super::ddl::{Statement, Token, UNREAD, clauses};
use crate::types::SqlType;

/// One change of the columns, of those that a statement makes in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A column comes.
    Add {
        /// Its name.
        name: String,
        /// What the rows have that are there.
        older: Older,
        /// The type, as the catalog writes it where its words are the same.
        declared: String,
        /// The character set that is said.
        charset: Option<String>,
        /// It is said not to be null.
        must_be: bool,
        /// Where it stands.
        place: Place,
        /// Nothing happens where it is there already.
        unless_there: bool,
    },
    /// A column goes.
    Drop {
        /// Its name.
        name: String,
        /// Nothing happens where it is not there.
        if_there: bool,
    },
    /// A column gets another name.
    Rename {
        /// The old one.
        from: String,
        /// The new one.
        to: String,
    },
    /// A column is declared anew.
    Modify {
        /// Its name so far.
        from: String,
        /// Its name from now on.
        to: String,
        /// The type, as the catalog writes it where its words are the same.
        declared: String,
        /// The character set that is said.
        charset: Option<String>,
        /// It is said not to be null.
        must_be: bool,
        /// Where it stands now, if that is said.
        place: Option<Place>,
    },
}

impl Step {
    /// Whether it depends on what is there.
    pub fn is_conditional(&self) -> bool {
        matches!(self, Self::Add { unless_there: true, .. } | Self::Drop { if_there: true, .. })
    }
}

/// Where a new column stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Behind all others.
    Last,
    /// Before all others.
    First,
    /// Behind this one.
    After(String),
}

/// What older rows have in a new column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Older {
    /// Null.
    Null,
    /// What the type has for nothing, as it must not be null.
    Nothing,
    /// A number, as it is written.
    Number(String),
    /// A text.
    Text(String),
}

/// What a clause of ALTER TABLE does to columns; `None` if it is another one, or does more than is followed here.
pub fn steps(clause: &[Token]) -> Option<Vec<Step>> {
    let mut clause = Statement { tokens: clause, schema: "" };
    if clause.take("add") {
        let is_said = clause.take("column");
        let unless_there = clause.if_exists();
        return match clause.tokens {
            [Token::Sign('('), inside @ .., Token::Sign(')')] => {
                clauses(inside).into_iter().map(|column| add(column, unless_there)).collect()
            }
            // Without COLUMN it may be about many other things.
            [Token::Word(first), ..] if !is_said && OTHERS.iter().any(|other| first.eq_ignore_ascii_case(other)) => {
                None
            }
            column => Some(vec![add(column, unless_there)?]),
        };
    }
    if clause.take("drop") {
        let is_said = clause.take("column");
        let if_there = clause.take("if") && clause.take("exists");
        let is_other =
            |token: &Token| matches!(token, Token::Word(word) if OTHERS.iter().any(|o| word.eq_ignore_ascii_case(o)));
        if !is_said && clause.tokens.first().is_some_and(is_other) {
            return None;
        }
        let name = name(&mut clause)?;
        let _ = clause.take_any(&["restrict", "cascade"]);
        return clause.tokens.is_empty().then(|| vec![Step::Drop { name, if_there }]);
    }
    let renames = clause.take("change");
    if renames || clause.take("modify") {
        let _ = clause.take("column");
        if clause.if_exists_is_said() {
            return None;
        }
        let from = if renames { Some(name(&mut clause)?) } else { None };
        let Definition { name: to, declared, charset, must_be, place, .. } = definition(clause.tokens)?;
        let from = from.unwrap_or_else(|| to.clone());
        return Some(vec![Step::Modify { from, to, declared: declared?, charset, must_be, place }]);
    }
    if clause.take("rename") && clause.take("column") {
        let from = name(&mut clause)?;
        if !clause.take("to") {
            return None;
        }
        let to = name(&mut clause)?;
        return clause.tokens.is_empty().then(|| vec![Step::Rename { from, to }]);
    }
    None
}

/// Words behind ADD and DROP that are no columns.
const OTHERS: [&str; 14] = [
    "primary",
    "period",
    "system",
    "vector",
    "partition",
    "constraint",
    "index",
    "key",
    "unique",
    "fulltext",
    "spatial",
    "foreign",
    "check",
    "versioning",
];

fn name(clause: &mut Statement<'_>) -> Option<String> {
    clause.word().filter(|name| !name.contains(UNREAD))
}

/// A column's definition, of which every word is known.
struct Definition {
    name: String,
    /// The type; nothing where it is not written as the catalog does.
    declared: Option<String>,
    charset: Option<String>,
    must_be: bool,
    /// Outer `None`: nothing is said; inner: an expression, or more than is understood.
    default: Option<Option<Older>>,
    place: Option<Place>,
}

fn definition(tokens: &[Token]) -> Option<Definition> {
    let mut rest = Statement { tokens, schema: "" };
    let name = name(&mut rest)?;
    let Some(Token::Word(ty)) = rest.tokens.first() else { return None };
    let mut is_said = false;
    let mut declared = Some(word_of(ty));
    rest.skip();
    if let Some(Token::Sign('(')) = rest.tokens.first() {
        let arguments = rest.tokens;
        rest.skip_parentheses()?;
        let length = arguments.len() - rest.tokens.len();
        declared = declared.zip(arguments.get(..length).and_then(written)).map(|(ty, arguments)| ty + &arguments);
    }
    let mut found = Definition { name, declared, charset: None, must_be: false, default: None, place: None };
    while !rest.tokens.is_empty() {
        if rest.take("not") {
            rest.take("null").then_some(())?;
            found.must_be = true;
        } else if rest.take("default") {
            found.default = Some(default(&mut rest)?);
        } else if rest.take("on") {
            (rest.take("update") && default(&mut rest)?.is_none()).then_some(())?;
            found.default.get_or_insert(None);
        } else if rest.take("first") {
            found.place = Some(Place::First);
        } else if rest.take("after") {
            found.place = Some(Place::After(self::name(&mut rest)?));
        } else if rest.take("unique") {
            let _ = rest.take("key");
        } else if rest.take("charset") || rest.take("character") && rest.take("set") {
            found.charset = Some(rest.word()?.to_ascii_lowercase());
        } else if rest.take("collate") {
            let collation = rest.word()?.to_ascii_lowercase();
            let charset = collation.split('_').next().unwrap_or_default();
            found.charset.get_or_insert_with(|| charset.into());
        } else if rest.take_any(&["unsigned", "zerofill"]) {
            found.declared = found.declared.filter(|ty| !ty.ends_with(UNSIGNED)).map(|ty| ty + UNSIGNED);
        } else if rest.take_any(&["comment", "column_format", "storage"]) {
            rest.skip();
        } else if rest.take_any(&["varying", "precision"]) {
            found.declared = None;
        } else if rest.take("null") {
            is_said = true;
        } else if !rest.take_any(&["signed", "visible", "invisible", "compressed"]) {
            return None;
        }
    }
    // Where nothing is said, a setting of the server tells whether it may be null.
    let is_moment = ty.eq_ignore_ascii_case("timestamp") && !is_said && !found.must_be;
    (!is_moment).then_some(found)
}

const UNSIGNED: &str = " unsigned";

/// A type's name, as the catalog has it.
fn word_of(ty: &str) -> String {
    let ty = ty.to_ascii_lowercase();
    match ty.as_str() {
        "bool" | "boolean" => "tinyint".into(),
        "integer" => "int".into(),
        "dec" | "numeric" | "fixed" => "decimal".into(),
        _ => ty,
    }
}

/// What stands between parentheses, as the catalog writes it.
fn written(tokens: &[Token]) -> Option<String> {
    let mut text = String::new();
    for token in tokens {
        match token {
            Token::Sign(sign @ ('(' | ')' | ',')) => text.push(*sign),
            Token::Number(number) => text.push_str(number),
            // Which characters the catalog escapes is its own affair.
            Token::Text(label) if !label.contains([UNREAD, '\\', '\n', '\r', '\0']) => {
                text.push_str(&format!("'{}'", label.replace('\'', "''")));
            }
            _ => return None,
        }
    }
    Some(text)
}

fn add(tokens: &[Token], unless_there: bool) -> Option<Step> {
    let Definition { name, default, must_be, place, declared, charset } = definition(tokens)?;
    let declared = declared.filter(|ty| ty != "serial")?;
    let older = match default {
        Some(Some(Older::Null)) | None if must_be => Older::Nothing,
        Some(older) => older?,
        None => Older::Null,
    };
    Some(Step::Add { name, older, declared, charset, must_be, place: place.unwrap_or(Place::Last), unless_there })
}

/// A constant, or `None` for an expression.
fn default(rest: &mut Statement<'_>) -> Option<Option<Older>> {
    let words = ["current_timestamp", "now", "localtime", "localtimestamp"];
    let is_moment = rest.take_any(&words);
    if let Some(Token::Sign('(')) = rest.tokens.first() {
        rest.skip_parentheses()?;
        return Some(None);
    }
    if is_moment { Some(None) } else { literal(rest).map(Some) }
}

fn literal(rest: &mut Statement<'_>) -> Option<Older> {
    let minus = rest.take_sign('-');
    let token = rest.tokens.first()?;
    if !minus && token.is("null") {
        rest.skip();
        return Some(Older::Null);
    }
    if !minus && (token.is("true") || token.is("false")) {
        let number = if token.is("true") { "1" } else { "0" };
        rest.skip();
        return Some(Older::Number(number.into()));
    }
    match token {
        Token::Text(text) if !minus && !text.contains(UNREAD) => {
            let text = text.clone();
            rest.skip();
            // Texts that follow each other are one.
            (!matches!(rest.tokens.first(), Some(Token::Text(_)))).then_some(Older::Text(text))
        }
        Token::Number(whole) => {
            let mut number = if minus { format!("-{whole}") } else { whole.clone() };
            rest.skip();
            if rest.take_sign('.') {
                let Some(Token::Number(fraction)) = rest.tokens.first() else { return None };
                number = format!("{number}.{fraction}");
                rest.skip();
            }
            Some(Older::Number(number))
        }
        _ => None,
    }
}

/// The table in the shape that the steps give it, or why they cannot be followed. The catalog, which may be ahead of the log,
/// has to show every new column as it was declared. `default_charset` is that of the table, now: whoever changes it makes the
/// table load anew.
pub fn follow(table: &Table, steps: &[Step], now: &Table, default_charset: &str) -> Result<Table, String> {
    let mut columns = table.columns.clone();
    let mut last_id = columns.iter().map(|column| column.id).fold(table.columns_ever, i32::max);
    let place_of = |columns: &[Column], name: &str| columns.iter().position(|column| is_same_name(&column.name, name));
    let keys = table.key.iter().filter_map(|&index| table.columns.get(index));
    let key_ids: Vec<i32> = keys.map(|column| column.id).collect();
    for step in steps {
        match step {
            Step::Add { name, unless_there: true, .. } if place_of(&columns, name).is_some() => {}
            Step::Add { name, .. } if place_of(&columns, name).is_some() => {
                return Err(format!("column {name:?} was added, and was there"));
            }
            Step::Add { name, older, declared, charset, must_be, place, .. } => {
                let Some(found) = place_of(&now.columns, name).and_then(|place| now.columns.get(place)) else {
                    return Err(format!("column {name:?} was added and has changed again since"));
                };
                if !is_declared(found, declared, charset.as_deref().unwrap_or(default_charset)) {
                    return Err(format!("column {name:?} was added as {declared}, and is another one by now"));
                }
                last_id += 1;
                let (name, older_rows) = (name.clone(), older_rows(found, older)?);
                let column = Column { id: last_id, name, nullable: !must_be, older_rows, ..found.clone() };
                let at = match place {
                    Place::Last => columns.len(),
                    Place::First => 0,
                    Place::After(before) => behind(&columns, before)?,
                };
                columns.insert(at, column);
            }
            Step::Drop { name, if_there } => match place_of(&columns, name) {
                Some(place) => drop(columns.remove(place)),
                None if *if_there => {}
                None => return Err(format!("column {name:?} was dropped, and was not there")),
            },
            Step::Rename { from, to } => {
                let place = renamed(&columns, from, to)?;
                if let Some(column) = columns.get_mut(place) {
                    column.name.clone_from(to);
                }
            }
            Step::Modify { from, to, declared, charset, must_be, place } => {
                let at = renamed(&columns, from, to)?;
                let old = columns.remove(at);
                let found = place_of(&now.columns, to).and_then(|place| now.columns.get(place));
                let found = found.ok_or_else(|| format!("column {to:?} was altered and has changed again since"))?;
                let charset = charset.as_deref().unwrap_or(default_charset);
                if *must_be && old.nullable || !keeps_values(&old, declared, charset, found) {
                    return Err(format!("column {from:?} was declared otherwise, and may have other values"));
                }
                let at = match place {
                    None | Some(Place::Last) => at,
                    Some(Place::First) => 0,
                    Some(Place::After(before)) => behind(&columns, before)?,
                };
                // By what is said, whatever the catalog shows by now; a key is never null.
                let nullable = !must_be && !key_ids.contains(&old.id);
                let (id, older_rows) = (old.id, old.older_rows);
                columns.insert(at, Column { id, name: to.clone(), nullable, older_rows, ..found.clone() });
            }
        }
    }
    let key: Option<Vec<usize>> = key_ids.iter().map(|id| columns.iter().position(|column| column.id == *id)).collect();
    let key = key.ok_or("a column of its key was dropped")?;
    Ok(Table { version: table.version + 1, columns, key, columns_ever: last_id, ..table.clone() })
}

/// Where the column is that gets the other name.
fn renamed(columns: &[Column], from: &str, to: &str) -> Result<usize, String> {
    let place_of = |name: &str| columns.iter().position(|column| is_same_name(&column.name, name));
    let place = place_of(from).ok_or_else(|| format!("column {from:?} was altered, and was not there"))?;
    match place_of(to) {
        Some(other) if other != place => Err(format!("column {from:?} was renamed to {to:?}, which was there")),
        _ => Ok(place),
    }
}

/// Whether a column that was declared so has the same values as before. What the catalog shows has to be what was declared, so
/// that nothing that came and went in between is passed over; and whoever changes the table's own character set makes it
/// load anew.
fn keeps_values(old: &Column, declared: &str, charset: &str, now: &Column) -> bool {
    let ((before, old_charset), (shown, new_charset)) = (parts(&old.source_type), parts(&now.source_type));
    if old_charset != new_charset || !is_declared(now, declared, charset) || old.nullable && !now.nullable {
        return false;
    }
    let of = |text: &str| SqlType::parse(&format!("{text}{CHARSET}x"));
    let (Some(was), Some(is)) = (of(before), of(shown)) else { return false };
    match (&was, &is) {
        (SqlType::Decimal { precision, scale }, SqlType::Decimal { precision: p, scale: s }) => {
            let is_alike = before.ends_with(UNSIGNED) == shown.ends_with(UNSIGNED);
            is_alike && precision <= p && scale == s && (*p <= 38 || precision == p)
        }
        (SqlType::Enum(few), SqlType::Enum(labels)) | (SqlType::Set(few), SqlType::Set(labels)) => {
            labels.starts_with(few)
        }
        (SqlType::Text(_), SqlType::Text(_)) => before == shown || is_longer_text(before, shown),
        (SqlType::Int { .. }, _) => was == is,
        _ => before == shown,
    }
}

/// Whether every value of one type of text is one of the other. CHAR cuts blanks off, so it stays CHAR.
fn is_longer_text(before: &str, now: &str) -> bool {
    let texts = ["tinytext", "text", "mediumtext", "longtext"];
    let length =
        |ty: &str, name: &str| ty.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?.parse::<u32>().ok();
    let longer = |name| length(before, name).zip(length(now, name)).is_some_and(|(before, now)| before <= now);
    let rank = |ty: &str| texts.iter().position(|text| *text == ty);
    longer("varchar")
        || longer("char")
        || rank(before).zip(rank(now)).is_some_and(|(before, now)| before <= now)
        // The shortest text that holds any VARCHAR: 65,535 bytes.
        || length(before, "varchar").is_some() && rank(now) >= Some(1)
}

/// Whether the catalog shows what a statement declared, so that nothing that came since passes for it.
fn is_declared(shown: &Column, declared: &str, charset: &str) -> bool {
    let (shown, own) = parts(&shown.source_type);
    own.is_none_or(|own| own == charset) && is_same_type(shown, declared)
}

/// A type and its character set.
fn parts(source_type: &str) -> (&str, Option<&str>) {
    match source_type.rsplit_once(CHARSET) {
        Some((declared, charset)) => (declared, Some(charset)),
        None => (source_type, None),
    }
}

const CHARSET: &str = " character set ";

/// Whole numbers may have a width, which is for show.
fn is_same_type(shown: &str, declared: &str) -> bool {
    let int = |text: &str| SqlType::parse(text).filter(|ty| matches!(ty, SqlType::Int { .. }));
    shown == declared || int(shown).is_some_and(|shown| int(declared) == Some(shown))
}

/// Whether the task's rules, which know columns by their names, make of the columns that were there what they made before,
/// and leave values of older rows as they are.
pub fn keeps_rules(before: &Table, followed: &Table) -> Result<(), String> {
    for column in &followed.columns {
        let old = before.columns.iter().find(|old| old.id == column.id);
        let is_kept = match (old.map(|old| &old.ty), &column.ty) {
            (Some(ColumnType::Decimal { precision, scale }), ColumnType::Decimal { precision: p, scale: s }) => {
                precision <= p && scale == s
            }
            (Some(old), new) => old == new,
            (None, new) => column.older_rows.is_none() || own_type(column).is_some_and(|own| own == *new),
        };
        if !is_kept {
            return Err(format!("a rule makes another type of column {:?} than before", column.name));
        }
    }
    Ok(())
}

fn own_type(column: &Column) -> Option<ColumnType> {
    SqlType::parse(&column.source_type).map(|ty| ty.column_type())
}

/// Behind this column.
fn behind(columns: &[Column], before: &str) -> Result<usize, String> {
    let place = columns.iter().position(|column| is_same_name(&column.name, before));
    place.map(|place| place + 1).ok_or_else(|| format!("a column came behind {before:?}, which is not known"))
}

/// Names of columns are the same in any case.
fn is_same_name(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}

/// The text of what older rows have, as the server would print it.
fn older_rows(column: &Column, older: &Older) -> Result<Option<String>, String> {
    let unknown = || format!("column {:?} was added, and it is not known which value older rows have", column.name);
    let ty = SqlType::parse(&column.source_type).ok_or_else(unknown)?;
    let nothing = match older {
        Older::Null if column.nullable => return Ok(None),
        Older::Null => return Err(unknown()),
        Older::Nothing => true,
        // By settings of the server it is null, or the default of a TEXT is none.
        Older::Text(value) if value.is_empty() => return Err(unknown()),
        Older::Number(_) | Older::Text(_) => false,
    };
    let (value, is_text) = match older {
        Older::Null | Older::Nothing => ("", false),
        Older::Number(value) => (value.as_str(), false),
        Older::Text(value) => (value.as_str(), true),
    };
    let text = match &ty {
        SqlType::Decimal { scale, .. } if nothing => decimal("0", usize::from(*scale)),
        SqlType::Int { .. } | SqlType::Float | SqlType::Double if nothing => Some("0".into()),
        SqlType::Int { .. } => is_whole_number(value).then(|| value.into()),
        // More digits may be printed otherwise.
        SqlType::Float | SqlType::Double => (is_whole_number(value) && value.len() <= 6).then(|| value.into()),
        SqlType::Decimal { scale, .. } => decimal(value, usize::from(*scale)),
        // CHAR has no blanks at its end. What is not ASCII depends on the client's character set.
        SqlType::Text(_) if is_text || nothing => (value.is_ascii() && !value.ends_with(' ')).then(|| value.into()),
        SqlType::Text(_) => is_whole_number(value).then(|| value.into()),
        SqlType::Enum(labels) if nothing => labels.first().cloned(),
        SqlType::Enum(labels) => labels.iter().find(|label| is_text && *label == value).cloned(),
        _ => None,
    };
    text.map(Some).ok_or_else(unknown)
}

/// Whether the server prints a number as it is written here.
fn is_whole_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_plain && text != "-0" && (digits == "0" || !digits.starts_with('0'))
}

/// A number with so many digits behind the point, if it has no more.
fn decimal(text: &str, scale: usize) -> Option<String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fits = fraction.len() <= scale && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let zeros = "0".repeat(scale.saturating_sub(fraction.len()));
    let point = if scale > 0 { "." } else { "" };
    (fits && is_whole_number(whole)).then(|| format!("{whole}{point}{fraction}{zeros}"))
}

#[cfg(test)]
mod tests {
    use millrace_core::{Capture, TableName};

    use super::*;
    use crate::log::ddl::{Effect, effects};

    fn steps_of(clauses: &str) -> Option<Vec<Step>> {
        match &*effects(&format!("ALTER TABLE t {clauses}"), "shop") {
            [Effect::Reshaped(_, steps)] => Some(steps.clone()),
            _ => None,
        }
    }

    #[test]
    fn clauses_on_columns_are_read() {
        let typed = |name: &str, declared: &str, charset: Option<&str>, older, place| {
            let (declared, charset, must_be) = (declared.into(), charset.map(String::from), older == Older::Nothing);
            Step::Add { name: name.into(), older, declared, charset, must_be, place, unless_there: false }
        };
        let add = |name: &str, older, place| typed(name, "int", None, older, place);
        let modify = |from: &str, to: &str, declared: &str, charset: Option<&str>, must_be, place| {
            let (from, to, declared) = (from.into(), to.into(), declared.into());
            Step::Modify { from, to, declared, charset: charset.map(String::from), must_be, place }
        };
        let number = |text: &str| Older::Number(text.into());
        for (clauses, expected) in [
            ("ADD c INT", vec![add("c", Older::Null, Place::Last)]),
            (
                "ADD COLUMN `c d` varchar(3) NOT NULL FIRST",
                vec![typed("c d", "varchar(3)", None, Older::Nothing, Place::First)],
            ),
            (
                "add column (a int unsigned default -5, b decimal(3,1) default 1.50)",
                vec![
                    typed("a", "int unsigned", None, number("-5"), Place::Last),
                    typed("b", "decimal(3,1)", None, number("1.50"), Place::Last),
                ],
            ),
            (
                "ADD c VARCHAR(9) CHARACTER SET latin1 COLLATE latin1_bin DEFAULT 'it''s' COMMENT 'x' AFTER b",
                vec![typed("c", "varchar(9)", Some("latin1"), Older::Text("it's".into()), Place::After("b".into()))],
            ),
            ("ADD c BOOL DEFAULT TRUE UNIQUE KEY", vec![typed("c", "tinyint", None, number("1"), Place::Last)]),
            (
                "ADD COLUMN IF NOT EXISTS c INT NULL DEFAULT NULL",
                vec![Step::Add {
                    name: "c".into(),
                    older: Older::Null,
                    declared: "int".into(),
                    charset: None,
                    must_be: false,
                    place: Place::Last,
                    unless_there: true,
                }],
            ),
            ("MODIFY c INT UNSIGNED", vec![modify("c", "c", "int unsigned", None, false, None)]),
            (
                "change column c d VARCHAR( 20 ) character set latin1 not null default (uuid()) first",
                vec![modify("c", "d", "varchar(20)", Some("latin1"), true, Some(Place::First))],
            ),
            (
                "MODIFY c Enum('a','it''s') COLLATE utf8mb4_bin, MODIFY t TIMESTAMP NULL DEFAULT NOW() ON UPDATE CURRENT_TIMESTAMP(3)",
                vec![
                    modify("c", "c", "enum('a','it''s')", Some("utf8mb4"), false, None),
                    modify("t", "t", "timestamp", None, false, None),
                ],
            ),
            ("DROP COLUMN IF EXISTS c CASCADE", vec![Step::Drop { name: "c".into(), if_there: true }]),
            (
                "RENAME COLUMN a TO b, DROP `c`, ADD INDEX (b), ALGORITHM=INSTANT",
                vec![
                    Step::Rename { from: "a".into(), to: "b".into() },
                    Step::Drop { name: "c".into(), if_there: false },
                ],
            ),
        ] {
            assert_eq!(steps_of(clauses), Some(expected), "{clauses}");
        }
    }

    #[test]
    fn clauses_that_may_do_more_are_left_alone() {
        for clauses in [
            "ADD c SERIAL",
            "ADD c TIMESTAMP",
            "ADD c DOUBLE PRECISION",
            "ADD b INT, DROP COLUMN IF EXISTS b",
            "ADD c INT AUTO_INCREMENT",
            "ADD c INT PRIMARY KEY",
            "ADD c INT KEY",
            "ADD PRIMARY KEY (c)",
            "ADD PERIOD FOR SYSTEM_TIME (a, b)",
            "ADD SYSTEM VERSIONING",
            "ADD c INT AS (a + 1)",
            "ADD c INT GENERATED ALWAYS AS (a) VIRTUAL",
            "ADD c INT DEFAULT (a + 1)",
            "ADD c TIMESTAMP DEFAULT CURRENT_TIMESTAMP",
            "ADD c DATETIME ON UPDATE NOW()",
            "ADD c INT DEFAULT 1e3",
            "ADD c INT DEFAULT 0x10",
            "ADD c VARCHAR(9) DEFAULT _utf8mb4'x'",
            "ADD c VARCHAR(9) DEFAULT 'x' 'y'",
            r"ADD c VARCHAR(9) DEFAULT 'a\tb'",
            "ADD c INT WITHOUT SYSTEM VERSIONING",
            "ADD c INT REFERENCES p (id) ON DELETE CASCADE",
            "ADD (c INT",
            "ADD c",
            "DROP c d",
            "DROP PRIMARY KEY",
            "DROP PARTITION p",
            "RENAME COLUMN a b",
            "MODIFY c INT AUTO_INCREMENT",
            "MODIFY COLUMN IF EXISTS c INT",
            "MODIFY c DOUBLE PRECISION",
            "MODIFY c INT PRIMARY KEY",
            "CHANGE c d",
        ] {
            assert_eq!(steps_of(clauses), None, "{clauses}");
        }
    }

    fn table(columns: &[(i32, &str, &str)]) -> Table {
        let column = |&(id, name, source_type): &(i32, &str, &str)| Column {
            id,
            name: name.into(),
            ty: SqlType::parse(source_type).unwrap().column_type(),
            source_type: source_type.into(),
            nullable: !source_type.starts_with("timestamp"),
            older_rows: None,
        };
        Table {
            source_id: 1,
            name: TableName::new("shop", "t"),
            version: 1,
            columns: columns.iter().map(column).collect(),
            key: vec![columns.iter().position(|(_, name, _)| *name == "id").unwrap()],
            capture: Capture::All,
            storage_id: 0,
            definition_id: 0,
            columns_ever: columns.iter().map(|(id, ..)| *id).max().unwrap(),
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        }
    }

    const ID: (i32, &str, &str) = (1, "id", "int(11)");
    const A: (i32, &str, &str) = (2, "a", "int(11)");
    const B: (i32, &str, &str) = (3, "b", "int(11)");

    #[test]
    fn columns_keep_their_numbers() {
        let before = table(&[ID, A, B]);
        let follow = |clauses: &str, now: &[(i32, &str, &str)]| {
            let followed = follow(&before, &steps_of(clauses).unwrap(), &table(now), "utf8mb4")?;
            let ids: Vec<i32> = followed.columns.iter().map(|column| column.id).collect();
            assert_eq!((followed.version, &followed.columns[followed.key[0]].name), (2, &"id".to_string()));
            Ok::<_, String>((ids, followed.columns_ever))
        };
        let number = |id, name| (id, name, "int(11)");
        assert_eq!(follow("ADD c INT", &[ID, A, B, number(4, "c")]), Ok((vec![1, 2, 3, 4], 4)));
        assert_eq!(follow("ADD c INT FIRST", &[number(1, "c"), ID, A, B]), Ok((vec![4, 1, 2, 3], 4)));
        assert_eq!(follow("ADD c INT AFTER ID", &[ID, number(2, "c"), A, B]), Ok((vec![1, 4, 2, 3], 4)));
        assert_eq!(follow("DROP A", &[ID, B]), Ok((vec![1, 3], 3)));
        assert_eq!(follow("DROP a, ADD a INT", &[ID, B, A]), Ok((vec![1, 3, 4], 4)));
        assert_eq!(follow("RENAME COLUMN a TO z", &[ID, number(2, "z"), B]), Ok((vec![1, 2, 3], 3)));
        assert_eq!(follow("RENAME COLUMN a TO A", &[ID, number(2, "A"), B]), Ok((vec![1, 2, 3], 3)));
        assert_eq!(follow("ADD COLUMN IF NOT EXISTS a INT", &[ID, A, B]), Ok((vec![1, 2, 3], 3)));
        assert_eq!(follow("DROP COLUMN IF EXISTS z", &[ID, A, B]), Ok((vec![1, 2, 3], 3)));
        // The catalog is ahead.
        assert_eq!(follow("ADD c INT", &[ID, B, number(3, "c"), number(4, "d")]), Ok((vec![1, 2, 3, 4], 4)));
        assert_eq!(follow("DROP a", &[ID, A, B]), Ok((vec![1, 3], 3)));
        for (clauses, now) in [
            ("ADD c INT", &[ID, A, B][..]),
            ("ADD c INT AFTER generated", &[ID, A, B, number(4, "c")]),
            ("ADD c BIGINT", &[ID, A, B, number(4, "c")]),
            ("ADD c INT NOT NULL", &[ID, A, B, (4, "c", "varchar(5) character set utf8mb4")]),
            ("ADD c VARCHAR(9)", &[ID, A, B, (4, "c", "char(9) character set utf8mb4")]),
            ("ADD c VARCHAR(9)", &[ID, A, B, (4, "c", "varchar(9) character set latin1")]),
            ("ADD c FLOAT", &[ID, A, B, (4, "c", "float(7,2)")]),
            ("ADD a INT", &[ID, A, B]),
            ("DROP z", &[ID, A, B]),
            ("RENAME COLUMN a TO b, DROP b", &[ID, number(2, "b")]),
            ("RENAME COLUMN a TO b, RENAME COLUMN b TO a", &[ID, A, B]),
            ("DROP id, ADD id INT FIRST", &[ID, A, B]),
        ] {
            assert!(follow(clauses, now).is_err(), "{clauses}");
        }
    }

    #[test]
    fn older_rows_have_what_the_server_prints() {
        for (definition, source_type, expected) in [
            ("INT", "int(11)", Some(None)),
            ("INT NOT NULL", "int(11)", Some(Some("0"))),
            ("INT DEFAULT '-12'", "int(11)", Some(Some("-12"))),
            ("INT DEFAULT 007", "int(11)", None),
            ("INT DEFAULT -0", "int(11)", None),
            ("INT DEFAULT 1.5", "int(11)", None),
            ("DECIMAL(9,2) NOT NULL", "decimal(9,2)", Some(Some("0.00"))),
            ("DECIMAL(9,2) DEFAULT 1.5", "decimal(9,2)", Some(Some("1.50"))),
            ("DECIMAL(65,0) DEFAULT 12", "decimal(65,0)", Some(Some("12"))),
            ("DECIMAL(9,2) DEFAULT 1.555", "decimal(9,2)", None),
            ("DOUBLE DEFAULT 250", "double", Some(Some("250"))),
            ("DOUBLE DEFAULT 2.5", "double", None),
            ("VARCHAR(9) DEFAULT ''", "varchar(9) character set utf8mb4", None),
            ("VARCHAR(9) NOT NULL DEFAULT ''", "varchar(9) character set utf8mb4", None),
            ("VARCHAR(9) NOT NULL", "varchar(9) character set utf8mb4", Some(Some(""))),
            ("VARCHAR(9) DEFAULT 1.50", "varchar(9) character set utf8mb4", None),
            ("CHAR(9) DEFAULT 'x '", "char(9) character set utf8mb4", None),
            ("VARCHAR(9) DEFAULT 'é'", "varchar(9) character set utf8mb4", None),
            ("ENUM('x','y') NOT NULL", "enum('x','y')", Some(Some("x"))),
            ("ENUM('x','y') DEFAULT 'y'", "enum('x','y')", Some(Some("y"))),
            ("ENUM('x','y') DEFAULT 'Y'", "enum('x','y')", None),
            ("ENUM('1','0') DEFAULT 1", "enum('1','0')", None),
            ("DATE NOT NULL", "date", None),
            ("DATE DEFAULT '2024-01-01'", "date", None),
            ("DATE", "date", Some(None)),
            ("TIMESTAMP NULL", "timestamp", None),
            ("BLOB NOT NULL", "blob", None),
        ] {
            let now = table(&[ID, (2, "c", source_type)]);
            let steps = steps_of(&format!("ADD c {definition}")).unwrap();
            let followed = follow(&table(&[ID]), &steps, &now, "utf8mb4");
            let older = followed.ok().map(|table| table.columns[1].older_rows.clone());
            assert_eq!(older.as_ref().map(Option::as_deref), expected, "{definition}");
        }
    }

    #[test]
    fn a_column_that_is_declared_anew_keeps_its_values_or_not() {
        let utf8 = |ty: &str| format!("{ty} character set utf8mb4");
        let latin = |ty: &str| format!("{ty} character set latin1");
        let plain = |ty: &str| ty.to_string();
        for (before, clause, now, expected) in [
            (utf8("varchar(9)"), "MODIFY c VARCHAR(20)", utf8("varchar(20)"), true),
            (utf8("varchar(9)"), "MODIFY c VARCHAR(9) NULL DEFAULT 'x'", utf8("varchar(9)"), true),
            (utf8("varchar(9)"), "MODIFY c MEDIUMTEXT FIRST", utf8("mediumtext"), true),
            (utf8("text"), "MODIFY c LONGTEXT", utf8("longtext"), true),
            (utf8("char(2)"), "MODIFY c CHAR(3)", utf8("char(3)"), true),
            (latin("varchar(9)"), "MODIFY c VARCHAR(10) CHARACTER SET latin1", latin("varchar(10)"), true),
            (plain("decimal(9,2)"), "MODIFY c DECIMAL(12,2)", plain("decimal(12,2)"), true),
            (utf8("enum('a')"), "MODIFY c ENUM('a','b')", utf8("enum('a','b')"), true),
            (plain("int(11)"), "MODIFY c INT COMMENT 'x'", plain("int(11)"), true),
            (plain("datetime"), "MODIFY c DATETIME DEFAULT CURRENT_TIMESTAMP", plain("datetime"), true),
            (utf8("varchar(9)"), "MODIFY c VARCHAR(5)", utf8("varchar(5)"), false),
            (utf8("varchar(9)"), "MODIFY c VARCHAR(20) NOT NULL", utf8("varchar(20)"), false),
            // It was shorter for a while: the catalog is ahead.
            (utf8("varchar(9)"), "MODIFY c VARCHAR(5)", utf8("varchar(20)"), false),
            (utf8("char(9)"), "MODIFY c VARCHAR(9)", utf8("varchar(9)"), false),
            (utf8("varchar(9)"), "MODIFY c CHAR(9)", utf8("char(9)"), false),
            (utf8("varchar(70)"), "MODIFY c TINYTEXT", utf8("tinytext"), false),
            (latin("varchar(9)"), "MODIFY c VARCHAR(10)", utf8("varchar(10)"), false),
            (latin("varchar(9)"), "MODIFY c VARCHAR(10)", latin("varchar(10)"), false),
            (plain("decimal(9,2)"), "MODIFY c DECIMAL(12,3)", plain("decimal(12,3)"), false),
            (plain("decimal(9,2)"), "MODIFY c DECIMAL(9,2) UNSIGNED", plain("decimal(9,2) unsigned"), false),
            (plain("decimal(9,2)"), "MODIFY c DECIMAL(50,2)", plain("decimal(50,2)"), false),
            (utf8("enum('a','b')"), "MODIFY c ENUM('b','a')", utf8("enum('b','a')"), false),
            (plain("int(11)"), "MODIFY c BIGINT", plain("bigint(20)"), false),
            (plain("int(11)"), "MODIFY c INT UNSIGNED", plain("int(11) unsigned"), false),
            (plain("datetime"), "MODIFY c DATETIME(3)", plain("datetime(3)"), false),
            (plain("timestamp"), "MODIFY c DATETIME", plain("datetime"), false),
        ] {
            let (before, now) = (table(&[ID, (2, "c", &before)]), table(&[ID, (2, "c", &now)]));
            let followed = follow(&before, &steps_of(clause).unwrap(), &now, "utf8mb4");
            assert_eq!(followed.is_ok(), expected, "{clause}: {followed:?}");
            let name = "d".to_string();
            let renamed = clause.replacen("MODIFY c", "CHANGE c d", 1);
            let now = Table {
                columns: now
                    .columns
                    .iter()
                    .cloned()
                    .map(|c| if c.id == 2 { Column { name: name.clone(), ..c } } else { c })
                    .collect(),
                ..now
            };
            let followed = follow(&before, &steps_of(&renamed).unwrap(), &now, "utf8mb4");
            assert_eq!(followed.is_ok(), expected, "{renamed}: {followed:?}");
            if let Ok(followed) = followed {
                assert_eq!(followed.columns.iter().find(|c| c.id == 2).map(|c| &c.name), Some(&name), "{renamed}");
            }
        }
    }
}

//! `values:` of a task and of a table: what becomes of values that their columns cannot hold, and which columns get
//! another type than their source type has (`docs/postgres-types.md`).

use std::collections::BTreeMap;

use millrace_core::{Becomes, Unfit, ValueRule};

use super::{
    section::{Reader, Section, Shape},
    tree::Node,
};

/// `values` of a task: for all columns, and by type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValuesConfig {
    /// `unfit`: what becomes of a value that its column cannot hold (default `companion`).
    pub unfit: Unfit,
    /// `types`: by the source's name of a type, without modifiers (`numeric`, `timestamptz`, `date[]`).
    pub types: BTreeMap<String, ValueRule>,
}

pub(super) static VALUES: Shape = Shape { name: "values", keys: &["unfit", "types"] };
/// One type's or column's rule.
pub(super) static VALUE: Shape = Shape { name: "value", keys: &["unfit", "as"] };

const UNFIT: [(&str, Unfit); 4] = [
    ("companion", Unfit::Companion),
    ("text", Unfit::Text),
    ("dead-letter", Unfit::DeadLetter),
    ("clamp", Unfit::Clamp),
];

/// Reads a task's `values`.
pub(super) fn values(reader: &mut Reader, section: &Section<'_>) -> ValuesConfig {
    let inner = section.get("values").and_then(|node| reader.section(node, &VALUES, section.name("values")));
    let Some(inner) = inner else { return ValuesConfig::default() };
    ValuesConfig {
        unfit: inner.read(reader, "unfit", |r, n, w| r.word(n, w, &UNFIT)).unwrap_or_default(),
        types: inner.read(reader, "types", rules).unwrap_or_default(),
    }
}

/// Reads rules by name: a task's `types`, a table's `values`.
pub(super) fn rules(reader: &mut Reader, node: &Node, what: &str) -> Option<BTreeMap<String, ValueRule>> {
    let mut rules = BTreeMap::new();
    for entry in reader.entries(node, what)? {
        let Some(section) = reader.section(&entry.node, &VALUE, format!("{} in {what}", entry.key)) else { continue };
        let unfit = section.read(reader, "unfit", |r, n, w| r.word(n, w, &UNFIT));
        let becomes = section.read(reader, "as", becomes);
        rules.insert(entry.key.clone(), ValueRule { unfit, becomes });
    }
    Some(rules)
}

fn becomes(reader: &mut Reader, node: &Node, what: &str) -> Option<Becomes> {
    let text = reader.text(node, what)?;
    if text == "text" {
        return Some(Becomes::Text);
    }
    let digits = text.strip_prefix("decimal(").and_then(|rest| rest.strip_suffix(')'));
    let parts = digits.and_then(|digits| digits.split_once(','));
    let parsed = parts.and_then(|(p, s)| Some((p.trim().parse().ok()?, s.trim().parse().ok()?)));
    if let Some((precision @ 1..=38, scale)) = parsed
        && scale <= precision
    {
        return Some(Becomes::Decimal { precision, scale });
    }
    let fix = "write text, or decimal(precision,scale) with at most 38 digits: \"decimal(38,9)\"";
    reader.wrong(node.at, "CFG-VALUE", format!("{what} cannot be \"{text}\""), fix);
    None
}

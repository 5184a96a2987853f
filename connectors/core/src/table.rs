//! Tables and columns as the source names them, and the patterns that select them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::ColumnType;

/// Schema and name of a table, exactly as the source shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// The schema (PostgreSQL) or database (MySQL) that holds the table.
    pub schema: String,
    /// The table's name in it.
    pub name: String,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// What of a table's changes the source can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capture {
    /// Inserts, updates and deletes.
    All,
    /// Inserts only: the table's replica identity cannot carry updates and deletes, and publishing them would make the
    /// application's own statements fail.
    InsertsOnly,
}

/// One version of a table's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Schema and name at the source.
    pub name: TableName,
    /// The source's own identity of the table (PostgreSQL's OID), which a re-created table does not share.
    pub source_id: u64,
    /// Counts up with every change of shape; the first is 1.
    pub version: u32,
    /// Live columns in the source's order.
    pub columns: Vec<Column>,
    /// Indexes into `columns` of the key that tells rows apart, in key order; empty for a table without a usable key,
    /// which is append-only.
    pub key: Vec<usize>,
    /// What of its changes is captured.
    pub capture: Capture,
    /// The source's identity of the table's storage (PostgreSQL's filenode): a rewrite changes it.
    pub storage_id: u64,
    /// The source's mark of how the columns are defined (of PostgreSQL's `pg_attribute` rows); 0 where it has none. New
    /// storage under another definition may hold other values; new storage under the same one holds the same rows.
    #[serde(default)]
    pub definition_id: u64,
    /// How many columns the table has had, with those that are gone: none that comes later has a number below. 0 where it is
    /// not known.
    #[serde(default)]
    pub columns_ever: i32,
    /// Rows and bytes as the source estimates them; 0 where it does not.
    pub estimated_rows: u64,
    /// Estimated size in bytes.
    pub estimated_bytes: u64,
    /// Where its rows lie, if it is put together from parts that come and go by themselves (PostgreSQL: the partitions of a
    /// partitioned table); `None` for a plain table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<Part>>,
}

/// A part of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The source's own identity of it (PostgreSQL's OID).
    pub id: u64,
    /// The source's identity of its storage: what empties or rewrites it changes it.
    pub storage_id: u64,
    /// Every row that it ever had came to it as a row of the whole table; else it may have brought rows with it that no
    /// change tells of.
    pub grew_here: bool,
    /// The source's mark of how it came to be a part: one that went and came again has another. 0 where it is not known.
    #[serde(default)]
    pub attached_by: u64,
}

impl Part {
    fn is_attached_as(&self, other: &Self) -> bool {
        self.id == other.id
            && (self.attached_by == other.attached_by || self.attached_by == 0 || other.attached_by == 0)
    }
}

/// Rows that came to a table, or left it, together with a part of it, so that no row change tells of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartChanges {
    /// A part came that may have brought rows.
    pub came: bool,
    /// A part is gone, or was emptied or rewritten.
    pub gone: bool,
}

impl PartChanges {
    /// What became of the parts, from one look at the source to another.
    pub fn between(before: &[Part], now: &[Part]) -> Self {
        let kept = |part: &Part| now.iter().any(|n| n.is_attached_as(part) && n.storage_id == part.storage_id);
        let known = |part: &Part| before.iter().any(|b| b.is_attached_as(part));
        Self { came: now.iter().any(|part| !known(part) && !part.grew_here), gone: !before.iter().all(kept) }
    }
}

impl Table {
    /// Whether rows can be told apart by key.
    pub fn is_keyed(&self) -> bool {
        !self.key.is_empty()
    }

    /// Why rows may have other values now than when this was their table, though no row change says so. A source without
    /// marks gives its columns numbers that hold for one look only, and tells of every such change in its log.
    pub fn rewritten_as(&self, now: &Self) -> Option<String> {
        if now.definition_id == 0 {
            return None;
        }
        // A record from before there were marks tells nothing.
        let redefined = self.definition_id != 0 && self.definition_id != now.definition_id;
        if self.storage_id != now.storage_id && redefined {
            return Some("a change of its columns rewrote its rows".into());
        }
        let renewed = self.columns.iter().find(|old| {
            let id_is_gone = now.columns.iter().all(|column| column.id != old.id);
            let alike = |column: &Column| (&column.name, &column.source_type) == (&old.name, &old.source_type);
            id_is_gone && now.columns.iter().any(alike)
        });
        renewed.map(|column| format!("column {:?} was dropped, and another one has its name now", column.name))
    }

    /// Index of the column with this exact name.
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// One column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The column's identity at the source, kept over renames (PostgreSQL's attnum); Parquet's `field_id`.
    pub id: i32,
    /// Its name at the source, or as a rule renamed it.
    pub name: String,
    /// What its values become.
    pub ty: ColumnType,
    /// The source's type with its modifiers, as `format_type` prints it; goes into the field's metadata.
    pub source_type: String,
    /// Whether the source allows null.
    pub nullable: bool,
    /// The value, as the source's text, that the rows have that were there when the column was added with a constant
    /// default; files from before do not hold it. `None`: null.
    pub older_rows: Option<String>,
}

/// Which tables a task takes: those that match an include pattern and no exclude pattern.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// At least one must match.
    pub include: Vec<TablePattern>,
    /// None may match.
    pub exclude: Vec<TablePattern>,
}

impl Selection {
    /// Whether the table is taken.
    pub fn matches(&self, table: &TableName) -> bool {
        self.include.iter().any(|p| p.matches(table)) && !self.exclude.iter().any(|p| p.matches(table))
    }
}

/// `schema.table`; each part is case-sensitive and takes `*` for any run of characters within the part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePattern {
    /// Pattern of the schema.
    pub schema: String,
    /// Pattern of the table.
    pub name: String,
}

impl TablePattern {
    /// Splits at the first dot: `public.orders`, `sales.*`. `None` without a dot or with an empty part.
    pub fn parse(text: &str) -> Option<Self> {
        let (schema, name) = text.split_once('.')?;
        (!schema.is_empty() && !name.is_empty()).then(|| Self { schema: schema.into(), name: name.into() })
    }

    /// Whether both parts match.
    pub fn matches(&self, table: &TableName) -> bool {
        glob(&self.schema, &table.schema) && glob(&self.name, &table.name)
    }

    /// Whether the pattern names one table only.
    pub fn is_exact(&self) -> bool {
        !self.schema.contains('*') && !self.name.contains('*')
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_matches_within_a_part() {
        for (pattern, schema, name, expected) in [
            ("public.orders", "public", "orders", true),
            ("public.orders", "public", "orders2", false),
            ("public.*", "public", "a b.c", true),
            ("*.log_*_x", "s", "log_2024_x", true),
            ("*.log_*_x", "s", "log_x", false),
            ("Public.*", "public", "orders", false),
            ("p*c.o*d*s", "public", "orders", true),
        ] {
            let pattern = TablePattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(&TableName::new(schema, name)), expected, "{pattern} {schema}.{name}");
        }
        assert!(TablePattern::parse("orders").is_none());
    }

    #[test]
    fn parts_that_come_and_go_are_told_apart() {
        let part = |id, storage_id, grew_here| Part { id, storage_id, grew_here, attached_by: 0 };
        let before = [part(1, 1, false), part(2, 2, true)];
        let changes = |now: &[Part]| {
            let PartChanges { came, gone } = PartChanges::between(&before, now);
            (came, gone)
        };
        assert_eq!(changes(&before), (false, false));
        assert_eq!(changes(&[part(2, 2, true), part(1, 1, false), part(3, 3, true)]), (false, false));
        assert_eq!(changes(&[part(1, 1, false), part(2, 2, true), part(3, 3, false)]), (true, false));
        assert_eq!(changes(&[part(1, 1, false)]), (false, true));
        assert_eq!(changes(&[part(1, 9, false), part(2, 2, true)]), (false, true));
        // Detached, and attached again with whatever was done to it meanwhile.
        let again = |attached_by| Part { attached_by, ..part(1, 1, false) };
        let between = |before, now| {
            let PartChanges { came, gone } = PartChanges::between(&[again(before)], &[again(now)]);
            (came, gone)
        };
        assert_eq!((between(5, 9), between(5, 5), between(0, 9)), ((true, true), (false, false), (false, false)));
    }
}

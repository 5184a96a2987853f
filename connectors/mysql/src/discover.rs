//! Which tables there are, and their shapes, from `information_schema`.
//!
//! Captured are base tables of a transactional engine. Generated columns are left out of capture and load alike: the log
//! has them only sometimes, and both ways must give the same columns.

use std::collections::BTreeMap;

use millrace_core::{Capture, Column, Error, Kind, Result, Selection, Table, TableName, error::Context};

use crate::{types::SqlType, wire::Connection};

/// A table, and what hinders its capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What the others see.
    pub table: Table,
    /// Its storage engine.
    pub engine: String,
    /// Columns whose type is not known here, with their type.
    pub unknown: Vec<(String, String)>,
    /// It has generated columns.
    pub has_generated: bool,
    /// A column of the key is generated.
    generated_key: bool,
}

/// Schemas of the server's own.
const OWN: &str = "('mysql', 'information_schema', 'performance_schema', 'sys')";

/// All tables that the selection matches, by name.
pub async fn select(connection: &mut Connection, selection: &Selection) -> Result<Vec<Shape>> {
    let exact = selection.include.iter().all(|pattern| pattern.is_exact());
    let mut shapes = if exact {
        let name = |pattern: &millrace_core::TablePattern| TableName::new(&pattern.schema, &pattern.name);
        named(connection, &selection.include.iter().map(name).collect::<Vec<_>>()).await?
    } else {
        read(connection, "TRUE").await?
    };
    shapes.retain(|shape| selection.matches(&shape.table.name));
    Ok(shapes)
}

/// MariaDB's system-versioned tables that the selection matches: their history is in the log as if it were rows, so they are
/// no tables for us.
pub async fn versioned(connection: &mut Connection, selection: &Selection) -> Result<Vec<TableName>> {
    let sql = "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE = 'SYSTEM VERSIONED'";
    let rows = connection.query(sql).await?;
    let names = rows.iter().map(|row| Row(row).table());
    Ok(names.filter(|name| selection.matches(name)).collect())
}

/// Those of the named tables that exist.
pub async fn named(connection: &mut Connection, names: &[TableName]) -> Result<Vec<Shape>> {
    if names.is_empty() {
        return Ok(vec![]);
    }
    let is = |name: &TableName| {
        let (schema, name) = (quote_literal(&name.schema), quote_literal(&name.name));
        format!("(t.TABLE_SCHEMA = {schema} AND t.TABLE_NAME = {name})")
    };
    let mut shapes = read(connection, &names.iter().map(is).collect::<Vec<_>>().join(" OR ")).await?;
    // The catalog takes names that differ in case or accents for the same.
    shapes.retain(|shape| names.contains(&shape.table.name));
    Ok(shapes)
}

async fn read(connection: &mut Connection, condition: &str) -> Result<Vec<Shape>> {
    // No joins: the catalog takes names that differ in case or accents for the same, and would mix their columns.
    let of = |columns: &str, view: &str, rest: &str| {
        format!(
            "SELECT t.TABLE_SCHEMA, t.TABLE_NAME, {columns} FROM information_schema.{view} t WHERE \
             t.TABLE_SCHEMA NOT IN {OWN} AND ({condition}) {rest}"
        )
    };
    let tables = of("t.ENGINE, t.TABLE_ROWS, t.DATA_LENGTH", "TABLES", "AND t.TABLE_TYPE = 'BASE TABLE'");
    let columns = of(
        "t.COLUMN_NAME, t.COLUMN_TYPE, t.CHARACTER_SET_NAME, t.IS_NULLABLE, t.ORDINAL_POSITION, t.EXTRA",
        "COLUMNS",
        "ORDER BY t.ORDINAL_POSITION",
    );
    let keys = of("t.COLUMN_NAME", "STATISTICS", "AND t.INDEX_NAME = 'PRIMARY' ORDER BY t.SEQ_IN_INDEX");
    let mut found: BTreeMap<TableName, Shape> = BTreeMap::new();
    for row in connection.query(&tables).await? {
        let row = Row(&row);
        let name = row.table();
        let table = Table {
            source_id: source_id(&name),
            name: name.clone(),
            version: 1,
            columns: vec![],
            key: vec![],
            capture: Capture::All,
            storage_id: 0,
            definition_id: 0,
            columns_ever: 0,
            estimated_rows: row.number(3)?,
            estimated_bytes: row.number(4)?,
            parts: None,
        };
        found.insert(
            name,
            Shape { table, engine: row.text(2).into(), unknown: vec![], has_generated: false, generated_key: false },
        );
    }
    for row in connection.query(&columns).await? {
        let row = Row(&row);
        let Some(shape) = found.get_mut(&row.table()) else { continue };
        shape.add_column(&row)?;
    }
    for row in connection.query(&keys).await? {
        let row = Row(&row);
        let Some(shape) = found.get_mut(&row.table()) else { continue };
        match shape.table.column_index(row.text(2)) {
            Some(index) => shape.table.key.push(index),
            None => shape.generated_key = true,
        }
    }
    // Without a part of its key, which is not captured, rows cannot be told apart.
    found.values_mut().filter(|shape| shape.generated_key).for_each(|shape| shape.table.key.clear());
    Ok(found.into_values().collect())
}

/// The character set of a table's columns where nothing else is said; empty where there is no such table. The names of
/// collations begin with it.
pub async fn default_charset(connection: &mut Connection, table: &TableName) -> Result<String> {
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_COLLATION FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND \
         TABLE_NAME = {}",
        quote_literal(&table.schema),
        quote_literal(&table.name)
    );
    let rows = connection.query(&sql).await?;
    let own = rows.iter().map(|row| Row(row)).find(|row| row.table() == *table);
    Ok(own.and_then(|row| Some(row.text(2).split('_').next()?.to_string())).unwrap_or_default())
}

/// The generated columns of a table.
pub async fn generated_columns(connection: &mut Connection, table: &TableName) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} \
         AND EXTRA LIKE '%GENERATED%' AND EXTRA NOT LIKE '%DEFAULT_GENERATED%'",
        quote_literal(&table.schema),
        quote_literal(&table.name)
    );
    let rows = connection.query(&sql).await?;
    let own = rows.iter().map(|row| Row(row)).filter(|row| row.table() == *table);
    Ok(own.map(|row| row.text(2).to_string()).collect())
}

impl Shape {
    /// Whether its engine can take a change back, and its snapshot is of the moment that the log tells.
    pub fn is_transactional(&self) -> bool {
        ["InnoDB", "ROCKSDB"].contains(&self.engine.as_str())
    }

    /// The table, if all of its columns can be read: one that was left out would be missing without a word.
    pub fn known(self) -> Result<Table> {
        match self.unknown.first() {
            None => Ok(self.table),
            Some((column, ty)) => {
                let doing = format!("reading the shape of {}", self.table.name);
                let said = format!("column {column:?} has a type that is not known: {ty}");
                Err(Error::new(Kind::SourceSetup, doing).with(said).fix("leave the table out of the task"))
            }
        }
    }

    fn add_column(&mut self, row: &Row<'_>) -> Result<()> {
        let (name, declared, extra) = (row.text(2), row.text(3), row.text(7));
        self.table.columns_ever = self.table.columns_ever.max(row.number(6)? as i32);
        if extra.contains("GENERATED") && !extra.contains("DEFAULT_GENERATED") {
            self.has_generated = true;
            return Ok(());
        }
        let source_type = match row.0.get(4).and_then(Option::as_deref) {
            Some(charset) if !declared.starts_with("json") => format!("{declared} character set {charset}"),
            _ => declared.to_string(),
        };
        let Some(ty) = SqlType::parse(&source_type) else {
            self.unknown.push((name.into(), declared.into()));
            return Ok(());
        };
        self.table.columns.push(Column {
            id: row.number(6)? as i32,
            name: name.into(),
            ty: ty.column_type(),
            source_type,
            nullable: row.text(5) == "YES",
            older_rows: None,
        });
        Ok(())
    }
}

/// The server has no number for a table that everybody may see; that a table was made anew, the log says.
fn source_id(name: &TableName) -> u64 {
    let bytes = name.schema.bytes().chain([0]).chain(name.name.bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A row of the catalog.
pub struct Row<'a>(pub &'a [Option<String>]);

impl Row<'_> {
    /// A text; empty for null.
    pub fn text(&self, index: usize) -> &str {
        self.0.get(index).and_then(Option::as_deref).unwrap_or_default()
    }

    /// A number; 0 for null.
    pub fn number(&self, index: usize) -> Result<u64> {
        let text = self.text(index);
        if text.is_empty() { Ok(0) } else { text.parse().context(Kind::Protocol, || "reading the catalog") }
    }

    fn table(&self) -> TableName {
        TableName::new(self.text(0), self.text(1))
    }
}

/// A name as SQL takes it whatever is in it.
pub fn quote_name(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Schema and name, likewise.
pub fn quote_table(table: &TableName) -> String {
    format!("{}.{}", quote_name(&table.schema), quote_name(&table.name))
}

/// A text as SQL takes it; the session's `sql_mode` is empty, so a backslash escapes.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quote_table(&TableName::new("a`b", "c d")), "`a``b`.`c d`");
        assert_eq!(quote_literal(r"it's \ so"), r"'it''s \\ so'");
        assert_ne!(source_id(&TableName::new("a", "bc")), source_id(&TableName::new("ab", "c")));
    }
}

//! Which tables there are, and their shapes, from the catalog (manual, chapter "System Catalogs").
//!
//! Captured are ordinary tables (`relkind` r, permanent) and partitioned ones (p, see [`crate::partitions`]); a partition
//! is a table of its own only where nothing above it is captured. Generated columns are left out of capture
//! and load alike: pgoutput does not send them before PostgreSQL 18, and both ways must give the same columns.

use std::collections::{HashMap, HashSet};

use millrace_core::{Capture, Column, Error, Kind, Result, Selection, Table, TableName, ValueRules};

use crate::{
    partitions::{self, Storage},
    types::{PgType, TypeCatalog, unfit},
    wire::Connection,
};

/// A table with what only this connector needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What the others see.
    pub table: Table,
    /// The types of its columns.
    pub types: Vec<PgType>,
    /// Why updates and deletes are not captured, where they are not.
    pub gap: Option<IdentityGap>,
    /// Where its rows lie: itself, or the partitions of a partitioned table.
    pub storages: Vec<Storage>,
    /// Partitions whose rows are neither loaded nor captured: foreign tables and unlogged ones.
    pub left_out: Vec<TableName>,
    /// The OIDs of the partitioned tables that it is a partition of.
    pub ancestors: Vec<u64>,
}

impl Shape {
    /// Gives the columns the types that the task's rules say.
    pub fn retype(&mut self, rules: &ValueRules) {
        unfit::retype_with(rules, &mut self.table, &mut self.types);
    }

    /// Updates and deletes are not captured, for this reason.
    pub fn close_gap_with(&mut self, gap: IdentityGap) {
        self.gap = Some(gap);
        self.table.capture = Capture::InsertsOnly;
    }

    /// One number for where its rows lie, which any partition that comes, goes or is rewritten changes too.
    pub fn storage_id(&self) -> u64 {
        self.table.parts.as_ref().map_or(self.table.storage_id, |parts| partitions::storage_id(parts))
    }

    /// Whether its rows lie in partitions.
    pub fn is_partitioned(&self) -> bool {
        self.table.parts.is_some()
    }

    /// `ONLY`, where the rows of the table itself are meant and there are any.
    pub fn only(&self) -> &'static str {
        if self.is_partitioned() { "" } else { "ONLY " }
    }

    /// Whether rows are read the same way from both: all but the estimates.
    pub fn reads_like(&self, other: &Self) -> bool {
        let of = |shape: &Self| (shape.table.source_id, shape.storage_id(), shape.table.key.clone(), shape.gap);
        of(self) == of(other) && self.table.columns == other.table.columns && self.types == other.types
    }
}

/// Why a table's replica identity cannot carry updates (manual, ALTER TABLE, `REPLICA IDENTITY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityGap {
    /// There is no primary key.
    NoKey,
    /// The primary key is deferrable, which PostgreSQL does not take as an identity.
    Deferrable,
    /// `REPLICA IDENTITY NOTHING`.
    Nothing,
    /// The index that `REPLICA IDENTITY USING INDEX` named is gone.
    IndexGone,
    /// The key has a generated column, which the log does not carry.
    Generated,
    /// What a partition sends of an old row does not hold the table's key.
    Partition,
}

impl IdentityGap {
    /// Half a sentence for people.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoKey => "it has no primary key",
            Self::Deferrable => "its primary key is deferrable",
            Self::Nothing => "its replica identity is NOTHING",
            Self::IndexGone => "the index of its replica identity is gone",
            Self::Generated => "its key has a generated column",
            Self::Partition => "the replica identity of a partition does not carry its key",
        }
    }
}

/// The types of the database.
pub async fn type_catalog(connection: &mut Connection) -> Result<TypeCatalog> {
    let rows = connection.query(TypeCatalog::QUERY).await?;
    TypeCatalog::from_rows(rows.iter().map(Vec::as_slice))
}

/// All tables that the selection matches, by name.
pub async fn select(connection: &mut Connection, selection: &Selection) -> Result<Vec<Shape>> {
    let exact = selection.include.iter().all(|pattern| pattern.is_exact());
    let mut shapes = if exact {
        let names: Vec<TableName> =
            selection.include.iter().map(|p| TableName::new(p.schema.clone(), p.name.clone())).collect();
        named(connection, &names).await?
    } else {
        read(connection, "true").await?
    };
    shapes.retain(|shape| selection.matches(&shape.table.name));
    // What a partitioned table sends in its own name is not taken twice.
    let taken: HashSet<u64> = shapes.iter().map(|shape| shape.table.source_id).collect();
    shapes.retain(|shape| !shape.ancestors.iter().any(|ancestor| taken.contains(ancestor)));
    Ok(shapes)
}

/// Those of the named tables that exist.
pub async fn named(connection: &mut Connection, names: &[TableName]) -> Result<Vec<Shape>> {
    if names.is_empty() {
        return Ok(vec![]);
    }
    let pairs: Vec<String> =
        names.iter().map(|name| format!("({},{})", quote_literal(&name.schema), quote_literal(&name.name))).collect();
    read(connection, &format!("(n.nspname, c.relname) IN ({})", pairs.join(","))).await
}

/// The table with this OID, whatever its name is by now.
pub async fn by_oid(connection: &mut Connection, oid: u64) -> Result<Option<Shape>> {
    Ok(read(connection, &format!("c.oid = {oid}")).await?.pop())
}

/// Tables that are none of the server's own.
pub const USER_TABLE: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

async fn read(connection: &mut Connection, condition: &str) -> Result<Vec<Shape>> {
    let catalog = type_catalog(connection).await?;
    let rows = connection
        .query(&format!(
            "SELECT n.nspname, c.relname, c.oid, coalesce(pg_relation_filenode(c.oid), 0), \
             greatest(c.reltuples, 0)::bigint, greatest(c.relpages, 0)::bigint * current_setting('block_size')::bigint, \
             c.relreplident, pk.indimmediate, array_to_string((pk.indkey::int2[])[0:pk.indnkeyatts - 1], ' '), \
             array_to_string((ri.indkey::int2[])[0:ri.indnkeyatts - 1], ' '), \
             a.attnum, a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.xmin, \
             c.relkind, CASE WHEN c.relispartition THEN array_to_string(array(SELECT p.relid::oid \
             FROM pg_partition_ancestors(c.oid) p WHERE p.relid <> c.oid), ' ') ELSE '' END, c.relnatts \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_index pk ON pk.indrelid = c.oid AND pk.indisprimary \
             LEFT JOIN pg_index ri ON ri.indrelid = c.oid AND ri.indisreplident AND ri.indisvalid \
             LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             AND a.attgenerated = '' \
             WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND {USER_TABLE} AND {condition} \
             ORDER BY n.nspname, c.relname, a.attnum"
        ))
        .await?;
    let mut tables: Vec<Found> = vec![];
    for row in &rows {
        let row = CatalogRow(row);
        let oid = row.number(2)?;
        if tables.last().is_none_or(|found| found.table.source_id != oid) {
            tables.push(Found::read(&row, oid)?);
        }
        if let (Some(found), Some(_)) = (tables.last_mut(), row.text(10)) {
            found.add_column(&row, &catalog)?;
        }
    }
    let mut shapes: Vec<Shape> = tables.into_iter().map(Found::finish).collect();
    partitions::read(connection, &mut shapes).await?;
    Ok(shapes)
}

/// Of the numbers of the columns and of the transactions that last defined them (`xmin`), in the order of the numbers.
/// FNV-1a, because it is kept in the state: it must not depend on the hasher of a build.
pub fn definition_id(columns: impl Iterator<Item = (i32, u64)>) -> u64 {
    let bytes = columns.flat_map(|(id, defined_by)| [id.to_le_bytes().to_vec(), defined_by.to_le_bytes().to_vec()]);
    bytes.flatten().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A table whose columns are being read.
struct Found {
    table: Table,
    types: Vec<PgType>,
    /// By column: its number, and the transaction that last defined it.
    defined_by: Vec<(i32, u64)>,
    identity: u8,
    primary_immediate: bool,
    primary: Option<Vec<i32>>,
    identity_index: Option<Vec<i32>>,
    ancestors: Vec<u64>,
}

impl Found {
    fn read(row: &CatalogRow<'_>, oid: u64) -> Result<Self> {
        let attributes = |text: &str| text.split(' ').filter_map(|number| number.parse().ok()).collect();
        let table = Table {
            name: TableName::new(row.word(0)?, row.word(1)?),
            source_id: oid,
            version: 1,
            columns: vec![],
            key: vec![],
            capture: Capture::All,
            storage_id: row.number(3)?,
            definition_id: 0,
            columns_ever: row.number(19)?,
            estimated_rows: row.number(4)?,
            estimated_bytes: row.number(5)?,
            parts: (row.word(17)? == "p").then(Vec::new),
        };
        Ok(Self {
            table,
            types: vec![],
            defined_by: vec![],
            identity: row.word(6)?.bytes().next().unwrap_or(b'd'),
            primary_immediate: row.text(7) == Some("t"),
            primary: row.text(8).map(attributes),
            identity_index: row.text(9).map(attributes),
            ancestors: row.word(18)?.split(' ').filter_map(|oid| oid.parse().ok()).collect(),
        })
    }

    fn add_column(&mut self, row: &CatalogRow<'_>, catalog: &TypeCatalog) -> Result<()> {
        let oid = row.number(12)?;
        let ty = catalog.resolve_or_text(oid, row.number(13)?);
        self.table.columns.push(Column {
            id: row.number(10)?,
            name: row.word(11)?.into(),
            ty: ty.column_type(),
            source_type: row.word(14)?.into(),
            nullable: row.text(15) != Some("t"),
            older_rows: None,
        });
        self.types.push(ty);
        self.defined_by.push((row.number(10)?, row.number(16)?));
        Ok(())
    }

    /// Decides key and capture.
    fn finish(mut self) -> Shape {
        self.table.definition_id = definition_id(self.defined_by.drain(..));
        let deferrable = self.primary.is_some() && !self.primary_immediate;
        // Which of two rows of a key is meant is told by comparing old rows, which a partition may not send whole.
        let compares = self.identity == b'f' && self.table.parts.is_none();
        let primary = self.primary.take().filter(|_| !deferrable || compares);
        let (attributes, mut gap) = match self.identity {
            b'f' => (primary, None),
            b'i' => match self.identity_index.take() {
                Some(index) => (Some(index), None),
                None => (primary, Some(IdentityGap::IndexGone)),
            },
            b'n' => (primary, Some(IdentityGap::Nothing)),
            _ => match primary {
                Some(primary) => (Some(primary), None),
                None if deferrable => (None, Some(IdentityGap::Deferrable)),
                None => (None, Some(IdentityGap::NoKey)),
            },
        };
        let position = |id: &i32| self.table.columns.iter().position(|column| column.id == *id);
        let key: Option<Vec<usize>> = attributes.unwrap_or_default().iter().map(position).collect();
        // A full identity carries the whole old row, key or no key.
        if key.is_none() && gap.is_none() && self.identity != b'f' {
            gap = Some(IdentityGap::Generated);
        }
        self.table.key = key.unwrap_or_default();
        self.table.capture = if gap.is_none() { Capture::All } else { Capture::InsertsOnly };
        let storage = Storage {
            name: self.table.name.clone(),
            oid: self.table.source_id,
            filenode: self.table.storage_id,
            estimated_rows: self.table.estimated_rows,
        };
        let types = self.types;
        let ancestors = self.ancestors;
        Shape { table: self.table, types, gap, storages: vec![storage], left_out: vec![], ancestors }
    }
}

/// A row of a catalog query.
pub struct CatalogRow<'a>(pub &'a [Option<String>]);

impl<'a> CatalogRow<'a> {
    /// The cell; `None` if it is null.
    pub fn text(&self, index: usize) -> Option<&'a str> {
        self.0.get(index)?.as_deref()
    }

    /// A cell that is never null.
    pub fn word(&self, index: usize) -> Result<&'a str> {
        self.text(index).ok_or_else(|| Error::new(Kind::Protocol, "reading the catalog: a value is missing"))
    }

    /// A number that is never null.
    pub fn number<T: std::str::FromStr>(&self, index: usize) -> Result<T> {
        let parsed = self.word(index)?.parse();
        parsed.map_err(|_| Error::new(Kind::Protocol, "reading the catalog: a number is none"))
    }
}

/// Groups rows by their first cell; for lists of names.
pub fn first_cells(rows: Vec<Vec<Option<String>>>) -> Vec<String> {
    rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
}

/// Those shapes by name.
pub fn by_name(shapes: Vec<Shape>) -> HashMap<TableName, Shape> {
    shapes.into_iter().map(|shape| (shape.table.name.clone(), shape)).collect()
}

/// An identifier, always quoted (manual, "Identifiers and Key Words").
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's name, both parts quoted.
pub fn quote_table(name: &TableName) -> String {
    format!("{}.{}", quote_identifier(&name.schema), quote_identifier(&name.name))
}

/// A string constant, whatever `standard_conforming_strings` is.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(quote_table(&TableName::new("a\"b", "c.d")), "\"a\"\"b\".\"c.d\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'"), " E'a\\\\'''");
    }
}

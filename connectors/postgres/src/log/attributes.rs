//! A table's columns as the catalog keeps them (`pg_attribute`), dropped ones included: their numbers tell apart what
//! the log shows under the same name.

use std::collections::HashMap;

use millrace_core::{Column, ColumnType, ColumnVec, Result, Table};

use crate::{
    discover::{CatalogRow, definition_id},
    slot::parse_lsn,
    types::text,
    wire::{Connection, relation::RelationColumn},
};

/// A column in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its number, which no other column of the table ever gets.
    pub id: i32,
    pub(super) name: String,
    /// 0 of a dropped column.
    pub(super) type_oid: u32,
    pub(super) type_modifier: i32,
    /// Length and alignment, which a dropped column keeps; they change only with a rewrite.
    pub(super) storage: (i16, String),
    pub(super) dropped: bool,
    /// The transaction that last defined it.
    pub(super) defined_by: u64,
    pub(super) not_null: bool,
    /// The value that older rows have and no row event carries (`attmissingval`).
    pub(super) missing: Option<String>,
    pub(super) has_default: bool,
    /// An identity or generated column: older rows were given values.
    pub(super) computed: bool,
}

/// A table in the catalog.
#[derive(Debug, Default)]
pub struct Stored {
    /// Its filenode; 0 where it has none.
    pub storage_id: u64,
    /// Its columns in the order of their numbers.
    pub attributes: Vec<Attribute>,
}

/// Of a column of a partitioned table, what older rows have; only the partitions know, also when its default is gone again.
/// `NULL` where they do not agree, or one of them was rewritten or made since.
const MISSING_IN_PARTITIONS: &str = "SELECT CASE WHEN bool_and(l.atthasmissing) AND count(DISTINCT l.attmissingval::pg_catalog.text) = 1 \
     THEN (min(l.attmissingval::pg_catalog.text)::pg_catalog.text[])[1] END AS missing, bool_or(l.atthasmissing) AS any \
     FROM pg_partition_tree(c.oid) t JOIN pg_class s ON s.oid = t.relid AND s.relkind <> 'p' \
     JOIN pg_attribute l ON l.attrelid = s.oid WHERE l.attname = a.attname AND NOT l.attisdropped";

/// These tables, by OID.
pub async fn read(connection: &mut Connection, oids: &[u64]) -> Result<HashMap<u64, Stored>> {
    let mut tables: HashMap<u64, Stored> = HashMap::new();
    if oids.is_empty() {
        return Ok(tables);
    }
    let oids: Vec<String> = oids.iter().map(u64::to_string).collect();
    let rows = connection
        .query(&format!(
            "SELECT c.oid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attlen, a.attalign, a.attisdropped, a.xmin, \
             a.attnotnull, a.atthasdef, a.attidentity <> '' OR a.attgenerated <> '' \
             OR (c.relkind = 'p' AND p.missing IS NULL AND (a.atthasdef OR p.any IS TRUE)), \
             CASE WHEN a.atthasmissing THEN (a.attmissingval::pg_catalog.text::pg_catalog.text[])[1] ELSE p.missing END, \
             coalesce(pg_relation_filenode(c.oid), 0) FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
             LEFT JOIN LATERAL ({MISSING_IN_PARTITIONS}) p ON c.relkind = 'p' AND NOT a.attisdropped \
             WHERE c.oid IN ({}) ORDER BY c.oid, a.attnum",
            oids.join(",")
        ))
        .await?;
    for row in &rows {
        let row = CatalogRow(row);
        let table = tables.entry(row.number(0)?).or_default();
        table.storage_id = row.number(13)?;
        // A table may have no columns at all.
        if row.text(1).is_some() {
            table.attributes.push(attribute(&row)?);
        }
    }
    Ok(tables)
}

fn attribute(row: &CatalogRow<'_>) -> Result<Attribute> {
    let flag = |index| row.word(index).map(|word| word == "t");
    Ok(Attribute {
        id: row.number(1)?,
        name: row.word(2)?.into(),
        type_oid: row.number(3)?,
        type_modifier: row.number(4)?,
        storage: (row.number(5)?, row.word(6)?.into()),
        dropped: flag(7)?,
        defined_by: row.number(8)?,
        not_null: flag(9)?,
        has_default: flag(10)?,
        computed: flag(11)?,
        missing: row.text(12).map(Into::into),
    })
}

/// Up to where the log is reflected in what the catalog says from now on: who changed a row of a table afterwards saw
/// the table as every transaction left it that committed before here, and so do we, because a table is locked until the
/// commit of who alters it can be seen.
pub async fn position(connection: &mut Connection) -> Result<u64> {
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END";
    let rows = connection.query(sql).await?;
    let row = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default());
    Ok(u64::try_from(parse_lsn(row.word(0)?)?.0).unwrap_or(0))
}

/// A column of the table that is gone, while a later one is or was there that its Relation cannot be told from.
pub fn replaced<'t>(table: &'t Table, attributes: &[Attribute]) -> Option<&'t Column> {
    let newest = newest(table);
    table.columns.iter().find(|column| {
        let own = attributes.iter().find(|attribute| attribute.id == column.id);
        own.filter(|own| own.dropped)
            .is_some_and(|own| attributes.iter().any(|other| other.id > newest && other.storage == own.storage))
    })
}

/// Whether what the log shows as this new column may have been another one, which is gone by now: one of the table's own,
/// or one that came and went since. Types and names change without a trace, but what a column is stored as only with a
/// rewrite.
pub fn is_in_doubt(table: &Table, attributes: &[Attribute], new: &Attribute) -> bool {
    let newest = newest(table);
    let may_have_been = |id| id > newest || table.columns.iter().any(|column| column.id == id);
    attributes
        .iter()
        .any(|gone| gone.dropped && gone.id < new.id && gone.storage == new.storage && may_have_been(gone.id))
}

/// Whether all columns of the table are still there: what looks like the table is the table.
pub fn has_all(attributes: &[Attribute], table: &Table) -> bool {
    let is_there = |id| attributes.iter().any(|attribute| attribute.id == id && !attribute.dropped);
    table.columns.iter().all(|column| is_there(column.id))
}

/// No column that came behind this shape of the table has a number as low.
fn newest(table: &Table) -> i32 {
    table.columns.iter().map(|column| column.id).fold(table.columns_ever, i32::max)
}

/// The mark of how the table's columns are defined now.
pub fn definition_of(table: &Table, attributes: &[Attribute]) -> u64 {
    let own = attributes.iter().filter(|attribute| table.columns.iter().any(|column| column.id == attribute.id));
    definition_id(own.map(|attribute| (attribute.id, attribute.defined_by)))
}

/// Whether the table is stored and defined as it was: all of the log up to this look at the catalog is of these columns,
/// and of rows that were not rewritten.
pub fn is_as_it_was(table: &Table, now: &Stored) -> bool {
    (table.storage_id, table.definition_id) == (now.storage_id, definition_of(table, &now.attributes))
}

impl Attribute {
    /// Whether it is known what a column that was added is in the rows that were there, and the column can hold it.
    pub fn fits_older_rows(&self, rewritten: bool, ty: &ColumnType) -> Result<(), String> {
        let fits = |text: &String| text::decode(ty, text.as_bytes(), &mut ColumnVec::new(ty)).is_ok();
        let unfit = self.missing.as_ref().is_some_and(|missing| !fits(missing));
        // A default that needed a rewrite leaves no other trace than new storage.
        match unfit || self.computed || (self.has_default && rewritten && self.missing.is_none()) {
            true => Err(format!("column {:?} was added with values for the rows that were there", self.name)),
            false => Ok(()),
        }
    }

    /// Whether the log shows this column.
    pub fn is(&self, shown: &RelationColumn) -> bool {
        (&self.name, self.type_oid, self.type_modifier) == (&shown.name, shown.type_oid, shown.type_modifier)
    }
}

//! `catalog/…`: the catalog's records. What changes with every round is apart from what changes with the shape, and a
//! file is a record of its own, so that a commit writes as much as changed.

use std::fmt;

use millrace_core::TableName;
use serde::{Deserialize, Serialize};

/// Database and table as the catalog names them: lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CatalogName {
    /// The database.
    pub database: String,
    /// The table.
    pub table: String,
}

impl CatalogName {
    /// The catalog's name of a target table.
    pub fn of(table: &TableName) -> Self {
        Self { database: table.schema.to_lowercase(), table: table.name.to_lowercase() }
    }

    /// `database.table`, split at the first dot as operators write it.
    pub fn parse(text: &str) -> Option<Self> {
        let (database, table) = text.split_once('.')?;
        Some(Self { database: database.to_lowercase(), table: table.to_lowercase() })
    }
}

impl fmt::Display for CatalogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.table)
    }
}

/// A file of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Relative to the target's prefix.
    pub key: String,
    /// As readers name it: `s3://…` or a local path.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// `load` or `changes`.
    pub kind: FileKind,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// Rows of a full load.
    Load,
    /// Changes.
    Changes,
    /// Rejected rows, as JSON lines.
    DeadLetters,
}

fn part(name: &CatalogName) -> String {
    format!("{}/{}", super::escape(&name.database), super::escape(&name.table))
}

/// All databases.
pub const DATABASES: &str = "catalog/database/";

/// A database.
pub fn database(name: &str) -> String {
    format!("{DATABASES}{}", super::escape(name))
}

/// All tables of a database.
pub fn tables(database: &str) -> String {
    format!("catalog/table/{}/", super::escape(database))
}

/// A table's shape.
pub fn table(name: &CatalogName) -> String {
    format!("catalog/table/{}", part(name))
}

/// How far a table is.
pub fn progress(name: &CatalogName) -> String {
    format!("catalog/progress/{}", part(name))
}

/// All versions of a table.
pub fn versions(name: &CatalogName) -> String {
    format!("catalog/version/{}/", part(name))
}

/// One version of a table.
pub fn version(name: &CatalogName, version: u32) -> String {
    format!("{}{version:08}", versions(name))
}

/// All files of a table's generation.
pub fn files(name: &CatalogName, generation: u32) -> String {
    format!("catalog/file/{}/{generation:08}/", part(name))
}

/// One file.
pub fn file(name: &CatalogName, generation: u32, number: u64) -> String {
    format!("{}{number:010}", files(name, generation))
}

/// All dead letters of a table.
pub fn dead_letters(name: &CatalogName) -> String {
    format!("catalog/dead-letter/{}/", part(name))
}

/// One file of dead letters.
pub fn dead_letter(name: &CatalogName, number: u64) -> String {
    format!("{}{number:010}", dead_letters(name))
}

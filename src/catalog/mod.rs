//! The catalog, in Glue's model: databases, tables, versions, and for every table the manifest of its files.

use std::{collections::BTreeMap, sync::Arc};

use millrace_core::{Position, Result, Table, TableName};
use serde::{Deserialize, Serialize};

use crate::{
    state::{Put, StateStore},
    stream::LogPosition,
};

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
}

/// A column with its Hive type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogColumn {
    /// Its name in the files.
    pub name: String,
    /// Its Hive type.
    pub r#type: String,
    /// The source's type.
    pub comment: String,
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

/// A table in the catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogTable {
    /// Its name.
    pub name: CatalogName,
    /// Folder of its files, as readers name it.
    pub location: String,
    /// Counts up with every change of the columns; the first is 1.
    pub version: u32,
    /// Its columns, ours included, in file order.
    pub columns: Vec<CatalogColumn>,
    /// Glue's parameters: classification, the names of our columns, the key, the task.
    pub parameters: BTreeMap<String, String>,
    /// Counts up with every reload: files of the current one make up the table.
    pub generation: u32,
    /// Everything that committed before this is in the files.
    pub complete_through: Position,
    /// The same as a place in the task's stream.
    pub complete_through_log: LogPosition,
}

/// Reads the catalog, and adds to commits that others make.
#[derive(Clone)]
pub struct Catalog {
    #[allow(dead_code)]
    state: Arc<dyn StateStore>,
}

impl Catalog {
    /// Over the state.
    pub fn new(state: Arc<dyn StateStore>) -> Self {
        Self { state }
    }

    /// Registers the table with the shape of `table` (which has target names), or makes a new version where the columns
    /// differ. Does nothing where nothing changed.
    pub fn define(&self, _puts: &mut Vec<Put>, _task: &str, _table: &Table, _location: &str) -> Result<()> {
        todo!()
    }

    /// Adds files to the table's current generation and moves `complete_through`.
    pub fn add_files(
        &self,
        _puts: &mut Vec<Put>,
        _table: &TableName,
        _files: &[DataFile],
        _complete: (Position, LogPosition),
    ) -> Result<()> {
        todo!()
    }

    /// Replaces what the manifest held by these files: a new generation. Gives the files that left it, to be deleted
    /// after a grace period (they are recorded as garbage in the same commit).
    pub fn replace_files(
        &self,
        _puts: &mut Vec<Put>,
        _task: &str,
        _table: &Table,
        _location: &str,
        _files: &[DataFile],
        _complete: (Position, LogPosition),
    ) -> Result<Vec<DataFile>> {
        todo!()
    }
}

//! The catalog, in Glue's model: databases, tables, versions, and for every table the manifest of its files.
//!
//! It reads the state, and adds to commits that others make, so that files, checkpoints and table versions change
//! together or not at all. A commit writes as much as changed: the shape of a table, how far it is, and every file are
//! records of their own.

mod glue;
mod own_names;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_core::{ColumnType, Error, Kind, Position, Result, Table, TableName, error::Context};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    state::{
        Put, StateStore,
        keys::{catalog as keys, garbage},
        read, read_all, read_last,
    },
    stream::LogPosition,
    telemetry::now_us,
};

pub use crate::state::keys::catalog::{CatalogName, DataFile, FileKind};
pub use own_names::{OwnNames, companion_id, companion_names};

/// A column with its Hive type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogColumn {
    /// Its identity in the files (`field_id`), which it keeps when it is renamed.
    pub id: i32,
    /// Its name in the files.
    pub name: String,
    /// Its Hive type.
    pub r#type: String,
    /// The source's type; empty for our own columns.
    pub comment: String,
    /// Its type in the files, which Hive's does not always tell.
    pub exact: ColumnType,
    /// What it is, as text, in files that do not have it; `None`: null.
    pub older_rows: Option<String>,
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
    /// Files of the current generation, without dead letters.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their size.
    pub bytes: u64,
}

/// One version of a table's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableVersion {
    /// Its number; the first is 1.
    pub version: u32,
    /// Its columns, ours included, in file order.
    pub columns: Vec<CatalogColumn>,
    /// When it was made (microseconds since 1970-01-01 UTC).
    pub created_us: i64,
}

/// The part of a table that changes with its shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Shape {
    name: CatalogName,
    location: String,
    version: u32,
    columns: Vec<CatalogColumn>,
    parameters: BTreeMap<String, String>,
    /// Identities of the columns that have a companion: once there, it stays, over renames and reloads.
    #[serde(default)]
    companions: BTreeSet<i32>,
}

/// The part of a table that changes with every round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    generation: u32,
    complete_through: Position,
    complete_through_log: LogPosition,
    files: u64,
    rows: u64,
    bytes: u64,
    dead_letters: u64,
}

/// Reads the catalog, and adds to commits that others make.
#[derive(Clone)]
pub struct Catalog {
    state: Arc<dyn StateStore>,
}

impl Catalog {
    /// Over the state.
    pub fn new(state: Arc<dyn StateStore>) -> Self {
        Self { state }
    }

    /// Registers the table with the shape of `table` (which has target names), or makes a new version where the columns
    /// differ. Does nothing where nothing changed.
    pub fn define(&self, puts: &mut Vec<Put>, task: &str, table: &Table, location: &str) -> Result<()> {
        self.define_exact(puts, task, table, location, &BTreeSet::new())
    }

    /// The same, and these columns (by identity) have a companion from now on: a text column for the values that they
    /// cannot hold.
    pub fn define_exact(
        &self,
        puts: &mut Vec<Put>,
        task: &str,
        table: &Table,
        location: &str,
        exact: &BTreeSet<i32>,
    ) -> Result<()> {
        let name = CatalogName::of(&table.name);
        let known: Option<Shape> = self.pending(puts, &keys::table(&name))?;
        let mut companions = known.as_ref().map(|known| known.companions.clone()).unwrap_or_default();
        companions.extend(exact);
        companions.retain(|id| table.columns.iter().any(|column| column.id == *id));
        let mut shape = Shape {
            location: location.into(),
            version: 1,
            columns: glue::columns(table, &companions),
            parameters: glue::parameters(task, table, &companions),
            companions,
            name: name.clone(),
        };
        if let Some(known) = &known {
            shape.version = known.version + u32::from(known.columns != shape.columns);
            if *known == shape {
                return Ok(());
            }
        }
        if known.as_ref().is_none_or(|known| known.version != shape.version) {
            let version = TableVersion { version: shape.version, columns: shape.columns.clone(), created_us: now_us() };
            puts.push(Put::set(keys::version(&name, shape.version), &version));
        }
        puts.push(Put::set(keys::table(&name), &shape));
        if known.is_none() {
            puts.push(Put::set(keys::database(&name.database), &name.database));
            let progress = self.pending::<Progress>(puts, &keys::progress(&name))?.unwrap_or_default();
            puts.push(Put::set(keys::progress(&name), &progress));
        }
        Ok(())
    }

    /// What our own columns are called in the table's files; `None` for a table that is not registered.
    pub fn own_names(&self, table: &TableName) -> Result<Option<OwnNames>> {
        let shape: Option<Shape> = read(&*self.state, &keys::table(&CatalogName::of(table)))?;
        Ok(shape.map(|shape| glue::own_names(&shape.parameters)))
    }

    /// Identities of the table's columns that have a companion.
    pub fn companions(&self, table: &TableName) -> Result<BTreeSet<i32>> {
        let shape: Option<Shape> = read(&*self.state, &keys::table(&CatalogName::of(table)))?;
        Ok(shape.map(|shape| shape.companions).unwrap_or_default())
    }

    /// Names of the table's companions.
    pub fn companion_names(&self, table: &TableName) -> Result<Vec<String>> {
        let shape: Option<Shape> = read(&*self.state, &keys::table(&CatalogName::of(table)))?;
        Ok(shape.map(|shape| glue::companions(&shape.parameters).into_values().collect()).unwrap_or_default())
    }

    /// Adds files to the table's current generation and moves `complete_through`, if the table is complete to there. The
    /// table must be defined, in this commit or an earlier one; only dead letters may come before its shape is known.
    pub fn add_files(
        &self,
        puts: &mut Vec<Put>,
        table: &TableName,
        files: &[DataFile],
        complete: Option<(Position, LogPosition)>,
    ) -> Result<()> {
        let name = CatalogName::of(table);
        let known = self.pending::<Progress>(puts, &keys::progress(&name))?;
        if known.is_none() && files.is_empty() {
            return Ok(());
        }
        if known.is_none() && files.iter().any(|file| file.kind != FileKind::DeadLetters) {
            return Err(Error::new(Kind::Internal, format!("adding files to {name}, which is not in the catalog")));
        }
        let mut progress = known.unwrap_or_default();
        for file in files {
            puts.push(Put::set(progress.key_of_next(&name, file), file));
        }
        if let Some(complete) = complete {
            (progress.complete_through, progress.complete_through_log) = complete;
        }
        puts.push(Put::set(keys::progress(&name), &progress));
        Ok(())
    }

    /// Replaces what the manifest held by these files: a new generation. Gives the files that left it, to be deleted
    /// after a grace period (they are recorded as garbage in the same commit). Dead letters among the files are added to
    /// those that are there.
    pub fn replace_files(
        &self,
        puts: &mut Vec<Put>,
        task: &str,
        table: &Table,
        location: &str,
        files: &[DataFile],
        complete: (Position, LogPosition),
    ) -> Result<Vec<DataFile>> {
        self.define(puts, task, table, location)?;
        let left = self.empty(puts, task, &table.name)?;
        self.add_files(puts, &table.name, files, Some(complete))?;
        Ok(left)
    }

    /// A new generation without files. Those that the manifest held are recorded as garbage, to be deleted after a grace
    /// period, and given back.
    pub fn empty(&self, puts: &mut Vec<Put>, task: &str, table: &TableName) -> Result<Vec<DataFile>> {
        let name = CatalogName::of(table);
        let before = self.pending::<Progress>(puts, &keys::progress(&name))?.unwrap_or_default();
        let left: Vec<(String, DataFile)> = read_all(&*self.state, &keys::files(&name, before.generation))?;
        let since_us = now_us();
        for (number, file) in &left {
            puts.push(Put::delete(format!("{}{number}", keys::files(&name, before.generation))));
            let record = garbage::Garbage { key: file.key.clone(), path: Some(file.path.clone()), since_us };
            puts.push(Put::set(garbage::key(task, since_us, &file.key), &record));
        }
        let Progress { complete_through, complete_through_log, dead_letters, .. } = before;
        let generation = before.generation + 1;
        let next = Progress { generation, dead_letters, complete_through, complete_through_log, ..Progress::default() };
        puts.push(Put::set(keys::progress(&name), &next));
        Ok(left.into_iter().map(|(_, file)| file).collect())
    }

    /// All databases.
    pub fn databases(&self) -> Result<Vec<String>> {
        let names: Vec<(String, String)> = read_all(&*self.state, keys::DATABASES)?;
        Ok(names.into_iter().map(|(_, name)| name).collect())
    }

    /// All tables of a database.
    pub fn tables(&self, database: &str) -> Result<Vec<CatalogTable>> {
        let shapes: Vec<(String, Shape)> = read_all(&*self.state, &keys::tables(&database.to_lowercase()))?;
        shapes.into_iter().map(|(_, shape)| self.complete(shape)).collect()
    }

    /// One table.
    pub fn table(&self, name: &CatalogName) -> Result<Option<CatalogTable>> {
        let shape: Option<Shape> = read(&*self.state, &keys::table(name))?;
        shape.map(|shape| self.complete(shape)).transpose()
    }

    /// All versions of a table, oldest first.
    pub fn versions(&self, name: &CatalogName) -> Result<Vec<TableVersion>> {
        Ok(read_all(&*self.state, &keys::versions(name))?.into_iter().map(|(_, version)| version).collect())
    }

    /// The files that make up the table: those of its load, then changes as they were delivered.
    pub fn files(&self, name: &CatalogName) -> Result<Vec<DataFile>> {
        let progress: Progress = read(&*self.state, &keys::progress(name))?.unwrap_or_default();
        let files = read_all(&*self.state, &keys::files(name, progress.generation))?;
        Ok(files.into_iter().map(|(_, file)| file).collect())
    }

    /// The one of them that was listed last.
    pub fn newest_file(&self, name: &CatalogName) -> Result<Option<DataFile>> {
        let progress: Progress = read(&*self.state, &keys::progress(name))?.unwrap_or_default();
        read_last(&*self.state, &keys::files(name, progress.generation))
    }

    /// The table's dead letters, oldest first.
    pub fn dead_letters(&self, name: &CatalogName) -> Result<Vec<DataFile>> {
        Ok(read_all(&*self.state, &keys::dead_letters(name))?.into_iter().map(|(_, file)| file).collect())
    }

    /// DuckDB's SQL for the table's current state: a query that can be run, or wrapped in `CREATE VIEW … AS`. `None` for
    /// a table that is not there.
    pub fn view_sql(&self, name: &CatalogName) -> Result<Option<String>> {
        let Some(table) = self.table(name)? else { return Ok(None) };
        Ok(Some(view::sql(&table, &self.files(name)?)))
    }

    /// The table as Glue's `GetTable` shows it.
    pub fn glue_table(&self, table: &CatalogTable) -> serde_json::Value {
        glue::table(table)
    }

    fn complete(&self, shape: Shape) -> Result<CatalogTable> {
        let progress: Progress = read(&*self.state, &keys::progress(&shape.name))?.unwrap_or_default();
        Ok(CatalogTable {
            name: shape.name,
            location: shape.location,
            version: shape.version,
            columns: shape.columns,
            parameters: shape.parameters,
            generation: progress.generation,
            complete_through: progress.complete_through,
            complete_through_log: progress.complete_through_log,
            files: progress.files,
            rows: progress.rows,
            bytes: progress.bytes,
        })
    }

    /// A record as it will be once the commit is made.
    fn pending<T: DeserializeOwned>(&self, puts: &[Put], key: &str) -> Result<Option<T>> {
        let Some(put) = puts.iter().rev().find(|put| put.key == key) else { return read(&*self.state, key) };
        let parse = |json: &String| serde_json::from_str(json).context(Kind::Internal, || format!("re-reading {key}"));
        put.value.as_ref().map(parse).transpose()
    }
}

impl Progress {
    /// Counts a file and gives the key of its record.
    fn key_of_next(&mut self, name: &CatalogName, file: &DataFile) -> String {
        if file.kind == FileKind::DeadLetters {
            self.dead_letters += 1;
            return keys::dead_letter(name, self.dead_letters);
        }
        self.files += 1;
        self.rows += file.rows;
        self.bytes += file.bytes;
        keys::file(name, self.generation, self.files)
    }
}

#[cfg(test)]
mod tests;

//! Whether the files that the catalog lists are at the target: somebody may have deleted some, or the target may be
//! another place that goes by the same name.

use futures::{StreamExt, TryStreamExt, stream};
use millrace_core::{Finding, Result, TableName, destination::Destination};
use serde::Serialize;

use crate::{
    catalog::{Catalog, CatalogName, DataFile},
    state::{
        StateStore,
        keys::table::{self, TableRecord, TableState},
        read_all,
    },
};

/// Files that are asked for at the same time.
const ASKED_AT_ONCE: usize = 16;
/// A glance is at one file of as many tables.
const GLANCE_TABLES_MAX: usize = 64;
/// A finding names as many files.
const NAMED_MAX: usize = 3;

/// What was found of a table.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// The table, as the source shows it.
    pub table: TableName,
    /// And as the catalog does.
    pub target: CatalogName,
    /// Files that were looked at: its data, and its dead letters.
    pub files: u64,
    /// Rows that they hold by the catalog.
    pub rows: u64,
    /// Their bytes by the catalog.
    pub bytes: u64,
    /// Those that are not there, as readers name them.
    pub missing: Vec<String>,
    /// Those that have another size than was written.
    pub changed: Vec<String>,
    /// Whether the task still has the table.
    #[serde(skip)]
    is_ours: bool,
}

impl Verified {
    /// What it means for the task, where something is wrong.
    pub fn finding(&self, task: &str) -> Option<Finding> {
        let (missing, changed) = (self.missing.len(), self.changed.len());
        let summary = match (missing, changed) {
            (0, 0) => return None,
            (_, 0) => format!("the target lacks {missing} of the files of table {} that the catalog lists", self.table),
            (0, _) => format!("{changed} files of table {} are not as they were written", self.table),
            _ => format!("of the files of table {} {missing} are missing and {changed} are changed", self.table),
        };
        let named = self.missing.iter().chain(&self.changed).take(NAMED_MAX);
        let finding = Finding::warning("FILES-MISSING", summary);
        let finding = named.fold(finding, |finding, path| finding.detail(path));
        let finding = finding.detail("somebody deleted or changed them, or the target is not where it was");
        Some(match self.is_ours {
            true => {
                finding.fix(format!("put them back, or load the table anew: millrace reload {task} {}", self.table))
            }
            false => finding.fix("put them back; the table is no longer one of the task's, which cannot load it anew"),
        })
    }
}

/// Looks at every file of the task's tables, or of the one with this name in the catalog.
pub async fn verify(
    catalog: &Catalog,
    state: &dyn StateStore,
    destination: &dyn Destination,
    task: &str,
    only: Option<&CatalogName>,
) -> Result<Vec<Verified>> {
    let mut found = vec![];
    for record in records(state, task)? {
        let target = CatalogName::of(&record.target);
        if only.is_none_or(|only| *only == target) {
            let mut files = catalog.files(&target)?;
            files.extend(catalog.dead_letters(&target)?);
            found.push(look(destination, &record, &files).await?);
        }
    }
    Ok(found)
}

/// Looks at the newest file of the task's tables, of some where they are many.
pub async fn glance(
    catalog: &Catalog,
    state: &dyn StateStore,
    destination: &dyn Destination,
    task: &str,
) -> Result<Vec<Finding>> {
    let mut records = records(state, task)?;
    // What becomes of the files of a table that left is its owner's affair.
    records.retain(|record| record.state != TableState::Cancelled);
    let mut newest = vec![];
    for record in records.iter().take(GLANCE_TABLES_MAX) {
        newest.push((record, catalog.newest_file(&CatalogName::of(&record.target))?));
    }
    let looks: Vec<_> = newest.iter().map(|(record, file)| look(destination, record, file.as_slice())).collect();
    let looked: Vec<Verified> = stream::iter(looks).buffered(ASKED_AT_ONCE).try_collect().await?;
    Ok(looked.iter().filter_map(|verified| verified.finding(task)).collect())
}

fn records(state: &dyn StateStore, task: &str) -> Result<Vec<TableRecord>> {
    let records: Vec<(String, TableRecord)> = read_all(state, &table::prefix(task))?;
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

async fn look(destination: &dyn Destination, record: &TableRecord, files: &[DataFile]) -> Result<Verified> {
    let asked: Vec<_> = files.iter().map(|file| destination.size(&file.key)).collect();
    let sizes: Vec<Option<u64>> = stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await?;
    let (mut missing, mut changed) = (vec![], vec![]);
    for (file, size) in files.iter().zip(sizes) {
        match size {
            None => missing.push(file.path.clone()),
            Some(size) if size != file.bytes => changed.push(file.path.clone()),
            Some(_) => {}
        }
    }
    Ok(Verified {
        table: record.table.name.clone(),
        target: CatalogName::of(&record.target),
        files: files.len() as u64,
        rows: files.iter().map(|file| file.rows).sum(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        missing,
        changed,
        is_ours: record.state.is_there(),
    })
}

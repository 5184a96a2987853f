//! The Parquet objects of one round: rows are collected per table and written when there are enough of them.
//!
//! A writer sees at least [`ROWS_MIN`] rows at once (or a lot of bytes), and exists only once its table has as many, so
//! thousands of tables with few rows cost a few vectors each. Everything collected and held by writers stays within one
//! bound; there the largest is written out.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use millrace_core::{
    ChangeBatch, Columns, Op, Order, Result, Table, TableName,
    destination::{Destination, ObjectWriter, Staged},
};

use super::{
    file_schema::{self, Companions},
    layout,
};
use crate::{
    catalog::{Catalog, FileKind},
    state::keys::intent::{Cut, Intent, Planned},
    stream::LogPosition,
};

/// Rows that are written at once, where memory allows.
const ROWS_MIN: usize = 65_536;
/// As many bytes count as enough rows.
const BYTES_MIN: usize = 8 << 20;
/// An object is closed at this size: a target may have to hold a whole one in memory to upload it.
pub const OBJECT_BYTES_MAX: u64 = 64 << 20;
/// Writers that exist at the same time; each has a file open.
const WRITERS_MAX: usize = 64;

/// A whole object that waits for its round's intent.
#[derive(Debug)]
pub struct StagedObject {
    pub planned: Planned,
    pub kind: FileKind,
    pub staged: Staged,
}

impl StagedObject {
    /// Of rejected rows.
    pub fn dead_letters(table: &TableName, first: LogPosition, rows: u64, staged: Staged) -> Self {
        let exact = Companions::new();
        let planned = Planned { table: table.clone(), key: staged.key.clone(), first, rows, exact };
        Self { planned, kind: FileKind::DeadLetters, staged }
    }
}

/// The objects that are staged so far. What is not published when this is dropped is removed.
#[derive(Debug, Default)]
pub struct Finished {
    pub objects: Vec<StagedObject>,
    paths: Vec<PathBuf>,
}

impl Finished {
    /// The table was truncated behind these: nobody will ever see them, so they are not published.
    fn forget(&mut self, table: &TableName) {
        self.objects.retain(|object| object.planned.table != *table || object.kind == FileKind::DeadLetters);
    }

    /// Adds one.
    pub fn push(&mut self, object: StagedObject) {
        self.paths.push(object.staged.path.clone());
        self.objects.push(object);
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        for path in &self.paths {
            // Those that were published are gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Collects the rows of one round.
pub struct Objects<'a> {
    destination: &'a dyn Destination,
    catalog: &'a Catalog,
    task: &'a str,
    time_us: i64,
    memory_bytes: usize,
    /// Where objects begin in a round that is done again, and with which companions; sizes and values decide the first
    /// time.
    planned: Option<BTreeMap<(TableName, LogPosition), Companions>>,
    open: BTreeMap<TableName, Open>,
    held: usize,
    writers: usize,
}

struct Open {
    table: Arc<Table>,
    /// Fixed once there is a writer.
    companions: Companions,
    cut: Cut,
    first: LogPosition,
    ops: Vec<Op>,
    order: Vec<Order>,
    commit_time_us: Vec<i64>,
    after: Columns,
    bytes: usize,
    writer: Option<Box<dyn ObjectWriter>>,
    writer_bytes: usize,
    rows: u64,
}

impl<'a> Objects<'a> {
    /// Of a round that began at this time.
    pub fn new(
        destination: &'a dyn Destination,
        catalog: &'a Catalog,
        task: &'a str,
        time_us: i64,
        memory_bytes: u64,
        again: Option<&Intent>,
    ) -> Self {
        let place = |object: &Planned| ((object.table.clone(), object.first), object.exact.clone());
        let planned = again.map(|intent| intent.objects.iter().map(place).collect());
        let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        Self { destination, catalog, task, time_us, memory_bytes, planned, open: BTreeMap::new(), held: 0, writers: 0 }
    }

    /// Adds the rows of one frame.
    pub fn add(&mut self, at: LogPosition, batch: ChangeBatch, cut: Cut, finished: &mut Finished) -> Result<()> {
        let name = batch.table.name.clone();
        let exact = file_schema::companions_of(&batch.table, &batch.after);
        let planned = self.planned.as_ref().and_then(|planned| planned.get(&(name.clone(), at)));
        let ends = self.open.get(&name).is_some_and(|open| {
            let same = Arc::ptr_eq(&open.table, &batch.table) || open.table.columns == batch.table.columns;
            // The columns of an object are those that its writer was opened with.
            let fits = open.writer.is_none() || exact.is_subset(&open.companions);
            !same || !fits || planned.is_some()
        });
        let begins_with = match planned {
            Some(companions) => Some(companions.clone()),
            None if ends || !self.open.contains_key(&name) => Some(self.catalog.companions(&name)?),
            None => None,
        };
        if ends {
            self.close(&name, finished)?;
        }
        let open = self.open.entry(name.clone()).or_insert_with(|| {
            let mut companions = begins_with.unwrap_or_default();
            companions.retain(|id| batch.table.columns.iter().any(|column| column.id == *id));
            Open::new(&batch.table, companions, at, cut)
        });
        open.companions.extend(exact);
        self.held += open.append(batch);
        if open.ops.len() >= ROWS_MIN || open.bytes >= BYTES_MIN {
            self.write(&name)?;
            self.roll(&name, finished)?;
        }
        self.relieve(finished)
    }

    /// The table is empty from here on.
    pub fn truncate(&mut self, name: &TableName, finished: &mut Finished) {
        if let Some(open) = self.open.remove(name) {
            self.held -= open.bytes + open.writer_bytes;
            self.writers -= usize::from(open.writer.is_some());
        }
        finished.forget(name);
    }

    /// Stages what is left, one object at a time.
    pub fn finish(mut self, finished: &mut Finished) -> Result<()> {
        while let Some(name) = self.open.keys().next().cloned() {
            self.close(&name, finished)?;
        }
        Ok(())
    }

    /// Closes an object that is large enough.
    fn roll(&mut self, name: &TableName, finished: &mut Finished) -> Result<()> {
        let size = self.open.get(name).and_then(|open| open.writer.as_ref()).map_or(0, |writer| writer.size_so_far());
        if self.planned.is_none() && size >= OBJECT_BYTES_MAX {
            self.close(name, finished)?;
        }
        Ok(())
    }

    /// Keeps what is held below the bound, by writing out the largest.
    fn relieve(&mut self, finished: &mut Finished) -> Result<()> {
        while self.held > self.memory_bytes {
            let largest = self.open.iter().max_by_key(|(_, open)| open.bytes + open.writer_bytes);
            let Some(name) = largest.map(|(name, _)| name.clone()) else { break };
            self.write(&name)?;
            let Some(open) = self.open.get_mut(&name) else { break };
            let before = open.writer_bytes;
            if let Some(writer) = &mut open.writer {
                writer.flush()?;
                open.writer_bytes = writer.held_bytes();
            }
            let freed = before.saturating_sub(open.writer_bytes);
            self.held -= freed;
            self.roll(&name, finished)?;
            if freed == 0 {
                break;
            }
        }
        while self.writers > WRITERS_MAX && self.planned.is_none() {
            let writers = self.open.iter().filter(|(_, open)| open.writer.is_some());
            let largest = writers.max_by_key(|(_, open)| open.rows).map(|(name, _)| name.clone());
            let Some(name) = largest else { break };
            self.close(&name, finished)?;
        }
        Ok(())
    }

    /// Hands the collected rows of a table to its writer.
    fn write(&mut self, name: &TableName) -> Result<()> {
        let Some(open) = self.open.get_mut(name) else { return Ok(()) };
        if open.ops.is_empty() {
            return Ok(());
        }
        if open.writer.is_none() {
            let key = layout::change_key(name, self.time_us, open.first);
            let spec = file_schema::change_spec(&open.table, &open.companions, key, metadata(self.task, open));
            open.writer = Some(self.destination.stage(spec)?);
            self.writers += 1;
        }
        let empty = Columns::new(open.table.columns.iter().map(|column| &column.ty));
        let after = std::mem::replace(&mut open.after, empty);
        let times = std::mem::take(&mut open.commit_time_us);
        let schema = file_schema::arrow_schema(&open.table, &open.companions);
        let batch = file_schema::change_batch(&schema, &open.ops, &open.order, times, after)?;
        open.ops.clear();
        open.order.clear();
        let before = std::mem::take(&mut open.bytes) + open.writer_bytes;
        if let Some(writer) = &mut open.writer {
            writer.write(&batch)?;
            open.writer_bytes = writer.held_bytes();
        }
        self.held = self.held - before + open.writer_bytes;
        Ok(())
    }

    fn close(&mut self, name: &TableName, finished: &mut Finished) -> Result<()> {
        self.write(name)?;
        let Some(open) = self.open.remove(name) else { return Ok(()) };
        self.held -= open.bytes + open.writer_bytes;
        let Some(writer) = open.writer else { return Ok(()) };
        self.writers -= 1;
        let staged = writer.finish()?;
        let (first, exact) = (open.first, open.companions);
        let planned = Planned { table: name.clone(), key: staged.key.clone(), first, rows: staged.rows, exact };
        finished.push(StagedObject { planned, kind: FileKind::Changes, staged });
        Ok(())
    }
}

/// What tells whether an object that is already there is the same one: with the number of rows this fixes its content,
/// because the rows of a table in the log never change.
fn metadata(task: &str, open: &Open) -> BTreeMap<String, String> {
    let pairs = [
        ("millrace.task", task.to_string()),
        ("millrace.table", open.table.name.to_string()),
        ("millrace.log-from", open.first.to_string()),
        ("millrace.start", open.cut.start.to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

impl Open {
    fn new(table: &Arc<Table>, companions: Companions, first: LogPosition, cut: Cut) -> Self {
        Self {
            table: table.clone(),
            companions,
            cut,
            first,
            ops: vec![],
            order: vec![],
            commit_time_us: vec![],
            after: Columns::new(table.columns.iter().map(|column| &column.ty)),
            bytes: 0,
            writer: None,
            writer_bytes: 0,
            rows: 0,
        }
    }

    /// Gives the bytes that it holds more now.
    fn append(&mut self, batch: ChangeBatch) -> usize {
        let bytes = batch.byte_size();
        self.rows += batch.rows() as u64;
        self.bytes += bytes;
        if self.ops.is_empty() {
            (self.ops, self.order, self.commit_time_us) = (batch.ops, batch.order, batch.commit_time_us);
            self.after = batch.after;
        } else {
            self.ops.extend(batch.ops);
            self.order.extend(batch.order);
            self.commit_time_us.extend(batch.commit_time_us);
            self.after.append(&batch.after);
        }
        bytes
    }
}

//! One delivery round: from a range of the stream to objects, the catalog and the checkpoints.
//!
//! 1. Scan the stream from the oldest place that a table waits for, up to a mark, and stage the objects.
//! 2. Store the intent: which range goes to which keys. Nothing is visible yet.
//! 3. Publish the objects, each only if its key is free.
//! 4. One commit: manifests, table versions, checkpoints, counts, dead letters; the intent is deleted.
//!
//! A crash before 2 leaves staged files that are swept. After 2, the same range is scanned again with the intent's time,
//! so that the same objects come out; those that are there already count as done when their footers agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{StreamExt, TryStreamExt, stream};
use millrace_core::{Ddl, Error, Kind, Order, Result, Table, TableName, destination::Destination};
use tokio::sync::Mutex as Gate;

use super::{
    DeliveryOptions,
    change_log::ChangeLog,
    dead_letters::DeadLetters,
    garbage, layout,
    ledger::{Fates, Ledger},
    objects::{Finished, Objects, StagedObject},
};
use crate::{
    blocking,
    catalog::{Catalog, DataFile, OwnNames, companion_names},
    state::{
        Put, StateStore,
        keys::{
            intent::{self, Intent, Planned},
            table_part,
        },
        read,
    },
    stream::{Entry, LogPosition, Mark},
    telemetry::now_us,
};

/// Objects that are published at the same time.
const PUBLISHES_MAX: usize = 4;

/// What rounds work with.
#[derive(Clone)]
pub struct Ground {
    pub options: Arc<DeliveryOptions>,
    pub log: Arc<dyn ChangeLog>,
    pub destination: Arc<dyn Destination>,
    pub state: Arc<dyn StateStore>,
    pub catalog: Catalog,
    /// Ends a scan at the next mark.
    pub hurry: Arc<AtomicBool>,
}

/// What a round did.
#[derive(Debug)]
pub struct Outcome {
    pub ledger: Ledger,
    /// Fates of rows before it.
    pub before: Fates,
    /// Sizes of the objects.
    pub object_bytes: Vec<u64>,
}

/// Everything of a round but its publishing.
struct Prepared {
    ledger: Ledger,
    before: Fates,
    intent: Intent,
    /// The intent as it is stored, to find nothing but it when it is deleted.
    stored: Option<String>,
    shapes: Shapes,
    truncated: BTreeSet<TableName>,
    objects: Finished,
    mark: Mark,
}

/// The shapes that each table took in the round, in order.
type Shapes = BTreeMap<TableName, Vec<Arc<Table>>>;

/// Runs one round; `None` where there is nothing to do. The gate is held for the commit only: a target that is slow or
/// down keeps nobody from writing checkpoints. Where one was written meanwhile that the round meant to write, the round
/// is done again from what is true now.
pub async fn run(ground: &Ground, gate: &Gate<()>) -> Result<Option<Outcome>> {
    loop {
        let scan = ground.clone();
        let prepared = blocking::run("scanning the stream", move || prepare(&scan)).await?;
        let Some(mut prepared) = prepared else { return Ok(None) };
        let (objects, to) = (prepared.objects.objects.len(), prepared.intent.to);
        tracing::debug!(task = ground.options.task, position = %to, objects, "round is staged");
        if prepared.stored.is_some() {
            fail::fail_point!("delivery-after-intent", |_| Err(injected("delivery-after-intent")));
        }
        let files = publish(ground, &mut prepared.objects).await?;
        fail::fail_point!("delivery-between-upload-and-commit", |_| Err(injected(
            "delivery-between-upload-and-commit"
        )));
        let writer = ground.clone();
        let held = gate.lock().await;
        let outcome = blocking::run("committing a round", move || commit(&writer, prepared, files)).await?;
        drop(held);
        fail::fail_point!("delivery-after-commit", |_| Err(injected("delivery-after-commit")));
        if outcome.is_some() {
            return Ok(outcome);
        }
        tracing::debug!(task = ground.options.task, "checkpoints changed during a round, which is done again");
    }
}

#[cfg(feature = "failpoints")]
fn injected(failpoint: &str) -> Error {
    Error::new(Kind::Target, format!("failing at the failpoint {failpoint}"))
}

fn prepare(ground: &Ground) -> Result<Option<Prepared>> {
    let task = &ground.options.task;
    let stored = ground.state.get(&intent::key(task))?;
    let again: Option<Intent> = read(&*ground.state, &intent::key(task))?;
    let Some(last) = ground.log.last_mark() else { return Ok(None) };
    let ledger = Ledger::open(&*ground.state, task, again.as_ref())?;
    if ledger.scanned().at > last.at {
        let doing = format!(
            "reading the stream from {}, where the last round ended: it holds nothing behind {}",
            ledger.scanned().at,
            last.at
        );
        return Err(Error::new(Kind::LogLost, doing).fix(
            "restore the stream's folder and the state from the same moment, or delete the task and start it anew",
        ));
    }
    let (from, to) = again.as_ref().map_or((ledger.from(), last.at), |intent| (intent.from, intent.to));
    if from >= to {
        return Ok(None);
    }
    let time_us = again.as_ref().map_or_else(now_us, |intent| intent.time_us);
    let before = ledger.fates();
    let tables = ledger.cuts();
    let mut scan = Scan::new(ground, ledger, time_us, again.as_ref());
    let Some(mark) = scan.run(from, to)? else {
        return Err(Error::new(Kind::Internal, format!("scanning the stream from {from}: no mark up to {to}")));
    };
    let Scanned { ledger, shapes, truncated, objects } = scan.finish()?;
    let planned = objects.objects.iter().map(|object| object.planned.clone()).collect();
    let mut prepared = Prepared {
        ledger,
        before,
        intent: Intent { time_us, from, to: mark.at, tables, objects: planned },
        stored,
        shapes,
        truncated,
        objects,
        mark,
    };
    match again {
        Some(again) => prepared.take_up(again)?,
        None => prepared.store_intent(ground)?,
    }
    Ok(Some(prepared))
}

impl Prepared {
    /// Stores what is about to be published; nothing where nothing is.
    fn store_intent(&mut self, ground: &Ground) -> Result<()> {
        if self.objects.objects.is_empty() {
            return Ok(());
        }
        let put = Put::set(intent::key(&ground.options.task), &self.intent);
        self.stored = put.value.clone();
        ground.state.commit(&[Put { expect: Some(None), ..put }])
    }

    /// Goes on with an interrupted round: it must come to the same objects, but for tables that take no part any more.
    fn take_up(&mut self, again: Intent) -> Result<()> {
        let takes_part = |object: &&Planned| self.intent.tables.contains_key(&table_part(&object.table));
        let mut planned: BTreeMap<&str, &Planned> =
            again.objects.iter().filter(takes_part).map(|object| (object.key.as_str(), object)).collect();
        let mut odd = self.intent.objects.iter().find(|object| planned.remove(object.key.as_str()) != Some(object));
        odd = odd.or(planned.into_values().next());
        if let Some(object) = odd {
            let doing = format!("doing a round again: {} did not come out as planned", object.key);
            return Err(Error::new(Kind::Internal, doing));
        }
        self.intent = again;
        Ok(())
    }
}

/// Reads a range and sorts what it holds.
struct Scan<'a> {
    ground: &'a Ground,
    again: bool,
    ledger: Ledger,
    objects: Objects<'a>,
    letters: DeadLetters,
    finished: Finished,
    shapes: Shapes,
    /// Tables whose manifest is emptied by the round's commit, before its objects enter it.
    truncated: BTreeSet<TableName>,
    bytes: u64,
}

/// What a scan brought.
struct Scanned {
    ledger: Ledger,
    shapes: Shapes,
    truncated: BTreeSet<TableName>,
    objects: Finished,
}

impl<'a> Scan<'a> {
    fn new(ground: &'a Ground, ledger: Ledger, time_us: i64, again: Option<&Intent>) -> Self {
        let options = &ground.options;
        let objects =
            Objects::new(&*ground.destination, &ground.catalog, &options.task, time_us, options.memory_bytes, again);
        Self {
            ground,
            again: again.is_some(),
            ledger,
            objects,
            letters: DeadLetters::new(time_us),
            finished: Finished::default(),
            shapes: Shapes::new(),
            truncated: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Gives the mark at which it ended: the last of the range, or the first at which there is enough for a round.
    fn run(&mut self, from: LogPosition, to: LogPosition) -> Result<Option<Mark>> {
        let mut entries = self.ground.log.read(from, to, self.ledger.wanted())?;
        let mut last = None;
        while let Some(entry) = entries.next_entry()? {
            let Entry::Mark(mark) = entry else {
                self.entry(entry)?;
                continue;
            };
            let enough = self.bytes >= self.ground.options.buffer_bytes || self.ground.hurry.load(Ordering::Relaxed);
            last = Some(mark);
            if enough && !self.again {
                break;
            }
        }
        Ok(last)
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        match entry {
            Entry::Rows { at, batch, bytes } => {
                self.bytes += bytes;
                if let Some(batch) = self.ledger.take(at, batch)
                    && let Some(cut) = self.ledger.cut(&batch.table.name)
                {
                    note_shape(&mut self.shapes, &batch.table);
                    self.objects.add(at, batch, cut, &mut self.finished)?;
                }
            }
            Entry::Rejected { at, rejects } => {
                let rejects = self.ledger.reject(at, rejects);
                self.letters.add(&*self.ground.destination, at, &rejects, &mut self.finished)?;
            }
            Entry::Skipped { at, table, rows } => self.ledger.pass(&table, at, rows),
            Entry::Truncate { at, tables, order } => {
                for table in tables.into_iter().filter(|table| self.ledger.concerns(table, at, order.commit)) {
                    self.objects.truncate(&table, &mut self.finished);
                    self.truncated.insert(table);
                }
            }
            Entry::Ddl { at, ddl: Ddl::Unsupported { table, what, order } } => self.stop(&table, at, order, what),
            Entry::Ddl { at, ddl: Ddl::Evolved { table, order } } => self.evolve(&table, at, order)?,
            Entry::Mark(_) => {}
        }
        Ok(())
    }

    fn stop(&mut self, table: &TableName, at: LogPosition, order: Order, why: String) {
        if self.ledger.concerns(table, at, order.commit) {
            self.ledger.stop(table, why);
        }
    }

    /// A new shape becomes a table version, unless one of our own columns would have to change its name with it.
    fn evolve(&mut self, table: &Arc<Table>, at: LogPosition, order: Order) -> Result<()> {
        if !self.ledger.concerns(&table.name, at, order.commit) {
            return Ok(());
        }
        let now = OwnNames::of(&table.columns);
        let earlier = self.shapes.get(&table.name).and_then(|shapes| shapes.last());
        let known = match earlier {
            Some(shape) => Some(OwnNames::of(&shape.columns)),
            None => self.ground.catalog.own_names(&table.name)?,
        };
        if known.is_some_and(|known| known != now) {
            let why = "a column was added that has the name of one of the columns Op, commit_timestamp, change_order";
            self.ledger.stop(&table.name, why.into());
        } else if self.takes_companions_name(table)? {
            let why = "a column was added that has the name of another column's companion (<column>__exact)";
            self.ledger.stop(&table.name, why.into());
        } else {
            note_shape(&mut self.shapes, table);
        }
        Ok(())
    }

    /// Whether a column has the name of a companion that files may have already.
    fn takes_companions_name(&self, table: &Table) -> Result<bool> {
        let mut names = self.ground.catalog.companion_names(&table.name)?;
        if let Some(earlier) = self.shapes.get(&table.name).and_then(|shapes| shapes.last()) {
            names.extend(companion_names(&earlier.columns));
        }
        let is_taken = |name: &String| table.columns.iter().any(|c| c.name.to_lowercase() == name.to_lowercase());
        Ok(names.iter().any(is_taken))
    }

    fn finish(mut self) -> Result<Scanned> {
        self.objects.finish(&mut self.finished)?;
        self.letters.finish(&*self.ground.destination, &mut self.finished)?;
        let Self { ledger, shapes, truncated, finished: objects, .. } = self;
        Ok(Scanned { ledger, shapes, truncated, objects })
    }
}

fn note_shape(shapes: &mut Shapes, table: &Arc<Table>) {
    let known = shapes.entry(table.name.clone()).or_default();
    let same = |last: &Arc<Table>| Arc::ptr_eq(last, table) || last.columns == table.columns;
    if !known.last().is_some_and(same) {
        known.push(table.clone());
    }
}

/// Publishes the staged objects, a few at a time.
async fn publish(ground: &Ground, finished: &mut Finished) -> Result<Vec<(TableName, DataFile)>> {
    let objects: Vec<StagedObject> = finished.objects.drain(..).collect();
    let each = objects.into_iter().map(|object| async move {
        let StagedObject { planned, kind, staged } = object;
        let published = ground.destination.publish(staged).await?;
        tracing::debug!(
            task = ground.options.task,
            table = %planned.table,
            key = published.key,
            rows = planned.rows,
            bytes = published.bytes,
            was_there = published.was_there,
            "object published"
        );
        let (key, path, bytes) = (published.key, published.location, published.bytes);
        Ok((planned.table, DataFile { key, path, rows: planned.rows, bytes, kind }))
    });
    stream::iter(each).buffered(PUBLISHES_MAX).try_collect().await
}

/// Registers what was published; `None` if somebody changed a checkpoint that the round would write.
fn commit(ground: &Ground, prepared: Prepared, files: Vec<(TableName, DataFile)>) -> Result<Option<Outcome>> {
    let Prepared { mut ledger, before, intent, stored, shapes, truncated, mark, objects: _ } = prepared;
    let task = &ground.options.task;
    let complete = ledger.close(&mark);
    if !ledger.is_current(&*ground.state)? {
        return Ok(None);
    }
    let mut puts = vec![];
    for (name, shapes) in &shapes {
        let location = ground.destination.location(&layout::folder(name));
        for table in shapes {
            ground.catalog.define(&mut puts, task, table, &location)?;
        }
    }
    for table in &truncated {
        ground.catalog.empty(&mut puts, task, table)?;
        tracing::info!(task, table = %table, "table was truncated at the source and is emptied");
    }
    let published: BTreeSet<&str> = files.iter().map(|(_, file)| file.key.as_str()).collect();
    define_companions(ground, &mut puts, &shapes, intent.objects.iter().filter(|o| published.contains(&*o.key)))?;
    let dropped = intent.objects.iter().filter(|planned| !published.contains(planned.key.as_str()));
    garbage::record(&mut puts, task, dropped.map(|planned| planned.key.clone()));
    let object_bytes = files.iter().map(|(_, file)| file.bytes).collect();
    let mut manifests: BTreeMap<TableName, Vec<DataFile>> = BTreeMap::new();
    for (table, file) in files {
        manifests.entry(table).or_default().push(file);
    }
    for table in &complete {
        manifests.entry(table.clone()).or_default();
    }
    for (table, files) in &manifests {
        // Of a table that was stopped within the round not everything up to the mark is there.
        let through = complete.contains(table).then_some((mark.source, mark.at));
        ground.catalog.add_files(&mut puts, table, files, through)?;
    }
    puts.extend(ledger.puts());
    if stored.is_some() {
        puts.push(Put { expect: Some(stored), ..Put::delete(intent::key(task)) });
    }
    ground.state.commit(&puts).map_err(|error| Error {
        doing: format!("committing a delivery round of {task} up to {}: {}", mark.at, error.doing),
        ..error
    })?;
    ground.log.set_pin(ledger.pin());
    Ok(Some(Outcome { ledger, before, object_bytes }))
}

/// Columns get the companions that the published objects have, at the tables' newest shapes.
fn define_companions<'a>(
    ground: &Ground,
    puts: &mut Vec<Put>,
    shapes: &Shapes,
    objects: impl Iterator<Item = &'a Planned>,
) -> Result<()> {
    let mut exact: BTreeMap<&TableName, BTreeSet<i32>> = BTreeMap::new();
    for object in objects.filter(|object| !object.exact.is_empty()) {
        exact.entry(&object.table).or_default().extend(&object.exact);
    }
    for (name, exact) in exact {
        let Some(table) = shapes.get(name).and_then(|shapes| shapes.last()) else { continue };
        let location = ground.destination.location(&layout::folder(name));
        ground.catalog.define_exact(puts, &ground.options.task, table, &location, &exact)?;
    }
    Ok(())
}

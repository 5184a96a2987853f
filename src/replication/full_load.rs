//! Full load: segments of tables, read in parallel from one snapshot, go through the rules straight to the target and
//! enter the catalog when the table is complete, in one commit. The stream is not involved: the source still has these
//! rows.
//!
//! A load is a generation of its table. Its exact position comes with its snapshot; the smallest one of its segments is
//! where the table's changes begin to count. Finished segments outlive a crash if the table has a key and was not
//! rewritten; the rest is then read in a new snapshot with its own position, and per key the newest order wins.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use millrace_core::{
    Columns, Error, Kind, Position, Reject, Result, Table, TableName,
    destination::{Destination, ObjectWriter, Published, Staged},
    error::Action,
    source::{LoadPlan, Loaded, Rows, Snapshot, Source, TableLoad},
    throttle::Throttle,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tracing::{info, warn};

use super::{capture::Ask, rules::Mapped, tables::Tables};
use crate::{
    blocking,
    catalog::{Catalog, CatalogName, DataFile, FileKind},
    delivery::{Delivery, OBJECT_BYTES_MAX, dead_letters, file_schema, layout},
    state::{
        Put, StateStore,
        keys::{
            checkpoint::{self, Checkpoint},
            segment::{self, SegmentRecord},
            table::{LoadRecord, TableRecord, TableState},
        },
        read_all,
    },
    telemetry::{
        metrics::{Metrics, task_label},
        now_us,
    },
};

/// A table is divided so that a segment holds about as many bytes at the source.
const SEGMENT_BYTES: u64 = 256 << 20;
/// The same where one is read at a time: a table that is not divided costs its server less, and only what a crash may make
/// read again speaks against larger ones.
const SEGMENT_BYTES_ALONE: u64 = 1 << 30;
/// A table below this is not divided.
const SMALL_TABLE_BYTES: u64 = 32 << 20;
/// What the Parquet writers of all segments that are read may hold together before they write a row group; those that are
/// being finished hold as much again at most.
const WRITERS_BYTES: u64 = 32 << 20;
/// Batches that may wait for the encoder of one segment.
const BATCHES_AHEAD: usize = 1;

/// What a load needs.
#[derive(Clone)]
pub struct FullLoad {
    /// Name of the task.
    pub task: String,
    /// Its source.
    pub source: Arc<dyn Source>,
    /// Its target.
    pub destination: Arc<dyn Destination>,
    /// The state.
    pub state: Arc<dyn StateStore>,
    /// The catalog.
    pub catalog: Catalog,
    /// Its tables.
    pub tables: Arc<Tables>,
    /// Its delivery, whose gate is held while checkpoints are written.
    pub delivery: Arc<Delivery>,
    /// Segments read at the same time.
    pub parallel: usize,
    /// Bytes per second read from the source.
    pub throttle: Arc<Throttle>,
    /// Whether changes are captured, so that the snapshot's position must be exact.
    pub exact: bool,
    /// Of the capture.
    pub asks: mpsc::UnboundedSender<Ask>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Rows loaded so far by loads under way, by table.
    pub progress: Arc<Mutex<BTreeMap<TableName, Arc<AtomicU64>>>>,
}

/// How many segments of all tables are read, and how many that were read are finished, at the same time.
#[derive(Debug, Clone)]
struct Permits {
    reading: Arc<Semaphore>,
    finishing: Arc<Semaphore>,
}

impl Permits {
    fn new(parallel: usize) -> Self {
        Self { reading: Arc::new(Semaphore::new(parallel)), finishing: Arc::new(Semaphore::new(parallel)) }
    }
}

impl FullLoad {
    /// Loads those of the tables that wait for it, on one snapshot. A table that cannot be loaded is suspended; an error that
    /// concerns all of them is given back, and what is finished stays.
    pub async fn run(&self, names: &BTreeSet<TableName>) -> Result<()> {
        let mut waiting = self.tables.to_load();
        waiting.retain(|record| names.contains(&record.table.name));
        if waiting.is_empty() {
            return Ok(());
        }
        waiting.sort_by_key(|record| std::cmp::Reverse(record.table.estimated_bytes));
        let names: Vec<TableName> = waiting.iter().map(|record| record.table.name.clone()).collect();
        info!(task = self.task, tables = names.len(), "full load begins");
        let snapshot: Arc<dyn Snapshot> = Arc::from(self.source.snapshot(&names, self.exact).await?);
        let permits = Permits::new(self.parallel);
        let tables_at_once = Arc::new(Semaphore::new(self.parallel));
        let mut loads = JoinSet::new();
        for record in waiting {
            let (load, snapshot, permits) = (self.clone(), snapshot.clone(), permits.clone());
            let turn = tables_at_once.clone();
            loads.spawn(async move {
                let _turn = turn.acquire_owned().await;
                let table = record.table.name.clone();
                let loaded = load.table(record, &*snapshot, permits).await;
                (table, loaded)
            });
        }
        let mut failed = None;
        while let Some(joined) = loads.join_next().await {
            let (table, loaded) = joined.map_err(|e| Error::new(Kind::Internal, "loading a table").with(e))?;
            self.progress.lock().expect("no panic while locked").remove(&table);
            let Err(error) = loaded else { continue };
            self.metrics.count_error(&self.task, error.kind.code());
            if error.kind.action() == Action::SuspendTable {
                warn!(task = self.task, table = %table, error = %error, "table cannot be loaded and is suspended");
                let _gate = self.delivery.gate().await;
                self.tables.give_up(&table, TableState::Error, &error.to_string())?;
            } else {
                warn!(task = self.task, table = %table, error = %error, "loading a table failed");
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn table(&self, record: TableRecord, snapshot: &dyn Snapshot, permits: Permits) -> Result<()> {
        let begun = Instant::now();
        let name = record.table.name.clone();
        let wanted = segments_wanted(record.table.estimated_bytes, self.parallel);
        let previous = record.load.as_ref().map(|load| &load.plan);
        let load: Arc<dyn TableLoad> = Arc::from(snapshot.open(&name, wanted, previous).await.map_err(unreadable)?);
        // The capture has taken the table up with other columns, and may have read rows with them.
        let unlike = self.exact && load.table().definition_id == 0 && load.table().columns != record.table.columns;
        // And a rule was compared with the columns that were there then.
        let named =
            |table: &Table| table.columns.iter().map(|column| (column.id, column.name.clone())).collect::<Vec<_>>();
        if unlike || !record.rule.is_empty() && named(load.table()) != named(&record.table) {
            let doing = format!("loading {name}: its columns changed before its load");
            return Err(Error::new(Kind::SnapshotStale, doing));
        }
        let finished = self.begin(&record, &*load, snapshot.position()).await?;
        if self.exact {
            // The load holds the table as it is: whoever alters it comes later, and so does what the log shows of that.
            let _ = self.asks.send(Ask::SettleTable(load.table().clone()));
        }
        let mapped = Arc::new(self.tables.rules().shape(load.table()));
        let rows_so_far = Arc::new(AtomicU64::new(finished.values().map(segment_rows).sum()));
        self.progress.lock().expect("no panic while locked").insert(name.clone(), rows_so_far.clone());

        let mut segments = JoinSet::new();
        for number in (0..load.plan().segments.len()).filter(|number| !finished.contains_key(number)) {
            let (this, load, mapped) = (self.clone(), load.clone(), mapped.clone());
            let (permits, rows_so_far, position) = (permits.clone(), rows_so_far.clone(), snapshot.position());
            segments.spawn(async move { this.segment(&*load, number, &mapped, position, &rows_so_far, permits).await });
        }
        while let Some(joined) = segments.join_next().await {
            joined.map_err(|e| Error::new(Kind::Internal, format!("loading {name}")).with(e))??;
        }
        self.complete(&name, &mapped, begun, snapshot.read_to()).await
    }

    /// Stores what the load is, and gives the segments of an earlier try that still hold.
    async fn begin(
        &self,
        record: &TableRecord,
        load: &dyn TableLoad,
        position: Position,
    ) -> Result<BTreeMap<usize, SegmentRecord>> {
        let name = &record.table.name;
        let prefix = segment::prefix(&self.task, name);
        let stored: Vec<(String, SegmentRecord)> = read_all(&*self.state, &prefix)?;
        // The storage may be the same and the columns not: ADD COLUMN and RENAME rewrite nothing. Without a finished segment
        // nothing is taken up: changes from before this snapshot would only be delivered beside its rows.
        let Table { columns, key, .. } = &**load.table();
        let (resumed, old) = match &record.load {
            Some(old) if load.resumed() && !stored.is_empty() && old.columns == *columns && old.key == *key => {
                (true, Some(old))
            }
            old => (false, old.as_ref()),
        };
        let next_file = match old {
            Some(old) => old.next_file,
            None => self.tables.checkpoint(&record.target)?.map_or(0, |checkpoint| checkpoint.next_load_file).max(1),
        };
        // A number whose file may be there without a segment's record is never used again, and the file goes; but not one
        // that readers see.
        let mut kept = self.catalog.files(&CatalogName::of(&record.target))?;
        kept.extend(stored.iter().filter(|_| resumed).flat_map(|(_, segment)| segment.files.clone()));
        for number in old.map(|old| old.first_file..old.next_file).into_iter().flatten() {
            let key = layout::load_key(&record.target, number);
            if !kept.iter().any(|file| file.key == key) {
                self.destination.delete(&key).await?;
            }
        }
        let started_us = old.filter(|_| resumed).map_or_else(now_us, |old| old.started_us);
        let first_file = old.filter(|_| resumed).map_or(next_file, |old| old.first_file);
        let start = old.filter(|_| resumed).map_or(position, |old| old.start.min(position));
        let plan: LoadPlan = load.plan().clone();
        let drop_stored = stored.iter().filter(|_| !resumed).map(|(rest, _)| Put::delete(format!("{prefix}{rest}")));
        let shape = (**load.table()).clone();
        let (columns, key) = (shape.columns.clone(), shape.key.clone());
        self.tables.update(name, drop_stored.collect(), |record| {
            record.load = Some(LoadRecord { plan, start, first_file, next_file, started_us, columns, key });
            record.table = shape;
            if record.state == TableState::BeforeLoad {
                record.state = TableState::FullLoad;
            }
        })?;
        if !resumed {
            return Ok(BTreeMap::new());
        }
        info!(task = self.task, table = %name, segments = stored.len(), "load goes on after its finished segments");
        Ok(stored.into_iter().filter_map(|(rest, segment)| Some((rest.parse().ok()?, segment))).collect())
    }

    async fn segment(
        &self,
        load: &dyn TableLoad,
        number: usize,
        mapped: &Arc<Mapped>,
        position: Position,
        rows_so_far: &AtomicU64,
        permits: Permits,
    ) -> Result<()> {
        let reading = permits.reading.acquire().await;
        let name = &load.table().name;
        let rows = load.rows(number).await.map_err(unreadable)?;
        let (encoding, failed) = self.read(rows, mapped, position, rows_so_far).await?;
        // The next one is read while this one is encoded to its end, fsynced and noted.
        let _finishing = permits.finishing.acquire().await;
        drop(reading);
        let written = encoding.await.map_err(|e| Error::new(Kind::Internal, "encoding a segment").with(e))?;
        let written = failed.map_or(written, Err)?;
        let mut files = vec![];
        for staged in written.files {
            let published = self.publish(name, &mapped.target.name, staged).await?;
            files.push(data_file(published));
        }
        fail::fail_point!("load-between-segment-and-record");
        let record = SegmentRecord { position, files, rejects: written.rejects, exact: written.exact };
        self.state.commit(&[Put::set(segment::key(&self.task, name, number), &record)])
    }

    /// Reads here, encodes on a thread of its own: the encoder never blocks the socket. Gives what is still to be waited for,
    /// and why there were not all rows.
    async fn read(
        &self,
        mut rows: Box<dyn Rows>,
        mapped: &Arc<Mapped>,
        position: Position,
        rows_so_far: &AtomicU64,
    ) -> Result<(JoinHandle<Result<Written>>, Option<Error>)> {
        let (send, receive) = mpsc::channel::<Loaded>(BATCHES_AHEAD);
        let (done, mut returned) = mpsc::unbounded_channel();
        let held_bytes_max = WRITERS_BYTES as usize / self.parallel;
        let encoder = Encoder {
            destination: self.destination.clone(),
            mapped: mapped.clone(),
            position,
            held_bytes_max,
            companions: self.catalog.companions(&mapped.target.name)?,
            done,
        };
        let encoding = blocking::spawn(encoder.run(receive));
        let mut failed = None;
        loop {
            while let Ok(columns) = returned.try_recv() {
                rows.give_back(columns);
            }
            match rows.next().await {
                Ok(Some(loaded)) => {
                    self.throttle.pass(loaded.wire_bytes).await;
                    rows_so_far.fetch_add(loaded.columns.rows() as u64, Ordering::Relaxed);
                    if send.send(loaded).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Some(unreadable(error));
                    break;
                }
            }
        }
        Ok((encoding, failed))
    }

    /// Gives the file its number, stored before it is used, and makes it visible. A number that was taken before this
    /// task began (by a task of the same name that was deleted) is passed over.
    async fn publish(&self, table: &TableName, target: &TableName, staged: Staged) -> Result<Published> {
        let Staged { path, rows, bytes, metadata, .. } = staged;
        loop {
            let mut number = 0;
            self.tables.update(table, vec![], |record| {
                if let Some(load) = &mut record.load {
                    number = load.next_file;
                    load.next_file += 1;
                }
            })?;
            let key = layout::load_key(target, number);
            let numbered = Staged { key, path: path.clone(), rows, bytes, metadata: metadata.clone() };
            match self.destination.publish(numbered).await {
                Err(error) if error.kind == Kind::TargetConflict => continue,
                published => return published,
            }
        }
    }

    /// The last segment is done: the new generation replaces what the manifest held, in one commit.
    async fn complete(&self, name: &TableName, mapped: &Mapped, begun: Instant, read_to: Position) -> Result<()> {
        let prefix = segment::prefix(&self.task, name);
        let segments: Vec<(String, SegmentRecord)> = read_all(&*self.state, &prefix)?;
        let _gate = self.delivery.gate().await;
        let record = self.tables.get(name).filter(|record| record.load.is_some());
        let record =
            record.ok_or_else(|| Error::new(Kind::Internal, format!("completing the load of {name}: it is gone")))?;
        let load = record.load.clone().expect("filtered above");
        let target = &mapped.target.name;
        let mut files: Vec<DataFile> = segments.iter().flat_map(|(_, segment)| segment.files.clone()).collect();
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let rejects: Vec<Reject> = segments.iter().flat_map(|(_, segment)| segment.rejects.clone()).collect();
        let exact: BTreeSet<i32> = segments.iter().flat_map(|(_, segment)| segment.exact.clone()).collect();
        let letters =
            dead_letters::publish(&*self.destination, target, load.started_us, load.first_file, &rejects).await?;
        files.extend(letters);
        let mut delivery: Checkpoint = self.tables.checkpoint(target)?.unwrap_or_default();
        delivery.target = target.clone();
        delivery.finish_load(load.start, rows, rejects.len() as u64, load.next_file);
        let mut puts: Vec<Put> = segments.iter().map(|(rest, _)| Put::delete(format!("{prefix}{rest}"))).collect();
        let location = self.destination.location(&layout::folder(target));
        let complete = (load.start, delivery.through);
        self.catalog.define_exact(&mut puts, &self.task, &mapped.target, &location, &exact)?;
        self.catalog.replace_files(&mut puts, &self.task, &mapped.target, &location, &files, complete)?;
        puts.push(Put::set(checkpoint::key(&self.task, target), &delivery));
        fail::fail_point!("load-before-commit");
        let completed = self.tables.update_if(
            name,
            puts,
            |record| !record.stale,
            |record| {
                record.state = TableState::Completed;
                record.read_to = read_to;
                record.load = None;
                record.error = None;
                record.loaded_rows = rows;
                record.load_elapsed_ms = begun.elapsed().as_millis() as u64;
            },
        )?;
        if !completed {
            let doing = format!("completing the load of {name}: the table changed meanwhile");
            return Err(Error::new(Kind::SnapshotStale, doing));
        }
        fail::fail_point!("load-after-commit");
        self.metrics.count_rows(&self.task, "loaded", rows);
        self.metrics
            .suspended_tables
            .get_or_create(&task_label(&self.task))
            .set(self.tables.all().iter().filter(|record| record.state == TableState::Error).count() as i64);
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        info!(task = self.task, table = %name, rows, rejected = rejects.len(), elapsed_ms, "table is loaded");
        Ok(())
    }
}

/// A small table is one segment; a larger one keeps all readers busy.
fn segments_wanted(bytes: u64, parallel: usize) -> usize {
    let each = if parallel == 1 { SEGMENT_BYTES_ALONE } else { SEGMENT_BYTES };
    if bytes < SMALL_TABLE_BYTES { 1 } else { (bytes.div_ceil(each) as usize).clamp(parallel, 4096) }
}

/// What the source does not let us read of one table concerns that table; trying for ever would hold up the stream.
fn unreadable(error: Error) -> Error {
    let kind = if error.kind == Kind::Permission { Kind::TableUnreadable } else { error.kind };
    Error { kind, ..error }
}

fn segment_rows(segment: &SegmentRecord) -> u64 {
    segment.files.iter().map(|file| file.rows).sum()
}

fn data_file(published: Published) -> DataFile {
    let Published { key, location, rows, bytes, .. } = published;
    DataFile { key, path: location, rows, bytes, kind: FileKind::Load }
}

struct Written {
    files: Vec<Staged>,
    rejects: Vec<Reject>,
    /// Identities of the columns that have a companion in the files.
    exact: BTreeSet<i32>,
}

/// Turns the batches of one segment into staged files.
struct Encoder {
    destination: Arc<dyn Destination>,
    mapped: Arc<Mapped>,
    position: Position,
    held_bytes_max: usize,
    /// Columns that have a companion in the object that is written.
    companions: BTreeSet<i32>,
    /// Takes the memory of batches that are written.
    done: mpsc::UnboundedSender<Columns>,
}

impl Encoder {
    async fn run(mut self, mut batches: mpsc::Receiver<Loaded>) -> Result<Written> {
        let target = self.mapped.target.clone();
        self.companions.retain(|id| target.columns.iter().any(|column| column.id == *id));
        let mut schema = file_schema::arrow_schema(&target, &self.companions);
        let mut rows = file_schema::LoadedRows::new(self.position);
        let mut writer: Option<Box<dyn ObjectWriter>> = None;
        let mut written = Written { files: vec![], rejects: vec![], exact: BTreeSet::new() };
        while let Some(loaded) = batches.recv().await {
            let renamed = loaded.rejects.into_iter().map(|mut reject| {
                reject.table = self.mapped.target.name.clone();
                reject
            });
            written.rejects.extend(renamed);
            if loaded.columns.rows() == 0 {
                continue;
            }
            let columns = self.mapped.columns(loaded.columns);
            let exact = file_schema::companions_of(&target, &columns);
            if !exact.is_subset(&self.companions) {
                // The columns of an object are those that its writer was opened with.
                written.files.extend(writer.take().map(|begun| begun.finish()).transpose()?);
                self.companions.extend(exact);
                schema = file_schema::arrow_schema(&target, &self.companions);
            }
            let batch = rows.batch(&schema, columns)?;
            let open = match &mut writer {
                Some(open) => open,
                None => writer.insert(self.stage()?),
            };
            open.write(&batch)?;
            // Nobody waits for it any more once everything is read.
            let _ = self.done.send(file_schema::reclaim(&target, batch));
            if open.held_bytes() >= self.held_bytes_max {
                open.flush()?;
            }
            if open.size_so_far() >= OBJECT_BYTES_MAX {
                written.files.extend(writer.take().map(|full| full.finish()).transpose()?);
            }
        }
        written.files.extend(writer.map(|last| last.finish()).transpose()?);
        written.exact = self.companions;
        Ok(written)
    }

    /// The key is given when the file is published; until then only its schema counts.
    fn stage(&self) -> Result<Box<dyn ObjectWriter>> {
        let key = layout::load_key(&self.mapped.target.name, 0);
        let metadata = BTreeMap::from([("millrace.position".to_string(), self.position.to_string())]);
        self.destination.stage(file_schema::object_spec(&self.mapped.target, &self.companions, key, metadata))
    }
}

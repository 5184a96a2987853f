//! A log in memory, and a target and a state that fail when told.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use millrace_core::{
    Change, Error, Finding, Kind, Position, Result, Table, TableName,
    destination::{Destination, ObjectSpec, ObjectWriter, Published, Staged},
};
use millrace_object_store::{Compression, ObjectStore, ObjectStoreConfig, Place};
use tokio::sync::watch;

use super::super::{
    Delivery, DeliveryOptions,
    change_log::{ChangeLog, Entries},
};
use crate::{
    catalog::{Catalog, CatalogName, DataFile},
    state::{
        Put, StateStore,
        keys::checkpoint::{self, Checkpoint, Flow},
        memory::MemoryState,
        read,
    },
    stream::{Entry, LogPosition, Mark, Totals, Wanted},
};

/// Frames and marks; each takes ten bytes.
#[derive(Debug)]
pub struct MemoryLog {
    items: Mutex<Vec<(LogPosition, Item)>>,
    totals: Mutex<Totals>,
    pin: Mutex<LogPosition>,
    marks: watch::Sender<Option<Mark>>,
}

#[derive(Debug)]
enum Item {
    Change(Change),
    Mark(Mark),
}

impl Default for MemoryLog {
    fn default() -> Self {
        let marks = watch::Sender::new(None);
        Self { items: Mutex::default(), totals: Mutex::default(), pin: Mutex::default(), marks }
    }
}

impl MemoryLog {
    pub fn append_without_mark(&self, changes: Vec<Change>) {
        let mut items = self.items.lock().unwrap();
        let mut totals = self.totals.lock().unwrap();
        for change in changes {
            let rows = match &change {
                Change::Rows(batch) => batch.rows() as u64,
                Change::Rejected(rejects) => rejects.len() as u64,
                _ => 0,
            };
            totals.captured += rows;
            totals.rows += rows;
            totals.bytes += rows * 8;
            let at = LogPosition(items.len() as u64 * 10);
            items.push((at, Item::Change(change)));
        }
    }

    pub fn append(&self, changes: Vec<Change>, upto: u128) {
        self.append_without_mark(changes);
        // One row in each transaction is left out before the log.
        let mut totals = self.totals.lock().unwrap();
        totals.captured += 1;
        *totals.filtered.entry("superseded".into()).or_default() += 1;
        let mut items = self.items.lock().unwrap();
        let at = LogPosition(items.len() as u64 * 10);
        let mark = Mark {
            at: LogPosition(at.0 + 10),
            source: Position(upto),
            lineage: None,
            arrival_us: 1_795_442_709_000_000 + at.0 as i64,
            newest_commit_us: 0,
            totals: totals.clone(),
        };
        items.push((at, Item::Mark(mark.clone())));
        drop(items);
        self.marks.send_replace(Some(mark));
    }

    pub fn pin(&self) -> LogPosition {
        *self.pin.lock().unwrap()
    }
}

impl ChangeLog for MemoryLog {
    fn last_mark(&self) -> Option<Mark> {
        self.marks.borrow().clone()
    }

    fn marks(&self) -> watch::Receiver<Option<Mark>> {
        self.marks.subscribe()
    }

    fn read(&self, from: LogPosition, to: LogPosition, wanted: Wanted) -> Result<Box<dyn Entries>> {
        assert!(from >= self.pin(), "reading what retention may have taken");
        let items = self.items.lock().unwrap();
        let mut entries = vec![];
        for (at, item) in items.iter().filter(|(at, _)| *at >= from && *at < to) {
            let at = *at;
            let skipped =
                |table: &TableName, rows: usize| Entry::Skipped { at, table: table.clone(), rows: rows as u64 };
            entries.push(match item {
                Item::Mark(mark) => Entry::Mark(mark.clone()),
                Item::Change(Change::Rows(batch)) if wanted(&batch.table.name, at) => {
                    Entry::Rows { at, batch: batch.clone(), bytes: batch.rows() as u64 * 8 }
                }
                Item::Change(Change::Rows(batch)) => skipped(&batch.table.name, batch.rows()),
                Item::Change(Change::Rejected(rejects)) if wanted(&rejects[0].table, at) => {
                    Entry::Rejected { at, rejects: rejects.clone() }
                }
                Item::Change(Change::Rejected(rejects)) => skipped(&rejects[0].table, rejects.len()),
                Item::Change(Change::Truncate { tables, order }) => {
                    Entry::Truncate { at, tables: tables.clone(), order: *order }
                }
                Item::Change(Change::Ddl(ddl)) => Entry::Ddl { at, ddl: ddl.clone() },
            });
        }
        Ok(Box::new(MemoryEntries(entries.into_iter())))
    }

    fn set_pin(&self, pin: LogPosition) {
        *self.pin.lock().unwrap() = pin;
    }

    fn retain(&self) -> Result<()> {
        Ok(())
    }
}

struct MemoryEntries(std::vec::IntoIter<Entry>);

impl Entries for MemoryEntries {
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        Ok(self.0.next())
    }
}

/// Before or after the thing that fails was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    After,
    /// It is done later, when nobody waits for it any more: of an upload.
    Late,
}

/// What fails, from the call after so many on.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Publish(i64, When),
    Commit(i64, When),
}

fn crash() -> Error {
    Error::new(Kind::Target, "crashing in a test")
}

/// A folder whose publishing fails from a given call on.
pub struct FaultyTarget {
    inner: ObjectStore,
    spool: PathBuf,
    left: AtomicI64,
    when: Mutex<When>,
    /// Uploads under way: the bytes, and the object that they become unless it is there.
    late: Mutex<Vec<(PathBuf, PathBuf)>>,
}

impl FaultyTarget {
    /// Uploads that are under way become objects, unless there are such already.
    pub fn arrive(&self) {
        for (bytes, object) in self.late.lock().unwrap().drain(..) {
            std::fs::create_dir_all(object.parent().unwrap()).unwrap();
            match std::fs::hard_link(&bytes, &object) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => panic!("{error}"),
                _ => {}
            }
        }
    }

    /// The first `count` succeed.
    pub fn fail_publishes_after(&self, count: i64) {
        self.left.store(count, Ordering::Relaxed);
    }

    pub fn fail_publish(&self, count: i64, when: When) {
        *self.when.lock().unwrap() = when;
        self.fail_publishes_after(count);
    }

    pub fn heal(&self) {
        self.left.store(i64::MAX, Ordering::Relaxed);
    }
}

#[async_trait]
impl Destination for FaultyTarget {
    async fn check(&self) -> Vec<Finding> {
        self.inner.check().await
    }

    fn location(&self, key: &str) -> String {
        self.inner.location(key)
    }

    async fn sweep(&self) -> Result<()> {
        self.inner.sweep().await
    }

    fn stage(&self, spec: ObjectSpec) -> Result<Box<dyn ObjectWriter>> {
        self.inner.stage(spec)
    }

    fn stage_bytes(&self, key: &str, bytes: &[u8]) -> Result<Staged> {
        self.inner.stage_bytes(key, bytes)
    }

    async fn publish(&self, staged: Staged) -> Result<Published> {
        let fails = self.left.fetch_sub(1, Ordering::Relaxed) <= 0;
        let when = *self.when.lock().unwrap();
        if fails && when == When::Late {
            let mut late = self.late.lock().unwrap();
            let bytes = self.spool.join(format!("late-{}", late.len()));
            std::fs::create_dir_all(&self.spool).unwrap();
            let _ = std::fs::remove_file(&bytes);
            std::fs::copy(&staged.path, &bytes).unwrap();
            late.push((bytes, PathBuf::from(self.inner.location(&staged.key))));
        }
        if fails && when != When::After {
            return Err(crash());
        }
        let published = self.inner.publish(staged).await?;
        if fails { Err(crash()) } else { Ok(published) }
    }

    async fn read(&self, key: &str) -> Result<Vec<u8>> {
        self.inner.read(key).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        self.inner.size(key).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await
    }
}

/// A state whose commits fail from a given one on.
pub struct FaultyState {
    inner: MemoryState,
    left: AtomicI64,
    when: Mutex<When>,
}

impl FaultyState {
    /// The first `count` succeed.
    pub fn fail_commit(&self, count: i64, when: When) {
        *self.when.lock().unwrap() = when;
        self.left.store(count, Ordering::Relaxed);
    }

    pub fn heal(&self) {
        self.left.store(i64::MAX, Ordering::Relaxed);
    }
}

impl StateStore for FaultyState {
    fn get(&self, key: &str) -> Result<Option<String>> {
        self.inner.get(key)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        self.inner.scan(prefix)
    }

    fn commit(&self, puts: &[Put]) -> Result<()> {
        let fails = self.left.fetch_sub(1, Ordering::Relaxed) <= 0;
        let when = *self.when.lock().unwrap();
        if fails && when == When::Before {
            return Err(crash());
        }
        self.inner.commit(puts)?;
        if fails { Err(crash()) } else { Ok(()) }
    }
}

/// Everything that survives a crash.
pub struct House {
    pub options: DeliveryOptions,
    pub log: Arc<MemoryLog>,
    pub target: Arc<FaultyTarget>,
    pub state: Arc<FaultyState>,
    pub catalog: Catalog,
    pub folder: Arc<tempfile::TempDir>,
}

impl House {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().join("lake"));
        let config = ObjectStoreConfig { place, compression: Compression::Snappy };
        let inner = ObjectStore::new(config, folder.path().join("spool")).unwrap();
        let never = || AtomicI64::new(i64::MAX);
        let state = FaultyState { inner: MemoryState::default(), left: never(), when: Mutex::new(When::Before) };
        let state = Arc::new(state);
        Self {
            options: DeliveryOptions {
                task: "t".into(),
                buffer_bytes: 1 << 20,
                buffer_interval: Duration::from_secs(60),
                memory_bytes: 64 << 20,
                grace: Duration::from_secs(3600),
            },
            log: Arc::default(),
            target: Arc::new(FaultyTarget {
                inner,
                spool: folder.path().join("late"),
                left: never(),
                when: Mutex::new(When::Before),
                late: Mutex::default(),
            }),
            catalog: Catalog::new(state.clone()),
            state,
            folder: Arc::new(folder),
        }
    }

    pub fn inject(&self, fault: Fault) {
        match fault {
            Fault::Publish(count, when) => self.target.fail_publish(count, when),
            Fault::Commit(count, when) => self.state.fail_commit(count, when),
        }
    }

    pub fn heal(&self) {
        self.target.heal();
        self.state.heal();
    }

    /// A delivery that knows nothing but what is stored.
    pub fn delivery(&self) -> Delivery {
        let options = self.options.clone();
        let (log, target, state) = (self.log.clone(), self.target.clone(), self.state.clone());
        Delivery::over(options, log, target, state, self.catalog.clone(), None)
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    pub fn checkpoint(&self, table: &Arc<Table>, flow: Flow) {
        let through = self.log.last_mark().map_or(LogPosition(0), |mark| mark.at);
        let record = Checkpoint::new(table.name.clone(), flow, through);
        self.state.commit(&[Put::set(checkpoint::key("t", &table.name), &record)]).unwrap();
    }

    pub fn read_checkpoint(&self, table: &Arc<Table>) -> Checkpoint {
        read(&*self.state, &checkpoint::key("t", &table.name)).unwrap().unwrap()
    }

    pub fn change_checkpoint(&self, table: &Arc<Table>, change: impl Fn(&mut Checkpoint)) {
        let mut record = self.read_checkpoint(table);
        change(&mut record);
        self.state.commit(&[Put::set(checkpoint::key("t", &table.name), &record)]).unwrap();
    }

    /// Names of the table's columns in the catalog.
    pub fn columns(&self, table: &Arc<Table>) -> Vec<String> {
        let found = self.catalog.table(&CatalogName::of(&table.name)).unwrap();
        found.map(|table| table.columns.into_iter().map(|column| column.name).collect()).unwrap_or_default()
    }

    pub fn files(&self, table: &Arc<Table>) -> Vec<DataFile> {
        self.catalog.files(&CatalogName::of(&table.name)).unwrap()
    }

    /// Keys of all files of these tables, dead letters included, sorted.
    pub fn keys_in_manifests(&self, tables: &[&Arc<Table>]) -> Vec<String> {
        let letters = |table: &&Arc<Table>| self.catalog.dead_letters(&CatalogName::of(&table.name)).unwrap();
        let files = tables.iter().flat_map(|table| self.files(table).into_iter().chain(letters(table)));
        let mut keys: Vec<String> = files.map(|file| file.key).collect();
        keys.sort();
        keys
    }

    /// Sorted; objects that left their manifest.
    pub fn keys_in_garbage(&self) -> Vec<String> {
        let prefix = crate::state::keys::garbage::prefix(&self.options.task);
        let found: Vec<(String, crate::state::keys::garbage::Garbage)> =
            crate::state::read_all(&*self.state, &prefix).unwrap();
        let mut keys: Vec<String> = found.into_iter().map(|(_, garbage)| garbage.key).collect();
        keys.sort();
        keys
    }
}

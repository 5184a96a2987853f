//! What a source connector implements. The daemon pulls; nothing is pushed at it.
//!
//! A source is built for one task: the names of what it makes at the source (slot, publications) derive from the task's.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    batch::{Changes, Reject},
    columns::Columns,
    error::Result,
    finding::Finding,
    position::{Durable, Position},
    table::{Selection, Table, TableName},
};

/// What a task wants from its source.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Which tables.
    pub selection: Selection,
    /// Whether tables are loaded.
    pub full_load: bool,
    /// Whether changes are captured.
    pub cdc: bool,
}

/// Who a source is; compared at every connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The server's own identity (PostgreSQL: system identifier).
    pub system: String,
    /// The history it is on (PostgreSQL: timeline); 0 where there is no such thing.
    pub timeline: u64,
    /// The database.
    pub database: String,
    /// Product and version, for people.
    pub server: String,
    /// When this very server process started, as it says; empty where it was not asked.
    #[serde(default)]
    pub started: String,
}

/// Where a log is taken up again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// The last durable mark, or where a log that was just made begins.
    pub position: Position,
    /// What was given with it as [`Changes::lineage`].
    pub lineage: Option<Arc<str>>,
}

impl From<Position> for Resume {
    fn from(position: Position) -> Self {
        Self { position, lineage: None }
    }
}

/// What the source keeps for us.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// Bytes of log that the source keeps because of us.
    pub retained_bytes: u64,
    /// Bytes that may still be written before the source gives up on us; `None` without a limit.
    pub safe_bytes: Option<u64>,
    /// Up to where we confirmed.
    pub confirmed: Option<Position>,
    /// Where the log ends now.
    pub end: Option<Position>,
    /// The source's own word for the state of our slot.
    pub status: String,
    /// What people run at the source so that it keeps nothing for us any more; empty where there is no such thing.
    #[serde(default)]
    pub release: String,
}

/// Rows read anew by key. Row `i` of `columns` answers key `found[i]`.
#[derive(Debug)]
pub struct Lookup {
    /// For every key that still exists: the key's row number in the request, rising.
    pub found: Vec<u32>,
    /// The requested columns of those rows, in the order of `found`.
    pub columns: Columns,
    /// Requests whose row exists but holds a value that its column cannot hold: row number and the column's reason.
    pub rejected: Vec<(u32, String)>,
}

/// A database to replicate from.
#[async_trait]
pub trait Source: Send + Sync {
    /// Every problem that would keep the task from working, at once, each with its remedy.
    async fn check(&self, scope: &Scope) -> Vec<Finding>;

    /// Who answers at the other end.
    async fn identity(&self) -> Result<Identity>;

    /// The tables that the selection matches, as they are now, at version 1.
    async fn tables(&self, selection: &Selection) -> Result<Vec<Table>>;

    /// Makes the source publish the changes of exactly these tables (creates or alters publications), committed before
    /// it returns. Does nothing where all is as it should be.
    async fn prepare(&self, tables: &[Arc<Table>]) -> Result<()>;

    /// Which of these tables the source does not publish as [`Self::prepare`] left them, wholly: their changes since then are
    /// in no log that we read. New tables are among them.
    async fn unpublished(&self, _tables: &[Arc<Table>]) -> Result<Vec<TableName>> {
        Ok(vec![])
    }

    /// For those of these tables that are published: a number that is another one once the table was taken out and put back,
    /// or published in another way, by whomever. Empty where a source publishes nothing.
    async fn publication_ids(&self, _tables: &[Arc<Table>]) -> Result<BTreeMap<TableName, u64>> {
        Ok(BTreeMap::new())
    }

    /// How the values of these tables' types are spelled, where that may change without a change of rows (PostgreSQL: labels of
    /// enums); for [`Self::spellings_differ`]. Empty where there is no such thing.
    async fn spellings(&self, _tables: &[Arc<Table>]) -> Result<BTreeMap<TableName, String>> {
        Ok(BTreeMap::new())
    }

    /// Whether old rows are spelled otherwise than they were.
    fn spellings_differ(&self, _before: &str, _now: &str) -> bool {
        false
    }

    /// Makes the permanent place in the source's log (a slot) and gives where it starts. One that is there already is
    /// dropped and made again: the caller only asks when it has no mark, so nothing of it was ever kept.
    async fn create_log(&self) -> Result<Resume>;

    /// Reads the log from `from`, the last durable mark. Refuses with [`crate::Kind::SourceChanged`] when the other end is
    /// not `known` or does not hold `from` any more, and with [`crate::Kind::LogLost`] when something between its own
    /// confirmed position and `from` may be gone. Rows of transactions that have not committed are kept in `spill`.
    async fn open_log(
        &self,
        tables: &[Arc<Table>],
        from: &Resume,
        known: &Identity,
        spill: Arc<dyn SpillRoom>,
    ) -> Result<Box<dyn Log>>;

    /// Reads columns of rows by key, at a state in which every transaction that the log has handed out is visible.
    /// `keys` has the table's key columns in key order.
    async fn lookup(&self, table: &Table, keys: &Columns, columns: &[usize]) -> Result<Lookup>;

    /// A consistent view of all data with its exact position: every transaction with `commit < position` is in it, none
    /// with `commit >= position` is. With `exact: false` (nothing is captured) the position is only for display.
    async fn snapshot(&self, tables: &[TableName], exact: bool) -> Result<Box<dyn Snapshot>>;

    /// What the source keeps for us; `None` if there is nothing of ours.
    async fn retained(&self) -> Result<Option<Retained>>;

    /// Refuses as [`Self::open_log`] does where the other end is not `known`, or does not hold `from` any more: asked before
    /// anything that it says of its tables is believed.
    async fn verify(&self, _from: &Resume, _known: &Identity) -> Result<()> {
        Ok(())
    }

    /// Writes a sign of life into the source's log, so that the log moves on where nothing else writes.
    async fn heartbeat(&self) -> Result<()> {
        Ok(())
    }

    /// Gives up our place in the source's log, so that the source forgets it; ends who still reads there in our name. What
    /// is not read yet is lost, so the caller has marked everything for a reload. Does nothing where there is none.
    async fn drop_log(&self) -> Result<()> {
        Ok(())
    }

    /// Removes everything that we made at the source. Gives the statements that remain to be run where a right is missing.
    async fn remove(&self) -> Result<Vec<String>>;
}

/// How much one pull may bring.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Stop after about as many rows.
    pub rows: usize,
    /// Stop after about as many bytes.
    pub bytes: usize,
    /// Wait as long for the first change.
    pub wait: Duration,
}

/// The source's log from one position on.
#[async_trait]
pub trait Log: Send {
    /// The next changes: returns as soon as there is something and nothing more is at hand, when the budget is used up
    /// (then, if it can, at the end of a transaction), or empty after `wait`, with `upto` where the source told how far
    /// it is. Safe to cancel: nothing that was taken is lost. Not being called for long must not end the session.
    async fn pull(&mut self, budget: Budget) -> Result<Changes>;

    /// Who answered when the log was opened, as it was compared then; `None` where the source's own word is enough.
    fn identity(&self) -> Option<&Identity> {
        None
    }

    /// Where it begins, if its positions do not follow those before: another server took over that has everything up to
    /// where the log was resumed. The daemon gives its positions the number of a new history.
    fn begins_anew(&self) -> Option<Resume> {
        None
    }

    /// Tells the source that everything before the position may be forgotten.
    async fn confirm(&mut self, position: Durable<Position>) -> Result<()>;

    /// From now on take this table with whatever shape the log shows for it (a new table, or one that is loaded anew).
    /// `since`: parts of it that were read from there on are kept, so a change of shape behind that is told.
    fn add_table(&mut self, table: Arc<Table>, since: Option<Position>);

    /// A table that was added is being read in this shape, and keeps it until its load is done: another one that the log
    /// shows from now on is a change of it.
    fn settle_table(&mut self, _table: Arc<Table>) {}

    /// From now on leave this table out.
    fn remove_table(&mut self, table: &TableName);
}

/// Room on our own disk where an open log keeps rows of transactions that have not committed. Nothing of them is confirmed,
/// so what is there is worth nothing to the next log: whoever opens one empties the folder first.
pub trait SpillRoom: Send + Sync + fmt::Debug {
    /// A folder for the log alone; it need not be there yet.
    fn folder(&self) -> &Path;

    /// The log has so many bytes there now. They count in the disk bound of the task's stream.
    fn hold(&self, bytes: u64);

    /// Whether `bytes` more may be written now; if not, room is being made, and to be asked for again. Where nothing can
    /// make room they may, beyond the bound, and a warning says so.
    fn admits(&self, bytes: u64) -> bool;
}

/// A folder without a bound, for tests and examples.
#[derive(Debug)]
pub struct UnboundedRoom(pub PathBuf);

impl SpillRoom for UnboundedRoom {
    fn folder(&self) -> &Path {
        &self.0
    }

    fn hold(&self, _bytes: u64) {}

    fn admits(&self, _bytes: u64) -> bool {
        true
    }
}

/// A consistent view of the source; the connection that holds it stays open until it is dropped.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// Its position.
    fn position(&self) -> Position;

    /// Up to where its rows may show changes: a server that takes over must have those.
    fn read_to(&self) -> Position {
        self.position()
    }

    /// Locks the table against changes of its shape and divides it into at most `segments_wanted` segments, or takes up
    /// `previous` again where the table has a key and its storage is still the same. Fails with
    /// [`crate::Kind::SnapshotStale`] when the table was rewritten between the snapshot and the lock.
    async fn open(
        &self,
        table: &TableName,
        segments_wanted: usize,
        previous: Option<&LoadPlan>,
    ) -> Result<Box<dyn TableLoad>>;
}

/// How a table is divided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadPlan {
    /// The table's `storage_id` for which the segments hold.
    pub storage_id: u64,
    /// Together they cover the table, whatever it grows to.
    pub segments: Vec<Segment>,
}

/// A part of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The connector's own description of the part.
    pub range: String,
    /// Rows, as the source estimates them.
    pub estimated_rows: u64,
}

/// One table being loaded; dropping it releases the table's lock.
#[async_trait]
pub trait TableLoad: Send + Sync {
    /// The table's shape in the snapshot.
    fn table(&self) -> &Arc<Table>;

    /// Its segments.
    fn plan(&self) -> &LoadPlan;

    /// Whether `plan` is the previous one, so that finished segments need not be read again.
    fn resumed(&self) -> bool;

    /// Reads one segment; several may be read at once.
    async fn rows(&self, segment: usize) -> Result<Box<dyn Rows>>;
}

/// The rows of one segment.
#[async_trait]
pub trait Rows: Send {
    /// The next batch (at most 65,536 rows or about 8 MiB), or `None` at the end.
    async fn next(&mut self) -> Result<Option<Loaded>>;

    /// Memory of a batch from before, of which nothing is needed any more.
    fn give_back(&mut self, _columns: Columns) {}
}

/// A batch of loaded rows.
#[derive(Debug)]
pub struct Loaded {
    /// The rows that fit their columns.
    pub columns: Columns,
    /// The rows that do not.
    pub rejects: Vec<Reject>,
    /// Bytes read from the source for them.
    pub wire_bytes: usize,
}

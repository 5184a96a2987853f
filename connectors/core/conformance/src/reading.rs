//! A log that is being read, and what holds for everything that it hands out.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use millrace_core::{
    Change, Changes, Durable, Kind, Op, Order, Position, Result, Table, TableName,
    source::{Budget, Identity, Log, Resume, Source, UnboundedRoom},
};

use super::{Database, Rows, cells, selection};

/// A change that the log told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub table: TableName,
    pub op: Op,
    pub order: Order,
    pub id: i64,
    pub text: Option<String>,
}

/// A task that captures, as far as its source sees one.
pub struct Reading {
    pub source: Box<dyn Source>,
    pub tables: Vec<Arc<Table>>,
    pub identity: Identity,
    pub log: Box<dyn Log>,
    pub told: Vec<Told>,
    /// Where the log was opened, and every place at which it may be taken up again.
    pub marks: Vec<Resume>,
    room: Arc<UnboundedRoom>,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Reading {
    /// What a task does before its first row.
    pub async fn begin(database: &dyn Database, task: &str, tables: &[&str]) -> Self {
        let source = database.source(task);
        let tables: Vec<Arc<Table>> =
            source.tables(&selection(database, tables)).await.unwrap().into_iter().map(Arc::new).collect();
        source.prepare(&tables).await.unwrap();
        let identity = source.identity().await.unwrap();
        let resume = source.create_log().await.unwrap();
        let folder = std::env::temp_dir().join(format!("millrace-conformance-{}-{task}", std::process::id()));
        let room = Arc::new(UnboundedRoom(folder));
        let log = source.open_log(&tables, &resume, &identity, room.clone()).await.unwrap();
        Self { source, tables, identity, log, told: vec![], marks: vec![resume], room }
    }

    /// Closes the log and opens it again at a mark, as another process does: what came later is forgotten.
    pub async fn take_up(&mut self, database: &dyn Database, task: &str, mark: usize) {
        self.marks.truncate(mark + 1);
        let resume = self.marks[mark].clone();
        self.told.retain(|told| resume.position.covers(told.order.commit));
        self.log = Box::new(Closed);
        self.source = database.source(task);
        let began = Instant::now();
        loop {
            match self.source.open_log(&self.tables, &resume, &self.identity, self.room.clone()).await {
                Ok(log) => break self.log = log,
                // The server has not noticed yet that the one before has gone.
                Err(error) if error.kind == Kind::LogBusy && began.elapsed() < PATIENCE => {}
                Err(error) => panic!("a log is not taken up at {}: {error}", resume.position),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Takes everything until a row with this id comes.
    pub async fn read_until(&mut self, id: i64) {
        let began = Instant::now();
        while self.told.iter().all(|told| told.id != id) || !self.is_whole() {
            assert!(began.elapsed() < PATIENCE, "row {id} does not come");
            self.pull(Budget { rows: 1000, bytes: 1 << 20, wait: Duration::from_millis(200) }).await;
        }
    }

    /// Takes everything until it is past this place.
    pub async fn read_past(&mut self, position: Position) {
        let began = Instant::now();
        while self.at() < position {
            assert!(began.elapsed() < PATIENCE, "the log does not come to {position}");
            self.pull(Budget { rows: 1000, bytes: 1 << 20, wait: Duration::from_millis(200) }).await;
        }
    }

    /// One pull.
    pub async fn pull(&mut self, budget: Budget) -> usize {
        let changes = self.log.pull(budget).await.unwrap();
        let before = self.told.len();
        self.take(changes);
        self.told.len() - before
    }

    /// Up to where everything was told.
    pub fn at(&self) -> Position {
        self.marks.last().map(|mark| mark.position).unwrap_or_default()
    }

    /// Whether all that was told is of whole transactions.
    fn is_whole(&self) -> bool {
        self.told.iter().all(|told| self.at().covers(told.order.commit))
    }

    /// Keeps what was handed out, if it is as it must be.
    pub fn take(&mut self, changes: Changes) {
        let at = self.at();
        for item in changes.items {
            let Change::Rows(batch) = item else { panic!("the log tells something else: {item:?}") };
            let name = &batch.table.name;
            assert!(self.tables.iter().any(|table| table.name == *name), "a table that was not asked for: {name}");
            let lengths = [batch.ops.len(), batch.order.len(), batch.commit_time_us.len(), batch.after.rows()];
            assert!(
                lengths.iter().all(|&length| length == lengths[0]),
                "parts of a batch differ in length: {lengths:?}"
            );
            assert!(batch.rows() > 0, "a batch has no rows");
            assert!(batch.absent.is_none(), "the server sent whole rows");
            for (row, (id, text)) in cells(&batch.after).into_iter().enumerate() {
                let order = batch.order[row];
                assert!(!at.covers(order.commit), "{order} is told behind {at}");
                assert!(order.ordinal > 0, "the ordinals of changes begin at 1");
                let last = self.told.iter().rev().find(|told| told.table == *name);
                assert!(last.is_none_or(|last| last.order < order), "{order} comes behind {:?}", last.map(|l| l.order));
                assert!(is_of_today(batch.commit_time_us[row]), "it was committed at {} us", batch.commit_time_us[row]);
                assert!(batch.ops[row] != Op::Load, "a log loads nothing");
                self.told.push(Told { table: name.clone(), op: batch.ops[row], order, id, text });
            }
        }
        if let Some(upto) = changes.upto {
            assert!(upto >= at, "the log goes back from {at} to {upto}");
            let behind = self.told.iter().find(|told| !upto.covers(told.order.commit));
            assert!(behind.is_none(), "it says that everything before {upto} was told, and told more: {behind:?}");
            if upto > at {
                self.marks.push(Resume { position: upto, lineage: changes.lineage });
            }
        }
    }

    /// The rows of a table with a key that was empty, after everything that was told before a place.
    pub fn rows_at(&self, table: &TableName, position: Position) -> Rows {
        let mut rows = BTreeMap::new();
        for told in self.told.iter().filter(|told| told.table == *table && position.covers(told.order.commit)) {
            match told.op {
                Op::Delete => assert!(rows.remove(&told.id).is_some(), "it was not there: {told:?}"),
                Op::Insert => assert!(rows.insert(told.id, told.text.clone()).is_none(), "it was there: {told:?}"),
                _ => assert!(rows.insert(told.id, told.text.clone()).is_some(), "it was not there: {told:?}"),
            }
        }
        rows
    }
}

/// Within a day, whatever the clocks.
fn is_of_today(commit_us: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.as_micros() as i64 - commit_us).abs() < 86_400_000_000
}

/// A log that was closed.
struct Closed;

#[async_trait]
impl Log for Closed {
    async fn pull(&mut self, _: Budget) -> Result<Changes> {
        Ok(Changes::default())
    }

    async fn confirm(&mut self, _: Durable<Position>) -> Result<()> {
        Ok(())
    }

    fn add_table(&mut self, _: Arc<Table>, _: Option<Position>) {}

    fn remove_table(&mut self, _: &TableName) {}
}

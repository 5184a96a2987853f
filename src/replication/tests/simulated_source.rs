//! A database in memory with a log, as PostgreSQL has one: whole transactions in commit order, a slot that forgets what was
//! confirmed and refuses to go back, snapshots with an exact position. What goes wrong is told to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use async_trait::async_trait;
use millrace_core::{
    BatchBuilder, Capture, Change, Changes, Column, ColumnType, Columns, Ddl, Durable, Error, Finding, Kind, Op, Order,
    Position, Result, Selection, Table, TableName, source::*,
};

use super::Fuse;

/// Rows of a batch of a load.
const BATCH_ROWS: usize = 4;
/// The first commit's position.
pub const FIRST_COMMIT: u128 = 100;

/// What a rewrite adds to every value of a table, without a word in the log.
const REWRITTEN: i64 = 1_000_000;

/// A change of a transaction; its place there is its ordinal, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    pub table: usize,
    pub what: What,
    pub id: i64,
    pub value: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Row(Op),
    Truncate,
    /// Every row has another value, and the log tells only that.
    Rewrite,
    /// The column of values gets another name.
    Rename,
}

impl Write {
    fn apply(self, rows: &mut BTreeMap<i64, i64>) {
        match self.what {
            What::Row(Op::Delete) => drop(rows.remove(&self.id)),
            What::Row(_) => drop(rows.insert(self.id, self.value)),
            What::Truncate => rows.clear(),
            What::Rewrite => rows.values_mut().for_each(|value| *value += REWRITTEN),
            What::Rename => {}
        }
    }
}

/// Everything that survives our process. Commit `n` of the log is the transaction at `FIRST_COMMIT + n`.
#[derive(Debug, Default)]
pub struct Content {
    pub tables: Vec<Arc<Table>>,
    pub log: Vec<Vec<Write>>,
    /// The rows as they are now.
    pub rows: Vec<BTreeMap<i64, i64>>,
    /// Up to where the slot was told to forget; `None` without a slot.
    pub confirmed: Option<u128>,
    /// The slot was invalidated.
    pub is_lost: bool,
    /// Sessions of an earlier number are broken.
    pub session: u64,
    /// So many of the next calls find nobody.
    pub refusals: u64,
    /// Tables that loads hold, with their sessions.
    pub locks: Vec<(usize, u64, Weak<()>)>,
    /// What the source saw that must never be.
    pub wrong: Vec<String>,
}

impl Content {
    /// The position behind the newest transaction: the next one commits there.
    pub fn head(&self) -> u128 {
        FIRST_COMMIT + self.log.len() as u128
    }

    pub fn commit(&mut self, writes: Vec<Write>) {
        for write in &writes {
            write.apply(&mut self.rows[write.table]);
            let table = Arc::make_mut(&mut self.tables[write.table]);
            match write.what {
                What::Rewrite => {
                    table.storage_id += 1;
                    table.definition_id += u64::from(table.definition_id > 0);
                }
                What::Rename => *table = in_version(table, table.version + 1),
                What::Row(_) | What::Truncate => {}
            }
        }
        self.log.push(writes);
    }

    /// Whether a load holds the table: nobody rewrites or truncates it meanwhile.
    pub fn is_locked(&self, table: usize) -> bool {
        let session = self.session;
        self.locks.iter().any(|(locked, of, lock)| (*locked, *of) == (table, session) && lock.strong_count() > 0)
    }

    /// All changes of a table with their places.
    pub fn changes(&self, table: usize) -> impl Iterator<Item = (Order, Write)> {
        let numbered = self.log.iter().enumerate();
        let all = numbered.flat_map(|(number, writes)| {
            let commit = FIRST_COMMIT + number as u128;
            (1..).zip(writes).map(move |(ordinal, write)| (Order { commit, ordinal }, *write))
        });
        all.filter(move |(_, write)| write.table == table)
    }

    /// The rows of a table as every transaction before the position left them.
    pub fn rows_at(&self, table: usize, position: u128) -> BTreeMap<i64, i64> {
        let mut rows = BTreeMap::new();
        for (_, write) in self.changes(table).filter(|(order, _)| order.commit < position) {
            write.apply(&mut rows);
        }
        rows
    }

    /// All sessions are broken.
    pub fn reset(&mut self) {
        self.session += 1;
    }
}

/// One database. Clones are the same one.
#[derive(Clone)]
pub struct SimulatedSource {
    content: Arc<Mutex<Content>>,
    fuse: Arc<Fuse>,
}

/// The table in another shape.
fn in_version(table: &Table, version: u32) -> Table {
    let mut shaped = Table { version, ..table.clone() };
    shaped.columns[1].name = format!("value{version}");
    shaped
}

/// A table of `id` and `value`. A large one is loaded in several segments; its columns have no marks, as MySQL's have none.
pub fn table(name: &str, is_keyed: bool) -> Arc<Table> {
    let column = |id, name: &str| Column {
        id,
        name: name.into(),
        ty: ColumnType::Int64,
        source_type: "bigint".into(),
        nullable: true,
        older_rows: None,
    };
    Arc::new(Table {
        name: TableName::new("public", name),
        source_id: 1,
        version: 1,
        columns: vec![column(1, "id"), column(2, "value1")],
        key: if is_keyed { vec![0] } else { vec![] },
        capture: Capture::All,
        storage_id: 1,
        definition_id: u64::from(!is_keyed),
        columns_ever: 2,
        estimated_rows: 10,
        estimated_bytes: if is_keyed { 700 << 20 } else { 0 },
        parts: None,
    })
}

fn broken() -> Error {
    Error::new(Kind::Connection, "reading from the simulated source: connection reset")
}

impl SimulatedSource {
    pub fn new(content: Arc<Mutex<Content>>, fuse: Arc<Fuse>) -> Self {
        Self { content, fuse }
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    /// A round trip of a new session.
    async fn connect(&self) -> Result<u64> {
        self.fuse.wait().await;
        let mut content = self.lock();
        if content.refusals > 0 {
            content.refusals -= 1;
            return Err(Error::new(Kind::Connection, "connecting to the simulated source: connection refused"));
        }
        Ok(content.session)
    }

    /// A round trip of an open session.
    async fn ask(&self, session: u64) -> Result<()> {
        self.fuse.wait().await;
        if self.lock().session == session { Ok(()) } else { Err(broken()) }
    }
}

#[async_trait]
impl Source for SimulatedSource {
    async fn check(&self, _: &Scope) -> Vec<Finding> {
        self.connect().await.err().as_ref().map(Finding::from).into_iter().collect()
    }

    async fn identity(&self) -> Result<Identity> {
        self.connect().await?;
        let [system, database, server] = ["simulated", "shop", "simulated 1"].map(String::from);
        Ok(Identity { system, timeline: 0, database, server, started: String::new() })
    }

    async fn tables(&self, selection: &Selection) -> Result<Vec<Table>> {
        self.connect().await?;
        let content = self.lock();
        Ok(content
            .tables
            .iter()
            .filter(|table| selection.matches(&table.name))
            .map(|table| (**table).clone())
            .collect())
    }

    async fn prepare(&self, _: &[Arc<Table>]) -> Result<()> {
        self.connect().await.map(|_| ())
    }

    async fn create_log(&self) -> Result<Resume> {
        self.connect().await?;
        let head = {
            let mut content = self.lock();
            let head = content.head();
            (content.confirmed, content.is_lost) = (Some(head), false);
            head
        };
        // Made, and nobody told.
        self.connect().await?;
        Ok(Position(head).into())
    }

    async fn open_log(
        &self,
        tables: &[Arc<Table>],
        from: &Resume,
        _: &Identity,
        _: Arc<dyn SpillRoom>,
    ) -> Result<Box<dyn Log>> {
        let from = from.position;
        let session = self.connect().await?;
        let mut content = self.lock();
        let confirmed = content.confirmed.filter(|_| !content.is_lost);
        let Some(confirmed) = confirmed else {
            return Err(Error::new(Kind::LogLost, "opening the simulated log: it is gone"));
        };
        if from.0 < confirmed {
            content.wrong.push(format!("{from} is asked for, and everything before {confirmed} was confirmed"));
            return Err(Error::new(Kind::LogLost, "opening the simulated log: that was confirmed and is forgotten"));
        }
        let captured = tables.iter().map(|table| (table.name.clone(), table.version)).collect();
        Ok(Box::new(SimulatedLog { source: self.clone(), session, at: from.0, sent: 0, captured }))
    }

    async fn lookup(&self, _: &Table, _: &Columns, _: &[usize]) -> Result<Lookup> {
        Err(Error::new(Kind::Internal, "looking rows up: no cell is ever absent"))
    }

    async fn snapshot(&self, _: &[TableName], _exact: bool) -> Result<Box<dyn Snapshot>> {
        let session = self.connect().await?;
        let (head, rows, tables) = {
            let content = self.lock();
            (content.head(), content.rows.clone(), content.tables.clone())
        };
        self.ask(session).await?;
        Ok(Box::new(SimulatedSnapshot { source: self.clone(), session, position: Position(head), rows, tables }))
    }

    async fn retained(&self) -> Result<Option<Retained>> {
        self.connect().await?;
        let content = self.lock();
        Ok(content.confirmed.map(|confirmed| Retained {
            retained_bytes: (content.head() - confirmed) as u64,
            confirmed: Some(Position(confirmed)),
            end: Some(Position(content.head())),
            ..Retained::default()
        }))
    }

    async fn drop_log(&self) -> Result<()> {
        self.connect().await?;
        self.lock().confirmed = None;
        Ok(())
    }

    async fn remove(&self) -> Result<Vec<String>> {
        self.drop_log().await.map(|()| vec![])
    }
}

struct SimulatedLog {
    source: SimulatedSource,
    session: u64,
    /// The transaction that is sent next, and how many of its changes were sent.
    at: u128,
    sent: usize,
    /// The shapes that are read.
    captured: BTreeMap<TableName, u32>,
}

impl SimulatedLog {
    /// Some whole transactions, or a part of a large one. Nothing is taken before everything is at hand.
    fn take(&mut self) -> Changes {
        let content = self.source.lock();
        let shaped = |table: &Arc<Table>, captured: &BTreeMap<TableName, u32>| {
            Arc::new(in_version(table, captured.get(&table.name).copied().unwrap_or(table.version)))
        };
        let builder = |table: &Arc<Table>| BatchBuilder::new(shaped(table, &self.captured));
        let mut builders: Vec<BatchBuilder> = content.tables.iter().map(builder).collect();
        let end = content.head().min(self.at + 1 + u128::from(self.source.fuse.below(4)));
        let mut items = vec![];
        let mut newest_commit_us = None;
        let mut upto = None;
        while self.at < end {
            let writes = &content.log[(self.at - FIRST_COMMIT) as usize];
            let splits = upto.is_none() && writes.len() > self.sent + 1 && self.source.fuse.below(3) == 0;
            let until = if splits { self.sent + 1 } else { writes.len() };
            for (index, write) in writes.iter().enumerate().take(until).skip(self.sent) {
                let name = content.tables[write.table].name.clone();
                if !self.captured.contains_key(&name) {
                    continue;
                }
                let order = Order { commit: self.at, ordinal: index as u32 + 1 };
                let What::Row(op) = write.what else {
                    items.extend(builders.iter_mut().filter_map(BatchBuilder::take).map(Change::Rows));
                    items.push(match write.what {
                        What::Truncate => Change::Truncate { tables: vec![name], order },
                        What::Rename => {
                            self.captured.entry(name).and_modify(|version| *version += 1);
                            let table = shaped(&content.tables[write.table], &self.captured);
                            builders[write.table] = BatchBuilder::new(table.clone());
                            Change::Ddl(Ddl::Evolved { table, order })
                        }
                        _ => Change::Ddl(Ddl::Unsupported { table: name, what: "it was rewritten".into(), order }),
                    });
                    continue;
                };
                let builder = &mut builders[write.table];
                builder.column(0).push_i64(write.id);
                builder.column(1).push_i64(write.value);
                builder.end_row(op, order, self.at as i64, 16);
            }
            if splits {
                self.sent = until;
                break;
            }
            newest_commit_us = Some(self.at as i64);
            (self.at, self.sent) = (self.at + 1, 0);
            upto = Some(Position(self.at));
        }
        items.extend(builders.iter_mut().filter_map(BatchBuilder::take).map(Change::Rows));
        let source_end = Some(Position(content.head()));
        Changes { items, upto, newest_commit_us, source_end, ..Changes::default() }
    }
}

#[async_trait]
impl Log for SimulatedLog {
    async fn pull(&mut self, budget: Budget) -> Result<Changes> {
        let end = tokio::time::Instant::now() + budget.wait;
        loop {
            self.source.ask(self.session).await?;
            if self.source.lock().head() > self.at {
                return Ok(self.take());
            }
            if tokio::time::Instant::now() >= end {
                return Ok(Changes { upto: Some(Position(self.at)), ..Changes::default() });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn confirm(&mut self, position: Durable<Position>) -> Result<()> {
        self.source.ask(self.session).await?;
        let mut content = self.source.lock();
        let head = content.head();
        let position = position.get().0;
        if position > head {
            content.wrong.push(format!("{position} is confirmed, and the log ends at {head}"));
        }
        content.confirmed = content.confirmed.map(|confirmed| confirmed.max(position));
        Ok(())
    }

    fn add_table(&mut self, table: Arc<Table>, _: Option<Position>) {
        self.captured.insert(table.name.clone(), table.version);
    }

    fn settle_table(&mut self, table: Arc<Table>) {
        self.captured.insert(table.name.clone(), table.version);
    }

    fn remove_table(&mut self, table: &TableName) {
        self.captured.remove(table);
    }
}

struct SimulatedSnapshot {
    source: SimulatedSource,
    session: u64,
    position: Position,
    rows: Vec<BTreeMap<i64, i64>>,
    tables: Vec<Arc<Table>>,
}

#[async_trait]
impl Snapshot for SimulatedSnapshot {
    fn position(&self) -> Position {
        self.position
    }

    async fn open(&self, name: &TableName, wanted: usize, previous: Option<&LoadPlan>) -> Result<Box<dyn TableLoad>> {
        self.source.ask(self.session).await?;
        let number = self.tables.iter().position(|table| table.name == *name).expect("it was asked for by its name");
        let table = self.tables[number].clone();
        let lock = Arc::new(());
        {
            let mut content = self.source.lock();
            if content.tables[number].storage_id != table.storage_id {
                return Err(Error::new(Kind::SnapshotStale, format!("loading {name}: it was rewritten")));
            }
            content.locks.retain(|(_, _, lock)| lock.strong_count() > 0);
            content.locks.push((number, self.session, Arc::downgrade(&lock)));
        }
        let usable =
            |plan: &&LoadPlan| table.is_keyed() && plan.storage_id == table.storage_id && !plan.segments.is_empty();
        let previous = previous.filter(usable);
        let segment = |number: usize| Segment { range: number.to_string(), estimated_rows: 4 };
        let new = || LoadPlan { storage_id: table.storage_id, segments: (0..wanted.min(3)).map(segment).collect() };
        let plan = previous.cloned().unwrap_or_else(new);
        let rows = self.rows[number].iter().map(|(id, value)| (*id, *value)).collect();
        let (source, session) = (self.source.clone(), self.session);
        Ok(Box::new(SimulatedLoad { source, session, table, resumed: previous.is_some(), plan, rows, _lock: lock }))
    }
}

struct SimulatedLoad {
    source: SimulatedSource,
    session: u64,
    table: Arc<Table>,
    plan: LoadPlan,
    resumed: bool,
    rows: Vec<(i64, i64)>,
    _lock: Arc<()>,
}

#[async_trait]
impl TableLoad for SimulatedLoad {
    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn plan(&self) -> &LoadPlan {
        &self.plan
    }

    fn resumed(&self) -> bool {
        self.resumed
    }

    async fn rows(&self, segment: usize) -> Result<Box<dyn Rows>> {
        self.source.ask(self.session).await?;
        let segments = self.plan.segments.len() as i64;
        let mine = |(id, _): &(i64, i64)| id.rem_euclid(segments) == segment as i64;
        let rest: Vec<_> = self.rows.iter().copied().filter(mine).collect();
        let (source, session, table) = (self.source.clone(), self.session, self.table.clone());
        Ok(Box::new(SimulatedRows { source, session, table, rest: rest.into_iter() }))
    }
}

struct SimulatedRows {
    source: SimulatedSource,
    session: u64,
    table: Arc<Table>,
    rest: std::vec::IntoIter<(i64, i64)>,
}

#[async_trait]
impl Rows for SimulatedRows {
    async fn next(&mut self) -> Result<Option<Loaded>> {
        self.source.ask(self.session).await?;
        let mut columns = Columns::new(self.table.columns.iter().map(|column| &column.ty));
        for (id, value) in self.rest.by_ref().take(BATCH_ROWS) {
            columns.column_mut(0).push_i64(id);
            columns.column_mut(1).push_i64(value);
            columns.end_row();
        }
        Ok((columns.rows() > 0).then_some(Loaded { columns, rejects: vec![], wire_bytes: 64 }))
    }
}

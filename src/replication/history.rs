//! The histories of a source: what a connector says, with the number of the history in front of every position.
//!
//! A source that was restored from a backup, or replaced by another server, gives positions below those that stand in the
//! stream and in the lake. When its log is made anew the number goes up, so that positions never go back and "newest"
//! keeps its meaning. As long as there is one history, as it mostly is, nothing is changed on the way.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use async_trait::async_trait;
use millrace_core::{
    Change, Changes, Columns, Ddl, Durable, Error, Finding, Kind, Order, Position, Result, Selection, Table, TableName,
    source::{
        Budget, Identity, LoadPlan, Log, Lookup, Resume, Retained, Scope, Snapshot, Source, SpillRoom, TableLoad,
    },
};

/// A source in one of its histories.
pub struct History {
    source: Arc<dyn Source>,
    number: AtomicU16,
}

impl History {
    /// The source in the history of this number.
    pub fn new(source: Arc<dyn Source>, number: u16) -> Self {
        Self { source, number: AtomicU16::new(number) }
    }

    /// The number of the history that positions get.
    pub fn number(&self) -> u16 {
        self.number.load(Ordering::Relaxed)
    }

    /// From now on positions belong to this history. Logs that are open keep theirs.
    pub fn set(&self, number: u16) {
        self.number.store(number, Ordering::Relaxed);
    }

    fn number_it(&self, position: Position) -> Position {
        position.in_history(self.number())
    }
}

#[async_trait]
impl Source for History {
    async fn check(&self, scope: &Scope) -> Vec<Finding> {
        self.source.check(scope).await
    }

    async fn identity(&self) -> Result<Identity> {
        self.source.identity().await
    }

    async fn tables(&self, selection: &Selection) -> Result<Vec<Table>> {
        self.source.tables(selection).await
    }

    async fn prepare(&self, tables: &[Arc<Table>]) -> Result<()> {
        self.source.prepare(tables).await
    }

    async fn unpublished(&self, tables: &[Arc<Table>]) -> Result<Vec<TableName>> {
        self.source.unpublished(tables).await
    }

    async fn publication_ids(&self, tables: &[Arc<Table>]) -> Result<BTreeMap<TableName, u64>> {
        self.source.publication_ids(tables).await
    }

    async fn spellings(&self, tables: &[Arc<Table>]) -> Result<BTreeMap<TableName, String>> {
        self.source.spellings(tables).await
    }

    fn spellings_differ(&self, before: &str, now: &str) -> bool {
        self.source.spellings_differ(before, now)
    }

    async fn create_log(&self) -> Result<Resume> {
        let made = self.source.create_log().await?;
        Ok(Resume { position: self.number_it(made.position), ..made })
    }

    async fn open_log(
        &self,
        tables: &[Arc<Table>],
        from: &Resume,
        known: &Identity,
        spill: Arc<dyn SpillRoom>,
    ) -> Result<Box<dyn Log>> {
        let number = self.number();
        if from.position.history() != number {
            let doing = format!("opening the log at {} in history {number}", from.position);
            return Err(Error::new(Kind::Internal, doing));
        }
        let log = self.source.open_log(tables, &at_source(from), known, spill).await?;
        let number = number + u16::from(log.begins_anew().is_some());
        Ok(if number == 0 { log } else { Box::new(NumberedLog { log, number }) })
    }

    async fn lookup(&self, table: &Table, keys: &Columns, columns: &[usize]) -> Result<Lookup> {
        self.source.lookup(table, keys, columns).await
    }

    async fn snapshot(&self, tables: &[TableName], exact: bool) -> Result<Box<dyn Snapshot>> {
        let number = self.number();
        let snapshot = self.source.snapshot(tables, exact).await?;
        if self.number() != number {
            let said = "another server took over meanwhile";
            return Err(Error::new(Kind::Connection, "taking a snapshot").with(said));
        }
        Ok(if number == 0 { snapshot } else { Box::new(NumberedSnapshot { snapshot, number }) })
    }

    async fn retained(&self) -> Result<Option<Retained>> {
        let retained = self.source.retained().await?;
        let number = |position: Option<Position>| position.map(|position| self.number_it(position));
        Ok(retained.map(|kept| Retained { confirmed: number(kept.confirmed), end: number(kept.end), ..kept }))
    }

    async fn verify(&self, from: &Resume, known: &Identity) -> Result<()> {
        self.source.verify(&at_source(from), known).await
    }

    async fn heartbeat(&self) -> Result<()> {
        self.source.heartbeat().await
    }

    async fn drop_log(&self) -> Result<()> {
        self.source.drop_log().await
    }

    async fn remove(&self) -> Result<Vec<String>> {
        self.source.remove().await
    }
}

fn at_source(from: &Resume) -> Resume {
    Resume { position: from.position.in_history(0), ..from.clone() }
}

/// A log in a later history.
struct NumberedLog {
    log: Box<dyn Log>,
    number: u16,
}

#[async_trait]
impl Log for NumberedLog {
    async fn pull(&mut self, budget: Budget) -> Result<Changes> {
        let mut changes = self.log.pull(budget).await?;
        number_all(&mut changes, self.number);
        Ok(changes)
    }

    fn identity(&self) -> Option<&Identity> {
        self.log.identity()
    }

    fn begins_anew(&self) -> Option<Resume> {
        let begin = self.log.begins_anew()?;
        Some(Resume { position: begin.position.in_history(self.number), ..begin })
    }

    async fn confirm(&mut self, position: Durable<Position>) -> Result<()> {
        self.log.confirm(position.at_source()).await
    }

    fn add_table(&mut self, table: Arc<Table>, since: Option<Position>) {
        // Places of another history say nothing of this one: everything is behind them.
        let of_this = |since: Position| if since.history() == self.number { since.in_history(0) } else { Position(0) };
        self.log.add_table(table, since.map(of_this));
    }

    fn settle_table(&mut self, table: Arc<Table>) {
        self.log.settle_table(table);
    }

    fn remove_table(&mut self, table: &TableName) {
        self.log.remove_table(table);
    }
}

fn number_all(changes: &mut Changes, number: u16) {
    let set = |order: &mut Order| order.commit = Position(order.commit).in_history(number).0;
    for item in &mut changes.items {
        match item {
            Change::Rows(batch) => batch.order.iter_mut().for_each(set),
            Change::Rejected(rejects) => rejects.iter_mut().for_each(|reject| set(&mut reject.order)),
            Change::Truncate { order, .. } => set(order),
            Change::Ddl(Ddl::Evolved { order, .. } | Ddl::Unsupported { order, .. }) => set(order),
        }
    }
    let position = |position: &mut Option<Position>| *position = position.map(|found| found.in_history(number));
    position(&mut changes.upto);
    position(&mut changes.source_end);
}

/// A snapshot in a later history.
struct NumberedSnapshot {
    snapshot: Box<dyn Snapshot>,
    number: u16,
}

#[async_trait]
impl Snapshot for NumberedSnapshot {
    fn position(&self) -> Position {
        self.snapshot.position().in_history(self.number)
    }

    fn read_to(&self) -> Position {
        self.snapshot.read_to().in_history(self.number)
    }

    async fn open(&self, table: &TableName, wanted: usize, previous: Option<&LoadPlan>) -> Result<Box<dyn TableLoad>> {
        self.snapshot.open(table, wanted, previous).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millrace_core::source::UnboundedRoom;
    use millrace_hello::Hello;

    use super::*;

    fn room() -> Arc<dyn SpillRoom> {
        Arc::new(UnboundedRoom("never-used".into()))
    }

    // trap: 10
    #[tokio::test]
    async fn a_later_history_numbers_everything_and_the_source_knows_nothing_of_it() {
        let first = History::new(Arc::new(Hello), 0);
        let later = History::new(Arc::new(Hello), 2);
        let tables = later.tables(&Selection { include: vec![], exclude: vec![] }).await.unwrap();
        let tables: Vec<Arc<Table>> = tables.into_iter().map(Arc::new).collect();
        let identity = later.identity().await.unwrap();
        let budget = Budget { rows: 100, bytes: 1 << 20, wait: Duration::ZERO };

        let from = later.create_log().await.unwrap();
        assert_eq!(from.position, first.create_log().await.unwrap().position.in_history(2));
        let mut log = later.open_log(&tables, &from, &identity, room()).await.unwrap();
        let changes = log.pull(budget).await.unwrap();
        let mut plain = first.open_log(&tables, &at_source(&from), &identity, room()).await.unwrap();
        let mut expected = plain.pull(budget).await.unwrap();
        assert!(changes.rows() > 0 && changes.upto > expected.upto);
        number_all(&mut expected, 2);
        assert_eq!(changes, expected);
        log.confirm(Durable::from_fsync(changes.upto.unwrap())).await.unwrap();

        let refused = later.open_log(&tables, &from.position.in_history(1).into(), &identity, room()).await;
        assert_eq!(refused.err().map(|error| error.kind), Some(Kind::Internal));
        let snapshot = later.snapshot(&[], true).await.unwrap();
        assert_eq!(snapshot.position().history(), 2);
    }
}

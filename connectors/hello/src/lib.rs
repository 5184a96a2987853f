//! A complete source connector in under 100 lines (less its tests): the template for new ones, and the example of
//! `docs/adding-a-connector.md`. Its database has one table, `hello.greetings`, and a log in which transaction `n` inserts
//! greeting `n`: the first [`LOADED`] of them happened long ago, then comes one a second until there are [`ALL`].

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use millrace_core::{
    BatchBuilder, Capture, Change, Changes, Column, ColumnType, Columns, Durable, Finding, Op, Order, Position, Result,
    Selection, Table, TableName, source::*,
};

/// Greetings that are there from the beginning.
pub const LOADED: u64 = 3;
/// Greetings that there will ever be.
pub const ALL: u64 = 10;

#[rustfmt::skip]
fn table() -> Table {
    let column = |id, name: &str, ty, source_type: &str| {
        Column { id, name: name.into(), ty, source_type: source_type.into(), nullable: false, older_rows: None }
    };
    let columns = vec![column(1, "id", ColumnType::Int64, "number"), column(2, "text", ColumnType::Text, "words")];
    Table { name: TableName::new("hello", "greetings"), source_id: 1, version: 1, columns, key: vec![0],
        capture: Capture::All, storage_id: 1, definition_id: 1, columns_ever: 0, estimated_rows: LOADED, estimated_bytes: LOADED * 16,
        parts: None }
}

fn greetings(numbers: Range<u64>, op: Op) -> BatchBuilder {
    let mut builder = BatchBuilder::new(Arc::new(table()));
    for number in numbers {
        builder.column(0).push_i64(number as i64);
        builder.column(1).push_str(&format!("hello, {number}"));
        builder.end_row(op, Order { commit: number.into(), ordinal: 1 }, number as i64 * 1_000_000, 16);
    }
    builder
}

/// The database, and a view of what is there from the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Hello;

#[async_trait]
#[rustfmt::skip]
impl Source for Hello {
    async fn check(&self, scope: &Scope) -> Vec<Finding> {
        if scope.selection.matches(&table().name) { return vec![] }
        vec![Finding::error("HELLO-TABLE", "no table is selected").fix("tables: [hello.greetings]")]
    }
    async fn identity(&self) -> Result<Identity> {
        let [system, database, server] = ["hello", "hello", "hello 1.0"].map(String::from);
        Ok(Identity { system, timeline: 0, database, server, started: String::new() })
    }
    async fn tables(&self, selection: &Selection) -> Result<Vec<Table>> {
        Ok([table()].into_iter().filter(|table| selection.matches(&table.name)).collect())
    }
    async fn prepare(&self, _: &[Arc<Table>]) -> Result<()> { Ok(()) }
    async fn create_log(&self) -> Result<Resume> { Ok(Position(LOADED.into()).into()) }
    async fn open_log(
        &self, _: &[Arc<Table>], from: &Resume, _: &Identity, _: Arc<dyn SpillRoom>,
    ) -> Result<Box<dyn Log>> {
        Ok(Box::new(HelloLog(from.position.0 as u64)))
    }
    async fn lookup(&self, _: &Table, _: &Columns, _: &[usize]) -> Result<Lookup> {
        Ok(Lookup { found: vec![], columns: Columns::new([]), rejected: vec![] }) // no cell is ever absent
    }
    async fn snapshot(&self, _: &[TableName], _exact: bool) -> Result<Box<dyn Snapshot>> { Ok(Box::new(*self)) }
    async fn retained(&self) -> Result<Option<Retained>> { Ok(None) }
    async fn remove(&self) -> Result<Vec<String>> { Ok(vec![]) }
}

struct HelloLog(u64);

#[async_trait]
#[rustfmt::skip]
impl Log for HelloLog {
    async fn pull(&mut self, budget: Budget) -> Result<Changes> {
        tokio::time::sleep(budget.wait.min(Duration::from_secs(1))).await; // safe to cancel: nothing is taken yet
        let new = self.0..ALL.min(self.0 + 1);
        self.0 = new.end;
        let items = greetings(new, Op::Insert).take().map(Change::Rows).into_iter().collect();
        Ok(Changes { items, upto: Some(Position(self.0.into())), ..Changes::default() }) // covers `commit < self.0`
    }
    async fn confirm(&mut self, _: Durable<Position>) -> Result<()> { Ok(()) }
    fn add_table(&mut self, _: Arc<Table>, _: Option<Position>) {}
    fn remove_table(&mut self, _: &TableName) {}
}

#[async_trait]
#[rustfmt::skip]
impl Snapshot for Hello {
    fn position(&self) -> Position { Position(LOADED.into()) }
    async fn open(&self, _: &TableName, _wanted: usize, _: Option<&LoadPlan>) -> Result<Box<dyn TableLoad>> {
        let plan = LoadPlan { storage_id: 1, segments: vec![Segment { range: "all".into(), estimated_rows: LOADED }] };
        Ok(Box::new(HelloLoad(Arc::new(table()), plan)))
    }
}

struct HelloLoad(Arc<Table>, LoadPlan);

#[async_trait]
#[rustfmt::skip]
impl TableLoad for HelloLoad {
    fn table(&self) -> &Arc<Table> { &self.0 }
    fn plan(&self) -> &LoadPlan { &self.1 }
    fn resumed(&self) -> bool { false }
    async fn rows(&self, _: usize) -> Result<Box<dyn Rows>> { Ok(Box::new(HelloRows(greetings(0..LOADED, Op::Load)))) }
}

struct HelloRows(BatchBuilder);

#[async_trait]
#[rustfmt::skip]
impl Rows for HelloRows {
    async fn next(&mut self) -> Result<Option<Loaded>> {
        Ok(self.0.take().map(|batch| Loaded { columns: batch.after, rejects: vec![], wire_bytes: 48 }))
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::TablePattern;

    use super::*;

    const NOW: Budget = Budget { rows: 100, bytes: 1 << 20, wait: Duration::ZERO };

    fn selection(pattern: &str) -> Selection {
        Selection { include: vec![TablePattern::parse(pattern).unwrap()], exclude: vec![] }
    }

    fn ids(changes: &Changes) -> Vec<u128> {
        let order = |change: &Change| match change {
            Change::Rows(batch) => batch.order.iter().map(|order| order.commit).collect(),
            other => panic!("{other:?}"),
        };
        changes.items.iter().flat_map(|change: &Change| -> Vec<u128> { order(change) }).collect()
    }

    fn room() -> Arc<dyn SpillRoom> {
        Arc::new(UnboundedRoom("never-used".into()))
    }

    #[tokio::test]
    async fn load_and_log_meet_without_gap_or_overlap() {
        let snapshot = Hello.snapshot(&[table().name], true).await.unwrap();
        let load = snapshot.open(&table().name, 4, None).await.unwrap();
        let mut rows = load.rows(0).await.unwrap();
        let loaded = rows.next().await.unwrap().unwrap().columns.rows();
        assert!(rows.next().await.unwrap().is_none());

        let identity = Hello.identity().await.unwrap();
        let from = Hello.create_log().await.unwrap();
        let mut log = Hello.open_log(&[Arc::new(table())], &from, &identity, room()).await.unwrap();
        let (mut seen, mut upto) = (vec![], from.position);
        for _ in 0..ALL {
            let changes = log.pull(NOW).await.unwrap();
            let covered = changes.upto.unwrap();
            assert!(ids(&changes).iter().all(|&commit| !upto.covers(commit) && covered.covers(commit)));
            seen.extend(ids(&changes));
            upto = covered;
        }
        assert!(seen.iter().all(|&commit| !snapshot.position().covers(commit)));
        assert_eq!((loaded as u64, seen), (LOADED, (u128::from(LOADED)..ALL.into()).collect::<Vec<_>>()));
    }

    #[tokio::test]
    async fn the_log_goes_on_where_it_was() {
        let identity = Hello.identity().await.unwrap();
        let mut log = Hello.open_log(&[], &Position(7).into(), &identity, room()).await.unwrap();
        assert_eq!(ids(&log.pull(NOW).await.unwrap()), [7]);
    }

    #[tokio::test]
    async fn a_selection_without_the_table_is_found() {
        let scope = |pattern| Scope { selection: selection(pattern), full_load: true, cdc: true };
        assert_eq!(Hello.check(&scope("hello.*")).await, []);
        assert_eq!(Hello.check(&scope("other.*")).await[0].code, "HELLO-TABLE");
        assert_eq!(Hello.tables(&selection("other.*")).await.unwrap(), []);
    }
}

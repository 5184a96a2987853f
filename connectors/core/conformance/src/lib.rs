//! What every source connector must keep, tried on a real server: the contract of [`millrace_core::source`] as tests. A
//! connector gives a [`Database`], and calls [`run`] in a test of its own.
//!
//! - `reading`: a log that is read, with the invariants that hold for whatever it hands out
//! - `loads`, `logs`, `sessions`: the cases

mod loads;
mod logs;
mod reading;
mod sessions;

use std::{collections::BTreeMap, future::Future, time::Duration};

use async_trait::async_trait;

use millrace_core::{Columns, Selection, TableName, TablePattern, source::Source};

/// A database that a connector is tried on, with nothing in it that others use. All its tables have two columns: `id`, a
/// whole number that is never null, and `v`, a text that may be null.
#[async_trait]
pub trait Database: Send + Sync {
    /// A source for a task of this name, as a daemon that was just started makes it.
    fn source(&self, task: &str) -> Box<dyn Source>;

    /// The schema that its tables are in.
    fn schema(&self) -> &str;

    /// Makes an empty table, with `id` as its key or without a key.
    async fn make(&self, table: &str, keyed: bool);

    /// Commits these changes as one transaction.
    async fn commit(&self, changes: &[Write<'_>]);

    /// The rows of a table, as another client reads them.
    async fn rows(&self, table: &str) -> Rows;

    /// Makes the server give up whoever reads its log and is not heard of for so long. It holds for sessions that begin later.
    async fn lose_patience(&self) -> Duration;
}

/// A change of a row.
#[derive(Debug, Clone, Copy)]
pub enum Write<'a> {
    /// A row comes.
    Insert(&'a str, i64, Option<&'a str>),
    /// So many rows come, with ids from this one on, each with a text of this length.
    Fill(&'a str, i64, usize, usize),
    /// The row gets another text.
    Update(&'a str, i64, Option<&'a str>),
    /// The row gets another id.
    Move(&'a str, i64, i64),
    /// The row goes.
    Delete(&'a str, i64),
}

/// Rows of a table with a key.
pub type Rows = BTreeMap<i64, Option<String>>;

/// Runs all cases, one after the other; the first that fails panics.
pub async fn run(database: &dyn Database) {
    case("tables are found by name and pattern", sessions::tables_are_found(database)).await;
    case("a check finds nothing, or what is wrong and its remedy", sessions::checks_help(database)).await;
    case("segments cover a table once, however it is divided", loads::segments_cover_a_table(database)).await;
    case("a load that was interrupted is taken up again", loads::a_plan_is_taken_up_again(database)).await;
    case(
        "a snapshot has what was committed before its position, and nothing else",
        loads::positions_are_exact(database),
    )
    .await;
    case("the log tells everything, in the order of commits", logs::everything_is_told(database)).await;
    case("a log is taken up again at every mark", logs::a_log_is_taken_up_again(database)).await;
    case("a pull may be cancelled", logs::a_pull_may_be_cancelled(database)).await;
    case("a pull keeps to its budget", logs::a_pull_keeps_to_its_budget(database)).await;
    case("tables leave a log and join it", logs::tables_leave_and_join(database)).await;
    case("a session outlives a pause in which nobody pulls", sessions::a_pause_is_outlived(database)).await;
    case("another source, and a place that is not there, are refused", sessions::others_are_refused(database)).await;
    case("rows are looked up by key", sessions::rows_are_looked_up(database)).await;
    case("nothing is left behind", sessions::nothing_is_left(database)).await;
}

async fn case(name: &str, case: impl Future<Output = ()>) {
    println!("conformance: {name}");
    tokio::time::timeout(CASE_MAX, case).await.unwrap_or_else(|_| panic!("{name}: it does not end"));
}

/// A case that takes longer hangs.
const CASE_MAX: Duration = Duration::from_secs(180);

fn selection(database: &dyn Database, patterns: &[&str]) -> Selection {
    let pattern = |name: &&str| TablePattern { schema: database.schema().into(), name: (*name).into() };
    Selection { include: patterns.iter().map(pattern).collect(), exclude: vec![] }
}

fn named(database: &dyn Database, table: &str) -> TableName {
    TableName::new(database.schema(), table)
}

/// Id and text of each row.
fn cells(columns: &Columns) -> Vec<(i64, Option<String>)> {
    let [id, text] = columns.columns() else { panic!("a table of two columns has {}", columns.columns().len()) };
    let row = |row| (id.cell_text(row).and_then(|id| id.parse().ok()).unwrap_or(i64::MIN), text.cell_text(row));
    (0..columns.rows()).map(row).collect()
}

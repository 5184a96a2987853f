//! `table/<task>/<table>`: one source table of a task; written by `replication/` alone.

use millrace_core::{Column, Position, Table, TableName, source::LoadPlan};
use serde::{Deserialize, Serialize};

use super::table_part;

/// The key.
pub fn key(task: &str, table: &TableName) -> String {
    format!("{}{}", prefix(task), table_part(table))
}

/// All tables of a task.
pub fn prefix(task: &str) -> String {
    format!("table/{task}/")
}

/// Table states, with DMS's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TableState {
    /// Waits for its load.
    #[default]
    #[serde(rename = "Before load")]
    BeforeLoad,
    /// Being loaded for the first time.
    #[serde(rename = "Full load")]
    FullLoad,
    /// Loaded (or there is nothing to load); changes are delivered.
    #[serde(rename = "Table completed")]
    Completed,
    /// Taken out of the task.
    #[serde(rename = "Table cancelled")]
    Cancelled,
    /// Suspended; it must be reloaded.
    #[serde(rename = "Table error")]
    Error,
    /// Loaded anew while readers see the old rows.
    #[serde(rename = "Table is being reloaded")]
    Reloading,
    /// It is gone at the source.
    #[serde(rename = "Table does not exist")]
    Missing,
}

impl TableState {
    /// DMS's words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BeforeLoad => "Before load",
            Self::FullLoad => "Full load",
            Self::Completed => "Table completed",
            Self::Cancelled => "Table cancelled",
            Self::Error => "Table error",
            Self::Reloading => "Table is being reloaded",
            Self::Missing => "Table does not exist",
        }
    }
}

/// One table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableRecord {
    /// Its state.
    pub state: TableState,
    /// Its shape at the source at the newest durable mark.
    pub table: Table,
    /// Its name at the target.
    pub target: TableName,
    /// The column rules it was set up with, to tell when they change.
    pub rule: String,
    /// The log showed something of the table that is not applied while it waited for its load or was being loaded: a load
    /// whose snapshot was taken before that cannot be completed.
    pub stale: bool,
    /// Up to where the rows of the last complete load may show changes.
    #[serde(default)]
    pub read_to: Position,
    /// The load that is under way.
    pub load: Option<LoadRecord>,
    /// Why it is suspended, and what to do.
    pub error: Option<String>,
    /// It was suspended by what the log shows, which a reload mends: no operator is needed for that.
    pub mends: bool,
    /// Rows of the last complete load, and how long it took.
    pub loaded_rows: u64,
    /// Duration of the last complete load in milliseconds.
    pub load_elapsed_ms: u64,
}

/// A load that is under way: survives a crash if the table has a key and was not rewritten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadRecord {
    /// How the table is divided.
    pub plan: LoadPlan,
    /// The smallest position of its segments' snapshots: changes from here on count.
    pub start: Position,
    /// Number of the first file of this load.
    pub first_file: u32,
    /// Number of the next file. It is counted up before a file is published, so that a number whose file may exist
    /// already is never used again.
    pub next_file: u32,
    /// When it began (microseconds since 1970-01-01 UTC).
    pub started_us: i64,
    /// The columns and the key that the finished segments were read with.
    pub columns: Vec<Column>,
    /// Indexes of the key's columns.
    pub key: Vec<usize>,
}

impl LoadRecord {
    /// Where the log begins that the segments follow, if any of them may be taken up again.
    pub fn kept_since(&self) -> Option<Position> {
        (!self.plan.segments.is_empty()).then_some(self.start)
    }

    /// No segment of it is taken up again. It is not dropped, because its files must go first.
    pub fn forget_segments(&mut self) {
        self.plan.segments.clear();
        self.plan.storage_id = 0;
    }
}

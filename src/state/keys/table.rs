//! `table/<task>/<table>`: one source table of a task; written by `replication/` alone.

use millrace_core::{Column, Order, Position, Table, TableName, source::LoadPlan};
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
    /// Whether the task has the table: it was neither taken out nor is it gone at the source.
    pub fn is_there(self) -> bool {
        !matches!(self, Self::Cancelled | Self::Missing)
    }

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
    /// Its entry among what the source publishes, as it was when its changes began to be captured; see
    /// [`millrace_core::source::Source::publication_ids`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<u64>,
    /// How the source spelled the values of its types before its load; see
    /// [`millrace_core::source::Source::spellings`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spelling: Option<String>,
    /// Up to where the rows of the last complete load may show changes.
    #[serde(default)]
    pub read_to: Position,
    /// Shapes behind `table` that are in the stream, or on their way into it, and not known to be behind a durable mark.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evolving: Vec<Evolving>,
    /// The load that is under way.
    pub load: Option<LoadRecord>,
    /// Why it is suspended, and what to do.
    pub error: Option<String>,
    /// It was suspended by what the log shows, which a reload mends: no operator is needed for that.
    pub mends: bool,
    /// It was suspended because the task's rules do not fit it; it is loaded anew once they do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfit: bool,
    /// Rows of the last complete load, and how long it took.
    pub loaded_rows: u64,
    /// Duration of the last complete load in milliseconds.
    pub load_elapsed_ms: u64,
}

/// A shape that the log gave a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evolving {
    /// From here on.
    pub order: Order,
    /// The shape.
    pub table: Table,
}

impl TableRecord {
    /// Everything before the position is durable, so the shapes from there are the table's; unless it was loaded since, with
    /// the shape that it has.
    pub fn settle(&mut self, position: Position) {
        let behind = self.evolving.iter().take_while(|shape| position.covers(shape.order.commit)).count();
        let behind: Vec<Evolving> = self.evolving.drain(..behind).collect();
        for Evolving { order, table } in behind {
            if !self.is_loaded_behind(order, &table) {
                let parts = self.table.parts.take();
                self.table = Table { parts, ..table };
            }
        }
    }

    /// Whether a change of shape is one from before the table's load, or inside it, which the load has already. A source
    /// without marks gives its columns numbers that hold for one look only, so there even a load that is under way has others.
    pub fn is_loaded_behind(&self, order: Order, table: &Table) -> bool {
        let is_loading = table.definition_id == 0 && self.state != TableState::Completed;
        is_loading || self.read_to.covers(order.commit)
    }
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

#[cfg(test)]
mod tests {
    use millrace_core::Capture;

    use super::*;

    fn shape(version: u32, definition_id: u64) -> Table {
        Table {
            name: TableName::new("shop", "t"),
            source_id: 1,
            version,
            columns: vec![],
            key: vec![],
            capture: Capture::All,
            storage_id: 0,
            definition_id,
            columns_ever: 0,
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        }
    }

    fn record(state: TableState, read_to: u128, evolving: &[(u128, Table)]) -> TableRecord {
        let evolving = evolving
            .iter()
            .map(|(commit, table)| Evolving { order: Order { commit: *commit, ordinal: 1 }, table: table.clone() });
        TableRecord {
            state,
            table: shape(1, 0),
            target: TableName::new("shop", "t"),
            rule: String::new(),
            stale: false,
            published: None,
            spelling: None,
            read_to: Position(read_to),
            evolving: evolving.collect(),
            load: None,
            error: None,
            mends: false,
            unfit: false,
            loaded_rows: 0,
            load_elapsed_ms: 0,
        }
    }

    #[test]
    fn a_shape_counts_when_a_mark_is_behind_it() {
        let mut own = record(TableState::Completed, 5, &[(10, shape(2, 0)), (20, shape(3, 0)), (30, shape(4, 0))]);
        own.settle(Position(10));
        assert_eq!((own.table.version, own.evolving.len()), (1, 3), "a mark at its place does not cover it");
        own.settle(Position(25));
        assert_eq!((own.table.version, own.evolving.len()), (3, 1));
        let json = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<TableRecord>(&json).unwrap(), own);
        own.settle(Position(31));
        assert_eq!((own.table.version, own.evolving.len()), (4, 0));
    }

    #[test]
    fn a_load_since_then_has_the_shape_already() {
        let mut loaded = record(TableState::Completed, 15, &[(10, shape(2, 0))]);
        loaded.settle(Position(40));
        assert_eq!((loaded.table.version, loaded.evolving.len()), (1, 0));
        for (definition_id, version) in [(0, 1), (7, 2)] {
            let mut loading = record(TableState::FullLoad, 5, &[(10, shape(2, definition_id))]);
            loading.settle(Position(40));
            assert_eq!(loading.table.version, version, "marks of definitions: {definition_id}");
        }
    }
}

//! `checkpoint/<task>/<table>`: up to where a table is delivered, and what became of its rows. Written by a delivery
//! round, and by the commit of a load; never while the other may write (see `delivery::Delivery::gate`).
//!
//! Whoever is not delivery changes a checkpoint by the functions below, on the record as it is under the gate: they
//! leave `through` and `held` alone, so that no row of the log is counted twice or not at all.

use std::collections::BTreeMap;

use millrace_core::{Position, TableName};
use serde::{Deserialize, Serialize};

use super::{log::LogPosition, table_part};

/// The key. The table is the *target's* name: the stream and everything behind it know tables as the rules named them.
pub fn key(task: &str, table: &TableName) -> String {
    format!("{}{}", prefix(task), table_part(table))
}

/// All tables of a task.
pub fn prefix(task: &str) -> String {
    format!("checkpoint/{task}/")
}

/// Whether a table's changes are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flow {
    /// Not before its load is complete; its changes wait in the stream from `through` on.
    #[default]
    Waiting,
    /// As they come.
    Delivering,
    /// Not until it is reloaded; nothing waits for it.
    Suspended,
}

/// One table's delivery.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The table at the target.
    pub target: TableName,
    /// Whether it is delivered.
    pub flow: Flow,
    /// Everything of it before this place in the log is in the catalog, or accounted for.
    pub through: LogPosition,
    /// Changes that committed before this are in its load: they count as filtered.
    pub start: Position,
    /// Rows of the log between `through` and where the task's stream was scanned to: they are in flight.
    pub held: u64,
    /// What became of its rows since the task began.
    pub counts: Counts,
    /// Number of the next LOAD file.
    pub next_load_file: u32,
    /// Rows in the dead letters since the last load, those of the load included.
    pub dead_letters: u64,
    /// Why it is suspended, one sentence; set by whoever suspends it.
    pub suspended: Option<String>,
}

/// Rows by fate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows of loads.
    pub loaded: u64,
    /// Delivered inserts.
    pub inserts: u64,
    /// Delivered updates.
    pub updates: u64,
    /// Delivered deletes.
    pub deletes: u64,
    /// Rows left out, by reason.
    pub filtered: BTreeMap<String, u64>,
    /// Rows of the log in the dead letters.
    pub dead_lettered: u64,
}

impl Counts {
    /// Changes (not loaded rows) that are accounted for.
    pub fn accounted(&self) -> u64 {
        self.inserts + self.updates + self.deletes + self.dead_lettered + self.filtered.values().sum::<u64>()
    }

    /// Counts rows that are left out.
    pub fn filter(&mut self, reason: &str, rows: u64) {
        if rows > 0 {
            *self.filtered.entry(reason.into()).or_default() += rows;
        }
    }
}

impl Checkpoint {
    /// A new table that is to be loaded, or (`flow`: delivering) whose changes are delivered from here on without a load.
    /// `through` is a mark before its first change.
    pub fn new(target: TableName, flow: Flow, through: LogPosition) -> Self {
        Self { target, flow, through, next_load_file: 1, ..Self::default() }
    }

    /// A load begins: its changes wait.
    pub fn begin_load(&mut self) {
        self.flow = Flow::Waiting;
        self.suspended = None;
    }

    /// The load's files enter the catalog with this commit: changes that committed at or behind `start` are delivered.
    /// `dead_letters` are rows of the load.
    pub fn finish_load(&mut self, start: Position, rows: u64, dead_letters: u64, next_load_file: u32) {
        self.flow = Flow::Delivering;
        self.start = start;
        self.counts.loaded += rows;
        self.dead_letters = dead_letters;
        self.next_load_file = next_load_file;
        self.suspended = None;
    }

    /// Nothing more is delivered until it is loaded again.
    pub fn suspend(&mut self, why: impl Into<String>) {
        self.flow = Flow::Suspended;
        self.suspended = Some(why.into());
    }
}

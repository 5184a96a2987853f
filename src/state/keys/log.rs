//! What records say about a task's log: places in it, and counts up to them. The stream itself re-exports both.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A place in a stream's log: bytes since the log's birth, over all its segments. Never goes back, never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition(pub u64);

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Cumulative counts since the stream's birth, written with every mark.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Row changes that the source handed out.
    pub captured: u64,
    /// Rows that were left out before the log, by reason.
    pub filtered: BTreeMap<String, u64>,
    /// Rows in the log, rejected ones included.
    pub rows: u64,
    /// Bytes of rows before compression: what a buffer's size is measured in.
    pub bytes: u64,
}

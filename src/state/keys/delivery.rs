//! `delivery/<task>/scanned`: up to where a task's stream was scanned. Written by delivery rounds alone.

use serde::{Deserialize, Serialize};

use super::log::{LogPosition, Totals};

/// The key.
pub fn key(task: &str) -> String {
    format!("delivery/{task}/scanned")
}

/// The farthest mark that a round reached. Before it every row of the log is either accounted for in its table's
/// checkpoint, or counted there as held.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scanned {
    /// The place behind the mark.
    pub at: LogPosition,
    /// When the mark was written (microseconds since 1970-01-01 UTC).
    pub arrival_us: i64,
    /// The stream's counts up to it.
    pub totals: Totals,
}

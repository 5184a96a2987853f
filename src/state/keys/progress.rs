//! `progress/<task>`: rows loaded so far by the loads that are under way; there only while there are some.

use serde::{Deserialize, Serialize};

/// The key.
pub fn key(task: &str) -> String {
    format!("progress/{task}")
}

/// One table's load; the value of the key is a map from `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Rows read so far.
    pub rows: u64,
    /// Rows that the source estimates the table to have; 0 if it does not know.
    pub rows_estimated: u64,
}

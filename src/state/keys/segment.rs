//! `segment/<task>/<table>/<number>`: a finished segment of a load that is under way.

use std::collections::BTreeSet;

use millrace_core::{Position, Reject, TableName};
use serde::{Deserialize, Serialize};

use super::{catalog::DataFile, table_part};

/// The key.
pub fn key(task: &str, table: &TableName, segment: usize) -> String {
    format!("{}{segment:08}", prefix(task, table))
}

/// All finished segments of a table's load.
pub fn prefix(task: &str, table: &TableName) -> String {
    format!("segment/{task}/{}/", table_part(table))
}

/// One finished segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Position of the snapshot it was read in.
    pub position: Position,
    /// Its objects; none if it held no row.
    pub files: Vec<DataFile>,
    /// Rows that their columns could not hold.
    pub rejects: Vec<Reject>,
    /// Identities of the columns that have a companion in its objects.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub exact: BTreeSet<i32>,
}

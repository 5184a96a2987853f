//! `intent/<task>/round`: what a delivery round is about to publish. Written when everything is staged and nothing is
//! visible yet; deleted by the commit that registers the objects. One that is found means that a round was interrupted:
//! the same range goes to the same keys again.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::{Position, TableName};
use serde::{Deserialize, Serialize};

use super::log::LogPosition;

/// The key.
pub fn key(task: &str) -> String {
    format!("intent/{task}/round")
}

/// One round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// When it began (microseconds since 1970-01-01 UTC); part of its objects' names.
    pub time_us: i64,
    /// The range of the log: from here …
    pub from: LogPosition,
    /// … up to this mark.
    pub to: LogPosition,
    /// The tables that take part, by [`table_part`](super::table_part), each with the checkpoint that its rows were
    /// chosen by. One whose checkpoint is another by now was reloaded or suspended meanwhile and takes no part any more.
    pub tables: BTreeMap<String, Cut>,
    /// Its objects.
    pub objects: Vec<Planned>,
}

/// Which rows of a table count: see the checkpoint's fields of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Frames from here on.
    pub through: LogPosition,
    /// Changes that committed at or behind this.
    pub start: Position,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The table at the target.
    pub table: TableName,
    /// Its key below the target's prefix.
    pub key: String,
    /// The frame it begins with; the next object of its table begins behind it.
    pub first: LogPosition,
    /// Rows in it.
    pub rows: u64,
    /// Identities of the columns that have a companion in it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub exact: BTreeSet<i32>,
}

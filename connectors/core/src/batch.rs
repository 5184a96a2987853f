//! Row changes in commit order, and what else a source's log says.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    columns::Columns,
    position::{Order, Position},
    table::{Table, TableName},
};

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// It was there when the table was loaded.
    Load,
    /// It was inserted, or a key change moved it to this key.
    Insert,
    /// It was updated.
    Update,
    /// It was deleted, or a key change moved it away from this key. Columns that the source did not send are null.
    Delete,
}

impl Op {
    /// The letter in the `Op` column, as DMS writes it; a loaded row is an insert.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Load | Self::Insert => "I",
            Self::Update => "U",
            Self::Delete => "D",
        }
    }
}

/// Cells that the source did not send because they did not change (a TOAST value, a minimal row image). Such a cell is
/// null in `after` until it is filled, which happens before the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absent {
    /// (row, column), rising by row.
    pub cells: Vec<(u32, u16)>,
}

/// Rows of one table at one schema version, in commit order. `ops`, `order`, `commit_time_us` and `after` have the same
/// length.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangeBatch {
    /// The table's shape.
    pub table: Arc<Table>,
    /// What happened.
    pub ops: Vec<Op>,
    /// Where it stands in the log.
    pub order: Vec<Order>,
    /// When its transaction committed, in microseconds since 1970-01-01 UTC, by the source's clock.
    pub commit_time_us: Vec<i64>,
    /// The row; for a delete, the old one as far as the source sent it.
    pub after: Columns,
    /// What is still to be filled.
    pub absent: Option<Absent>,
}

impl ChangeBatch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ops.len()
    }

    /// Keeps the rows for which `keep` is true; a batch with absent cells cannot be filtered.
    pub fn filter(&self, keep: &[bool]) -> ChangeBatch {
        assert!(self.absent.is_none(), "filtering rows before they are whole");
        let pick = |row: &usize| keep[*row];
        let rows: Vec<usize> = (0..self.rows()).filter(pick).collect();
        ChangeBatch {
            table: self.table.clone(),
            ops: rows.iter().map(|&row| self.ops[row]).collect(),
            order: rows.iter().map(|&row| self.order[row]).collect(),
            commit_time_us: rows.iter().map(|&row| self.commit_time_us[row]).collect(),
            after: self.after.filter(keep),
            absent: None,
        }
    }

    /// Bytes held.
    pub fn byte_size(&self) -> usize {
        self.after.byte_size() + self.ops.len() * (1 + size_of::<Order>() + 8)
    }
}

/// A row that its columns cannot hold. It goes to the dead letters whole, and is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The table at the source.
    pub table: TableName,
    /// Key columns and their text; empty for a table without a key.
    pub key: Vec<(String, Option<String>)>,
    /// What happened to the row.
    pub op: Op,
    /// Its place, which a retry keeps.
    pub order: Order,
    /// When it was committed (microseconds since 1970-01-01 UTC); `None` for a loaded row.
    pub commit_time_us: Option<i64>,
    /// The column whose value did not fit.
    pub column: String,
    /// Why it did not, one sentence, without the value.
    pub reason: String,
    /// Every column as the source sent it.
    pub row: Vec<(String, Cell)>,
}

/// A value as the source sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cell {
    /// SQL's null.
    Null,
    /// Not sent, because it did not change.
    Absent,
    /// The source's text.
    Text(String),
    /// Bytes that are no text, in hexadecimal.
    Hex(String),
}

/// A change of shape, at its place among the row changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Ddl {
    /// Columns were added; rows behind this have the new shape, older rows are null there.
    Evolved {
        /// The new shape, one version up.
        table: Arc<Table>,
        /// From here on.
        order: Order,
    },
    /// The table changed in a way that is not applied; it is suspended from here on and must be reloaded.
    Unsupported {
        /// Which table.
        table: TableName,
        /// What happened, one sentence.
        what: String,
        /// From here on.
        order: Order,
    },
}

/// One thing that the log says.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Rows of one table.
    Rows(ChangeBatch),
    /// These tables were emptied; the batches of their earlier rows come before this.
    Truncate {
        /// All tables of the statement.
        tables: Vec<TableName>,
        /// Its place.
        order: Order,
    },
    /// A table changed its shape; the batches of its earlier rows come before this.
    Ddl(Ddl),
    /// Rows that their columns cannot hold.
    Rejected(Vec<Reject>),
}

/// What one pull brought.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Of one table in commit order; between tables only truncates and changes of shape keep their place.
    pub items: Vec<Change>,
    /// Everything that committed before this is in `items` or came earlier. `None` only inside one huge transaction.
    pub upto: Option<Position>,
    /// What is behind `upto` in words that outlive the server (MySQL: whose log it is, and the executed GTIDs); kept in the
    /// same mark, and given back when the log is resumed. `None` where the position alone tells it.
    pub lineage: Option<Arc<str>>,
    /// Commit time of the newest transaction (microseconds since 1970-01-01 UTC), if there is one.
    pub newest_commit_us: Option<i64>,
    /// Where the source's log ends, as far as it told us.
    pub source_end: Option<Position>,
    /// The log showed something that only a new look at the tables explains, such as a partition that was not there.
    pub look_again: bool,
    /// The source waits to hear that everything before `upto` is durable, as a server does before it shuts down.
    pub awaited: bool,
}

impl Changes {
    /// Row changes in it, rejected ones included.
    pub fn rows(&self) -> u64 {
        self.items
            .iter()
            .map(|item| match item {
                Change::Rows(batch) => batch.rows() as u64,
                Change::Rejected(rejects) => rejects.len() as u64,
                Change::Truncate { .. } | Change::Ddl(_) => 0,
            })
            .sum()
    }
}

//! The payloads that are JSON: shapes of tables, truncates, changes of shape, rejected rows. They are rare, and a
//! person with a hex dump can read them.

use std::sync::Arc;

use millrace_core::{Ddl, Order, Table, TableName};
use serde::{Deserialize, Serialize};

/// What a frame's shape number stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// The table of a frame of rows.
    Table(Arc<Table>),
    /// The table of a frame of rejected rows, which carry their columns themselves.
    Name(TableName),
}

impl Shape {
    /// The table's name.
    pub(super) fn name(&self) -> &TableName {
        match self {
            Self::Table(table) => &table.name,
            Self::Name(name) => name,
        }
    }

    /// Whether it is the same shape; cheap where it is the very same table.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Table(a), Self::Table(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => self == other,
        }
    }

    /// The payload of its frame.
    pub(super) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        #[derive(Serialize)]
        #[serde(rename_all = "snake_case")]
        enum Text<'a> {
            Table(&'a Table),
            Name(&'a TableName),
        }
        serde_json::to_vec(&match self {
            Self::Table(table) => Text::Table(table),
            Self::Name(name) => Text::Name(name),
        })
    }

    /// The reverse.
    pub(super) fn decode(payload: &[u8]) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Text {
            Table(Table),
            Name(TableName),
        }
        Ok(match serde_json::from_slice(payload)? {
            Text::Table(table) => Self::Table(Arc::new(table)),
            Text::Name(name) => Self::Name(name),
        })
    }
}

/// A truncate's payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Truncate {
    pub(super) tables: Vec<TableName>,
    pub(super) order: Order,
}

/// The payload of a change of shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DdlText {
    Evolved { table: Table, order: Order },
    Unsupported { table: TableName, what: String, order: Order },
}

impl From<&Ddl> for DdlText {
    fn from(ddl: &Ddl) -> Self {
        match ddl {
            Ddl::Evolved { table, order } => Self::Evolved { table: Table::clone(table), order: *order },
            Ddl::Unsupported { table, what, order } => {
                Self::Unsupported { table: table.clone(), what: what.clone(), order: *order }
            }
        }
    }
}

impl From<DdlText> for Ddl {
    fn from(text: DdlText) -> Self {
        match text {
            DdlText::Evolved { table, order } => Self::Evolved { table: Arc::new(table), order },
            DdlText::Unsupported { table, what, order } => Self::Unsupported { table, what, order },
        }
    }
}

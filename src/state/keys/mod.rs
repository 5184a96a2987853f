//! The state's keys, one file per kind. Names of tasks hold no slash (the config refuses one); tables are written
//! `schema.table` with `/`, `.` and `%` escaped, so that a scan by prefix never meets a neighbour.

pub mod catalog;
pub mod checkpoint;
pub mod delivery;
pub mod garbage;
pub mod intent;
pub mod log;
pub mod progress;
pub mod segment;
pub mod table;
pub mod task;

use millrace_core::TableName;

/// A table's part of a key.
pub fn table_part(table: &TableName) -> String {
    format!("{}.{}", escape(&table.schema), escape(&table.name))
}

fn escape(part: &str) -> String {
    part.replace('%', "%25").replace('/', "%2F").replace('.', "%2E")
}

//! Names of objects, as DMS lays them out; escaped so that no schema or table name can leave its folder.

use millrace_core::TableName;

/// `<schema>/<table>`.
pub fn folder(_table: &TableName) -> String {
    todo!()
}

/// `<schema>/<table>/LOAD00000001.parquet`.
pub fn load_key(_table: &TableName, _number: u32) -> String {
    todo!()
}

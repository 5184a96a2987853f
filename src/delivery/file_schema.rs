//! The columns of our files: `Op` first, the table's columns, `commit_timestamp`, `change_order` last.

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use millrace_core::{Columns, Position, Result, Table, destination::ObjectSpec};

/// The Arrow schema of a table's files (field ids, source types in the fields' metadata).
pub fn arrow_schema(_table: &Table) -> Arc<Schema> {
    todo!()
}

/// A spec for an object of this table.
pub fn object_spec(_table: &Table, _key: String, _metadata: BTreeMap<String, String>) -> ObjectSpec {
    todo!()
}

/// Loaded rows as a batch of that schema.
pub fn load_batch(_schema: &Arc<Schema>, _columns: Columns, _position: Position) -> Result<RecordBatch> {
    todo!()
}

//! Reads what was delivered as any reader would: from the files that the catalog names.

use std::{fs, path::Path, sync::Arc};

use arrow_array::{cast::AsArray, types::Int64Type};
use millrace_core::{Order, Reject, Table};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::fakes::House;
use crate::catalog::DataFile;

/// One row of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub op: String,
    pub id: i64,
    pub order: String,
}

impl Row {
    pub fn new(op: &str, id: i64, commit: u128, ordinal: u32) -> Self {
        Self { op: op.into(), id, order: Order { commit, ordinal }.to_string() }
    }
}

/// All rows of a table's files, in the order of the manifest.
pub fn delivered(house: &House, table: &Arc<Table>) -> Vec<Row> {
    let mut rows = vec![];
    for file in house.files(table) {
        let before = rows.len();
        let reader = fs::File::open(&file.path).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(reader).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let op = batch.column_by_name("Op").unwrap().as_string::<i32>();
            let id = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
            let order = batch.column_by_name("change_order").unwrap().as_string::<i32>();
            rows.extend((0..batch.num_rows()).map(|row| Row {
                op: op.value(row).into(),
                id: id.value(row),
                order: order.value(row).into(),
            }));
        }
        assert_eq!((rows.len() - before) as u64, file.rows, "the manifest counts right");
        assert_eq!(fs::metadata(&file.path).unwrap().len(), file.bytes);
    }
    rows
}

/// Ids and texts of the rows that have a value in a companion, which files without such values need not have.
pub fn exact_values(house: &House, table: &Arc<Table>, companion: &str) -> Vec<(i64, String)> {
    let mut values = vec![];
    for file in house.files(table) {
        let reader = fs::File::open(&file.path).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(reader).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let id = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
            let Some(exact) = batch.column_by_name(companion) else { continue };
            let texts = exact.as_string::<i32>().iter().enumerate();
            values.extend(texts.filter_map(|(row, text)| Some((id.value(row), text?.to_string()))));
        }
    }
    values
}

/// The lines of a dead letter file: `change_order` and the row.
pub fn dead_letters(file: &DataFile) -> Vec<(String, Reject)> {
    let text = fs::read_to_string(&file.path).unwrap();
    let parse = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        (value["change_order"].as_str().unwrap().to_string(), serde_json::from_value(value).unwrap())
    };
    text.lines().map(parse).collect()
}

/// Keys of all files below a folder, sorted.
pub fn objects_below(root: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    found.sort();
    found
}

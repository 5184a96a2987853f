//! The catalog in Glue's words: Hive types, parameters, and the classes that Hive, Spark and Athena read Parquet with
//! (AWS Glue API, "Table" and "StorageDescriptor").

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::{Column, ColumnType, Table};
use serde_json::{Value, json};

use super::{CatalogColumn, CatalogTable, OwnNames, companion_id, companion_names};

const TABLE_TYPE: &str = "EXTERNAL_TABLE";
const INPUT_FORMAT: &str = "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat";
const OUTPUT_FORMAT: &str = "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat";
const SERDE: &str = "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe";

/// JSON array of the key's column names; empty for a table without a key.
pub const KEY_COLUMNS: &str = "millrace.key-columns";
const OP: &str = "millrace.op-column";
const COMMIT_TIMESTAMP: &str = "millrace.commit-timestamp-column";
const CHANGE_ORDER: &str = "millrace.change-order-column";

/// JSON object: columns that have a companion, and its name.
const EXACT_COLUMNS: &str = "millrace.exact-columns";

/// A table's columns, ours included, in file order; `companions` are the identities of the columns that have one.
pub fn columns(table: &Table, companions: &BTreeSet<i32>) -> Vec<CatalogColumn> {
    let own = OwnNames::of(&table.columns);
    let [op, commit_timestamp, change_order] = OwnNames::IDS;
    let ours = |id, name: String, exact: ColumnType| CatalogColumn {
        id,
        name,
        r#type: exact.to_hive(),
        comment: String::new(),
        exact,
        older_rows: None,
    };
    let mut columns = vec![ours(op, own.op, ColumnType::Text)];
    columns.extend(table.columns.iter().map(|column| CatalogColumn {
        id: column.id,
        name: column.name.clone(),
        r#type: column.ty.to_hive(),
        comment: column.source_type.clone(),
        exact: column.ty.clone(),
        older_rows: column.older_rows.clone(),
    }));
    columns.extend(with_companion(table, companions).into_iter().map(|(column, name)| CatalogColumn {
        comment: column.source_type.clone(),
        ..ours(companion_id(column), name, ColumnType::Text)
    }));
    columns.push(ours(commit_timestamp, own.commit_timestamp, ColumnType::TimestampTz));
    columns.push(ours(change_order, own.change_order, ColumnType::Text));
    columns
}

/// The columns that have a companion, each with its companion's name.
fn with_companion<'a>(table: &'a Table, companions: &BTreeSet<i32>) -> Vec<(&'a Column, String)> {
    if companions.is_empty() {
        return vec![];
    }
    let named = table.columns.iter().zip(companion_names(&table.columns));
    named.filter(|(column, _)| companions.contains(&column.id)).collect()
}

/// A table's parameters.
pub fn parameters(task: &str, table: &Table, companions: &BTreeSet<i32>) -> BTreeMap<String, String> {
    let own = OwnNames::of(&table.columns);
    let key: Vec<&str> = table.key.iter().map(|&index| table.columns[index].name.as_str()).collect();
    let pairs = [
        ("EXTERNAL", "TRUE".to_string()),
        ("classification", "parquet".to_string()),
        ("typeOfData", "file".to_string()),
        ("millrace.task", task.to_string()),
        ("millrace.schema", table.name.schema.clone()),
        ("millrace.table", table.name.name.clone()),
        (KEY_COLUMNS, json!(key).to_string()),
        (OP, own.op),
        (COMMIT_TIMESTAMP, own.commit_timestamp),
        (CHANGE_ORDER, own.change_order),
    ];
    let mut parameters: BTreeMap<String, String> =
        pairs.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    let exact: BTreeMap<&str, String> =
        with_companion(table, companions).into_iter().map(|(column, name)| (column.name.as_str(), name)).collect();
    if !exact.is_empty() {
        parameters.insert(EXACT_COLUMNS.into(), json!(exact).to_string());
    }
    parameters
}

/// The companions by their columns' names, as the parameters say.
pub fn companions(parameters: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    parameters.get(EXACT_COLUMNS).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}

/// What our own columns are called, as the parameters say.
pub fn own_names(parameters: &BTreeMap<String, String>) -> OwnNames {
    let name = |key: &str| parameters.get(key).cloned().unwrap_or_default();
    OwnNames { op: name(OP), commit_timestamp: name(COMMIT_TIMESTAMP), change_order: name(CHANGE_ORDER) }
}

/// The table as Glue's `GetTable` shows it.
pub fn table(table: &CatalogTable) -> Value {
    let columns: Vec<Value> = table
        .columns
        .iter()
        .map(|column| json!({ "Name": column.name, "Type": column.r#type, "Comment": column.comment }))
        .collect();
    let mut parameters = table.parameters.clone();
    parameters.insert("millrace.complete-through".into(), table.complete_through.to_string());
    parameters.insert("millrace.complete-through-log".into(), table.complete_through_log.to_string());
    parameters.insert("objectCount".into(), table.files.to_string());
    parameters.insert("recordCount".into(), table.rows.to_string());
    parameters.insert("sizeKey".into(), table.bytes.to_string());
    json!({
        "DatabaseName": table.name.database,
        "Name": table.name.table,
        "TableType": TABLE_TYPE,
        "VersionId": table.version.to_string(),
        "Parameters": parameters,
        "StorageDescriptor": {
            "Columns": columns,
            "Location": table.location,
            "InputFormat": INPUT_FORMAT,
            "OutputFormat": OUTPUT_FORMAT,
            "SerdeInfo": { "SerializationLibrary": SERDE, "Parameters": { "serialization.format": "1" } },
        },
        "PartitionKeys": [],
    })
}

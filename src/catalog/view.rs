//! The SQL, in DuckDB's dialect, that shows a table as it is now in the files.
//!
//! A keyed table: per key, companions of its columns included, the row with the greatest order, unless it was deleted. A
//! table without a key: the inserted rows less the deleted ones, as multisets.

use millrace_core::ColumnType;

use super::{CatalogTable, DataFile, glue};

/// A query without a final semicolon.
pub fn sql(table: &CatalogTable, files: &[DataFile]) -> String {
    let own = glue::own_names(&table.parameters);
    let ours = [&own.op, &own.commit_timestamp, &own.change_order];
    let theirs: Vec<String> =
        table.columns.iter().map(|column| &column.name).filter(|name| !ours.contains(name)).map(|n| quote(n)).collect();
    let select = format!("SELECT {}\nFROM {}", theirs.join(", "), rows(table, files));
    let (op, order) = (quote(&own.op), quote(&own.change_order));
    let key: Vec<String> =
        table.parameters.get(glue::KEY_COLUMNS).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    if key.is_empty() {
        return format!("{select}\nWHERE {op} <> 'D'\nEXCEPT ALL\n{select}\nWHERE {op} = 'D'");
    }
    let companions = glue::companions(&table.parameters);
    let exact = key.iter().filter_map(|name| companions.get(name));
    let key: Vec<String> = key.iter().chain(exact).map(|name| quote(name)).collect();
    let key = key.join(", ");
    format!("{select}\nQUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order} DESC) = 1 AND {op} <> 'D'")
}

/// The rows of all files, with the columns of the newest shape: found by their identity, so that a column that was renamed
/// is one column and a name that was used again is another; in files from before it was added it has the value that the
/// source gave to the rows that were there.
fn rows(table: &CatalogTable, files: &[DataFile]) -> String {
    if files.is_empty() {
        let typed = |c: &super::CatalogColumn| format!("CAST(NULL AS {}) AS {}", duckdb(&c.exact), quote(&c.name));
        let shape: Vec<String> = table.columns.iter().map(typed).collect();
        return format!("(SELECT {} WHERE false) AS rows", shape.join(", "));
    }
    let paths: Vec<String> = files.iter().map(|file| text(&file.path)).collect();
    let column = |column: &super::CatalogColumn| {
        let older = column.older_rows.as_ref().map_or("NULL".into(), |older| text(older));
        let (name, ty) = (text(&column.name), text(&duckdb(&column.exact)));
        format!("{}: {{name: {name}, type: {ty}, default_value: {older}}}", column.id)
    };
    let columns: Vec<String> = table.columns.iter().map(column).collect();
    format!(
        "read_parquet([\n    {}\n  ], schema = MAP {{\n    {}\n  }}) AS rows",
        paths.join(",\n    "),
        columns.join(",\n    ")
    )
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn duckdb(ty: &ColumnType) -> String {
    match ty {
        ColumnType::Boolean => "BOOLEAN".into(),
        ColumnType::Int16 => "SMALLINT".into(),
        ColumnType::Int32 => "INTEGER".into(),
        ColumnType::Int64 => "BIGINT".into(),
        ColumnType::Float32 => "FLOAT".into(),
        ColumnType::Float64 => "DOUBLE".into(),
        ColumnType::Decimal { precision, scale } => format!("DECIMAL({precision},{scale})"),
        ColumnType::Text => "VARCHAR".into(),
        ColumnType::Binary => "BLOB".into(),
        ColumnType::Date => "DATE".into(),
        ColumnType::Time => "TIME".into(),
        ColumnType::Timestamp => "TIMESTAMP".into(),
        ColumnType::TimestampTz => "TIMESTAMPTZ".into(),
        ColumnType::List(item) => format!("{}[]", duckdb(item)),
    }
}

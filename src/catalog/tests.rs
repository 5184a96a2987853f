//! The catalog over a state in memory.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use millrace_core::{Capture, Column};

use super::*;
use crate::state::{memory::MemoryState, sqlite::SqliteState};

fn table(name: &str, columns: &[(&str, ColumnType)], key: &[usize]) -> Table {
    let column = |(index, (name, ty)): (usize, &(&str, ColumnType))| Column {
        id: index as i32 + 1,
        name: name.to_string(),
        ty: ty.clone(),
        source_type: "as it was".into(),
        nullable: true,
        older_rows: None,
    };
    Table {
        name: TableName::new("Sales", name),
        source_id: 1,
        version: 1,
        columns: columns.iter().enumerate().map(column).collect(),
        key: key.to_vec(),
        capture: Capture::All,
        storage_id: 1,
        definition_id: 1,
        columns_ever: 0,
        estimated_rows: 0,
        estimated_bytes: 0,
        parts: None,
    }
}

fn orders() -> Table {
    table("Orders", &[("id", ColumnType::Int64), ("Op", ColumnType::Text)], &[0])
}

fn file(name: &str, kind: FileKind) -> DataFile {
    DataFile { key: name.into(), path: format!("/lake/{name}"), rows: 10, bytes: 100, kind }
}

fn at(place: u64) -> (Position, LogPosition) {
    (Position(u128::from(place)), LogPosition(place))
}

fn catalog() -> (Arc<MemoryState>, Catalog) {
    let state = Arc::new(MemoryState::default());
    (state.clone(), Catalog::new(state))
}

#[test]
fn a_table_is_registered_in_glues_shape() {
    let (state, catalog) = catalog();
    let mut puts = vec![];
    catalog.define(&mut puts, "shop", &orders(), "s3://lake/Sales/Orders").unwrap();
    catalog.add_files(&mut puts, &orders().name, &[file("a", FileKind::Changes)], Some(at(7))).unwrap();
    state.commit(&puts).unwrap();
    assert_eq!(catalog.databases().unwrap(), ["sales"]);
    let found = catalog.tables("Sales").unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name, CatalogName::parse("SALES.ORDERS").unwrap());
    let glue = catalog.glue_table(&found[0]);
    assert_eq!(glue["TableType"], "EXTERNAL_TABLE");
    assert_eq!(glue["Parameters"]["classification"], "parquet");
    assert_eq!(glue["Parameters"]["millrace.op-column"], "_Op");
    assert_eq!(glue["Parameters"]["millrace.key-columns"], "[\"id\"]");
    assert_eq!(glue["Parameters"]["recordCount"], "10");
    let columns: Vec<(&str, &str)> = glue["StorageDescriptor"]["Columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| (column["Name"].as_str().unwrap(), column["Type"].as_str().unwrap()))
        .collect();
    let expected = [
        ("_Op", "string"),
        ("id", "bigint"),
        ("Op", "string"),
        ("commit_timestamp", "timestamp"),
        ("change_order", "string"),
    ];
    assert_eq!(columns, expected);
    let serde = &glue["StorageDescriptor"]["SerdeInfo"]["SerializationLibrary"];
    assert_eq!(serde, "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe");
}

#[test]
fn only_a_change_of_columns_makes_a_version() {
    let (state, catalog) = catalog();
    let mut puts = vec![];
    catalog.define(&mut puts, "shop", &orders(), "a").unwrap();
    state.commit(&puts).unwrap();
    let mut same = vec![];
    catalog.define(&mut same, "shop", &Table { version: 9, estimated_rows: 5, ..orders() }, "a").unwrap();
    assert_eq!(same, []);
    let wider = table("Orders", &[("id", ColumnType::Int64), ("Op", ColumnType::Text), ("n", ColumnType::Date)], &[0]);
    let mut puts = vec![];
    catalog.define(&mut puts, "shop", &wider, "b").unwrap();
    catalog.define(&mut puts, "shop", &wider, "b").unwrap();
    state.commit(&puts).unwrap();
    let name = CatalogName::of(&wider.name);
    let versions: Vec<u32> = catalog.versions(&name).unwrap().iter().map(|version| version.version).collect();
    assert_eq!(versions, [1, 2]);
    assert_eq!(catalog.table(&name).unwrap().unwrap().version, 2);
}

#[test]
fn companions_join_a_table_with_a_version_and_stay() {
    let (state, catalog) = catalog();
    let name = CatalogName::of(&orders().name);
    let commit = |exact: &[i32], table: &Table| {
        let mut puts = vec![];
        catalog.define_exact(&mut puts, "shop", table, "a", &exact.iter().copied().collect()).unwrap();
        state.commit(&puts).unwrap();
        let found = catalog.table(&name).unwrap().unwrap();
        let names: Vec<String> = found.columns.into_iter().map(|column| column.name).collect();
        (names.join(" "), found.version)
    };
    assert_eq!(commit(&[], &orders()).1, 1);
    let with_both = ("_Op id Op id__exact Op__exact commit_timestamp change_order".to_string(), 3);
    assert_eq!(commit(&[1], &orders()), ("_Op id Op id__exact commit_timestamp change_order".into(), 2));
    assert_eq!(commit(&[2, 77], &orders()), with_both);
    assert_eq!(commit(&[], &orders()), with_both, "a definition without them keeps them");
    assert_eq!(catalog.companions(&orders().name).unwrap(), BTreeSet::from([1, 2]));
    assert_eq!(catalog.companion_names(&orders().name).unwrap(), ["Op__exact", "id__exact"]);
    let sql = catalog.view_sql(&name).unwrap().unwrap();
    assert!(sql.contains("PARTITION BY \"id\", \"id__exact\" ORDER BY"), "{sql}");
    assert!(sql.starts_with("SELECT \"id\", \"Op\", \"id__exact\", \"Op__exact\"\n"), "{sql}");
    // A column that is gone takes its companion along.
    let narrow = table("Orders", &[("id", ColumnType::Int64)], &[0]);
    assert_eq!(commit(&[], &narrow), ("Op id id__exact commit_timestamp change_order".into(), 4));
}

#[test]
fn a_new_generation_replaces_the_files_and_keeps_the_dead_letters() {
    let (state, catalog) = catalog();
    let name = CatalogName::of(&orders().name);
    let mut puts = vec![];
    catalog.define(&mut puts, "shop", &orders(), "a").unwrap();
    let files = [file("a", FileKind::Load), file("b", FileKind::Changes), file("c", FileKind::DeadLetters)];
    catalog.add_files(&mut puts, &orders().name, &files, Some(at(7))).unwrap();
    state.commit(&puts).unwrap();
    let mut puts = vec![];
    let load = [file("d", FileKind::Load), file("e", FileKind::DeadLetters)];
    let left = catalog.replace_files(&mut puts, "shop", &orders(), "a", &load, at(9)).unwrap();
    assert_eq!(left, files[..2]);
    assert_eq!(catalog.files(&name).unwrap(), files[..2], "nothing changes before the commit");
    state.commit(&puts).unwrap();
    assert_eq!(catalog.files(&name).unwrap(), load[..1]);
    assert_eq!(catalog.dead_letters(&name).unwrap(), [files[2].clone(), load[1].clone()]);
    let garbage: Vec<(String, garbage::Garbage)> = read_all(&*state, &garbage::prefix("shop")).unwrap();
    assert_eq!(garbage.iter().map(|(_, g)| g.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let table = catalog.table(&name).unwrap().unwrap();
    assert_eq!((table.rows, table.files, table.complete_through), (10, 1, Position(9)));
}

#[test]
fn files_of_a_table_that_was_never_defined_are_refused() {
    let (_, catalog) = catalog();
    let add = |kind| catalog.add_files(&mut vec![], &orders().name, &[file("a", kind)], Some(at(1)));
    assert_eq!(add(FileKind::Changes).unwrap_err().kind, Kind::Internal);
    add(FileKind::DeadLetters).unwrap();
}

#[test]
fn a_commit_writes_as_much_as_changed() {
    let (state, catalog) = catalog();
    let name = CatalogName::of(&orders().name);
    let mut puts = vec![];
    catalog.define(&mut puts, "shop", &orders(), "a").unwrap();
    let many: Vec<DataFile> = (0..5000).map(|number| file(&number.to_string(), FileKind::Changes)).collect();
    catalog.add_files(&mut puts, &orders().name, &many, Some(at(1))).unwrap();
    state.commit(&puts).unwrap();
    let mut puts = vec![];
    catalog.add_files(&mut puts, &orders().name, &[file("new", FileKind::Changes)], Some(at(2))).unwrap();
    assert_eq!(puts.len(), 2);
    assert!(puts.iter().all(|put| put.value.as_ref().is_some_and(|value| value.len() < 300)), "{puts:?}");
    state.commit(&puts).unwrap();
    assert_eq!(catalog.files(&name).unwrap().last().unwrap().key, "new", "in the order of delivery");
}

#[test]
fn a_thousand_tables_are_quick() {
    let folder = tempfile::tempdir().unwrap();
    let state = Arc::new(SqliteState::open(&folder.path().join("state.db")).unwrap());
    let catalog = Catalog::new(state.clone());
    let tables: Vec<Table> = (0..1000).map(|n| table(&format!("t{n}"), &[("id", ColumnType::Int64)], &[0])).collect();
    for round in 0..3 {
        let start = Instant::now();
        let mut puts = vec![];
        for table in &tables {
            catalog.define(&mut puts, "shop", table, "a").unwrap();
            catalog.add_files(&mut puts, &table.name, &[file("f", FileKind::Changes)], Some(at(round))).unwrap();
        }
        state.commit(&puts).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }
    assert_eq!(catalog.tables("sales").unwrap().iter().map(|table| table.files).sum::<u64>(), 3000);
}

/// The query text itself; that it gives the right rows is tried with DuckDB where Python has it.
#[test]
fn the_view_quotes_names_and_paths() {
    let (state, catalog) = catalog();
    let odd = table("o'dd", &[("i\"d", ColumnType::Int64)], &[0]);
    let mut puts = vec![];
    catalog.define(&mut puts, "shop", &odd, "a").unwrap();
    let path = DataFile { path: "s3://lake/o'dd/x.parquet".into(), ..file("x", FileKind::Changes) };
    catalog.add_files(&mut puts, &odd.name, &[path], Some(at(1))).unwrap();
    state.commit(&puts).unwrap();
    let sql = catalog.view_sql(&CatalogName::of(&odd.name)).unwrap().unwrap();
    assert!(sql.starts_with("SELECT \"i\"\"d\"\nFROM"), "{sql}");
    assert!(sql.contains("'s3://lake/o''dd/x.parquet'"), "{sql}");
    assert!(sql.contains("PARTITION BY \"i\"\"d\" ORDER BY \"change_order\" DESC"), "{sql}");
    assert_eq!(catalog.view_sql(&CatalogName::parse("no.such").unwrap()).unwrap(), None);
}

fn every_type() -> [(&'static str, ColumnType); 14] {
    [
        ("id", ColumnType::Int64),
        ("t", ColumnType::Text),
        ("b", ColumnType::Boolean),
        ("s", ColumnType::Int16),
        ("i", ColumnType::Int32),
        ("f", ColumnType::Float32),
        ("d", ColumnType::Float64),
        ("n", ColumnType::Decimal { precision: 15, scale: 2 }),
        ("x", ColumnType::Binary),
        ("day", ColumnType::Date),
        ("time", ColumnType::Time),
        ("at", ColumnType::Timestamp),
        ("atz", ColumnType::TimestampTz),
        ("l", ColumnType::List(Box::new(ColumnType::Int32))),
    ]
}

/// Writes the files with DuckDB, then asks it the view's query.
#[test]
fn the_view_shows_the_current_state() {
    let python = std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_duckdb = Command::new(&python).args(["-c", "import duckdb"]).output().is_ok_and(|o| o.status.success());
    if !has_duckdb {
        eprintln!("skipped: {python} has no duckdb (pip install duckdb; MILLRACE_TEST_PYTHON names another Python)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let all = every_type();
    let keyed = table("keyed", &all, &[0]);
    let keyless = table("keyless", &all[..2], &[]);
    let (state, catalog) = catalog();
    let mut puts = vec![];
    catalog.define(&mut puts, "shop", &keyed, "a").unwrap();
    catalog.define(&mut puts, "shop", &keyless, "a").unwrap();
    state.commit(&puts).unwrap();
    let sql = |table: &Table| catalog.view_sql(&CatalogName::of(&table.name)).unwrap().unwrap();
    let empty = sql(&keyed);
    let mut puts = vec![];
    let at_path = |name: &str| DataFile { path: path(name), ..file(name, FileKind::Changes) };
    // Neither file has all columns yet: they were added later.
    catalog.add_files(&mut puts, &keyed.name, &[at_path("1.parquet"), at_path("2.parquet")], Some(at(1))).unwrap();
    catalog.add_files(&mut puts, &keyless.name, &[at_path("3.parquet")], Some(at(1))).unwrap();
    state.commit(&puts).unwrap();
    let script = format!(
        r#"
import duckdb, sys
keyed, keyless, empty = sys.argv[1:]
def write(name, columns, rows):
    duckdb.sql("COPY (SELECT * FROM (VALUES " + rows + ") AS v(" + columns + ")) TO '" + name + "' (FORMAT parquet)")
own = '"Op", "commit_timestamp", "change_order"'
write('{one}', own + ', "id", "t"',
      "('I', NULL::TIMESTAMPTZ, '00', 1::BIGINT, 'loaded'), ('I', NULL, '00', 2, 'loaded'), ('I', NULL, '00', 3, 'loaded')")
write('{two}', own + ', "id", "t", "b"',
      "('U', now(), '01', 1::BIGINT, 'new', true), ('D', now(), '02', 2, NULL, NULL), ('I', now(), '03', 2, 'again', false),"
      "('D', now(), '04', 3, NULL, NULL), ('I', now(), '05', 9, 'nine', true), ('U', now(), '09', 9, 'ten', true),"
      "('U', now(), '06', 9, 'late', true)")
write('{three}', own + ', "id", "t"',
      "('I', NULL::TIMESTAMPTZ, '00', 1::BIGINT, 'twice'), ('I', NULL, '00', 1, 'twice'), ('D', now(), '01', 1, 'twice'),"
      "('I', now(), '02', NULL, NULL)")
rows = duckdb.sql("SELECT id, t, b, i FROM (" + keyed + ") ORDER BY id").fetchall()
assert rows == [(1, 'new', True, None), (2, 'again', False, None), (9, 'ten', True, None)], rows
rows = duckdb.sql("SELECT * FROM (" + keyless + ") ORDER BY id").fetchall()
assert rows == [(1, 'twice'), (None, None)], rows
none = duckdb.sql(empty)
assert none.fetchall() == []
print([str(t) for t in none.types])
"#,
        one = path("1.parquet"),
        two = path("2.parquet"),
        three = path("3.parquet"),
    );
    let output = Command::new(&python).args(["-c", &script, &sql(&keyed), &sql(&keyless), &empty]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let types = "['BIGINT', 'VARCHAR', 'BOOLEAN', 'SMALLINT', 'INTEGER', 'FLOAT', 'DOUBLE', 'DECIMAL(15,2)', 'BLOB', \
                 'DATE', 'TIME', 'TIMESTAMP', 'TIMESTAMP WITH TIME ZONE', 'INTEGER[]']";
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), types);
}

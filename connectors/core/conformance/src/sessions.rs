//! What else a source is asked, and how its sessions end.

use std::{sync::Arc, time::Duration};

use millrace_core::{
    Capture, Columns, Finding, Kind, Position, Severity,
    source::{Identity, Resume, Scope, UnboundedRoom},
};

use super::{Database, Write, named, reading::Reading, selection};

pub async fn tables_are_found(database: &dyn Database) {
    for (table, keyed) in [("found_one", true), ("found_two", false), ("lost", true)] {
        database.make(table, keyed).await;
    }
    let source = database.source("finding");
    let mut wanted = selection(database, &["found_*", "lost", "nowhere"]);
    wanted.exclude = selection(database, &["lost"]).include;
    let mut tables = source.tables(&wanted).await.unwrap();
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
    assert_eq!(names, [named(database, "found_one"), named(database, "found_two")]);
    for (table, key) in tables.iter().zip([&[0][..], &[]]) {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!((&columns[..], &table.key[..], table.version), (&["id", "v"][..], key, 1));
        assert!(table.columns[0].id != table.columns[1].id, "columns have numbers of their own");
        assert_eq!([table.columns[0].nullable, table.columns[1].nullable], [false, true]);
    }
    assert_eq!(tables[0].capture, Capture::All);
    assert!(tables[0].source_id != tables[1].source_id, "tables are told apart");
    assert_eq!(source.tables(&wanted).await.unwrap().len(), 2, "asked once more");
    let one = source.identity().await.unwrap();
    let other = database.source("another").identity().await.unwrap();
    assert_eq!(one, other, "a server has one identity, whoever asks");
    assert!(!one.system.is_empty() && !one.server.is_empty());
}

pub async fn checks_help(database: &dyn Database) {
    database.make("checked", true).await;
    let source = database.source("checking");
    let scope = |tables: &[&str]| Scope { selection: selection(database, tables), full_load: true, cdc: true };
    let errors = |findings: &[Finding]| findings.iter().filter(|f| f.severity == Severity::Error).count();
    let found = source.check(&scope(&["checked"])).await;
    assert_eq!(errors(&found), 0, "{found:?}");
    let found = source.check(&scope(&["checked", "not_there"])).await;
    assert!(errors(&found) > 0, "a table that is not there was not missed");
    for finding in &found {
        assert!(!finding.code.is_empty() && !finding.summary.is_empty() && !finding.fix.is_empty(), "{finding:?}");
        assert!(1 + finding.detail.len() + finding.fix.len() <= 12, "more than twelve lines: {finding:?}");
    }
}

/// Longer than the server waits for a reader, with more to read than fits into the buffers between the two.
pub async fn a_pause_is_outlived(database: &dyn Database) {
    database.make("paused", true).await;
    let patience = database.lose_patience().await;
    let mut reading = Reading::begin(database, "pausing", &["paused"]).await;
    database.commit(&[Write::Insert("paused", -1, None)]).await;
    reading.read_until(-1).await;
    tokio::time::sleep(patience * 2).await;
    database.commit(&[Write::Fill("paused", 1, 40_000, 1_000)]).await;
    database.commit(&[Write::Insert("paused", -2, None)]).await;
    tokio::time::sleep(patience * 2).await;
    reading.read_until(-2).await;
    let rows = reading.rows_at(&named(database, "paused"), reading.at());
    assert!(rows == database.rows("paused").await, "rows were lost or doubled");
}

pub async fn others_are_refused(database: &dyn Database) {
    database.make("guarded", true).await;
    let mut reading = Reading::begin(database, "guarding", &["guarded"]).await;
    database.commit(&[Write::Insert("guarded", 1, None)]).await;
    reading.read_until(1).await;
    let resume = reading.marks.last().cloned().unwrap_or_default();
    let (tables, identity) = (reading.tables.clone(), reading.identity.clone());
    drop(reading);
    let source = database.source("guarding");
    let folder = std::env::temp_dir().join(format!("millrace-conformance-{}-guarding", std::process::id()));
    let room = Arc::new(UnboundedRoom(folder));
    let other = Identity { system: "another".into(), ..identity.clone() };
    let stranger = Resume { lineage: None, ..resume.clone() };
    let far = Resume { position: Position(resume.position.0 + (1 << 50)), lineage: resume.lineage.clone() };
    for (from, known, what) in [(&stranger, &other, "another server"), (&far, &identity, "a place that is not there")] {
        let opened = source.open_log(&tables, from, known, room.clone()).await;
        let kind = opened.err().map(|error| error.kind);
        assert!(matches!(kind, Some(Kind::SourceChanged | Kind::LogLost)), "{what}: {kind:?}");
        // Nothing was harmed by that.
        source.verify(&resume, &identity).await.unwrap();
    }
}

pub async fn rows_are_looked_up(database: &dyn Database) {
    database.make("sought", true).await;
    let mut reading = Reading::begin(database, "seeking", &["sought"]).await;
    database.commit(&[Write::Fill("sought", 1, 1_500, 10), Write::Insert("sought", -7, None)]).await;
    database.commit(&[Write::Update("sought", 3, Some("it's three"))]).await;
    reading.read_until(-7).await;
    let table = reading.tables[0].clone();
    let mut keys = Columns::new([&table.columns[0].ty]);
    let wanted: Vec<i64> = (1..=2_000).rev().chain([-7, 3]).collect();
    for &id in &wanted {
        keys.column_mut(0).push_i64(id);
        keys.end_row();
    }
    let found = reading.source.lookup(&table, &keys, &[1]).await.unwrap();
    assert!(found.rejected.is_empty() && found.found.windows(2).all(|pair| pair[0] < pair[1]));
    let there = database.rows("sought").await;
    let expected: Vec<u32> =
        wanted.iter().enumerate().filter(|(_, id)| there.contains_key(id)).map(|(row, _)| row as u32).collect();
    assert_eq!(found.found, expected, "which rows are there");
    for (at, &row) in found.found.iter().enumerate() {
        let id = wanted[row as usize];
        assert_eq!(found.columns.columns()[0].cell_text(at), there[&id], "row {id}");
    }
}

pub async fn nothing_is_left(database: &dyn Database) {
    database.make("remaining", true).await;
    let task = "leaving";
    let reading = Reading::begin(database, task, &["remaining"]).await;
    drop(reading);
    let source = database.source(task);
    // The server may not have noticed yet that the reader has gone.
    let mut remaining = source.remove().await;
    for _ in 0..50 {
        if remaining.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        remaining = source.remove().await;
    }
    assert_eq!(remaining.unwrap(), Vec::<String>::new(), "who may make something may remove it");
    assert!(source.retained().await.unwrap().is_none(), "the server keeps something for a task that is gone");
    assert_eq!(source.remove().await.unwrap(), Vec::<String>::new(), "asked once more");
    Reading::begin(database, task, &["remaining"]).await;
    source.drop_log().await.unwrap();
    source.remove().await.unwrap();
}

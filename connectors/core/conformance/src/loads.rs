//! Loads: segments, plans that are taken up again, and positions.

use std::collections::BTreeMap;

use millrace_core::source::{LoadPlan, Snapshot, TableLoad};

use super::{Database, Rows, Write, cells, named, reading::Reading};

/// More rows than a batch may have.
const MANY: usize = 70_000;

/// The rows of a segment.
async fn segment(load: &dyn TableLoad, number: usize) -> Vec<(i64, Option<String>)> {
    let mut found = vec![];
    let mut rows = load.rows(number).await.unwrap();
    while let Some(loaded) = rows.next().await.unwrap() {
        assert!(loaded.rejects.is_empty(), "a row was refused: {:?}", loaded.rejects);
        assert!((1..=65_536).contains(&loaded.columns.rows()), "a batch has {} rows", loaded.columns.rows());
        assert!(loaded.wire_bytes > 0, "a batch came of nothing");
        found.extend(cells(&loaded.columns));
        rows.give_back(loaded.columns);
    }
    assert!(rows.next().await.unwrap().is_none(), "the end of a segment is its end");
    found
}

/// All rows of a table, two segments at a time.
async fn all(load: &dyn TableLoad) -> Vec<(i64, Option<String>)> {
    let (mut found, segments) = (vec![], load.plan().segments.len());
    for number in (0..segments).step_by(2) {
        if number + 1 < segments {
            let (one, other) = tokio::join!(segment(load, number), segment(load, number + 1));
            found.extend(one.into_iter().chain(other));
        } else {
            found.extend(segment(load, number).await);
        }
    }
    found
}

async fn open(database: &dyn Database, snapshot: &dyn Snapshot, table: &str, wanted: usize) -> Box<dyn TableLoad> {
    snapshot.open(&named(database, table), wanted, None).await.unwrap()
}

pub async fn segments_cover_a_table(database: &dyn Database) {
    for (table, keyed) in [("covered", true), ("covered_keyless", false)] {
        database.make(table, keyed).await;
        // A gap between ids, and ids on both sides of zero.
        let filled =
            [Write::Fill(table, -500, 500, 20), Write::Fill(table, 1_000_000, MANY, 20), Write::Insert(table, 0, None)];
        database.commit(&filled).await;
    }
    database.make("hollow", true).await;
    // Who captures, and who only loads.
    let reading = Reading::begin(database, "covering", &["covered", "covered_keyless", "hollow"]).await;
    let loading = database.source("only_loading");
    let names = ["covered", "covered_keyless", "hollow"].map(|table| named(database, table));
    for (source, exact) in [(&loading, false), (&reading.source, true)] {
        let snapshot = source.snapshot(&names, exact).await.unwrap();
        for (table, wanted) in [("covered", 1), ("covered", 3), ("covered_keyless", 2), ("hollow", 4)] {
            let load = open(database, &*snapshot, table, wanted).await;
            let segments = load.plan().segments.len();
            assert!(segments >= 1 && segments <= wanted && !load.resumed(), "{segments} of {wanted} segments");
            let found = all(&*load).await;
            let rows: Rows = found.iter().cloned().collect();
            assert_eq!(found.len(), rows.len(), "{table} in {segments} segments: a row comes twice");
            assert!(rows == database.rows(table).await, "{table} in {segments} segments: other rows than there are");
        }
    }
}

pub async fn a_plan_is_taken_up_again(database: &dyn Database) {
    database.make("planned", true).await;
    database.commit(&[Write::Fill("planned", 1, MANY, 20)]).await;
    let names = [named(database, "planned")];
    let mut reading = Reading::begin(database, "planning", &["planned"]).await;
    let snapshot = reading.source.snapshot(&names, true).await.unwrap();
    let load = open(database, &*snapshot, "planned", 3).await;
    let plan = serde_json::to_string(load.plan()).unwrap();
    let first = segment(&*load, 0).await;
    drop((load, snapshot));

    // What the other segments cover has grown at both of its ends.
    database.commit(&[Write::Insert("planned", -5, Some("low")), Write::Insert("planned", 1 << 40, None)]).await;
    let plan: LoadPlan = serde_json::from_str(&plan).unwrap();
    reading.take_up(database, "planning", 0).await;
    let snapshot = reading.source.snapshot(&names, true).await.unwrap();
    let load = snapshot.open(&names[0], 7, Some(&plan)).await.unwrap();
    assert!(load.resumed() && *load.plan() == plan, "a plan was not taken up again");
    let again = segment(&*load, 0).await;
    let mut rows: Rows = again.iter().cloned().collect();
    assert!(first.iter().all(|(id, _)| rows.contains_key(id)), "a segment lost rows");
    for number in 1..plan.segments.len() {
        for (id, text) in segment(&*load, number).await {
            assert!(rows.insert(id, text).is_none(), "row {id} is in two segments");
        }
    }
    assert!(rows == database.rows("planned").await, "the segments do not cover what the table has grown to");
}

/// Whatever is committed while a snapshot is taken is either in it, or behind its position in the log.
pub async fn positions_are_exact(database: &dyn Database) {
    let tables = ["exact", "exact_too"];
    for table in tables {
        database.make(table, true).await;
    }
    let mut reading = Reading::begin(database, "exact", &tables).await;
    let names = tables.map(|table| named(database, table));
    let writer = async {
        for n in 1..=600_i64 {
            let text = n.to_string();
            database.commit(&[Write::Insert("exact", n, Some(&text)), Write::Insert("exact_too", -n, None)]).await;
            if n % 3 == 0 {
                let changes = [
                    Write::Update("exact", n - 1, Some(&text)),
                    Write::Delete("exact", n - 2),
                    Write::Move("exact_too", -n, n),
                ];
                database.commit(&changes).await;
            }
        }
    };
    let source = &reading.source;
    let snapshots = async {
        let mut taken = vec![];
        for wanted in [1, 2, 3, 1, 2, 3] {
            let snapshot = source.snapshot(&names, true).await.unwrap();
            let mut rows = BTreeMap::new();
            for table in tables {
                let load = open(database, &*snapshot, table, wanted).await;
                rows.insert(table, all(&*load).await.into_iter().collect::<Rows>());
            }
            taken.push((snapshot.position(), rows));
        }
        taken
    };
    let (taken, ()) = tokio::join!(snapshots, writer);
    database.commit(&[Write::Insert("exact", 100_000, None)]).await;
    reading.read_until(100_000).await;
    let mut seen = 0;
    for (position, rows) in taken {
        reading.read_past(position).await;
        for (table, rows) in rows {
            seen += rows.len();
            assert_eq!(rows, reading.rows_at(&named(database, table), position), "{table} at {position}");
        }
    }
    assert!(seen > 0, "all snapshots were empty");
}

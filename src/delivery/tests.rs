//! Delivery over a log in memory, with a target and a state that fail where a crash may happen.

mod crash;
mod fakes;
mod reading;
mod simulation;

use std::{sync::Arc, time::Duration};

use millrace_core::{
    Capture, Change, ChangeBatch, Changes, Column, ColumnType, Columns, Ddl, Op, Order, Position, Reject, Table,
    TableName, batch::Cell,
};

use self::{
    fakes::House,
    reading::{Row, dead_letters, delivered, exact_values, objects_below},
};
use super::*;
use crate::{
    catalog::{CatalogName, DataFile, FileKind},
    state::{
        Put,
        keys::{
            checkpoint::{self, Checkpoint, Flow},
            garbage as garbage_keys, intent,
        },
        read,
    },
    stream::{Append, LogPosition, StreamOptions},
};

pub fn table(name: &str, extra: &[&str]) -> Arc<Table> {
    let column = |(index, name): (usize, &&str)| Column {
        id: index as i32 + 1,
        name: name.to_string(),
        ty: ColumnType::Int64,
        source_type: "bigint".into(),
        nullable: true,
        older_rows: None,
    };
    let columns = ["id"].iter().chain(extra).enumerate().map(column).collect();
    Arc::new(Table {
        name: TableName::new("public", name),
        source_id: 1,
        version: 1 + extra.len() as u32,
        columns,
        key: vec![0],
        capture: Capture::All,
        storage_id: 1,
        definition_id: 1,
        columns_ever: 0,
        estimated_rows: 0,
        estimated_bytes: 0,
        parts: None,
    })
}

/// Rows `(op, id)` of one transaction; all columns hold the id.
pub fn rows(table: &Arc<Table>, commit: u128, rows: &[(Op, i64)]) -> Change {
    let mut after = Columns::new(table.columns.iter().map(|column| &column.ty));
    for (_, id) in rows {
        for column in 0..table.columns.len() {
            after.column_mut(column).push_i64(*id);
        }
        after.end_row();
    }
    Change::Rows(ChangeBatch {
        table: table.clone(),
        ops: rows.iter().map(|(op, _)| *op).collect(),
        order: (1..=rows.len() as u32).map(|ordinal| Order { commit, ordinal }).collect(),
        commit_time_us: vec![commit as i64; rows.len()],
        after,
        absent: None,
    })
}

/// Inserted rows whose last column cannot hold its value.
pub fn exact_inserts(table: &Arc<Table>, commit: u128, ids: std::ops::Range<i64>) -> Change {
    let Change::Rows(mut batch) = inserts(table, commit, ids.clone()) else { unreachable!() };
    batch.after = Columns::new(table.columns.iter().map(|column| &column.ty));
    let last = table.columns.len() - 1;
    for id in ids {
        (0..last).for_each(|column| batch.after.column_mut(column).push_i64(id));
        batch.after.push_exact(last, &format!("~{id}"));
        batch.after.end_row();
    }
    Change::Rows(batch)
}

pub fn inserts(table: &Arc<Table>, commit: u128, ids: std::ops::Range<i64>) -> Change {
    rows(table, commit, &ids.map(|id| (Op::Insert, id)).collect::<Vec<_>>())
}

fn reject(table: &Arc<Table>, commit: u128, id: i64) -> Reject {
    Reject {
        table: table.name.clone(),
        key: vec![("id".into(), Some(id.to_string()))],
        op: Op::Insert,
        order: Order { commit, ordinal: 1 },
        commit_time_us: Some(1),
        column: "at".into(),
        reason: "infinity has no place in a timestamp".into(),
        row: vec![("id".into(), Cell::Text(id.to_string())), ("at".into(), Cell::Text("infinity".into()))],
    }
}

fn ids(rows: &[Row]) -> Vec<i64> {
    rows.iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn changes_become_one_object_per_table_and_round() {
    let house = House::new();
    let (a, b) = (table("a", &["x"]), table("b", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Delivering);
    house.log.append(vec![inserts(&a, 10, 0..3), inserts(&b, 10, 7..8)], 11);
    house.log.append(vec![rows(&a, 20, &[(Op::Update, 1), (Op::Delete, 2)])], 21);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();

    let of_a = delivered(&house, &a);
    let expected = [("I", 0, 10, 1), ("I", 1, 10, 2), ("I", 2, 10, 3), ("U", 1, 20, 1), ("D", 2, 20, 2)];
    let expected: Vec<Row> = expected.map(|(op, id, commit, ordinal)| Row::new(op, id, commit, ordinal)).into();
    assert_eq!(of_a, expected);
    assert_eq!(ids(&delivered(&house, &b)), [7]);
    assert_eq!(house.files(&a).len(), 1);
    assert_eq!(objects_below(&house.root()), house.keys_in_manifests(&[&a, &b]));

    let catalog = house.catalog.table(&CatalogName::of(&a.name)).unwrap().unwrap();
    assert_eq!((catalog.rows, catalog.files, catalog.version), (5, 1, 1));
    assert_eq!(catalog.complete_through, Position(21));
    assert_eq!(catalog.complete_through_log, house.log.last_mark().unwrap().at);
    let counts = house.read_checkpoint(&a).counts;
    assert_eq!((counts.inserts, counts.updates, counts.deletes), (3, 1, 1));
    assert_eq!(delivery.unaccounted(), 0);
    assert_eq!(house.log.pin(), house.log.last_mark().unwrap().at);
}

#[tokio::test]
async fn a_quiet_table_is_complete_as_far_as_the_others() {
    let house = House::new();
    let (a, b) = (table("a", &[]), table("b", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Delivering);
    house.log.append(vec![inserts(&a, 10, 0..1), inserts(&b, 10, 0..1)], 11);
    house.delivery().flush().await.unwrap();
    house.log.append(vec![inserts(&a, 20, 1..2)], 21);
    house.log.append(vec![], 99);
    house.delivery().flush().await.unwrap();
    let through = |table: &Arc<Table>| house.catalog.table(&CatalogName::of(&table.name)).unwrap().unwrap();
    assert_eq!((through(&a).complete_through, through(&b).complete_through), (Position(99), Position(99)));
    assert_eq!(house.files(&b).len(), 1);
}

#[tokio::test]
async fn a_round_ends_at_the_first_mark_with_enough_bytes() {
    let mut house = House::new();
    house.options.buffer_bytes = 1;
    let a = table("a", &[]);
    house.checkpoint(&a, Flow::Delivering);
    for commit in 1..=3 {
        house.log.append(vec![inserts(&a, commit * 10, 0..2)], commit * 10 + 1);
    }
    house.delivery().flush().await.unwrap();
    assert_eq!(house.files(&a).len(), 3);
    assert_eq!(ids(&delivered(&house, &a)), [0, 1, 0, 1, 0, 1]);
}

#[tokio::test]
async fn a_waiting_tables_changes_are_held_until_its_load_is_complete() {
    let house = House::new();
    let (a, b) = (table("a", &[]), table("b", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Waiting);
    house.log.append(vec![inserts(&a, 10, 0..1), inserts(&b, 10, 0..2)], 11);
    house.log.append(vec![inserts(&b, 20, 2..5)], 21);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    delivery.flush().await.unwrap();
    let waiting = house.read_checkpoint(&b);
    assert_eq!((waiting.held, waiting.through), (5, LogPosition(0)));
    assert_eq!(house.log.pin(), LogPosition(0), "its changes are still needed");
    assert_eq!(delivery.unaccounted(), 0);
    assert!(house.catalog.table(&CatalogName::of(&b.name)).unwrap().is_none());

    // The snapshot was taken behind the first transaction.
    house.complete_load(&delivery, &b, Position(15), &[]).await;
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &b)), [2, 3, 4]);
    let counts = house.read_checkpoint(&b).counts;
    assert_eq!((counts.inserts, counts.filtered["before-load"]), (3, 2));
    assert_eq!(house.read_checkpoint(&b).held, 0);
    assert_eq!(delivery.unaccounted(), 0);
    assert_eq!(ids(&delivered(&house, &a)), [0], "what others have got is not delivered twice");
    assert_eq!(house.log.pin(), house.log.last_mark().unwrap().at);
}

#[tokio::test]
async fn a_table_that_catches_up_in_several_rounds_is_counted_right() {
    let mut house = House::new();
    house.options.buffer_bytes = 1;
    let (a, b) = (table("a", &[]), table("b", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Waiting);
    for commit in 1..=4 {
        house.log.append(vec![inserts(&a, commit * 10, 0..1), inserts(&b, commit * 10, 0..2)], commit * 10 + 1);
    }
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    house.complete_load(&delivery, &b, Position(11), &[]).await;
    assert!(delivery.is_due().await.unwrap(), "a table that is behind is not kept waiting");
    delivery.round().await.unwrap();
    let behind = house.read_checkpoint(&b);
    assert!(behind.through < house.read_checkpoint(&a).through);
    assert_eq!((behind.held, delivery.unaccounted()), (6, 0), "the first transaction was filtered");
    // It is loaded anew before it has caught up.
    {
        let _gate = delivery.gate().await;
        house.change_checkpoint(&b, Checkpoint::begin_load);
    }
    delivery.flush().await.unwrap();
    house.log.append(vec![inserts(&b, 50, 0..2)], 51);
    delivery.flush().await.unwrap();
    assert_eq!((house.read_checkpoint(&b).held, delivery.unaccounted()), (8, 0));
    house.complete_load(&delivery, &b, Position(31), &[]).await;
    delivery.flush().await.unwrap();
    let now = house.read_checkpoint(&b);
    assert_eq!((now.held, now.counts.inserts, now.counts.filtered["before-load"]), (0, 4, 6));
    assert_eq!(delivery.unaccounted(), 0);
}

// trap: 15
#[tokio::test]
async fn truncating_empties_the_table_behind_what_precedes_it() {
    let house = House::new();
    let (a, b) = (table("a", &[]), table("b", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Delivering);
    let truncate = |commit| Change::Truncate { tables: vec![a.name.clone()], order: Order { commit, ordinal: 1 } };
    house.log.append(vec![inserts(&a, 5, 90..92)], 6);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    let before = house.keys_in_manifests(&[&a]);
    house.log.append(vec![inserts(&a, 10, 0..2)], 11);
    house.log.append(vec![inserts(&b, 20, 0..1), truncate(20), inserts(&a, 20, 2..3)], 21);
    house.log.append(vec![inserts(&a, 30, 3..4)], 31);
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &a)), [2, 3], "rows of the same transaction behind it count");
    assert_eq!(ids(&delivered(&house, &b)), [0]);
    let now = house.read_checkpoint(&a);
    assert_eq!((now.flow, now.counts.inserts), (Flow::Delivering, 6));
    assert_eq!(house.keys_in_garbage(), before, "files from before go after the grace period");
    assert_eq!(delivery.unaccounted(), 0);
    house.log.append(vec![truncate(40)], 41);
    delivery.flush().await.unwrap();
    assert!(delivered(&house, &a).is_empty());

    // A table that is loaded from a snapshot newer than the truncate does not lose its rows by it.
    {
        let _gate = delivery.gate().await;
        house.change_checkpoint(&a, Checkpoint::begin_load);
    }
    house.log.append(vec![inserts(&a, 45, 5..6), truncate(45)], 46);
    house.log.append(vec![inserts(&a, 60, 6..7)], 61);
    house.complete_load(&delivery, &a, Position(50), &[]).await;
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &a)), [6]);
    assert_eq!(house.catalog.table(&CatalogName::of(&a.name)).unwrap().unwrap().generation, 3);
    assert_eq!(delivery.unaccounted(), 0);
}

#[tokio::test]
async fn a_change_that_is_not_applied_suspends() {
    let house = House::new();
    let a = table("a", &[]);
    house.checkpoint(&a, Flow::Delivering);
    let what = "column \"x\" was dropped".to_string();
    let order = Order { commit: 20, ordinal: 1 };
    let dropped = Change::Ddl(Ddl::Unsupported { table: a.name.clone(), what: what.clone(), order });
    house.log.append(vec![inserts(&a, 10, 0..2), dropped, inserts(&a, 20, 2..3)], 21);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &a)), [0, 1]);
    assert_eq!(house.read_checkpoint(&a).suspended, Some(what));
    assert_eq!(delivery.unaccounted(), 0);
}

// trap: 17, 43
#[tokio::test]
async fn an_added_column_makes_a_version_and_an_object_of_its_own() {
    let house = House::new();
    let (old, new) = (table("a", &[]), table("a", &["x"]));
    house.checkpoint(&old, Flow::Delivering);
    let evolved = Change::Ddl(Ddl::Evolved { table: new.clone(), order: Order { commit: 20, ordinal: 0 } });
    house.log.append(vec![inserts(&old, 10, 0..2), evolved, inserts(&new, 20, 2..4)], 21);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    assert_eq!(house.files(&old).len(), 2);
    assert_eq!(ids(&delivered(&house, &old)), [0, 1, 2, 3]);
    let versions = house.catalog.versions(&CatalogName::of(&old.name)).unwrap();
    assert_eq!(versions.iter().map(|v| (v.version, v.columns.len())).collect::<Vec<_>>(), [(1, 4), (2, 5)]);
    assert_eq!(delivery.unaccounted(), 0);
}

#[tokio::test]
async fn an_added_column_with_one_of_our_names_suspends() {
    let house = House::new();
    let (old, new) = (table("a", &[]), table("a", &["OP"]));
    house.checkpoint(&old, Flow::Delivering);
    house.log.append(vec![inserts(&old, 10, 0..2)], 11);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    let evolved = Change::Ddl(Ddl::Evolved { table: new.clone(), order: Order { commit: 20, ordinal: 0 } });
    house.log.append(vec![evolved, inserts(&new, 20, 2..4)], 21);
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &old)), [0, 1]);
    assert_eq!(house.read_checkpoint(&old).flow, Flow::Suspended);
    assert_eq!(delivery.unaccounted(), 0);
}

#[tokio::test]
async fn rejected_rows_are_registered_as_dead_letters() {
    let house = House::new();
    let a = table("a", &[]);
    house.checkpoint(&a, Flow::Delivering);
    let rejects = vec![reject(&a, 10, 5), reject(&a, 11, 6)];
    house.log.append(vec![Change::Rejected(rejects.clone())], 12);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    let files = house.catalog.dead_letters(&CatalogName::of(&a.name)).unwrap();
    assert_eq!((files.len(), files[0].rows, files[0].kind), (1, 2, FileKind::DeadLetters));
    assert!(files[0].key.starts_with("_dead_letters/public/a/"), "{}", files[0].key);
    let read = dead_letters(&files[0]);
    assert_eq!(read.iter().map(|(_, reject)| reject.clone()).collect::<Vec<_>>(), rejects);
    assert_eq!(read[0].0, rejects[0].order.to_string());
    let checkpoint = house.read_checkpoint(&a);
    assert_eq!((checkpoint.dead_letters, checkpoint.counts.dead_lettered), (2, 2));
    assert_eq!(delivery.unaccounted(), 0);
    // The first object of rows comes later; the table is only then known by its shape.
    house.log.append(vec![inserts(&a, 20, 0..1)], 21);
    delivery.flush().await.unwrap();
    assert_eq!((ids(&delivered(&house, &a)), house.files(&a).len()), (vec![0], 1));
}

#[tokio::test]
async fn a_table_without_a_checkpoint_waits() {
    let house = House::new();
    let a = table("a", &[]);
    house.log.append(vec![inserts(&a, 10, 0..2)], 11);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    assert_eq!((house.read_checkpoint(&a).held, house.log.pin()), (2, LogPosition(0)));
    assert_eq!(delivery.unaccounted(), 0);
}

#[tokio::test]
async fn the_first_exact_value_begins_an_object_with_its_companion() {
    let mut house = House::new();
    // A writer is open from the first frame on.
    house.options.memory_bytes = 1;
    let a = table("a", &["x"]);
    house.checkpoint(&a, Flow::Delivering);
    let (plain, exact) = (inserts(&a, 10, 0..2), exact_inserts(&a, 10, 2..3));
    house.log.append(vec![plain, exact, inserts(&a, 10, 3..5)], 11);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    assert_eq!(house.files(&a).iter().map(|file| file.rows).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(ids(&delivered(&house, &a)), [0, 1, 2, 3, 4]);
    let versions = house.catalog.versions(&CatalogName::of(&a.name)).unwrap();
    assert_eq!(versions.iter().map(|version| version.columns.len()).collect::<Vec<_>>(), [5, 6]);
    // Later objects have it from their beginning.
    house.log.append(vec![inserts(&a, 20, 5..6), exact_inserts(&a, 20, 6..7)], 21);
    delivery.flush().await.unwrap();
    assert_eq!(house.files(&a).len(), 3);
    assert_eq!(exact_values(&house, &a, "x__exact"), [(2, "~2".to_string()), (6, "~6".to_string())]);
    // A column that takes the companion's name would be mixed with it.
    let clash = table("a", &["x", "X__exact"]);
    let order = Order { commit: 30, ordinal: 1 };
    house.log.append(vec![Change::Ddl(Ddl::Evolved { table: clash, order })], 31);
    delivery.flush().await.unwrap();
    assert_eq!(house.read_checkpoint(&a).flow, Flow::Suspended);
    assert_eq!(delivery.unaccounted(), 0);
}

#[tokio::test]
async fn many_tables_within_little_memory() {
    let mut house = House::new();
    house.options.memory_bytes = 100_000;
    let tables: Vec<_> = (0..100).map(|number| table(&format!("t{number}"), &["x", "y"])).collect();
    for table in &tables {
        house.checkpoint(table, Flow::Delivering);
    }
    for commit in 1..=20 {
        let changes = tables.iter().map(|table| inserts(table, commit, 0..20)).collect();
        house.log.append_without_mark(changes);
    }
    house.log.append(vec![], 100);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    for table in &tables {
        assert_eq!(delivered(&house, table).len(), 400);
    }
    assert_eq!(delivery.unaccounted(), 0);
}

#[tokio::test]
async fn a_reload_replaces_the_files_which_are_deleted_after_the_grace_period() {
    let house = House::new();
    let a = table("a", &[]);
    house.checkpoint(&a, Flow::Delivering);
    house.log.append(vec![inserts(&a, 10, 0..2)], 11);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    let old = house.files(&a);
    let load = house.publish_load(&a, 1, Position(15), 0..5).await;
    house.complete_load(&delivery, &a, Position(15), &[load]).await;
    assert_eq!(ids(&delivered(&house, &a)), [0, 1, 2, 3, 4]);
    let catalog = house.catalog.table(&CatalogName::of(&a.name)).unwrap().unwrap();
    assert_eq!((catalog.generation, catalog.rows, catalog.files), (1, 5, 1));
    assert_eq!(delivery.collect_garbage().await.unwrap(), 0);
    assert!(house.root().join(&old[0].key).exists(), "readers may still hold the old list");
    let mut impatient = house;
    impatient.options.grace = Duration::ZERO;
    // One of the same name, from when the target was another place: what lies under it here is not that one.
    let today = impatient.files(&a)[0].key.clone();
    let other = garbage_keys::Garbage { key: today.clone(), path: Some(format!("/elsewhere/{today}")), since_us: 1 };
    impatient.state.commit(&[Put::set(garbage_keys::key(&impatient.options.task, 1, &today), &other)]).unwrap();
    assert_eq!(impatient.delivery().collect_garbage().await.unwrap(), 2);
    assert_eq!(objects_below(&impatient.root()), impatient.keys_in_manifests(&[&a]));
    assert_eq!(impatient.delivery().collect_garbage().await.unwrap(), 0);
}

// trap: 42, 46
#[tokio::test]
async fn the_loop_delivers_by_interval_survives_an_outage_and_stops_when_told() {
    let mut house = House::new();
    house.options.buffer_interval = Duration::from_millis(100);
    let a = table("a", &[]);
    house.checkpoint(&a, Flow::Delivering);
    let delivery = Arc::new(house.delivery());
    let cancel = CancellationToken::new();
    let running = tokio::spawn({
        let (delivery, cancel) = (delivery.clone(), cancel.clone());
        async move { delivery.run(cancel).await }
    });
    delivery.set_paused(true);
    house.log.append(vec![inserts(&a, 10, 0..2)], 11);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(house.files(&a).len(), 0, "it is paused");
    house.target.fail_publishes_after(0);
    delivery.set_paused(false);
    eventually(|| delivery.last_error().is_some()).await;
    assert_eq!(delivery.last_error().unwrap().code, "TARGET");
    house.target.heal();
    eventually(|| house.files(&a).len() == 1).await;
    eventually(|| delivery.last_error().is_none()).await;
    assert_eq!(ids(&delivered(&house, &a)), [0, 1]);
    cancel.cancel();
    running.await.unwrap().unwrap();
}

// trap: 43
#[tokio::test]
async fn an_object_of_somebody_else_stops_delivery() {
    let house = House::new();
    let a = table("a", &[]);
    house.checkpoint(&a, Flow::Delivering);
    house.log.append(vec![inserts(&a, 10, 0..2)], 11);
    house.state.fail_commit(1, fakes::When::Before);
    assert!(house.delivery().flush().await.is_err());
    let key = house.intent().unwrap().objects[0].key.clone();
    std::fs::write(house.root().join(&key), "not ours").unwrap();
    house.state.heal();
    let error = house.delivery().run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, millrace_core::Kind::TargetConflict);
    assert_eq!(house.files(&a).len(), 0);
}

// trap: 43
#[tokio::test]
async fn a_checkpoint_that_changes_under_a_round_is_not_overwritten() {
    let house = House::new();
    let (a, b) = (table("a", &[]), table("b", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Delivering);
    house.log.append(vec![inserts(&a, 10, 0..2), inserts(&b, 10, 0..2)], 11);
    let delivery = Arc::new(house.delivery());
    let flushing = {
        let gate = delivery.gate().await;
        let flushing = tokio::spawn({
            let delivery = delivery.clone();
            async move { delivery.flush().await }
        });
        // The round publishes, and waits for the gate.
        eventually(|| objects_below(&house.root()).iter().filter(|key| key.ends_with(".parquet")).count() == 2).await;
        house.change_checkpoint(&a, Checkpoint::begin_load);
        drop(gate);
        flushing
    };
    flushing.await.unwrap().unwrap();
    let waiting = house.read_checkpoint(&a);
    assert_eq!((waiting.flow, waiting.held, waiting.through), (Flow::Waiting, 2, LogPosition(0)));
    assert_eq!((house.files(&a).len(), ids(&delivered(&house, &b))), (0, vec![0, 1]));
    assert_eq!(delivery.unaccounted(), 0);
    house.complete_load(&delivery, &a, Position(5), &[]).await;
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &a)), [0, 1]);
    assert_eq!(delivery.unaccounted(), 0);
}

#[tokio::test]
async fn a_table_that_was_given_up_may_be_loaded_again_before_the_next_round() {
    let house = House::new();
    let (a, b) = (table("a", &[]), table("b", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Waiting);
    house.log.append(vec![inserts(&a, 10, 0..1), inserts(&b, 10, 0..2)], 11);
    let delivery = house.delivery();
    delivery.flush().await.unwrap();
    house.change_checkpoint(&b, |checkpoint| checkpoint.suspend("its load failed"));
    house.delivery().known().await.unwrap();
    assert_eq!(house.log.pin(), LogPosition(0));
    house.change_checkpoint(&b, Checkpoint::begin_load);
    house.complete_load(&delivery, &b, Position(5), &[]).await;
    delivery.flush().await.unwrap();
    assert_eq!((ids(&delivered(&house, &b)), delivery.unaccounted()), (vec![0, 1], 0));
}

// trap: 45
#[tokio::test]
async fn a_stream_that_is_shorter_than_the_state_knows_is_refused() {
    let house = House::new();
    let a = table("a", &[]);
    house.checkpoint(&a, Flow::Delivering);
    house.log.append(vec![inserts(&a, 10, 0..1)], 11);
    house.log.append(vec![inserts(&a, 20, 0..1)], 21);
    house.delivery().flush().await.unwrap();
    let other = House { log: Arc::default(), ..house };
    other.log.append(vec![inserts(&a, 10, 0..1)], 11);
    assert_eq!(other.delivery().flush().await.unwrap_err().kind, millrace_core::Kind::LogLost);
}

#[tokio::test]
async fn everything_goes_through_the_real_stream_too() {
    let house = House::new();
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let options = StreamOptions {
            folder: folder.path().join("stream"),
            shards: 2,
            retention: Duration::ZERO,
            segment_bytes: 1 << 16,
            compress: true,
            disk_bytes_max: 1 << 30,
            epoch: 1,
        };
        Arc::new(Stream::open(options).unwrap())
    };
    let deliver = |stream: &Arc<Stream>| {
        let (target, state) = (house.target.clone(), house.state.clone());
        let metrics = Some(Arc::new(Metrics::default()));
        let options = house.options.clone();
        Delivery::new(options, stream.clone(), target, state, house.catalog.clone(), metrics)
    };
    let append = |stream: Arc<Stream>, items: Vec<Change>, upto: u128| async move {
        let changes = Changes { items, upto: Some(Position(upto)), ..Changes::default() };
        let captured = changes.rows() + 1;
        let filtered = [("superseded".to_string(), 1)].into();
        stream.append(Append { changes, captured, filtered }).await.unwrap();
    };
    let (a, b, c) = (table("a", &["x"]), table("b", &[]), table("c", &[]));
    house.checkpoint(&a, Flow::Delivering);
    house.checkpoint(&b, Flow::Delivering);
    house.checkpoint(&c, Flow::Waiting);
    let stream = open();
    let wide = table("a", &["x", "y"]);
    let evolved = Change::Ddl(Ddl::Evolved { table: wide.clone(), order: Order { commit: 20, ordinal: 0 } });
    let truncate = Change::Truncate { tables: vec![b.name.clone()], order: Order { commit: 30, ordinal: 1 } };
    append(stream.clone(), vec![inserts(&a, 10, 0..3000), inserts(&b, 10, 0..2), inserts(&c, 10, 0..5)], 11).await;
    append(stream.clone(), vec![evolved, rows(&wide, 20, &[(Op::Delete, 1)])], 21).await;
    append(stream.clone(), vec![Change::Rejected(vec![reject(&a, 25, 7), reject(&c, 25, 7)])], 26).await;
    append(stream.clone(), vec![inserts(&b, 30, 2..3), truncate, inserts(&b, 30, 3..4)], 31).await;
    let delivery = deliver(&stream);
    house.state.fail_commit(1, fakes::When::Before);
    delivery.flush().await.unwrap_err();
    house.state.heal();
    drop((delivery, stream));

    let stream = open();
    let delivery = deliver(&stream);
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &a)), (0..3000).chain([1]).collect::<Vec<_>>());
    assert_eq!(ids(&delivered(&house, &b)), [3], "what came before the truncate is gone");
    assert_eq!(house.read_checkpoint(&c).held, 6);
    assert_eq!(delivery.unaccounted(), 0);
    assert_eq!(delivery.buffered_bytes().await.unwrap(), 0);
    house.complete_load(&delivery, &c, Position(5), &[]).await;
    delivery.flush().await.unwrap();
    assert_eq!(ids(&delivered(&house, &c)), [0, 1, 2, 3, 4]);
    assert_eq!(delivery.unaccounted(), 0);
    assert_eq!(objects_below(&house.root()), house.keys_in_manifests(&[&a, &b, &c]));
}

async fn eventually(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "it did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl House {
    async fn complete_load(&self, delivery: &Delivery, table: &Arc<Table>, start: Position, files: &[DataFile]) {
        let _gate = delivery.gate().await;
        let mut checkpoint = self.read_checkpoint(table);
        let rows = files.iter().map(|file| file.rows).sum();
        checkpoint.finish_load(start, rows, 0, checkpoint.next_load_file + 1);
        let mut puts = vec![Put::set(checkpoint::key("t", &table.name), &checkpoint)];
        let complete = (start, checkpoint.through);
        self.catalog.replace_files(&mut puts, "t", table, "lake/public", files, complete).unwrap();
        self.state.commit(&puts).unwrap();
    }

    async fn publish_load(&self, table: &Arc<Table>, number: u32, at: Position, ids: std::ops::Range<i64>) -> DataFile {
        let mut columns = Columns::new(table.columns.iter().map(|column| &column.ty));
        for id in ids {
            (0..table.columns.len()).for_each(|column| columns.column_mut(column).push_i64(id));
            columns.end_row();
        }
        let spec = file_schema::object_spec(
            table,
            &Default::default(),
            layout::load_key(&table.name, number),
            Default::default(),
        );
        let batch = file_schema::LoadedRows::new(at).batch(&spec.schema, columns).unwrap();
        let mut writer = self.target.stage(spec).unwrap();
        writer.write(&batch).unwrap();
        let published = self.target.publish(writer.finish().unwrap()).await.unwrap();
        let (key, path, rows, bytes) = (published.key, published.location, published.rows, published.bytes);
        DataFile { key, path, rows, bytes, kind: FileKind::Load }
    }

    fn intent(&self) -> Option<intent::Intent> {
        read(&*self.state, &intent::key("t")).unwrap()
    }
}

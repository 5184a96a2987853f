//! A crash between any two steps of any round, and a second one while the first is mended: nothing lost, nothing twice.

use std::sync::Arc;

use millrace_core::{Change, Op, Order, Table};
use proptest::prelude::*;

use super::{
    fakes::{Fault, When},
    reading::exact_values,
    *,
};
use crate::simulation::simulate;

/// Three tables; `c` waits for a load, `b` is truncated before the last transaction, some rows of `a` have values beside
/// their columns.
fn workload(house: &House) -> Vec<Arc<Table>> {
    let tables = vec![table("a", &["x"]), table("b", &[]), table("c", &[])];
    house.checkpoint(&tables[0], Flow::Delivering);
    house.checkpoint(&tables[1], Flow::Delivering);
    house.checkpoint(&tables[2], Flow::Waiting);
    let [a, b, c] = &tables[..] else { unreachable!() };
    for commit in 1..=6u128 {
        let id = commit as i64 * 10;
        let of_a =
            if matches!(commit, 3 | 5) { exact_inserts(a, commit, id..id + 3) } else { inserts(a, commit, id..id + 3) };
        let mut changes = vec![of_a, inserts(c, commit, id..id + 2)];
        changes.push(rows(b, commit, &[(Op::Insert, id), (Op::Update, id), (Op::Delete, id)]));
        if commit == 3 {
            changes.push(Change::Rejected(vec![reject(a, commit, 99)]));
        }
        if commit == 5 {
            let order = Order { commit, ordinal: 9 };
            changes.push(Change::Truncate { tables: vec![b.name.clone()], order });
        }
        house.log.append(changes, commit + 1);
    }
    tables
}

/// What must be there in the end, whatever happened in between.
fn verify(house: &House, tables: &[Arc<Table>], delivery: &Delivery) {
    let [a, b, c] = tables else { unreachable!() };
    let expected_a: Vec<i64> = (1..=6).flat_map(|commit| commit * 10..commit * 10 + 3).collect();
    assert_eq!(ids(&delivered(house, a)), expected_a);
    let exact: Vec<(i64, String)> =
        [30, 50].iter().flat_map(|id| *id..id + 3).map(|id| (id, format!("~{id}"))).collect();
    assert_eq!(exact_values(house, a, "x__exact"), exact);
    let names: Vec<String> = house.columns(a);
    assert_eq!(names, ["Op", "id", "x", "x__exact", "commit_timestamp", "change_order"]);
    let expected_b = [("I", 1), ("U", 2), ("D", 3)].map(|(op, ordinal)| Row::new(op, 60, 6, ordinal));
    assert_eq!(delivered(house, b), expected_b, "what came before the truncate is gone");
    assert_eq!(house.read_checkpoint(b).flow, Flow::Delivering);
    assert_eq!(house.read_checkpoint(c).held, 12);
    let letters = house.catalog.dead_letters(&CatalogName::of(&a.name)).unwrap();
    assert_eq!(letters.iter().map(|file| file.rows).sum::<u64>(), 1);
    let mut known = [house.keys_in_manifests(&[a, b, c]), house.keys_in_garbage()].concat();
    known.sort();
    assert_eq!(objects_below(&house.root()), known, "no object stands outside");
    assert_eq!(delivery.unaccounted(), 0);
    assert!(house.intent().is_none());
}

fn fault() -> impl Strategy<Value = Fault> {
    let when = || prop_oneof![Just(When::Before), Just(When::After)];
    prop_oneof![
        (0..12i64, when()).prop_map(|(count, when)| Fault::Publish(count, when)),
        (0..12i64, when()).prop_map(|(count, when)| Fault::Commit(count, when)),
    ]
}

// trap: 6, 42, 43 (crash)
#[tokio::test]
async fn every_single_crash_point_of_one_round() {
    for count in 0..5 {
        for when in [When::Before, When::After] {
            for fault in [Fault::Publish(count, when), Fault::Commit(count, when)] {
                let house = House::new();
                let tables = workload(&house);
                house.inject(fault);
                let failed = house.delivery().flush().await;
                let points = if matches!(fault, Fault::Publish(..)) { 3 } else { 2 };
                assert_eq!(failed.is_err(), count < points, "{fault:?}: a round has {points} such points");
                house.heal();
                let delivery = house.delivery();
                delivery.flush().await.unwrap();
                verify(&house, &tables, &delivery);
            }
        }
    }
}

// trap: 6, 43 (crash)
#[tokio::test]
async fn an_interrupted_round_comes_to_the_same_objects() {
    let house = House::new();
    let tables = workload(&house);
    house.state.fail_commit(1, When::Before);
    house.delivery().flush().await.unwrap_err();
    let intent = house.intent().unwrap();
    let published = objects_below(&house.root());
    assert_eq!(published.len(), 3);
    // More arrives, and every setting that decides about sizes changes: the round stays the same.
    house.log.append(vec![inserts(&tables[0], 100, 1000..1001)], 101);
    let mut later = house;
    (later.options.buffer_bytes, later.options.memory_bytes) = (1, 1);
    later.state.heal();
    // The crash came after the first object.
    for key in &published[1..] {
        std::fs::remove_file(later.root().join(key)).unwrap();
    }
    let delivery = later.delivery();
    delivery.round().await.unwrap();
    assert_eq!(later.keys_in_manifests(&[&tables[0], &tables[1]]), published);
    assert_eq!(objects_below(&later.root()), published);
    assert_eq!((delivered(&later, &tables[0]).len(), delivered(&later, &tables[1]).len()), (18, 3));
    assert_eq!(later.read_checkpoint(&tables[0]).through, intent.to);
    delivery.flush().await.unwrap();
    assert_eq!(delivered(&later, &tables[0]).last().unwrap().id, 1000);
    assert_eq!(delivery.unaccounted(), 0);
}

// trap: 41, 43 (crash)
#[tokio::test]
async fn a_table_that_was_reloaded_meanwhile_leaves_the_interrupted_round() {
    let house = House::new();
    let tables = workload(&house);
    house.state.fail_commit(1, When::Before);
    house.delivery().flush().await.unwrap_err();
    house.state.heal();
    let orphan = house.intent().unwrap().objects.iter().find(|o| o.key.starts_with("public/a/")).unwrap().key.clone();
    let delivery = house.delivery();
    {
        let _gate = delivery.gate().await;
        house.change_checkpoint(&tables[0], Checkpoint::begin_load);
    }
    let load = house.publish_load(&tables[0], 1, Position(4), 0..4).await;
    house.complete_load(&delivery, &tables[0], Position(4), &[load]).await;
    delivery.flush().await.unwrap();
    let expected: Vec<i64> = (0..4).chain((4..=6).flat_map(|commit| commit * 10..commit * 10 + 3)).collect();
    assert_eq!(ids(&delivered(&house, &tables[0])), expected, "the load, and what committed behind it");
    assert_eq!(delivered(&house, &tables[1]).len(), 3);
    assert_eq!(delivery.unaccounted(), 0);
    assert!(!house.keys_in_manifests(&[&tables[0]]).contains(&orphan));
    let mut impatient = house;
    impatient.options.grace = Duration::ZERO;
    impatient.delivery().collect_garbage().await.unwrap();
    assert_eq!(
        objects_below(&impatient.root()),
        impatient.keys_in_manifests(&[&tables[0], &tables[1], &tables[2]]),
        "what it had published is gone"
    );
}

// trap: 6, 42 (crash)
#[test]
fn crashes_anywhere_lose_nothing() {
    let buffer_bytes = prop_oneof![Just(1u64), Just(100), Just(1 << 20)];
    let memory_bytes = prop_oneof![Just(1u64), Just(1 << 20)];
    let cases = (proptest::collection::vec(fault(), 1..4), buffer_bytes, memory_bytes);
    simulate(48, cases, |(faults, buffer_bytes, memory_bytes)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut house = House::new();
            (house.options.buffer_bytes, house.options.memory_bytes) = (buffer_bytes, memory_bytes);
            let tables = workload(&house);
            for fault in faults {
                house.inject(fault);
                let _ = house.delivery().flush().await;
                house.heal();
            }
            let delivery = house.delivery();
            delivery.flush().await.unwrap();
            verify(&house, &tables, &delivery);
        });
        Ok(())
    });
}

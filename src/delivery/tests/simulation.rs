//! Delivery as a state machine: rounds that are cut off at any publish or commit, replies that are lost, uploads that
//! arrive long after whoever sent them is dead, and garbage that is collected in between.
//!
//! What holds after every step: the catalog holds each row up to the checkpoint exactly once and nothing else, every
//! object that is listed is there, every object that is there is listed, garbage, or of the round that an intent names.

use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};

use super::{
    fakes::{Fault, When},
    *,
};
use crate::simulation::simulate;

#[derive(Debug, Clone)]
enum Step {
    /// So many rows for each table, one rejected row, a truncate.
    Append([i64; 2], bool, bool),
    /// Everything up to the last mark, by a new process, with what goes wrong.
    Deliver(Option<Fault>),
    /// Late uploads arrive.
    Arrive,
    /// As if the grace period were over.
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let when = || prop_oneof![Just(When::Before), Just(When::After), Just(When::Late)];
    let fault = prop_oneof![
        (0..5i64, when()).prop_map(|(count, when)| Fault::Publish(count, when)),
        (0..4i64, any::<bool>())
            .prop_map(|(count, after)| Fault::Commit(count, if after { When::After } else { When::Before })),
    ];
    prop_oneof![
        4 => ([0..4i64, 0..4i64], prop::bool::weighted(0.2), prop::bool::weighted(0.15))
            .prop_map(|(rows, rejects, truncates)| Step::Append(rows, rejects, truncates)),
        4 => prop::option::weighted(0.7, fault).prop_map(Step::Deliver),
        1 => Just(Step::Arrive),
        1 => Just(Step::Collect),
    ]
}

/// What the catalog must show up to a mark.
#[derive(Debug, Clone, Default, PartialEq)]
struct Shown {
    rows: [Vec<i64>; 2],
    rejects: u64,
}

struct Simulation {
    house: House,
    tables: [Arc<Table>; 2],
    now: Shown,
    marks: Vec<(LogPosition, Shown)>,
    commit: u128,
}

impl Simulation {
    fn new(buffer_bytes: u64, memory_bytes: u64) -> Self {
        let mut house = House::new();
        (house.options.buffer_bytes, house.options.memory_bytes) = (buffer_bytes, memory_bytes);
        let tables = [table("a", &["x"]), table("b", &[])];
        tables.iter().for_each(|table| house.checkpoint(table, Flow::Delivering));
        let marks = vec![(LogPosition(0), Shown::default())];
        Self { house, tables, now: Shown::default(), marks, commit: 1 }
    }

    async fn step(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Append(rows, rejects, truncates) => self.append(rows, rejects, truncates),
            Step::Deliver(fault) => {
                if let Some(fault) = fault {
                    self.house.inject(fault);
                }
                let done = self.house.delivery().flush().await;
                prop_assert!(done.is_ok() || fault.is_some(), "{:?}", done);
                self.house.heal();
            }
            Step::Arrive => self.house.target.arrive(),
            Step::Collect => self.collect().await,
        }
        self.verify()
    }

    fn append(&mut self, rows: [i64; 2], rejects: bool, truncates: bool) {
        let commit = self.commit;
        self.commit += 1;
        let first = commit as i64 * 100;
        let mut changes = vec![];
        for (index, count) in rows.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            changes.push(inserts(&self.tables[index], commit, first..first + count));
            self.now.rows[index].extend(first..first + count);
        }
        if rejects {
            changes.push(Change::Rejected(vec![reject(&self.tables[0], commit, first)]));
            self.now.rejects += 1;
        }
        if truncates {
            let order = Order { commit, ordinal: 9 };
            changes.push(Change::Truncate { tables: vec![self.tables[1].name.clone()], order });
            self.now.rows[1].clear();
        }
        self.house.log.append(changes, commit + 1);
        self.marks.push((self.house.log.last_mark().unwrap().at, self.now.clone()));
    }

    async fn collect(&mut self) {
        // No upload takes longer than the grace period: one that arrived behind it would stay, listed nowhere.
        self.house.target.arrive();
        let grace = std::mem::replace(&mut self.house.options.grace, Duration::ZERO);
        self.house.delivery().collect_garbage().await.unwrap();
        self.house.options.grace = grace;
    }

    fn verify(&self) -> TestCaseResult {
        let house = &self.house;
        let [a, b] = &self.tables;
        let through = house.read_checkpoint(a).through;
        prop_assert_eq!(house.read_checkpoint(b).through, through);
        let (_, shown) = self.marks.iter().find(|(at, _)| *at == through).unwrap();
        prop_assert_eq!(&ids(&delivered(house, a)), &shown.rows[0]);
        prop_assert_eq!(&ids(&delivered(house, b)), &shown.rows[1]);
        let letters = house.catalog.dead_letters(&CatalogName::of(&a.name)).unwrap();
        prop_assert_eq!(letters.iter().map(|file| file.rows).sum::<u64>(), shown.rejects);

        let planned = house.intent().map(|intent| intent.objects).unwrap_or_default();
        let listed = house.keys_in_manifests(&[a, b]);
        let garbage = house.keys_in_garbage();
        let there = objects_below(&house.root());
        for key in &listed {
            prop_assert!(there.contains(key), "{} is listed and not there", key);
        }
        for key in there.iter().filter(|key| !key.starts_with("_staging/")) {
            let is_known = listed.contains(key) || garbage.contains(key) || planned.iter().any(|o| o.key == *key);
            prop_assert!(is_known, "{} is an orphan", key);
        }
        Ok(())
    }

    /// A process that nothing disturbs puts everything right.
    async fn end(mut self) -> TestCaseResult {
        self.house.target.arrive();
        let delivery = self.house.delivery();
        delivery.flush().await.unwrap();
        prop_assert_eq!(delivery.unaccounted(), 0);
        prop_assert!(self.house.intent().is_none());
        prop_assert_eq!(self.house.read_checkpoint(&self.tables[0]).through, self.marks.last().unwrap().0);
        self.verify()?;
        self.collect().await;
        let listed = self.house.keys_in_manifests(&[&self.tables[0], &self.tables[1]]);
        prop_assert_eq!(objects_below(&self.house.root()), listed);
        Ok(())
    }
}

#[test]
fn the_catalog_holds_each_row_once_wherever_rounds_are_cut_off() {
    let sizes = || prop_oneof![Just(1u64), Just(40), Just(1 << 20)];
    simulate(40, (sizes(), sizes(), vec(step(), 1..20)), |(buffer_bytes, memory_bytes, steps)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut simulation = Simulation::new(buffer_bytes, memory_bytes);
            for step in steps {
                simulation.step(step).await?;
            }
            simulation.end().await
        })
    });
}

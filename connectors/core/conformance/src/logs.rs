//! The log: everything, once, in order, from any mark on.

use std::time::{Duration, Instant};

use millrace_core::{Durable, Op, source::Budget};

use super::{Database, Write, named, reading::Reading};

pub async fn everything_is_told(database: &dyn Database) {
    for (table, keyed) in [("told", true), ("told_too", true), ("told_keyless", false), ("untold", true)] {
        database.make(table, keyed).await;
    }
    let tables = ["told", "told_too", "told_keyless"];
    let mut reading = Reading::begin(database, "telling", &tables).await;
    let long = "länger als ein Wort; ".repeat(10_000);
    database.commit(&[Write::Insert("told", 1, Some("one")), Write::Insert("told_too", 1, None)]).await;
    database.commit(&[Write::Insert("untold", 1, None)]).await;
    database
        .commit(&[
            Write::Update("told", 1, Some(&long)),
            Write::Insert("told", 2, Some("")),
            Write::Insert("told_keyless", 7, Some("twice")),
            Write::Insert("told_keyless", 7, Some("twice")),
            Write::Delete("told", 2),
            Write::Insert("told", 2, None),
            Write::Move("told_too", 1, 5),
        ])
        .await;
    database.commit(&[Write::Fill("told_too", 100, 5_000, 100)]).await;
    database.commit(&[Write::Delete("told", 1), Write::Insert("told", 99_999, None)]).await;
    reading.read_until(99_999).await;

    let at = reading.at();
    for table in ["told", "told_too"] {
        let rows = reading.rows_at(&named(database, table), at);
        assert!(rows == database.rows(table).await, "{table} is another one in the log");
    }
    let of = |table: &str| -> Vec<_> {
        let told = reading.told.iter().filter(|told| told.table == named(database, table));
        told.map(|told| (told.op, told.id, told.text.clone())).collect()
    };
    let twice = (Op::Insert, 7, Some("twice".to_string()));
    assert_eq!(of("told_keyless"), [twice.clone(), twice]);
    let update = of("told").into_iter().find(|(op, ..)| *op == Op::Update);
    assert_eq!(update, Some((Op::Update, 1, Some(long))), "a long text");
    let moved: Vec<(Op, i64)> = of("told_too").iter().skip(1).take(2).map(|(op, id, _)| (*op, *id)).collect();
    assert_eq!(moved, [(Op::Delete, 1), (Op::Insert, 5)], "a row that got another key");
    let first = |table: &str| reading.told.iter().find(|told| told.table.name == table).map(|told| told.order.commit);
    assert_eq!(first("told"), first("told_too"), "one transaction, one commit");
    let inside: Vec<u32> = reading.told.iter().filter(|told| told.id == 7).map(|told| told.order.ordinal).collect();
    assert_eq!(inside, [3, 4], "ordinals count the changes of a transaction in all tables");
}

pub async fn a_log_is_taken_up_again(database: &dyn Database) {
    database.make("resumed", true).await;
    let task = "resuming";
    let mut reading = Reading::begin(database, task, &["resumed"]).await;
    for n in 1..=8_i64 {
        database.commit(&[Write::Insert("resumed", n, None), Write::Insert("resumed", 100 + n, Some("x"))]).await;
        reading.read_until(100 + n).await;
    }
    assert!(reading.marks.len() > 4, "transactions that came one by one gave {} marks", reading.marks.len());
    let whole = reading.told.clone();
    // A log that is taken up at a mark says that what is before it is durable, so they rise.
    let mut mark = 0;
    while mark < reading.marks.len() - 1 {
        reading.take_up(database, task, mark).await;
        for id in 1..=8 {
            reading.read_until(100 + id).await;
        }
        assert_eq!(reading.told, whole, "taken up at mark {mark}");
        mark += 1;
    }
    // What was confirmed is not asked for again, and everything behind it is there.
    reading.log.confirm(Durable::from_fsync(reading.marks[mark].position)).await.unwrap();
    reading.take_up(database, task, mark).await;
    reading.read_until(108).await;
    assert_eq!(reading.told, whole, "taken up behind what was confirmed");
    // Half of a transaction was handed out when the process died.
    database.commit(&[Write::Fill("resumed", 1_000, 20_000, 200)]).await;
    let mark = reading.marks.len() - 1;
    reading.pull(Budget { rows: 100, bytes: 10_000, wait: Duration::from_secs(5) }).await;
    reading.take_up(database, task, mark).await;
    reading.read_until(20_999).await;
    let rows = reading.rows_at(&named(database, "resumed"), reading.at());
    assert!(rows == database.rows("resumed").await, "rows were lost or doubled");
}

/// What a cancelled pull had taken comes with the next one.
pub async fn a_pull_may_be_cancelled(database: &dyn Database) {
    database.make("cancelled", true).await;
    let mut reading = Reading::begin(database, "cancelling", &["cancelled"]).await;
    let writer = async {
        for n in 1..=200_i64 {
            database.commit(&[Write::Fill("cancelled", n * 100, 40, 100)]).await;
        }
        database.commit(&[Write::Insert("cancelled", 1, None)]).await;
    };
    let reader = async {
        let began = Instant::now();
        let mut cancelled = 0;
        while reading.told.iter().all(|told| told.id != 1) {
            assert!(began.elapsed() < Duration::from_secs(60), "the end does not come");
            let budget = Budget { rows: 10_000, bytes: 1 << 20, wait: Duration::from_millis(50) };
            let patience = Duration::from_micros(50 + cancelled % 7 * 300);
            match tokio::time::timeout(patience, reading.log.pull(budget)).await {
                Ok(changes) => reading.take(changes.unwrap()),
                Err(_) => cancelled += 1,
            }
        }
        cancelled
    };
    let (cancelled, ()) = tokio::join!(reader, writer);
    assert!(cancelled > 0, "no pull was cancelled");
    let rows = reading.rows_at(&named(database, "cancelled"), reading.at());
    assert!(rows == database.rows("cancelled").await, "rows were lost or doubled");
}

pub async fn a_pull_keeps_to_its_budget(database: &dyn Database) {
    database.make("budgeted", true).await;
    let mut reading = Reading::begin(database, "budgeting", &["budgeted"]).await;
    let wait = Duration::from_millis(300);
    // Whatever the server has to say of itself has been said.
    let nothing = Budget { rows: 100, bytes: 1 << 20, wait };
    reading.pull(nothing).await;
    let began = Instant::now();
    assert_eq!(reading.pull(nothing).await, 0);
    assert!(began.elapsed() < wait + Duration::from_secs(2), "a pull of nothing took {:?}", began.elapsed());

    for n in 0..100 {
        database.commit(&[Write::Fill("budgeted", n * 1_000, 100, 500)]).await;
    }
    let mut most = 0;
    while reading.told.len() < 10_000 {
        let pulled = reading.pull(Budget { rows: 200, bytes: 1 << 20, wait: Duration::from_secs(5) }).await;
        assert!(pulled > 0, "nothing came, though there is more");
        most = most.max(pulled);
    }
    assert!(most <= 2_000, "a pull of about 200 rows brought {most}");
    // A change that comes while a pull waits is handed out at once.
    let writer = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        database.commit(&[Write::Insert("budgeted", -1, None)]).await;
    };
    let began = Instant::now();
    let ((), ()) = tokio::join!(writer, async {
        while reading.told.iter().all(|told| told.id != -1) {
            reading.pull(Budget { rows: 200, bytes: 1 << 20, wait: Duration::from_secs(30) }).await;
        }
    });
    assert!(began.elapsed() < Duration::from_secs(10), "a change was handed out after {:?}", began.elapsed());
}

pub async fn tables_leave_and_join(database: &dyn Database) {
    for table in ["stays", "leaves", "joins"] {
        database.make(table, true).await;
    }
    let mut reading = Reading::begin(database, "joining", &["stays", "leaves"]).await;
    reading.log.remove_table(&named(database, "leaves"));
    let joining = reading.source.tables(&super::selection(database, &["joins"])).await.unwrap().remove(0);
    let joining = std::sync::Arc::new(joining);
    reading.tables.push(joining.clone());
    reading.source.prepare(&reading.tables).await.unwrap();
    // As for a load: it is taken from where its snapshot is.
    reading.log.add_table(joining.clone(), None);
    let position = {
        let snapshot = reading.source.snapshot(std::slice::from_ref(&joining.name), true).await.unwrap();
        let load = snapshot.open(&joining.name, 1, None).await.unwrap();
        reading.log.add_table(load.table().clone(), Some(snapshot.position()));
        reading.log.settle_table(load.table().clone());
        snapshot.position()
    };
    reading.read_past(position).await;
    let all = ["leaves", "joins", "stays"].map(|table| Write::Insert(table, 5, None));
    database.commit(&all).await;
    database.commit(&[Write::Insert("stays", 6, None)]).await;
    reading.read_until(6).await;
    let told: Vec<(&str, i64)> = reading.told.iter().map(|told| (told.table.name.as_str(), told.id)).collect();
    assert!(told.contains(&("joins", 5)) && told.contains(&("stays", 5)), "{told:?}");
    assert!(told.iter().all(|(table, _)| *table != "leaves"), "a table that left is told: {told:?}");
}

//! Full load against a real server: segments, resumed plans, rewrites in between, and the exactness of the position.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_core::{
    Capture, Columns, Kind, Selection, Table, TableName, TablePattern, Unfit, ValueRules,
    source::{Source, TableLoad},
};
use millrace_postgres::{Options, PostgresConfig, PostgresSource, lookup, waiting, wire};

#[allow(dead_code)]
#[path = "../src/test_server.rs"]
mod test_server;
use test_server::TestServer;

/// Ids of the rows of one segment.
async fn ids(load: &dyn TableLoad, segment: usize) -> Vec<i64> {
    let mut rows = load.rows(segment).await.unwrap();
    let mut ids = vec![];
    while let Some(batch) = rows.next().await.unwrap() {
        assert!(batch.rejects.is_empty() && batch.wire_bytes > 0 && batch.columns.rows() <= 65_536);
        let column = &batch.columns.columns()[0];
        ids.extend((0..batch.columns.rows()).map(|row| column.cell_text(row).unwrap().parse::<i64>().unwrap()));
    }
    ids
}

fn selection(patterns: &[&str]) -> Selection {
    let include = patterns.iter().map(|pattern| TablePattern::parse(pattern).unwrap()).collect();
    Selection { include, exclude: vec![] }
}

fn source(server: &TestServer, task: &str) -> PostgresSource {
    PostgresSource::new(server.config("postgres"), task, Options::default())
}

// trap: 24, 40 (crash)
#[tokio::test]
async fn segments_cover_the_table_and_plans_are_taken_up_again() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    let fill = "insert into big select g, repeat('x', 300) from generate_series(1, 60000) g";
    session.execute(&format!("create table big (id bigint primary key, filler text); {fill}")).await.unwrap();
    session.execute("create table keyless as select * from big").await.unwrap();
    session.execute("create table empty (id bigint primary key)").await.unwrap();
    let name = TableName::new("public", "big");
    let names = [name.clone(), TableName::new("public", "keyless"), TableName::new("public", "empty")];
    let source = source(&server, "load");
    let snapshot = source.snapshot(&names, true).await.unwrap();

    // Nothing of the snapshot is a slot any more, and what is written now is not in it.
    let slots = "select count(*) from pg_replication_slots";
    for _ in 0..50 {
        if session.query(slots).await.unwrap()[0][0].as_deref() == Some("0") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(session.query(slots).await.unwrap()[0][0].as_deref(), Some("0"));
    session.execute("insert into big values (100000); update big set filler = 'y' where id <= 1000").await.unwrap();

    let load = snapshot.open(&name, 2, None).await.unwrap();
    assert_eq!((load.plan().segments.len(), load.resumed()), (2, false));
    let (first, second) = tokio::join!(ids(&*load, 0), ids(&*load, 1));
    assert!(first.len() > 20_000 && second.len() > 20_000);
    let all: BTreeSet<i64> = first.iter().chain(&second).copied().collect();
    assert_eq!((all.len(), first.len() + second.len(), all.last()), (60_000, 60_000, Some(&60_000)));

    let empty = snapshot.open(&names[2], 4, None).await.unwrap();
    assert_eq!((empty.plan().segments.len(), ids(&*empty, 0).await), (1, vec![]));

    // A later snapshot takes the plan up where every change is captured, and only there.
    let plan = load.plan().clone();
    drop((load, snapshot));
    let later = source.snapshot(&names, true).await.unwrap();
    let resumed = later.open(&name, 7, Some(&plan)).await.unwrap();
    assert!(resumed.resumed() && resumed.plan() == &plan);
    let keyless = later.open(&names[1], 2, None).await.unwrap().plan().clone();
    assert!(!later.open(&names[1], 2, Some(&keyless)).await.unwrap().resumed());
    let inexact = source.snapshot(&names, false).await.unwrap();
    assert!(!inexact.open(&name, 2, Some(&plan)).await.unwrap().resumed(), "without a log, moved rows would be lost");
    session
        .execute("begin; set local lock_timeout = '100ms'; drop table big")
        .await
        .expect_err("the load holds a lock");
    session.execute("rollback").await.unwrap();
}

// trap: 24
#[tokio::test]
async fn a_partitioned_table_is_loaded_partition_by_partition() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    let make = "create table root (id bigint, at int, filler text, primary key (id, at)) partition by list (at); \
                create table large partition of root for values in (1); \
                create table nested partition of root for values in (2, 3) partition by list (at); \
                create table odd (filler text, at int not null, id bigint not null); \
                alter table nested attach partition odd for values in (2); \
                create table hollow partition of nested for values in (3); \
                insert into root select g, 1, repeat('x', 300) from generate_series(1, 60000) g; \
                insert into root select g, 2, 'y' from generate_series(60001, 60100) g";
    session.execute(make).await.unwrap();
    let name = TableName::new("public", "root");
    let source = source(&server, "root");
    let found = source.tables(&selection(&["public.*"])).await.unwrap();
    assert_eq!(found.iter().map(|table| &table.name).collect::<Vec<_>>(), [&name], "its partitions are no tables");
    assert_eq!(found[0].parts.as_ref().map(Vec::len), Some(3));
    let alone = source.tables(&selection(&["public.large", "public.o*"])).await.unwrap();
    assert!(alone.iter().all(|table| table.parts.is_none()) && alone.len() == 2);

    let snapshot = source.snapshot(std::slice::from_ref(&name), true).await.unwrap();
    let load = snapshot.open(&name, 2, None).await.unwrap();
    let plan = load.plan().clone();
    assert_eq!(plan.segments.len(), 4, "two of the large one, and one of each other: {plan:?}");
    let mut all = vec![];
    for segment in 0..plan.segments.len() {
        all.extend(ids(&*load, segment).await);
    }
    all.sort_unstable();
    assert_eq!(all, (1..=60_100).collect::<Vec<i64>>());
    session.execute("set lock_timeout = '100ms'").await.unwrap();
    session.execute("truncate odd").await.expect_err("the load holds a lock on the partitions");
    let new = "create table early partition of root for values in (9); insert into root values (1, 9, '')";
    session.execute(new).await.expect("a partition can be made while the others are loaded");
    drop((load, snapshot));

    // What comes, goes or is rewritten between the snapshot and the lock makes the snapshot useless.
    for change in ["truncate hollow", "create table more partition of root for values in (4)", "drop table more"] {
        let snapshot = source.snapshot(std::slice::from_ref(&name), true).await.unwrap();
        session.execute(change).await.unwrap();
        let opened = snapshot.open(&name, 2, None).await;
        assert_eq!(opened.err().map(|error| error.kind), Some(Kind::SnapshotStale), "{change}");
    }
    let snapshot = source.snapshot(std::slice::from_ref(&name), true).await.unwrap();
    assert!(!snapshot.open(&name, 2, Some(&plan)).await.unwrap().resumed(), "a partition was truncated since");

    let table = &found[0];
    let mut keys = Columns::new(table.key.iter().map(|&key| &table.columns[key].ty));
    keys.column_mut(0).push_i64(60_007);
    keys.column_mut(1).push_i32(2);
    keys.end_row();
    let read = source.lookup(table, &keys, &[2]).await.unwrap();
    assert_eq!((read.found, read.columns.columns()[0].cell_text(0).as_deref()), (vec![0], Some("y")));
}

#[tokio::test]
async fn a_rewrite_between_snapshot_and_lock_is_noticed() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    let names: Vec<TableName> =
        ["rewritten", "altered", "dropped", "remade", "quiet"].map(|name| TableName::new("public", name)).to_vec();
    for name in &names {
        let make =
            format!("create table {name} (id bigint primary key, v int); insert into {name} values (1, 1), (2, 2)");
        session.execute(&make).await.unwrap();
    }
    let snapshot = source(&server, "rewrite").snapshot(&names, true).await.unwrap();
    session.execute("vacuum full rewritten").await.unwrap();
    session.execute("alter table altered rename column v to w").await.unwrap();
    session.execute("drop table dropped; drop table remade").await.unwrap();
    session.execute("create table remade (id bigint primary key, v int)").await.unwrap();
    session.execute("insert into quiet values (3, 3)").await.unwrap();
    let mut kinds = BTreeMap::new();
    for name in &names {
        let opened = snapshot.open(name, 1, None).await;
        kinds.insert(name.name.as_str(), opened.err().map(|error| error.kind));
    }
    let expected = [
        ("altered", Some(Kind::SnapshotStale)),
        ("dropped", Some(Kind::TableMissing)),
        ("quiet", None),
        ("remade", Some(Kind::SnapshotStale)),
        ("rewritten", Some(Kind::SnapshotStale)),
    ];
    assert_eq!(kinds, BTreeMap::from(expected));
}

/// Somebody ends the session that holds the lock, and the table is rewritten before the next segment.
// trap: 24
#[tokio::test]
async fn a_rewrite_after_the_lock_was_lost_is_noticed() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    session
        .execute("create table t (id bigint primary key); insert into t select generate_series(1, 1000)")
        .await
        .unwrap();
    let name = TableName::new("public", "t");
    let snapshot = source(&server, "lost").snapshot(std::slice::from_ref(&name), true).await.unwrap();
    let load = snapshot.open(&name, 1, None).await.unwrap();
    assert_eq!(ids(&*load, 0).await.len(), 1_000);
    let locks =
        "select pg_terminate_backend(pid) from pg_locks where relation = 't'::regclass and pid <> pg_backend_pid()";
    session.execute(locks).await.unwrap();
    session.execute("vacuum full t").await.unwrap();
    let kind = load.rows(0).await.err().map(|error| error.kind);
    assert_eq!(kind, Some(Kind::SnapshotStale));
}

/// A commit that waits for a synchronous standby is in the log and not yet visible. Its row must be in the snapshot with
/// a commit below the position, or come by the log with one at or above it.
// trap: 24
#[tokio::test]
async fn a_commit_that_waits_for_a_standby_is_not_lost() {
    let Some(server) = TestServer::start(&["synchronous_standby_names='nobody'", "synchronous_commit=local"]) else {
        return;
    };
    let mut session = server.session().await;
    session.execute("create table t (id bigint primary key)").await.unwrap();
    let source = source(&server, "sync");
    let name = TableName::new("public", "t");
    let tables = source.tables(&selection(&["public.t"])).await.unwrap();
    let tables: Vec<Arc<Table>> = tables.into_iter().map(Arc::new).collect();
    source.prepare(&tables).await.unwrap();
    source.create_log().await.unwrap();
    let mut waiting = server.session().await;
    let pid = waiting.process_id();
    let held = tokio::spawn(async move {
        waiting.execute("set synchronous_commit = on").await.unwrap();
        waiting.execute("insert into t values (1)").await
    });
    let waits = format!("select wait_event from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep'");
    while session.query(&waits).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(session.query("select count(*) from t").await.unwrap()[0][0].as_deref(), Some("0"), "it is not visible");

    // The new slot waits for the transaction, which is over as soon as somebody gives up waiting for the standby.
    let config = server.config("postgres");
    let taken = tokio::spawn(async move { (source.snapshot(std::slice::from_ref(&name), true).await.unwrap(), name) });
    let creating = "select pid from pg_stat_activity where application_name = 'millrace snapshot' and \
                    wait_event_type = 'Lock'";
    let walsender = loop {
        match session.query(creating).await.unwrap().pop() {
            Some(row) => break row[0].as_deref().unwrap().parse().unwrap(),
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(waiting::blockers(&config, walsender).await.unwrap(), pid.to_string());
    session.execute(&format!("select pg_cancel_backend({pid})")).await.unwrap();
    held.await.unwrap().unwrap();
    let (snapshot, name) = taken.await.unwrap();
    let load = snapshot.open(&name, 1, None).await.unwrap();
    let seen = ids(&*load, 0).await;
    let lsns = "select lsn from pg_logical_slot_peek_binary_changes('millrace_sync', null, null, 'proto_version', '1', \
                'publication_names', 'millrace_sync') where get_byte(data, 0) = ascii('C')";
    let commit = session.query(lsns).await.unwrap()[0][0].clone().unwrap();
    let commit = millrace_postgres::slot::parse_lsn(&commit).unwrap();
    let below = commit <= snapshot.position();
    assert_eq!(seen, if below { vec![1] } else { vec![] }, "commit {commit}, snapshot {}", snapshot.position());
}

#[tokio::test]
async fn publications_carry_exactly_their_tables() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    session
        .execute(
            "create table keyed (id int primary key, g int generated always as (id * 2) stored, \"odd \"\" name\" text); \
             create table keyless (id int); create table full_identity (id int); \
             alter table full_identity replica identity full; \
             create table deferred (id int primary key deferrable); \
             create table by_index (a int, b int not null); create unique index by_b on by_index (b) include (a); \
             alter table by_index replica identity using index by_b; create unlogged table gone (id int); \
             create table root (id int primary key) partition by range (id); \
             create table leaf partition of root for values from (0) to (10); \
             create table \"Dropped\" (id int, x int, k text primary key); alter table \"Dropped\" drop column x",
        )
        .await
        .unwrap();
    let source = source(&server, "pub");
    let tables = source.tables(&selection(&["public.*"])).await.unwrap();
    let found: Vec<(&str, Capture, Vec<&str>)> = tables
        .iter()
        .map(|t| (t.name.name.as_str(), t.capture, t.key.iter().map(|&key| t.columns[key].name.as_str()).collect()))
        .collect();
    let expected = [
        ("Dropped", Capture::All, vec!["k"]),
        ("by_index", Capture::All, vec!["b"]),
        ("deferred", Capture::InsertsOnly, vec![]),
        ("full_identity", Capture::All, vec![]),
        ("keyed", Capture::All, vec!["id"]),
        ("keyless", Capture::InsertsOnly, vec![]),
        ("root", Capture::All, vec!["id"]),
    ];
    assert_eq!(found, expected);
    let columns = |name: &str| {
        let table = tables.iter().find(|table| table.name.name == name).unwrap();
        table.columns.iter().map(|column| (column.id, column.name.as_str())).collect::<Vec<_>>()
    };
    assert_eq!(columns("keyed"), [(1, "id"), (3, "odd \" name")]);
    assert_eq!(columns("Dropped"), [(1, "id"), (3, "k")]);

    let tables: Vec<Arc<Table>> = tables.into_iter().map(Arc::new).collect();
    let published = "select pubname, string_agg(tablename, ',' order by tablename) from pg_publication \
                     left join pg_publication_tables using (pubname) group by 1 order by 1";
    let versions = "select sum(xmin::text::bigint) from pg_publication_rel";
    source.prepare(&tables).await.unwrap();
    let text = |t: &str| Some(t.to_string());
    let both = vec![
        vec![text("millrace_pub"), text("Dropped,by_index,full_identity,keyed,root")],
        vec![text("millrace_pub_inserts"), text("deferred,keyless")],
    ];
    assert_eq!(session.query(published).await.unwrap(), both);
    let before = session.query(versions).await.unwrap();
    source.prepare(&tables).await.unwrap();
    assert_eq!(session.query(versions).await.unwrap(), before, "nothing is touched when all is right");

    // Others changed them; then fewer tables are wanted, at last none.
    session.execute("alter publication millrace_pub set (publish = 'insert')").await.unwrap();
    session
        .execute("drop publication millrace_pub_inserts; create publication millrace_pub_inserts for all tables")
        .await
        .unwrap();
    source.prepare(&tables).await.unwrap();
    assert_eq!(session.query(published).await.unwrap(), both);
    session.execute("update by_index set b = 1; update keyless set id = 1").await.expect("the application goes on");
    source.prepare(&tables[..2]).await.unwrap();
    let fewer = vec![vec![text("millrace_pub"), text("Dropped,by_index")], vec![text("millrace_pub_inserts"), None]];
    assert_eq!(session.query(published).await.unwrap(), fewer);
    source.prepare(&[]).await.unwrap();
    assert_eq!(source.remove().await.unwrap(), Vec::<String>::new());
    assert!(session.query(published).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_slot_is_made_anew_kept_account_of_and_removed() {
    let Some(server) = TestServer::start(&["max_slot_wal_keep_size='100MB'"]) else { return };
    let source = source(&server, "Slot");
    let mut session = server.session().await;
    assert_eq!(source.retained().await.unwrap(), None);
    let first = source.create_log().await.unwrap().position;
    session.execute("create table t (id int)").await.unwrap();
    let second = source.create_log().await.unwrap().position;
    assert!(second > first);
    let retained = source.retained().await.unwrap().unwrap();
    assert_eq!((retained.confirmed, retained.status.as_str()), (Some(second), "reserved, inactive"));
    assert!(retained.end >= Some(second) && retained.safe_bytes.is_some_and(|bytes| bytes > 1 << 20));
    let identity = source.identity().await.unwrap();
    assert_eq!((identity.timeline, identity.database.as_str()), (1, "postgres"));

    session.execute("select pg_create_physical_replication_slot('elsewhere')").await.unwrap();
    assert_eq!(source.remove().await.unwrap(), Vec::<String>::new());
    let left = session.query("select slot_name from pg_replication_slots").await.unwrap();
    assert_eq!(left, [[Some("elsewhere".to_string())]]);
    assert_eq!(source.remove().await.unwrap(), Vec::<String>::new(), "removing twice does no harm");
}

// trap: 11
#[tokio::test]
async fn rows_are_read_anew_by_key() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    session
        .execute(
            "create type mood as enum ('sad', 'it''s \\ ok'); \
             create table t (a numeric(10,2), m mood, at timestamptz, big text, due date, primary key (m, a, at)); \
             insert into t values (1.50, 'it''s \\ ok', '2024-03-31 03:30:00.5+02', repeat('x', 20000), '2024-01-01'), \
             (-0.05, 'sad', '0001-01-01 00:00:00+00', null, '2024-01-02'), \
             (7, 'sad', '2000-01-01 00:00:00+00', 'y', 'infinity'), \
             (7, 'sad', 'infinity', 'z', '0044-03-15 BC')",
        )
        .await
        .unwrap();
    let table = source(&server, "lookup").tables(&selection(&["public.t"])).await.unwrap().remove(0);
    // The log may be behind the catalog.
    session.execute("alter table t rename big to large; alter table t rename to moved").await.unwrap();
    let mut keys = Columns::new(table.key.iter().map(|&key| &table.columns[key].ty));
    for (mood, a, at) in [
        ("sad", 700, 946_684_800_000_000),
        ("sad", 700, 946_684_800_000_001),
        ("it's \\ ok", 150, 1_711_848_600_500_000),
        ("sad", -5, -62_135_596_800_000_000),
        ("it's \\ ok", 150, 1_711_848_600_500_000),
    ] {
        keys.column_mut(0).push_str(mood);
        keys.column_mut(1).push_decimal(a);
        keys.column_mut(2).push_i64(at);
        keys.end_row();
    }
    keys.column_mut(0).push_str("sad");
    keys.column_mut(1).push_decimal(700);
    keys.push_exact(2, "infinity");
    keys.end_row();
    let options = Options::default();
    let big = table.column_index("big").unwrap();
    let due = table.column_index("due").unwrap();
    let found = lookup::read(&mut session, &table, &keys, &[big, due], &options).await.unwrap();
    assert_eq!(found.found, [0, 2, 3, 4, 5]);
    assert_eq!(found.columns.exact_cells().collect::<Vec<_>>(), [(0, 1, "infinity"), (4, 1, "0044-03-15 BC")]);
    let cells = |column: usize| (1..4).map(|row| found.columns.columns()[column].cell_text(row)).collect::<Vec<_>>();
    let large = Some("x".repeat(20_000));
    assert_eq!(cells(0), [large.clone(), None, large]);
    assert_eq!(cells(1), [Some("19723".into()), Some("19724".into()), Some("19723".into())]);
    assert_eq!(found.rejected, []);
    let values = Arc::new(ValueRules { unfit: Unfit::DeadLetter, ..ValueRules::default() });
    let strict = Options { values, ..Options::default() };
    let found = lookup::read(&mut session, &table, &keys, &[big, due], &strict).await.unwrap();
    assert_eq!((found.found.len(), found.rejected.len()), (3, 2));
    assert!(found.rejected[0].0 == 0 && found.rejected[0].1.contains("infinity"));
    let small = Options { value_bytes_max: 100, ..Options::default() };
    let short = lookup::read(&mut session, &table, &keys, &[big], &small).await.unwrap();
    assert_eq!((short.found, short.rejected.len()), (vec![0, 3, 5], 2));
    assert_eq!(short.rejected[1], (4, "it is longer than max-value (100 bytes)".into()));

    session.execute("alter table moved drop column large").await.unwrap();
    let error = lookup::read(&mut session, &table, &keys, &[big], &options).await.unwrap_err();
    assert_eq!(error.kind, Kind::SchemaChange);
    session.execute("drop table moved").await.unwrap();
    let error = lookup::read(&mut session, &table, &keys, &[due], &options).await.unwrap_err();
    assert_eq!(error.kind, Kind::TableMissing);
    session.execute("select 1").await.expect("the session can go on");
}

// trap: 11
#[tokio::test]
async fn a_lookup_waits_for_what_the_log_has_handed_out() {
    let Some(server) = TestServer::start(&["synchronous_standby_names='nobody'", "synchronous_commit=local"]) else {
        return;
    };
    let mut session = server.session().await;
    session.execute("create table t (id bigint primary key)").await.unwrap();
    let mut held = server.session().await;
    let pid = held.process_id();
    let held = tokio::spawn(async move {
        held.execute("set synchronous_commit = on").await.unwrap();
        held.execute("insert into t values (1)").await
    });
    let waits = format!("select backend_xid from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep'");
    let xid: u32 = loop {
        match session.query(&waits).await.unwrap().pop() {
            Some(row) => break row[0].as_deref().unwrap().parse().unwrap(),
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut looker = server.session().await;
    let xids = [xid - 1, xid];
    let visible = lookup::wait_until_visible(&mut looker, &xids);
    assert!(tokio::time::timeout(Duration::from_millis(300), visible).await.is_err(), "it is not visible yet");
    session.execute(&format!("select pg_cancel_backend({pid})")).await.unwrap();
    held.await.unwrap().unwrap();
    lookup::wait_until_visible(&mut looker, &xids).await.unwrap();
    assert_eq!(looker.query("select id from t").await.unwrap(), [[Some("1".to_string())]]);
}

#[tokio::test]
async fn a_thousand_tables_are_found_and_published_quickly() {
    let Some(server) = TestServer::start(&["max_locks_per_transaction=256"]) else { return };
    let mut session = server.session().await;
    let make = "do $$ begin for i in 1..1000 loop execute format('create table many_%s (id bigint primary key, a text, \
                b numeric(10,2), c timestamptz, d jsonb, e int[])', i); end loop; end $$";
    session.execute(make).await.unwrap();
    let source = source(&server, "many");
    let begin = Instant::now();
    let tables = source.tables(&selection(&["public.*"])).await.unwrap();
    let found = begin.elapsed();
    assert!(tables.len() == 1_000 && tables.iter().all(|table| table.columns.len() == 6 && table.key == [0]));
    let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
    let tables: Vec<Arc<Table>> = tables.into_iter().map(Arc::new).collect();
    source.prepare(&tables).await.unwrap();
    let prepared = begin.elapsed();
    let snapshot = source.snapshot(&names, true).await.unwrap();
    let taken = begin.elapsed();
    for name in &names[..50] {
        let load = snapshot.open(name, 4, None).await.unwrap();
        assert!(ids(&*load, 0).await.is_empty());
    }
    let opened = begin.elapsed() - taken;
    println!("found {found:?}, prepared {prepared:?}, snapshot {taken:?}, 50 empty tables loaded {opened:?}");
    assert!(taken < Duration::from_secs(60) && opened < Duration::from_secs(60));
}

// trap: 17
#[tokio::test]
async fn tables_that_are_not_wholly_published_are_found() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    session
        .execute(
            "create table \"A \"\"b\" (id int primary key, v text); create table c (id int primary key); \
             create table keyless (id int)",
        )
        .await
        .unwrap();
    let source = source(&server, "pub");
    let tables = source.tables(&selection(&["public.*"])).await.unwrap();
    let tables: Vec<Arc<Table>> = tables.into_iter().map(Arc::new).collect();
    let changes = [
        ("", vec!["A \"b", "c", "keyless"]),
        ("alter publication millrace_pub drop table c", vec!["c"]),
        ("alter publication millrace_pub set table \"A \"\"b\" (id), c", vec!["A \"b"]),
        ("alter publication millrace_pub set table \"A \"\"b\", c where (id > 1)", vec!["c"]),
        ("alter publication millrace_pub set (publish = 'insert, update, truncate')", vec!["A \"b", "c"]),
        // A table without an identity needs nothing but its inserts.
        ("drop publication millrace_pub_inserts; alter publication millrace_pub add table keyless", vec![]),
        ("drop publication millrace_pub; create publication millrace_pub for all tables", vec![]),
    ];
    for (change, expected) in changes {
        if !change.is_empty() {
            session.execute(change).await.unwrap();
        }
        let found = source.unpublished(&tables).await.unwrap();
        assert_eq!(found.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), expected, "{change}");
        source.prepare(&tables).await.unwrap();
        assert_eq!(source.unpublished(&tables).await.unwrap(), [], "{change}");
    }
}

#[tokio::test]
async fn a_table_that_was_taken_out_and_put_back_is_told_from_one_that_stayed() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    session.execute("create table a (id int primary key); create table b (id int primary key)").await.unwrap();
    let source = source(&server, "ids");
    let tables = source.tables(&selection(&["public.*"])).await.unwrap();
    let tables: Vec<Arc<Table>> = tables.into_iter().map(Arc::new).collect();
    source.prepare(&tables[..1]).await.unwrap();
    let first = source.publication_ids(&tables).await.unwrap();
    assert_eq!(first.keys().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["a"]);
    // A table that comes changes nothing for those that are there.
    source.prepare(&tables).await.unwrap();
    let both = source.publication_ids(&tables).await.unwrap();
    let of = |ids: &BTreeMap<TableName, u64>, name| ids[&TableName::new("public", name)];
    assert_eq!((both.len(), of(&both, "a")), (2, of(&first, "a")));
    let back = "alter publication millrace_ids drop table a; alter publication millrace_ids add table only a";
    session.execute(back).await.unwrap();
    let then = source.publication_ids(&tables).await.unwrap();
    assert_ne!(of(&then, "a"), of(&both, "a"));
    assert_eq!(of(&then, "b"), of(&both, "b"));
}

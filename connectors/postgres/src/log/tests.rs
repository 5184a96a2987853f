//! The log against a real server.

use std::collections::BTreeSet;

use millrace_core::{Change, ChangeBatch, Ddl, Selection, TablePattern, Unfit, batch::Cell, source::UnboundedRoom};

use super::*;
use crate::{discover, publication, slot, test_server::TestServer, wire::sqlstate};

struct Fixture {
    server: TestServer,
    session: Connection,
    names: Names,
    known: Identity,
    tables: Vec<Arc<Table>>,
    from: Position,
    fence: Arc<VisibilityFence>,
    options: LogOptions,
    spill: tempfile::TempDir,
    process: Arc<AtomicU32>,
}

const WAIT: Duration = Duration::from_millis(300);

impl Fixture {
    /// A server on which this has been run, with all its tables captured from there on.
    async fn new(sql: &str) -> Option<Self> {
        let server = TestServer::start(&[])?;
        let mut session = server.session().await;
        session.execute(sql).await.unwrap();
        let names = Names::of_task("log");
        let tables = tables(&mut session).await;
        publication::prepare(&mut session, &names, &tables).await.unwrap();
        let from = slot::create(&server.config("postgres"), &names, false).await.unwrap();
        let known = slot::identity(&mut session).await.unwrap();
        let fence = Arc::new(VisibilityFence::default());
        let (options, spill) = (LogOptions::default(), tempfile::tempdir().unwrap());
        let process = Arc::default();
        Some(Self { server, session, names, known, tables, from, fence, options, spill, process })
    }

    async fn run(&mut self, sql: &str) {
        self.session.execute(sql).await.unwrap();
    }

    async fn try_open(&self, from: Position) -> Result<PostgresLog> {
        let config = self.server.config("postgres");
        let (options, around) = (self.options.clone(), self.surroundings());
        PostgresLog::open(&config, &self.names, &self.tables, &from.into(), &self.known, options, around).await
    }

    fn surroundings(&self) -> Surroundings {
        let spill = Arc::new(UnboundedRoom(self.spill.path().join("spill")));
        Surroundings { fence: self.fence.clone(), spill, whole: Arc::default(), process: self.process.clone() }
    }

    async fn open(&self) -> PostgresLog {
        self.try_open(self.from).await.unwrap()
    }

    /// What this does to the tables, as the log shows it.
    async fn effect(&mut self, log: &mut PostgresLog, sql: &str) -> Vec<String> {
        self.run(sql).await;
        show(&drain(log).await)
    }

    async fn confirmed(&mut self) -> Position {
        slot::retained(&mut self.session, &self.names).await.unwrap().unwrap().confirmed.unwrap()
    }

    async fn wal_end(&mut self) -> Position {
        let rows = self.session.query("select pg_current_wal_insert_lsn()").await.unwrap();
        slot::parse_lsn(rows[0][0].as_deref().unwrap()).unwrap()
    }
}

/// All tables of the schema `public` as they are.
async fn tables(session: &mut Connection) -> Vec<Arc<Table>> {
    // The shapes are read as the source reads them: by a session with the pinned settings.
    session.execute("set search_path = pg_catalog").await.unwrap();
    let selection = Selection { include: vec![TablePattern::parse("public.*").unwrap()], exclude: vec![] };
    let shapes = discover::select(session, &selection).await.unwrap();
    session.execute("set search_path = public").await.unwrap();
    shapes.into_iter().map(|shape| Arc::new(shape.table)).collect()
}

fn budget() -> Budget {
    Budget { rows: 100_000, bytes: 64 << 20, wait: WAIT }
}

/// Pulls until nothing more comes.
/// Until nothing more comes. A busy machine may take a while before the first change.
async fn drain(log: &mut PostgresLog) -> Vec<Changes> {
    let mut all: Vec<Changes> = vec![];
    let began = Instant::now();
    loop {
        let changes = log.pull(budget()).await.unwrap();
        let quiet = changes.items.is_empty();
        all.push(changes);
        let began_to_come = all.iter().any(|changes| !changes.items.is_empty());
        if quiet && (began_to_come || began.elapsed() >= 6 * WAIT) {
            return all;
        }
    }
}

fn show(all: &[Changes]) -> Vec<String> {
    all.iter().flat_map(|changes| &changes.items).flat_map(show_change).collect()
}

fn show_change(change: &Change) -> Vec<String> {
    match change {
        Change::Rows(batch) => (0..batch.rows()).map(|row| show_row(batch, row)).collect(),
        Change::Truncate { tables, order } => {
            let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
            vec![format!("truncate {} #{}", names.join(" "), order.ordinal)]
        }
        Change::Ddl(Ddl::Evolved { table, .. }) => vec![format!("evolved {} v{}", table.name.name, table.version)],
        Change::Ddl(Ddl::Unsupported { table, what, .. }) => vec![format!("unsupported {table}: {what}")],
        Change::Rejected(rejects) => rejects
            .iter()
            .map(|reject| {
                let cells: Vec<String> =
                    reject.row.iter().map(|(name, cell)| format!("{name}={}", show_cell(cell))).collect();
                let (op, cells) = (reject.op.letter(), cells.join(" "));
                format!("reject {op} {cells} #{} {}: {}", reject.order.ordinal, reject.column, reject.reason)
            })
            .collect(),
    }
}

fn show_cell(cell: &Cell) -> String {
    match cell {
        Cell::Null => "-".into(),
        Cell::Absent => "~".into(),
        Cell::Text(text) if text.len() > 20 => format!("{}…", &text[..3]),
        Cell::Text(text) => text.clone(),
        Cell::Hex(hex) => format!("0x{hex}"),
    }
}

fn show_row(batch: &ChangeBatch, row: usize) -> String {
    let absent: BTreeSet<(u32, u16)> = batch.absent.iter().flat_map(|absent| absent.cells.clone()).collect();
    let cells: Vec<String> = batch
        .after
        .columns()
        .iter()
        .enumerate()
        .map(|(index, column)| match column.cell_text(row) {
            _ if absent.contains(&(row as u32, index as u16)) => "~".into(),
            None => "-".into(),
            Some(text) => show_cell(&Cell::Text(text)),
        })
        .collect();
    format!("{} {} #{}", batch.ops[row].letter(), cells.join(" "), batch.order[row].ordinal)
}

/// A text that is stored out of line, and that a row of the same table does not share.
fn large(letter: char) -> String {
    format!("(select string_agg(md5(g || '{letter}'), '') from generate_series(1, 200) g)")
}

// trap: 12, 14
#[tokio::test]
async fn rows_of_keyed_and_keyless_tables() {
    let sql = "create table k (id int primary key, v text, n numeric(6,2));
               create table f (a int, b text); alter table f replica identity full;
               create table i (a int, b text)";
    let Some(mut fixture) = Fixture::new(sql).await else { return };
    let mut log = fixture.open().await;
    let effect = fixture.effect(&mut log, "insert into k values (1, 'a', 1.5), (2, null, -2)").await;
    assert_eq!(effect, ["I 1 a 150 #1", "I 2 - -200 #2"]);
    let effect =
        fixture.effect(&mut log, "begin; update k set v = 'b' where id = 1; delete from k where id = 2; commit").await;
    assert_eq!(effect, ["U 1 b 150 #1", "D 2 - - #2"]);
    let effect = fixture.effect(&mut log, "update k set id = 10 where id = 1").await;
    assert_eq!(effect, ["D 1 - - #1", "I 10 b 150 #2"]);
    let effect = fixture
        .effect(&mut log, "insert into f values (1, 'x'), (1, 'x'); update f set b = 'y' where ctid = '(0,1)'")
        .await;
    assert_eq!(effect, ["I 1 x #1", "I 1 x #2", "D 1 x #3", "I 1 y #4"]);
    let effect = fixture.effect(&mut log, "insert into i values (1, 'x'); update i set b = 'y'; delete from i").await;
    assert_eq!(effect, ["I 1 x #1"], "of a table without identity only inserts are published");

    let sql = "begin; insert into k values (3, 'kept', 0); savepoint s; insert into k values (4, 'undone', 0);
               rollback to s; insert into k values (5, 'kept', 0); commit;
               begin; insert into k values (6, 'undone', 0); rollback";
    assert_eq!(fixture.effect(&mut log, sql).await, ["I 3 kept 0 #1", "I 5 kept 0 #2"]);

    let effect = fixture.effect(&mut log, "truncate k, f restart identity; insert into k values (1, 'n', 0)").await;
    assert_eq!(effect, ["evolved k v2", "evolved f v2", "truncate k f #1", "I 1 n 0 #2"], "new storage is noted");
    let effect = fixture
        .effect(
            &mut log,
            "begin; insert into k values (2, 'n', 0); truncate k; insert into k values (3, 'n', 0); commit",
        )
        .await;
    assert_eq!(effect, ["evolved k v3", "I 2 n 0 #1", "truncate k #2", "I 3 n 0 #3"]);
}

// trap: 11, 12
#[tokio::test]
async fn values_that_were_not_sent() {
    let sql = "create table t (id int primary key, big text, n int, bytes bytea);
               create table f (id int primary key, big text, n int); alter table f replica identity full;
               alter table t alter big set storage external, alter bytes set storage external;
               alter table f alter big set storage external";
    let Some(mut fixture) = Fixture::new(sql).await else { return };
    fixture.options.values = dead_letters();
    let mut log = fixture.open().await;
    let (a, b) = (large('a'), large('b'));
    // In one pull: taken from the row's own earlier change, through a key change as well.
    let sql = format!(
        "begin; insert into t values (1, {a}, 1, '\\x01'); update t set n = 2; update t set big = {b}; \
         update t set n = 3; update t set id = 2; update t set n = 4; commit"
    );
    fixture.run(&sql).await;
    let changes = drain(&mut log).await;
    let Change::Rows(batch) = &changes[0].items[0] else { panic!("{changes:?}") };
    let texts: Vec<_> = (0..batch.rows()).map(|row| batch.after.columns()[1].cell_text(row)).collect();
    let row = fixture.session.query(&format!("select {a}, {b}")).await.unwrap().remove(0);
    let (a_text, b_text) = (&row[0], &row[1]);
    assert_eq!(texts, [a_text, a_text, b_text, b_text, &None, b_text, b_text].map(Clone::clone));
    assert_eq!(batch.ops.iter().map(|op| op.letter()).collect::<String>(), "IUUUDIU");
    assert!(batch.absent.is_none() && fixture.fence.xids().is_empty());

    // In a later pull: absent, and its transaction is fenced.
    let effect = fixture.effect(&mut log, "update t set n = 5").await;
    assert_eq!(effect, ["U 2 ~ 5 \\x01 #1"]);
    assert_eq!(fixture.fence.xids().len(), 1);
    // A rejected change in between must not bring an older value back.
    let sql = format!(
        "alter table t add c date; begin; update t set n = 6, big = {a}; update t set big = {b}, c = 'infinity'; \
         update t set c = null, n = 7; commit"
    );
    let effect = fixture.effect(&mut log, &sql).await;
    assert_eq!(effect[0], "evolved t v2");
    assert!(effect[1].starts_with("U 2 ") && !effect[1].contains('~'), "{effect:?}");
    assert_eq!(effect[2], "U 2 ~ 7 \\x01 - #3");
    assert!(
        effect[3].starts_with("reject U id=2 big=") && effect[3].ends_with("c: infinity is not a date or time"),
        "{effect:?}"
    );

    // With a full identity the old image has them.
    let sql = format!("insert into f values (1, {a}, 1)");
    fixture.effect(&mut log, &sql).await;
    let effect = fixture.effect(&mut log, "update f set n = 2; update f set id = 2; delete from f").await;
    assert!(effect.len() == 4 && effect.iter().all(|row| !row.contains('~') && !row.contains(" - ")), "{effect:?}");
}

// trap: 13
#[tokio::test]
async fn two_rows_of_a_deferrable_key_swap() {
    let sql = "create table t (k int primary key deferrable, v text); alter table t replica identity full;
               insert into t values (1, 'a'), (2, 'b')";
    let Some(mut fixture) = Fixture::new(sql).await else { return };
    let mut log = fixture.open().await;
    assert!(fixture.tables[0].is_keyed());
    // The newest row per key is what the source holds.
    let newest = |rows: &[String], key: &str| {
        let order = |row: &&String| row.rsplit('#').next().and_then(|ordinal| ordinal.parse::<u32>().ok());
        let of_key = rows.iter().filter(|row| row.split(' ').nth(1) == Some(key));
        of_key.max_by_key(order).cloned().unwrap_or_default()
    };
    let swap = fixture.effect(&mut log, "update t set k = 3 - k").await;
    assert!(newest(&swap, "2").starts_with("I 2 a"), "{swap:?}");
    assert!(newest(&swap, "1").starts_with("I 1 b"), "{swap:?}");
    let toggled =
        fixture.effect(&mut log, "begin; update t set k = 9 where k = 1; update t set k = 1 where k = 9; commit").await;
    assert!(newest(&toggled, "1").starts_with("I 1 b"), "{toggled:?}");
    assert!(newest(&toggled, "9").starts_with("U 9 ~"), "asked for, and not found: {toggled:?}");
    let sql =
        "begin; set constraints all deferred; insert into t values (1, 'new'); delete from t where v = 'new'; commit";
    let undone = fixture.effect(&mut log, sql).await;
    assert!(newest(&undone, "1").starts_with("U 1 ~"), "the row that stayed is asked for: {undone:?}");
    let sql =
        "begin; set constraints all deferred; insert into t values (1, 'new'); delete from t where v = 'b'; commit";
    let replaced = fixture.effect(&mut log, sql).await;
    assert!(newest(&replaced, "1").starts_with("I 1 new"), "{replaced:?}");
}

// trap: 5
#[tokio::test]
async fn transactions_come_in_the_order_of_their_commits() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key)").await else { return };
    let mut log = fixture.open().await;
    let mut first = fixture.server.session().await;
    first.execute("begin; insert into t values (1)").await.unwrap();
    fixture.run("insert into t values (2)").await;
    first.execute("insert into t values (3); commit").await.unwrap();
    fixture.run("insert into t values (4)").await;
    let all = drain(&mut log).await;
    assert_eq!(show(&all), ["I 2 #1", "I 1 #1", "I 3 #2", "I 4 #1"]);
    let orders: Vec<_> = all
        .iter()
        .flat_map(|changes| &changes.items)
        .flat_map(|item| match item {
            Change::Rows(batch) => batch.order.clone(),
            _ => vec![],
        })
        .collect();
    assert!(orders.is_sorted() && orders[1].commit == orders[2].commit);
    let end = all.last().unwrap().upto.unwrap();
    assert!(end.covers(orders[3].commit) && all.iter().all(|changes| changes.upto.is_some()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
    let newest = all.iter().filter_map(|changes| changes.newest_commit_us).max().unwrap();
    assert!((now - newest).abs() < 60_000_000, "commit times are of today");
}

// trap: 2 (crash)
#[tokio::test]
async fn a_large_transaction_is_cut_and_read_again_whole_after_a_restart() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key, v text)").await else { return };
    let mut log = fixture.open().await;
    fixture.run("insert into t values (0, 'before')").await;
    fixture.run("copy t from program 'seq 1 1000 | sed ''s/$/\\tcopied/'''").await;
    let small = Budget { rows: 100, bytes: 1 << 20, wait: WAIT };
    let before = log.pull(Budget { rows: 1, ..small }).await.unwrap();
    assert_eq!(show(&[before]), ["I 0 before #1"]);
    let mut rows = 0;
    while rows < 500 {
        let piece = log.pull(small).await.unwrap();
        assert!(piece.upto.is_none() && piece.rows() <= 200, "in the middle of a transaction there is no position");
        rows += piece.rows();
    }
    drop(log);
    // Nothing was confirmed: all comes again.
    let mut log = fixture.open().await;
    let all = drain(&mut log).await;
    assert_eq!(all.iter().map(Changes::rows).sum::<u64>(), 1001);
    let upto = all.last().unwrap().upto.unwrap();
    let confirmed = Durable::from_fsync(upto);
    log.confirm(confirmed).await.unwrap();
    drop(log);
    // From the position on nothing comes again, whether or not the server heard of it.
    let mut log = fixture.try_open(upto).await.unwrap();
    assert_eq!(show(&drain(&mut log).await), [""; 0]);
    assert_eq!(fixture.effect(&mut log, "insert into t values (2000, 'after')").await, ["I 2000 after #1"]);
}

// trap: 7, 8
#[tokio::test]
async fn an_idle_table_lets_the_log_go_and_a_session_lives_without_pulls() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key); create unlogged table u (id int)").await
    else {
        return;
    };
    fixture.options.sender_timeout = Duration::from_secs(2);
    let mut log = fixture.open().await;
    fixture.run("create table other as select g from generate_series(1, 10000) g").await;
    let end = fixture.wal_end().await;
    let began = Instant::now();
    let upto = loop {
        let changes = log.pull(budget()).await.unwrap();
        assert!(changes.items.is_empty());
        if changes.upto.unwrap() >= end {
            break changes.upto.unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "the position stays behind: {:?} < {end}", changes.upto);
    };
    log.confirm(Durable::from_fsync(upto)).await.unwrap();
    while fixture.confirmed().await < upto {
        assert!(began.elapsed() < Duration::from_secs(10), "the slot does not advance");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Twice the server's patience without a pull, with more waiting than the buffers of the socket hold.
    fixture.run("insert into t select generate_series(1, 300000)").await;
    tokio::time::sleep(fixture.options.sender_timeout * 2).await;
    let all = drain(&mut log).await;
    assert_eq!(all.iter().map(Changes::rows).sum::<u64>(), 300_000);
}

// trap: 17
#[tokio::test]
async fn shapes_change() {
    let sql = "create type mood as enum ('glad', 'sad');
               create table a (id int primary key, m mood); create table b (id int primary key, v varchar(5));
               create table c (id int primary key); create table d (id int primary key, v text);
               create table g (id int primary key, twice int generated always as (id * 2) stored, v text)";
    let Some(mut fixture) = Fixture::new(sql).await else { return };
    let mut log = fixture.open().await;
    let sql = "insert into a values (1, 'sad'); begin; alter table a add x int, add y mood[]; insert into a values (2, null, 7, '{glad}'); commit";
    let effect = fixture.effect(&mut log, sql).await;
    assert_eq!(effect, ["I 1 sad #1", "evolved a v2", "I 2 - 7 {\"glad\"} #2"]);
    assert_eq!(fixture.effect(&mut log, "insert into g values (1, default, 'v')").await, ["I 1 v #1"]);
    let sql = "alter table b alter v type varchar(9); insert into b values (1, 'longer')";
    assert_eq!(fixture.effect(&mut log, sql).await, ["evolved b v2", "I 1 longer #1"]);
    let effect = fixture.effect(&mut log, "alter table g rename v to w; insert into g values (2)").await;
    assert_eq!(effect, ["evolved g v2", "I 2 - #1"]);
    let effect = fixture.effect(&mut log, "alter table g drop w; insert into g values (3)").await;
    assert_eq!(effect, ["evolved g v3", "I 3 #1"]);
    // What became of the rows that were there is not in the log.
    let unsupported = |what: &str| format!("unsupported public.{what}");
    let sql = "alter table c alter id type bigint; insert into c values (1); insert into c values (2)";
    let what = "c: column \"id\" changed its type from integer to bigint";
    assert_eq!(fixture.effect(&mut log, sql).await, [unsupported(what)]);
    let sql = "alter table d add w float default random(); insert into d values (1)";
    let what = unsupported("d: column \"w\" was added with values for the rows that were there");
    assert_eq!(fixture.effect(&mut log, sql).await, [what]);
    assert_eq!(fixture.effect(&mut log, "insert into a values (3, 'glad')").await, ["I 3 glad - - #1"], "others go on");

    // Loaded anew, a table is taken as it is.
    for table in tables(&mut fixture.session).await {
        if table.name.name == "c" {
            log.add_table(table, None);
        }
    }
    assert_eq!(fixture.effect(&mut log, "insert into c values (3)").await, ["I 3 #1"]);
    log.remove_table(&TableName::new("public", "c"));
    assert_eq!(fixture.effect(&mut log, "insert into c values (4)").await, [""; 0]);
}

/// What does not fit goes to the dead letters.
fn dead_letters() -> Arc<ValueRules> {
    Arc::new(ValueRules { unfit: Unfit::DeadLetter, ..ValueRules::default() })
}

#[tokio::test]
async fn values_that_no_column_holds_are_rejected_alone() {
    let sql = "create table t (id int primary key, d date, n numeric(4,1), v text)";
    let Some(mut fixture) = Fixture::new(sql).await else { return };
    fixture.options.value_bytes_max = 100;
    fixture.options.values = dead_letters();
    let mut log = fixture.open().await;
    let sql = "insert into t values (1, 'infinity', 1, 'x'), (2, '2026-11-23', 2.5, null), (3, null, 'NaN', 'y'),
               (4, null, null, repeat('z', 101)); delete from t where id = 1";
    let effect = fixture.effect(&mut log, sql).await;
    assert_eq!(
        effect,
        [
            "I 2 20780 25 - #2",
            "D 1 - - - #5",
            "reject I id=1 d=infinity n=1.0 v=x #1 d: infinity is not a date or time",
            "reject I id=3 d=- n=NaN v=y #3 n: NaN is not a decimal",
            "reject I id=4 d=- n=- v=zzz… #4 v: it is longer than max-value (100 bytes)",
        ]
    );
}

#[tokio::test]
async fn values_that_no_column_holds_stand_beside_it() {
    let sql = "create table t (at timestamptz primary key, d date, big text); \
               alter table t alter big set storage external";
    let Some(mut fixture) = Fixture::new(sql).await else { return };
    let mut log = fixture.open().await;
    // A key beside its column is a key: an unchanged value is found by it, and only by it.
    let sql = "insert into t values ('infinity', '-infinity', repeat('a', 20000)), \
               ('-infinity', '0044-03-15 BC', repeat('b', 20000)); \
               begin; update t set d = d - 1 where at = '-infinity'; \
               update t set d = '2026-11-23' where at = 'infinity'; \
               update t set at = '294276-12-31 23:59:59.999999+00' where at = 'infinity'; \
               delete from t where at = '-infinity'; commit";
    fixture.run(sql).await;
    let all = drain(&mut log).await;
    let mut rows = vec![];
    for item in all.iter().flat_map(|changes| &changes.items) {
        let Change::Rows(batch) = item else { panic!("{item:?}") };
        assert!(batch.absent.is_none());
        for row in 0..batch.rows() {
            let cell = |column: usize| match batch.after.exact(row, column) {
                Some(exact) => format!("={exact}"),
                None => {
                    batch.after.columns()[column].cell_text(row).map_or("-".into(), |t| t.chars().take(5).collect())
                }
            };
            rows.push(format!("{} {} {} {}", batch.ops[row].letter(), cell(0), cell(1), cell(2)));
        }
    }
    let expected = [
        "I =infinity =-infinity aaaaa",
        "I =-infinity =0044-03-15 BC bbbbb",
        "U =-infinity =0044-03-14 BC bbbbb",
        "U =infinity 20780 aaaaa",
        "D =infinity - -",
        "I =294276-12-31 23:59:59.999999+00 20780 aaaaa",
        "D =-infinity - -",
    ];
    assert_eq!(rows, expected);
}

// trap: 9, 10
#[tokio::test]
async fn the_log_is_refused_where_something_may_be_gone() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key)").await else { return };
    let kind = |result: Result<PostgresLog>| result.map(|_| ()).unwrap_err();

    let other = Identity { system: "1".into(), ..fixture.known.clone() };
    let known = std::mem::replace(&mut fixture.known, other);
    let error = kind(fixture.try_open(fixture.from).await);
    assert_eq!((error.kind, error.to_string().contains("system identifier")), (Kind::SourceChanged, true), "{error}");
    fixture.known = Identity { timeline: 99, ..known.clone() };
    let error = kind(fixture.try_open(fixture.from).await);
    assert_eq!((error.kind, error.to_string().contains("before a failover")), (Kind::SourceChanged, true), "{error}");
    fixture.known = Identity { database: "elsewhere".into(), ..known.clone() };
    let error = kind(fixture.try_open(fixture.from).await);
    assert_eq!((error.kind, error.fix.contains("millrace reload log")), (Kind::SourceChanged, true), "{error}");
    fixture.known = known;
    // A disk that was put back to an earlier state: same system, same timeline, and the log ends before our position.
    let error = kind(fixture.try_open(Position(1 << 60)).await);
    assert_eq!((error.kind, error.to_string().contains("went back in time")), (Kind::SourceChanged, true), "{error}");

    let log = fixture.open().await;
    let ours = std::mem::take(&mut fixture.process);
    let error = kind(fixture.try_open(fixture.from).await);
    assert_eq!((error.kind, error.to_string().contains("in use by server process")), (Kind::LogBusy, true), "{error}");
    // Our own session before, of which the server does not know yet that nobody reads it any more.
    fixture.process = ours;
    let again = fixture.open().await;
    drop((log, again));
    drop(fixture.open().await);

    let before = Position(fixture.from.0 - 1);
    let error = kind(fixture.try_open(before).await);
    assert_eq!((error.kind, error.to_string().contains("confirmed up to")), (Kind::LogLost, true), "{error}");

    let slot = fixture.names.slot.clone();
    let drop_slot = format!("select pg_drop_replication_slot('{slot}')");
    while fixture.session.execute(&drop_slot).await.is_err_and(|error| sqlstate(&error) == Some("55006")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let error = kind(fixture.try_open(fixture.from).await);
    assert_eq!((error.kind, error.to_string().contains("does not exist")), (Kind::LogLost, true), "{error}");

    // Made again: what lies between our position and its own is gone.
    fixture.run("insert into t values (1)").await;
    slot::create(&fixture.server.config("postgres"), &fixture.names, false).await.unwrap();
    assert_eq!(kind(fixture.try_open(fixture.from).await).kind, Kind::LogLost);

    // Another kind of slot under our name.
    fixture.run(&format!("select pg_drop_replication_slot('{slot}')")).await;
    fixture.run(&format!("select pg_create_physical_replication_slot('{slot}')")).await;
    let error = kind(fixture.try_open(fixture.from).await);
    assert_eq!((error.kind, error.to_string().contains("physical")), (Kind::SourceChanged, true), "{error}");
}

// trap: 9
#[tokio::test]
async fn an_invalidated_slot_is_reported_as_lost() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key)").await else { return };
    fixture.run("alter system set max_slot_wal_keep_size = '1MB'").await;
    fixture.run("select pg_reload_conf()").await;
    for _ in 0..4 {
        fixture.run("create table x as select g from generate_series(1, 100) g; drop table x").await;
        fixture.run("select pg_switch_wal()").await;
    }
    fixture.run("checkpoint").await;
    let error = fixture.try_open(fixture.from).await.map(|_| ()).unwrap_err();
    assert_eq!((error.kind, error.fix.contains("max_slot_wal_keep_size")), (Kind::LogLost, true), "{error}");
    assert!(error.to_string().contains("was invalidated by the server"), "{error}");
}

#[tokio::test]
async fn the_end_of_the_server_ends_the_pull() {
    let Some(fixture) = Fixture::new("create table t (id int primary key)").await else { return };
    let mut log = fixture.open().await;
    fixture.server.stop("immediate");
    let error = log.pull(budget()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Connection, "{error}");
    fixture.server.begin();
    assert!(fixture.open().await.pull(budget()).await.is_ok());
}

// trap: 10
#[tokio::test]
async fn a_new_timeline_is_followed_if_it_holds_our_position() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key)").await else { return };
    fixture.run("insert into t values (1)").await;
    fixture.server.fork_timeline();
    fixture.session = fixture.server.session().await;
    let now = slot::identity(&mut fixture.session).await.unwrap();
    assert_eq!((fixture.known.timeline, now.timeline), (1, 2));
    let mut log = fixture.open().await;
    assert_eq!(fixture.effect(&mut log, "insert into t values (2)").await, ["I 1 #1", "I 2 #1"]);
    assert_eq!(log.identity().map(|identity| identity.timeline), Some(2));
    drop(log);
    // What the old timeline wrote behind the fork point is not here.
    let behind = fixture.wal_end().await;
    let error = fixture.try_open(behind).await.map(|_| ()).unwrap_err();
    assert_eq!((error.kind, error.to_string().contains("left timeline 1 at")), (Kind::SourceChanged, true), "{error}");
}

#[tokio::test]
async fn a_pull_that_is_given_up_loses_nothing() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key, v text)").await else { return };
    let mut log = fixture.open().await;
    fixture.run("insert into t select g, repeat('x', 200) from generate_series(1, 20000) g").await;
    let (mut seen, mut given_up, mut next) = (0, 0, 1);
    while seen < 20_000 {
        // Now and then there is time for a look at the catalog.
        let patience = if given_up % 100 == 99 { WAIT } else { Duration::from_micros(200) };
        match tokio::time::timeout(patience, log.pull(Budget { rows: 500, ..budget() })).await {
            Err(_) => given_up += 1,
            Ok(changes) => {
                let changes = changes.unwrap();
                seen += changes.rows();
                for row in show(&[changes]) {
                    assert!(row.starts_with(&format!("I {next} ")), "{row} instead of {next}");
                    next += 1;
                }
            }
        }
    }
    assert!(given_up > 0, "no pull was given up");
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let Some(mut fixture) = Fixture::new("create table t (id int primary key)").await else { return };
    let config = PostgresConfig { host: fixture.server.socket_folder(), ..fixture.server.config("postgres") };
    let (names, tables, known, around) = (&fixture.names, &fixture.tables, &fixture.known, fixture.surroundings());
    let mut log =
        PostgresLog::open(&config, names, tables, &fixture.from.into(), known, fixture.options.clone(), around)
            .await
            .unwrap();
    fixture.run("insert into t select generate_series(1, 50000)").await;
    let (began, mut rows) = (Instant::now(), 0);
    while rows < 50_000 && began.elapsed() < Duration::from_secs(20) {
        rows += log.pull(budget()).await.unwrap().rows();
    }
    assert_eq!(rows, 50_000);
}

// trap: 8, 23 (crash)
#[tokio::test]
async fn a_session_lives_through_a_long_replay_and_starts_it_again() {
    let sql = "create table t (id int primary key, v text);
               alter database postgres set logical_decoding_work_mem = '64kB'";
    let Some(mut fixture) = Fixture::new(sql).await else { return };
    fixture.options.sender_timeout = Duration::from_secs(1);
    let mut log = fixture.open().await;
    fixture
        .run(
            "begin; insert into t select g, repeat('x', 100) from generate_series(1, 30000) g; savepoint s;
             insert into t select g, 'undone' from generate_series(30001, 31000) g; rollback to s;
             insert into t values (31001, 'last'); commit; insert into t values (31002, 'small')",
        )
        .await;
    let spill = fixture.spill.path().join("spill");
    let small = Budget { rows: 1000, bytes: 1 << 20, wait: WAIT };
    let (mut rows, mut pulls, began) = (0, 0, Instant::now());
    while rows < 10_000 {
        let changes = log.pull(small).await.unwrap();
        assert!(changes.rows() == 0 || changes.upto.is_none(), "a transaction that is not complete has no position");
        rows += changes.rows();
        pulls += 1;
        if changes.rows() > 0 {
            // Longer, all in all, than the server is patient.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    assert!(pulls >= 10 && began.elapsed() > fixture.options.sender_timeout * 2);
    assert!(spill.exists(), "the rest is on the disk");
    let all = drain(&mut log).await;
    let shown = show(&all);
    assert_eq!(rows + all.iter().map(Changes::rows).sum::<u64>(), 30_002);
    assert_eq!(shown[shown.len() - 2..], ["I 31001 last #30001", "I 31002 small #1"]);
    drop(log);
    assert!(!spill.exists());
    // Nothing was confirmed: from the same position everything comes again, although the server said its end before.
    let mut log = fixture.open().await;
    let again = drain(&mut log).await;
    assert_eq!(again.iter().map(Changes::rows).sum::<u64>(), 30_002);
    let upto = again.iter().filter_map(|changes| changes.upto).max().unwrap();
    drop(log);
    let mut log = fixture.try_open(upto).await.unwrap();
    assert_eq!(show(&drain(&mut log).await), [""; 0], "and from behind it nothing");
    let rows = fixture.session.query("select stream_txns from pg_stat_replication_slots").await.unwrap();
    assert!(rows[0][0].as_deref().is_some_and(|count| count.parse::<u32>().unwrap() >= 2), "it came ahead: {rows:?}");
}

//! The table of types: column type, literal in, cell out. Every way into a column goes through it: full load by binary
//! COPY, and changes by pgoutput, must give the same cells.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_core::{
    Becomes, Change, ColumnType, Columns, Op, Reject, Selection, Table, TableName, TablePattern, Unfit as Policy,
    ValueRule, ValueRules,
    batch::Cell,
    source::{Budget, Log, Rows, Source, SpillRoom, UnboundedRoom},
};
use millrace_postgres::{Options, PostgresConfig, PostgresSource, types::render, wire};

#[allow(dead_code)]
#[path = "../src/test_server.rs"]
mod test_server;
use test_server::TestServer;

/// What must come out.
#[derive(Debug, Clone, Copy)]
enum Out {
    /// The cell's canonical text (`ColumnVec::cell_text`: decimals unscaled, days and microseconds since 1970).
    Cell(&'static str),
    /// Null.
    Null,
    /// The column cannot hold it for this reason; by policy its exact text stands beside a null, its row goes to the dead
    /// letters, or the nearest value (the text, where there is one) takes its place.
    Unfit(&'static str, &'static str),
}
use Out::{Cell as C, Null, Unfit};

const INFINITY: &str = "infinity is not a date or time";
const BC: &str = "a date before the year 1 is out of range";
/// What timestamps are clamped to.
const FIRST_US: &str = "-62135596800000000";
const LAST_US: &str = "9223372036854775806";

/// Made before the cases.
const PREPARE: &str = "CREATE SCHEMA t; CREATE TYPE public.mood AS ENUM ('sad', 'so ''so'', \"ok\"', 'happy'); \
    CREATE DOMAIN public.price AS numeric(8,3) CHECK (VALUE >= 0); CREATE DOMAIN public.dear AS public.price; \
    CREATE DOMAIN public.words AS text[]; CREATE TYPE public.pair AS (a int, b text); \
    CREATE DOMAIN public.spare AS date; CREATE TYPE public.late AS ENUM ('first'); \
    ALTER TYPE public.late ADD VALUE 'added'; CREATE EXTENSION hstore SCHEMA public; \
    CREATE EXTENSION citext SCHEMA public";

/// Column type, literal, what comes out.
const CASES: &[(&str, &str, Out)] = &[
    ("boolean", "true", C("true")),
    ("boolean", "false", C("false")),
    ("boolean", "null", Null),
    ("smallint", "'-32768'", C("-32768")),
    ("integer", "'2147483647'", C("2147483647")),
    ("bigint", "'-9223372036854775808'", C("-9223372036854775808")),
    ("bigint", "null", Null),
    ("real", "'0.1'", C("0.1")),
    ("real", "'-0'", C("-0")),
    ("real", "'NaN'", C("NaN")),
    ("real", "'1e-45'", C("0.000000000000000000000000000000000000000000001")),
    ("double precision", "'Infinity'", C("inf")),
    ("double precision", "'-1234.5678'", C("-1234.5678")),
    ("double precision", "'0.1'", C("0.1")),
    ("numeric(10,2)", "'12.34'", C("1234")),
    ("numeric(10,2)", "'-0.01'", C("-1")),
    ("numeric(10,2)", "'0'", C("0")),
    ("numeric(10,2)", "'99999999.99'", C("9999999999")),
    ("numeric(10,2)", "'10000'", C("1000000")),
    ("numeric(10,2)", "'NaN'", Unfit("NaN is not a decimal", "")),
    ("numeric(5,5)", "'0.00001'", C("1")),
    ("numeric(38,0)", "'99999999999999999999999999999999999999'", C("99999999999999999999999999999999999999")),
    ("numeric(38,38)", "'-0.99999999999999999999999999999999999999'", C("-99999999999999999999999999999999999999")),
    ("numeric(38,10)", "'1234567890123456789012345678.0123456789'", C("12345678901234567890123456780123456789")),
    ("numeric(39,2)", "'1.5'", C("1.50")),
    ("numeric(5,-2)", "'12345'", C("12300")),
    ("numeric(3,5)", "'0.00123'", C("0.00123")),
    ("numeric", "'1.500'", C("1.500")),
    ("numeric", "'-0.00000000000000000001'", C("-0.00000000000000000001")),
    ("numeric", "'1e30'", C("1000000000000000000000000000000")),
    ("numeric", "'0.0'", C("0.0")),
    ("numeric", "'10000.0001'", C("10000.0001")),
    ("numeric", "'NaN'", C("NaN")),
    ("numeric", "'-Infinity'", C("-Infinity")),
    ("text", "'ä €🙂'", C("ä €🙂")),
    ("text", "''", C("")),
    ("text", "E'a\\nb\\t\\\\N'", C("a\nb\t\\N")),
    ("varchar(3)", "'abc'", C("abc")),
    ("character(5)", "'ab'", C("ab   ")),
    ("name", "'x y'", C("x y")),
    ("\"char\"", "'q'", C("q")),
    ("\"char\"", "''", C("")),
    ("public.mood", "'so ''so'', \"ok\"'", C("so 'so', \"ok\"")),
    ("bytea", "'\\x00ff5c'", C("\\x00ff5c")),
    ("bytea", "''", C("\\x")),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", C("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    ("date", "'1970-01-01'", C("0")),
    ("date", "'0001-01-01'", C("-719162")),
    ("date", "'9999-12-31'", C("2932896")),
    ("date", "'5874897-12-31'", C("2145042905")),
    ("date", "'0001-12-31 BC'", Unfit(BC, "-719162")),
    ("date", "'4714-11-24 BC'", Unfit(BC, "-719162")),
    ("date", "'infinity'", Unfit(INFINITY, "2145042905")),
    ("date", "'-infinity'", Unfit(INFINITY, "-719162")),
    ("time", "'00:00:00.000001'", C("1")),
    ("time(3)", "'23:59:59.999'", C("86399999000")),
    ("time", "'24:00:00'", Unfit("24:00:00 is not a time below 24 hours", "86399999999")),
    ("timestamp", "'1970-01-01 00:00:00.000001'", C("1")),
    ("timestamp", "'1969-12-31 23:59:59'", C("-1000000")),
    ("timestamp", "'0001-01-01 00:00:00'", C("-62135596800000000")),
    ("timestamp", "'0044-03-15 12:30:00.5 BC'", Unfit(BC, FIRST_US)),
    ("timestamp", "'infinity'", Unfit(INFINITY, LAST_US)),
    ("timestamp", "'-infinity'", Unfit(INFINITY, FIRST_US)),
    ("timestamp", "'294246-12-31 23:59:59.999999'", C("9223371244799999999")),
    ("timestamp", "'294276-12-31 23:59:59.999999'", Unfit("the timestamp is out of range", LAST_US)),
    ("timestamptz", "'2024-03-31 03:30:00+02'", C("1711848600000000")),
    ("timestamptz", "'0044-03-15 12:30:00+00 BC'", Unfit(BC, FIRST_US)),
    ("timestamptz", "'-infinity'", Unfit(INFINITY, FIRST_US)),
    ("timestamptz", "'infinity'", Unfit(INFINITY, LAST_US)),
    ("timestamptz", "'294276-12-31 23:59:59.999999+00'", Unfit("the timestamp is out of range", LAST_US)),
    ("timetz", "'12:00:00+05:30:15'", C("12:00:00+05:30:15")),
    ("interval", "'1 year 2 mons 3 days 04:05:06.789'", C("1 year 2 mons 3 days 04:05:06.789")),
    ("interval", "'-1 year +2 days'", C("-1 years +2 days")),
    ("interval", "'-14 mons 3 days -04:05:06'", C("-1 years -2 mons +3 days -04:05:06")),
    ("interval", "'0'", C("00:00:00")),
    ("interval", "'1 mon -1 day 1 sec'", C("1 mon -1 days +00:00:01")),
    ("interval", "'-0.000001 s'", C("-00:00:00.000001")),
    ("interval", "'300000 hours'", C("300000:00:00")),
    ("json", "'{\"b\": 1, \"a\":  1e400, \"b\": 2}'", C("{\"b\": 1, \"a\":  1e400, \"b\": 2}")),
    ("jsonb", "'{\"b\": 1, \"a\": \"\\u00e9\", \"b\": 2}'", C("{\"a\": \"é\", \"b\": 2}")),
    ("jsonb", "'null'", C("null")),
    ("public.price", "'1.5'", C("1500")),
    ("public.dear", "'1.5'", C("1500")),
    ("integer[]", "'{1,NULL,-3}'", C("{\"1\",NULL,\"-3\"}")),
    ("integer[]", "'{}'", C("{}")),
    ("integer[]", "null", Null),
    ("integer[]", "'[0:1]={7,8}'", Unfit("an array whose first index is not 1 is out of range", "")),
    ("integer[]", "'{{1,2},{3,4}}'", Unfit("an array of several dimensions is out of range", "")),
    ("text[]", "'{\"a b\",\"\",NULL,\"NULL\",\"q\\\"\\\\\",\"{,}\"}'", C(r#"{"a b","",NULL,"NULL","q\"\\","{,}"}"#)),
    ("text[]", "'[2:3][1:1]={{\"a,b\"},{null}}'", Unfit("an array whose first index is not 1 is out of range", "")),
    ("numeric(6,2)[]", "'{1.5,NULL}'", C("{\"150\",NULL}")),
    ("numeric[]", "'{1.50,NaN}'", C("{\"1.50\",\"NaN\"}")),
    ("numeric(6,2)[]", "'{NaN}'", Unfit("NaN is not a decimal", "")),
    ("bytea[]", "array['\\x00'::bytea, '\\x5c'::bytea]", C(r#"{"\\x00","\\x5c"}"#)),
    ("date[]", "'{1970-01-02}'", C("{\"1\"}")),
    ("date[]", "'{infinity,NULL,1970-01-02}'", Unfit(INFINITY, "{\"2145042905\",NULL,\"1\"}")),
    ("timestamptz[]", "'{\"1970-01-01 00:00:01+00\"}'", C("{\"1000000\"}")),
    ("interval[]", "'{1 day,\"-1 mon 2 days\"}'", C("{\"1 day\",\"-1 mons +2 days\"}")),
    ("uuid[]", "'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'", C("{\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\"}")),
    ("jsonb[]", "array['{\"a\": 1}'::jsonb]", C(r#"{"{\"a\": 1}"}"#)),
    ("boolean[]", "'{t,f}'", C("{\"true\",\"false\"}")),
    ("\"char\"[]", "'{a,\"\"}'", C("{\"a\",\"\"}")),
    ("public.mood[]", "array['sad', 'happy']::public.mood[]", C("{\"sad\",\"happy\"}")),
    ("public.price[]", "array[1.5]::public.price[]", C("{\"1500\"}")),
    ("public.words", "'{a,b}'", C("{\"a\",\"b\"}")),
    ("money", "'-1234.56'", C("-$1,234.56")),
    ("inet", "'10.0.0.1/8'", C("10.0.0.1/8")),
    ("bit(3)", "'101'", C("101")),
    ("oid", "'4294967295'", C("4294967295")),
    ("pg_lsn", "'16/B374D848'", C("16/B374D848")),
    ("xml", "'<a/>'", C("<a/>")),
    ("point", "'(1.5,-2)'", C("(1.5,-2)")),
    ("int4range", "'[1,10)'", C("[1,10)")),
    ("tsvector", "'a:1 b:2'", C("'a':1 'b':2")),
    ("public.pair", "row(1, 'x y')", C("(1,\"x y\")")),
    ("timetz[]", "'{12:00:00+00}'", C("{12:00:00+00}")),
    ("int2vector", "'1 2'", C("1 2")),
    ("numeric", "'Infinity'", C("Infinity")),
    ("numeric(1000,3)", "'7'", C("7.000")),
    ("timetz", "'24:00:00-15:59'", C("24:00:00-15:59")),
    ("date", "'2000-02-29'", C("11016")),
    ("bit varying", "B''", C("")),
    ("bit varying(5)[]", "array[B'101', null]", C("{101,NULL}")),
    ("money[]", "array[1.5::money]", C("{$1.50}")),
    ("numrange", "'(,1.50]'", C("(,1.50]")),
    ("daterange", "'[2024-01-01,infinity)'", C("[2024-01-01,infinity)")),
    ("tstzrange", "'[-infinity,2024-01-01 00:00:00+00)'", C("[-infinity,\"2024-01-01 00:00:00+00\")")),
    ("int4range", "'empty'", C("empty")),
    ("int4range[]", "array['[1,5)'::int4range]", C("{\"[1,5)\"}")),
    ("int4multirange", "'{[1,3),[5,7)}'", C("{[1,3),[5,7)}")),
    ("public.pair", "row(null, '')", C("(,\"\")")),
    ("public.pair[]", "array[row(1, 'x')::public.pair]", C("{\"(1,x)\"}")),
    ("public.late", "'added'", C("added")),
    ("json", "'{\"a\": \"\\ud83d\"}'", C("{\"a\": \"\\ud83d\"}")),
    ("json[]", "array['{\"a\":1, \"a\":2}'::json]", C(r#"{"{\"a\":1, \"a\":2}"}"#)),
    ("public.hstore", "'a=>1, b=>NULL, c=>\"\"'", C("\"a\"=>\"1\", \"b\"=>NULL, \"c\"=>\"\"")),
    ("public.citext", "'MiXed'", C("MiXed")),
    ("public.citext[]", "'{MiXed,NULL}'", C("{\"MiXed\",NULL}")),
    ("line", "'{1,-1,0.5}'", C("{1,-1,0.5}")),
    ("lseg", "'[(0,0),(1,1)]'", C("[(0,0),(1,1)]")),
    ("box", "'(1,1),(0,0)'", C("(1,1),(0,0)")),
    ("box[]", "'{(1,1),(0,0);(2,2),(1,1)}'", C("{(1,1),(0,0);(2,2),(1,1)}")),
    ("path", "'[(0,0),(1,1)]'", C("[(0,0),(1,1)]")),
    ("polygon", "'((0,0),(1,1),(1,0))'", C("((0,0),(1,1),(1,0))")),
    ("circle", "'<(0,0),1e300>'", C("<(0,0),1e+300>")),
    ("inet", "'10.0.0.1'", C("10.0.0.1")),
    ("inet", "'::1'", C("::1")),
    ("cidr", "'10.0.0.0/8'", C("10.0.0.0/8")),
    ("macaddr", "'08:00:2b:01:02:03'", C("08:00:2b:01:02:03")),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'", C("08:00:2b:01:02:03:04:05")),
    ("tsvector", "$$'it''s':1A$$", C("'it''s':1A")),
    ("tsquery", "'a & !b'", C("'a' & !'b'")),
    ("oid[]", "'{4294967295}'", C("{4294967295}")),
    ("xid8", "'18446744073709551615'", C("18446744073709551615")),
    ("regclass", "'pg_class'", C("pg_class")),
    ("public.spare", "'infinity'", Unfit(INFINITY, "2145042905")),
];

fn table(case: usize) -> TableName {
    TableName::new("t", format!("case_{case}"))
}

fn insert(case: usize) -> String {
    format!("INSERT INTO t.case_{case} VALUES (1, {})", CASES[case].1)
}

/// Makes the cases' tables; gives what the server prints for each value.
async fn make_tables(session: &mut wire::Connection) -> Vec<Option<String>> {
    for statement in PREPARE.split("; ") {
        session.execute(statement).await.unwrap();
    }
    let mut printed = vec![];
    for (case, (ty, _, _)) in CASES.iter().enumerate() {
        session.execute(&format!("CREATE TABLE t.case_{case} (id int PRIMARY KEY, v {ty})")).await.unwrap();
        session.execute(&insert(case)).await.unwrap();
        let rows = session
            .query(&format!("SELECT CASE WHEN v IS DISTINCT FROM NULL THEN format('%s', v) END FROM t.case_{case}"))
            .await
            .unwrap();
        printed.push(rows[0][0].clone());
    }
    printed
}

/// What each policy does is tried with every case.
const POLICIES: [Policy; 4] = [Policy::Companion, Policy::DeadLetter, Policy::Clamp, Policy::Text];

fn source(server: &TestServer, policy: Policy) -> PostgresSource {
    let values = Arc::new(ValueRules { unfit: policy, ..ValueRules::default() });
    let task = format!("types_{policy:?}").to_lowercase();
    PostgresSource::new(server.config("postgres"), &task, Options { values, ..Options::default() })
}

/// Compares one row that came out, by whatever way, with what must come out.
fn compare(case: usize, policy: Policy, printed: &Option<String>, columns: &Columns, rejects: &[Reject]) {
    let (ty, literal, out) = CASES[case];
    let what = format!("{ty} {literal} {policy:?}");
    if let (Policy::DeadLetter, Unfit(reason, _)) = (policy, out) {
        assert_eq!((columns.rows(), rejects.len()), (0, 1), "{what}");
        let reject = &rejects[0];
        assert_eq!(reject.reason, reason, "{what}");
        assert_eq!((reject.column.as_str(), reject.key[0].1.as_deref()), ("v", Some("1")), "{what}");
        assert_eq!(reject.row[1].1, Cell::Text(printed.clone().unwrap()), "{what}");
        return;
    }
    assert_eq!((columns.rows(), rejects), (1, &[][..]), "{what}");
    let column = &columns.columns()[1];
    let typed = column.cell_text(0);
    let (expected, exact) = match (policy, out) {
        // Columns whose values all fit keep their type under every policy.
        (Policy::Text, _) if column.ty() == &ColumnType::Text => (printed.as_deref(), None),
        (Policy::Text, Unfit(..)) => panic!("{what}: the column is no text"),
        (Policy::Clamp, Unfit(_, nearest)) if !nearest.is_empty() => (Some(nearest), None),
        (_, Unfit(..)) => (None, printed.as_deref()),
        (_, C(text)) => (Some(text), None),
        (_, Null) => (None, None),
    };
    assert_eq!((typed.as_deref(), columns.exact(0, 1)), (expected, exact), "{what}");
}

// trap: 18, 19, 20, 21
#[tokio::test]
async fn by_binary_copy() {
    let Some(server) = TestServer::start(&["lc_monetary='C'"]) else { return };
    let mut session = server.session().await;
    session.execute("ALTER DATABASE postgres SET DateStyle = 'SQL, DMY'").await.unwrap();
    session.execute("ALTER DATABASE postgres SET bytea_output = 'escape'").await.unwrap();
    let printed = make_tables(&mut session).await;
    let names: Vec<TableName> = (0..CASES.len()).map(table).collect();
    for policy in POLICIES {
        let snapshot = source(&server, policy).snapshot(&names, false).await.unwrap();
        for (case, name) in names.iter().enumerate() {
            let load = snapshot.open(name, 1, None).await.unwrap();
            let mut rows: Box<dyn Rows> = load.rows(0).await.unwrap();
            let loaded = rows.next().await.unwrap().unwrap();
            assert!(rows.next().await.unwrap().is_none());
            compare(case, policy, &printed[case], &loaded.columns, &loaded.rejects);
            assert!(load.table().columns[1].nullable && !load.table().columns[0].nullable);
        }
    }
}

// trap: 18, 19, 20, 21
#[tokio::test]
async fn by_pgoutput() {
    let Some(server) = TestServer::start(&["lc_monetary='C'"]) else { return };
    let mut session = server.session().await;
    session.execute("ALTER DATABASE postgres SET DateStyle = 'SQL, DMY'").await.unwrap();
    session.execute("ALTER DATABASE postgres SET bytea_output = 'escape'").await.unwrap();
    let printed = make_tables(&mut session).await;
    let selection = Selection { include: vec![TablePattern::parse("t.*").unwrap()], exclude: vec![] };
    let mut logs = vec![];
    for policy in POLICIES {
        let source = source(&server, policy);
        let tables: Vec<Arc<Table>> = source.tables(&selection).await.unwrap().into_iter().map(Arc::new).collect();
        source.prepare(&tables).await.unwrap();
        logs.push((policy, source.create_log().await.unwrap(), tables, source));
    }
    for case in 0..CASES.len() {
        session.execute(&format!("DELETE FROM t.case_{case}")).await.unwrap();
        session.execute(&insert(case)).await.unwrap();
    }
    for (policy, from, tables, source) in logs {
        let known = source.identity().await.unwrap();
        let mut log = source.open_log(&tables, &from, &known, room()).await.unwrap();
        let came = read_inserts(&mut *log).await;
        for case in 0..CASES.len() {
            let (columns, rejects) = &came[&table(case)];
            compare(case, policy, &printed[case], columns, rejects);
        }
    }
}

/// Nothing here is large enough for it.
fn room() -> Arc<dyn SpillRoom> {
    Arc::new(UnboundedRoom("never-used".into()))
}

/// The inserted row of every case's table.
async fn read_inserts(log: &mut dyn Log) -> HashMap<TableName, (Columns, Vec<Reject>)> {
    let mut came: HashMap<TableName, (Columns, Vec<Reject>)> = HashMap::new();
    let begin = Instant::now();
    while came.len() < CASES.len() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{} of {} cases came", came.len(), CASES.len());
        let budget = Budget { rows: 10_000, bytes: 1 << 20, wait: Duration::from_secs(1) };
        for item in log.pull(budget).await.unwrap().items {
            match item {
                Change::Rows(batch) => {
                    let keep: Vec<bool> = batch.ops.iter().map(|op| *op == Op::Insert).collect();
                    if keep.contains(&true) {
                        let batch = batch.filter(&keep);
                        came.insert(batch.table.name.clone(), (batch.after, vec![]));
                    }
                }
                Change::Rejected(rejects) => {
                    for reject in rejects {
                        let table = reject.table.clone();
                        came.insert(table, (Columns::new([]), vec![reject]));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    came
}

/// A numeric without a bound of its own is a decimal by a rule, and what is too large for it stands beside it.
// trap: 18
#[tokio::test]
async fn a_numeric_becomes_a_decimal_by_rule() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    session.execute("create table n (id int primary key, v numeric, w numeric[])").await.unwrap();
    let becomes = Some(Becomes::Decimal { precision: 6, scale: 2 });
    let types = ["numeric", "decimal[]"].map(|name| (name.to_string(), ValueRule { unfit: None, becomes }));
    let values = Arc::new(ValueRules { types: types.into(), ..ValueRules::default() });
    let source = PostgresSource::new(server.config("postgres"), "n", Options { values, ..Options::default() });
    let name = TableName::new("public", "n");
    let selection = Selection { include: vec![TablePattern::parse("public.n").unwrap()], exclude: vec![] };
    let tables: Vec<Arc<Table>> = source.tables(&selection).await.unwrap().into_iter().map(Arc::new).collect();
    let decimal = ColumnType::Decimal { precision: 6, scale: 2 };
    assert_eq!(tables[0].columns[1].ty, decimal);
    assert_eq!(tables[0].columns[2].ty, ColumnType::List(Box::new(decimal)));
    source.prepare(&tables).await.unwrap();
    let from = source.create_log().await.unwrap();
    let rows = "insert into n values (1, 1.5, '{1,2.25}'), (2, 0.001, '{0.001}'), (3, 12345, null), \
                (4, 'NaN', '{NaN}'), (5, 1.50, '{}')";
    session.execute(rows).await.unwrap();
    let snapshot = source.snapshot(std::slice::from_ref(&name), false).await.unwrap();
    let load = snapshot.open(&name, 1, None).await.unwrap();
    let loaded = load.rows(0).await.unwrap().next().await.unwrap().unwrap().columns;
    let cells: Vec<_> = (0..5).map(|row| loaded.columns()[1].cell_text(row)).collect();
    assert_eq!(cells, [Some("150".to_string()), None, None, None, Some("150".to_string())]);
    let exact: Vec<_> = loaded.exact_cells().collect();
    let expected = [(1, 1, "0.001"), (1, 2, "{0.001}"), (2, 1, "12345"), (3, 1, "NaN"), (3, 2, "{NaN}")];
    assert_eq!(exact, expected);
    let known = source.identity().await.unwrap();
    let mut log = source.open_log(&tables, &from, &known, room()).await.unwrap();
    let budget = Budget { rows: 10_000, bytes: 1 << 20, wait: Duration::from_secs(5) };
    let mut items = vec![];
    while items.is_empty() {
        items = log.pull(budget).await.unwrap().items;
    }
    let Some(Change::Rows(batch)) = items.pop() else { panic!("rows were inserted") };
    assert_eq!(batch.after, loaded, "both ways give the same");
}

/// What is decoded and rendered here is what the server prints, for many values of the types whose text is made here.
// trap: 18, 19, 20
#[tokio::test]
async fn many_values_read_as_the_server_prints_them() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    let make = "select setseed(0.5); create table r as select g::bigint as id, \
        round((random() - 0.5)::numeric * power(10::numeric, (random() * 60 - 30)::int), (random() * 40)::int) as n, \
        ((random() - 0.5)::numeric * power(10::numeric, (random() * 20)::int))::numeric(30,8) as d, \
        make_interval((random() * 20 - 10)::int, (random() * 20 - 10)::int, 0, (random() * 20 - 10)::int, \
            (random() * 20 - 10)::int, (random() * 20 - 10)::int, random() * 20 - 10) as i, \
        (random() - 0.5) * power(10, (random() * 600 - 300)::int) as f8, \
        ((random() - 0.5) * power(10, (random() * 60 - 30)::int))::real as f4, \
        timestamp '2000-01-01' + make_interval(0, 0, 0, (random() * 700000)::int, 0, 0, random() * 86400) as ts, \
        date '0001-01-01' + (random() * 3000000)::int as day, time '00:00' + random() * interval '1 day' as t, \
        gen_random_uuid() as u, decode(md5(random()::text), 'hex') as b from generate_series(1, 20000) g; \
        update r set f8 = round(f8), n = trunc(n), f4 = (id % 3000000)::real where id % 10 = 0; vacuum full r";
    for statement in make.split("; ") {
        session.execute(statement).await.unwrap();
    }
    let source = PostgresSource::new(server.config("postgres"), "types", Options::default());
    let name = TableName::new("public", "r");
    let snapshot = source.snapshot(std::slice::from_ref(&name), false).await.unwrap();
    let load = snapshot.open(&name, 1, None).await.unwrap();
    let mut rows = load.rows(0).await.unwrap();
    let printed = session.query("select * from r order by ctid").await.unwrap();
    let mut at = 0;
    while let Some(batch) = rows.next().await.unwrap() {
        assert!(batch.rejects.is_empty());
        for row in 0..batch.columns.rows() {
            for (index, column) in batch.columns.columns().iter().enumerate() {
                assert_eq!(render::cell(column, row), printed[at][index], "{}", load.table().columns[index].name);
            }
            at += 1;
        }
    }
    assert_eq!(at, 20_000);
}

/// What the types that the cases make are.
const MADE: &[(&str, &str)] = &[
    ("public.mood", "an enum"),
    ("public.late", "a value added to an enum later"),
    ("public.price", "a domain over `numeric(8,3)`"),
    ("public.dear", "a domain over a domain"),
    ("public.words", "a domain over `text[]`"),
    ("public.spare", "a domain over `date`"),
    ("public.pair", "a composite"),
    ("public.mood[]", "an array of an enum"),
    ("public.price[]", "an array of a domain"),
    ("public.pair[]", "an array of a composite"),
    ("public.hstore", "`hstore`"),
    ("public.citext", "`citext`"),
    ("public.citext[]", "`citext[]`"),
];

const PAGE_HEAD: &str = "# What PostgreSQL's types become

This page is made from the table of types in `connectors/postgres/tests/types.rs`, whose every line is tried by full load
and by change capture alike; the test fails when the page is stale, and `MILLRACE_WRITE_DOCS=1 cargo test -p
millrace-postgres --test types` writes it anew.

A type that is not listed is text, exactly as the server prints it with `TimeZone` UTC, `DateStyle` ISO, `IntervalStyle`
postgres, `bytea_output` hex and all digits of floats. So is `numeric` without a precision, and with one that no 128 bits
hold. A list holds arrays of one dimension that begin at index 1; items may be null.

## Values that do not fit

Some values of a PostgreSQL type have no place in the column's type. What becomes of them is set per task, per type or
per column (`values` in `config/every-option.yaml`):

- `companion` (the default): the column is null there, and the value stands exactly as the server prints it in the text
  column `<column>__exact`, which joins the table, with a new version in the catalog, when the first such value arrives.
  It stays from then on. Where the table has a column of that name, the companion takes a leading underscore; the table's
  parameter `millrace.exact-columns` names every companion. In a key, column and companion together are the key.
- `text`: every column whose type has such values is exact text from the first row on.
- `dead-letter`: the row goes to the dead letters.
- `clamp`: the nearest value that fits: 0001-01-01 and 5874897-12-31 for dates, 0001-01-01 00:00:00 and 294247-01-10
  04:00:54.775806 for timestamps (DuckDB reads one microsecond more as infinity), 23:59:59.999999 for times, the largest
  number of a decimal's digits, or the number rounded to its scale. Where no value is near (NaN, an array of another
  shape), and in keys, whose rows would become one, it is as `companion`.

`as: text` makes any column exact text; `as: decimal(p,s)` gives a `numeric` a precision of its own, and what then does
not fit follows the same rules. When a column's type changes by such a rule, its table is loaded anew.

Longer values than `max-value`, and text that is not UTF-8 (a database of encoding SQL_ASCII), go to the dead letters under
every policy.

## The types

| PostgreSQL | Arrow | Parquet | does not fit |
|---|---|---|---|
";

/// How Parquet stores a column.
fn parquet(ty: &ColumnType) -> String {
    match ty {
        ColumnType::Boolean => "BOOLEAN".into(),
        ColumnType::Int16 => "INT32, INTEGER(16)".into(),
        ColumnType::Int32 => "INT32".into(),
        ColumnType::Int64 => "INT64".into(),
        ColumnType::Float32 => "FLOAT".into(),
        ColumnType::Float64 => "DOUBLE".into(),
        ColumnType::Decimal { precision, scale } => {
            let stored = match precision {
                ..=9 => "INT32",
                10..=18 => "INT64",
                _ => "FIXED_LEN_BYTE_ARRAY",
            };
            format!("{stored}, DECIMAL({precision},{scale})")
        }
        ColumnType::Text => "BYTE_ARRAY, STRING".into(),
        ColumnType::Binary => "BYTE_ARRAY".into(),
        ColumnType::Date => "INT32, DATE".into(),
        ColumnType::Time => "INT64, TIME(microseconds)".into(),
        ColumnType::Timestamp => "INT64, TIMESTAMP(microseconds, local)".into(),
        ColumnType::TimestampTz => "INT64, TIMESTAMP(microseconds, UTC)".into(),
        ColumnType::List(item) => format!("LIST of {}", parquet(item)),
    }
}

fn arrow(ty: &ColumnType) -> String {
    match ty {
        ColumnType::List(item) => format!("List of {}", arrow(item)),
        ColumnType::Timestamp => "Timestamp(Microsecond)".into(),
        ColumnType::TimestampTz => "Timestamp(Microsecond, UTC)".into(),
        ColumnType::Time => "Time64(Microsecond)".into(),
        ty => format!("{:?}", ty.to_arrow()),
    }
}

/// Why values of such columns do not fit, of all cases of the same kind.
fn unfit_reasons<'a>(column: &ColumnType, types: &[ColumnType]) -> Vec<&'a str> {
    let kind = std::mem::discriminant(column);
    let mut reasons: Vec<&str> = vec![];
    for ((.., out), ty) in CASES.iter().zip(types) {
        if let Unfit(reason, _) = out
            && std::mem::discriminant(ty) == kind
            && (!matches!(ty, ColumnType::List(_)) || reason.starts_with("an array"))
            && !reasons.contains(reason)
        {
            reasons.push(reason);
        }
    }
    if let ColumnType::List(item) = column {
        reasons.extend(unfit_reasons(item, types));
    }
    reasons
}

/// `docs/postgres-types.md` is what the cases say.
#[tokio::test]
async fn the_page_of_types_is_fresh() {
    let Some(server) = TestServer::start(&["lc_monetary='C'"]) else { return };
    make_tables(&mut server.session().await).await;
    let selection = Selection { include: vec![TablePattern::parse("t.*").unwrap()], exclude: vec![] };
    let tables = source(&server, Policy::Companion).tables(&selection).await.unwrap();
    let types: Vec<ColumnType> = (0..CASES.len())
        .map(|case| tables.iter().find(|shape| shape.name == table(case)).unwrap().columns[1].ty.clone())
        .collect();
    let mut page = PAGE_HEAD.to_string();
    let mut seen: Vec<&str> = vec![];
    for ((ty, ..), column) in CASES.iter().zip(&types) {
        if seen.contains(ty) {
            continue;
        }
        seen.push(ty);
        let reasons = unfit_reasons(column, &types);
        let made = MADE.iter().find(|(name, _)| name == ty).map(|(_, what)| what.to_string());
        let name = made.unwrap_or_else(|| format!("`{ty}`"));
        page.push_str(&format!("| {name} | {} | {} | {} |\n", arrow(column), parquet(column), reasons.join("; ")));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/postgres-types.md");
    if std::env::var_os("MILLRACE_WRITE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page, "docs/postgres-types.md is stale");
}

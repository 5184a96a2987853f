//! The table of types: column type, literal in, cell out. Every way into a column goes through it: full load by binary
//! COPY, and changes by pgoutput, must give the same cells.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_core::{
    Change, Columns, Op, Reject, Selection, Table, TableName, TablePattern,
    batch::Cell,
    source::{Budget, Rows, Source},
};
use millrace_postgres::{Options, PostgresConfig, PostgresSource, Tls, TlsMode, types::render, wire};

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
    /// The row goes to the dead letters for this reason, with the value as the server prints it.
    Unfit(&'static str),
}
use Out::{Cell as C, Null, Unfit};

/// Made before the cases.
const PREPARE: &str = "CREATE SCHEMA t; CREATE TYPE public.mood AS ENUM ('sad', 'so ''so'', \"ok\"', 'happy'); \
    CREATE DOMAIN public.price AS numeric(8,3) CHECK (VALUE >= 0); CREATE DOMAIN public.dear AS public.price; \
    CREATE DOMAIN public.words AS text[]; CREATE TYPE public.pair AS (a int, b text)";

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
    ("numeric(10,2)", "'NaN'", Unfit("NaN is not a decimal")),
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
    ("date", "'0001-12-31 BC'", Unfit("a date before the year 1 is out of range")),
    ("date", "'4714-11-24 BC'", Unfit("a date before the year 1 is out of range")),
    ("date", "'infinity'", Unfit("infinity is not a date or time")),
    ("date", "'-infinity'", Unfit("infinity is not a date or time")),
    ("time", "'00:00:00.000001'", C("1")),
    ("time(3)", "'23:59:59.999'", C("86399999000")),
    ("time", "'24:00:00'", Unfit("24:00:00 is not a time below 24 hours")),
    ("timestamp", "'1970-01-01 00:00:00.000001'", C("1")),
    ("timestamp", "'1969-12-31 23:59:59'", C("-1000000")),
    ("timestamp", "'0001-01-01 00:00:00'", C("-62135596800000000")),
    ("timestamp", "'0044-03-15 12:30:00.5 BC'", Unfit("a date before the year 1 is out of range")),
    ("timestamp", "'infinity'", Unfit("infinity is not a date or time")),
    ("timestamp", "'294246-12-31 23:59:59.999999'", C("9223371244799999999")),
    ("timestamp", "'294276-12-31 23:59:59.999999'", Unfit("the timestamp is out of range")),
    ("timestamptz", "'2024-03-31 03:30:00+02'", C("1711848600000000")),
    ("timestamptz", "'0044-03-15 12:30:00+00 BC'", Unfit("a date before the year 1 is out of range")),
    ("timestamptz", "'-infinity'", Unfit("infinity is not a date or time")),
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
    ("integer[]", "'[0:1]={7,8}'", Unfit("an array whose first index is not 1 is out of range")),
    ("integer[]", "'{{1,2},{3,4}}'", Unfit("an array of several dimensions is out of range")),
    ("text[]", "'{\"a b\",\"\",NULL,\"NULL\",\"q\\\"\\\\\",\"{,}\"}'", C(r#"{"a b","",NULL,"NULL","q\"\\","{,}"}"#)),
    ("text[]", "'[2:3][1:1]={{\"a,b\"},{null}}'", Unfit("an array whose first index is not 1 is out of range")),
    ("numeric(6,2)[]", "'{1.5,NULL}'", C("{\"150\",NULL}")),
    ("numeric[]", "'{1.50,NaN}'", C("{\"1.50\",\"NaN\"}")),
    ("numeric(6,2)[]", "'{NaN}'", Unfit("NaN is not a decimal")),
    ("bytea[]", "array['\\x00'::bytea, '\\x5c'::bytea]", C(r#"{"\\x00","\\x5c"}"#)),
    ("date[]", "'{1970-01-02}'", C("{\"1\"}")),
    ("date[]", "'{infinity,1970-01-02}'", Unfit("infinity is not a date or time")),
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
];

fn table(case: usize) -> TableName {
    TableName::new("t", format!("case_{case}"))
}

fn insert(case: usize) -> String {
    format!("INSERT INTO t.case_{case} VALUES (1, {})", CASES[case].1)
}

/// Makes the cases' tables; gives what the server prints for each value.
async fn make_tables(session: &mut wire::Connection) -> Vec<Option<String>> {
    session.execute(PREPARE).await.unwrap();
    let mut printed = vec![];
    for (case, (ty, _, _)) in CASES.iter().enumerate() {
        session.execute(&format!("CREATE TABLE t.case_{case} (id int PRIMARY KEY, v {ty})")).await.unwrap();
        session.execute(&insert(case)).await.unwrap();
        let rows = session.query(&format!("SELECT v::text FROM t.case_{case}")).await.unwrap();
        printed.push(rows[0][0].clone());
    }
    printed
}

/// Compares one row that came out, by whatever way, with what must come out.
fn compare(case: usize, printed: &Option<String>, columns: &Columns, rejects: &[Reject]) {
    let (ty, literal, out) = CASES[case];
    let what = format!("{ty} {literal}");
    match out {
        Unfit(reason) => {
            assert_eq!((columns.rows(), rejects.len()), (0, 1), "{what}");
            let reject = &rejects[0];
            assert_eq!(reject.reason, reason, "{what}");
            assert_eq!((reject.column.as_str(), reject.key[0].1.as_deref()), ("v", Some("1")), "{what}");
            assert_eq!(reject.row[1].1, Cell::Text(printed.clone().unwrap()), "{what}");
        }
        C(_) | Null => {
            assert_eq!((columns.rows(), rejects), (1, &[][..]), "{what}");
            let expected = if let C(text) = out { Some(text) } else { None };
            assert_eq!(columns.columns()[1].cell_text(0).as_deref(), expected, "{what}");
        }
    }
}

#[tokio::test]
async fn by_binary_copy() {
    let Some(server) = TestServer::start(&["lc_monetary='C'"]) else { return };
    let mut session = server.session().await;
    session.execute("ALTER DATABASE postgres SET DateStyle = 'SQL, DMY'").await.unwrap();
    session.execute("ALTER DATABASE postgres SET bytea_output = 'escape'").await.unwrap();
    let printed = make_tables(&mut session).await;
    let source = PostgresSource::new(server.config("postgres"), "types", Options::default());
    let names: Vec<TableName> = (0..CASES.len()).map(table).collect();
    let snapshot = source.snapshot(&names, false).await.unwrap();
    for (case, name) in names.iter().enumerate() {
        let load = snapshot.open(name, 1, None).await.unwrap();
        let mut rows: Box<dyn Rows> = load.rows(0).await.unwrap();
        let loaded = rows.next().await.unwrap().unwrap();
        assert!(rows.next().await.unwrap().is_none());
        compare(case, &printed[case], &loaded.columns, &loaded.rejects);
        assert!(load.table().columns[1].nullable && !load.table().columns[0].nullable);
    }
}

#[tokio::test]
async fn by_pgoutput() {
    let Some(server) = TestServer::start(&["lc_monetary='C'"]) else { return };
    let mut session = server.session().await;
    session.execute("ALTER DATABASE postgres SET DateStyle = 'SQL, DMY'").await.unwrap();
    session.execute("ALTER DATABASE postgres SET bytea_output = 'escape'").await.unwrap();
    let printed = make_tables(&mut session).await;
    let source = PostgresSource::new(server.config("postgres"), "types", Options::default());
    let selection = Selection { include: vec![TablePattern::parse("t.*").unwrap()], exclude: vec![] };
    let tables: Vec<Arc<Table>> = source.tables(&selection).await.unwrap().into_iter().map(Arc::new).collect();
    source.prepare(&tables).await.unwrap();
    let from = source.create_log().await.unwrap();
    for case in 0..CASES.len() {
        session.execute(&format!("DELETE FROM t.case_{case}")).await.unwrap();
        session.execute(&insert(case)).await.unwrap();
    }
    let known = source.identity().await.unwrap();
    let mut log = source.open_log(&tables, from, &known).await.unwrap();
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
    for case in 0..CASES.len() {
        let (columns, rejects) = &came[&table(case)];
        compare(case, &printed[case], columns, rejects);
    }
}

/// What is decoded and rendered here is what the server prints, for many values of the types whose text is made here.
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

"""Tables, columns, keys and roles that are seldom thought of, and that a busy database is sure to have."""

import pytest
from servers import wait_for

BIG = "(select string_agg(md5(random()::text || j || {0}), '') from generate_series(1, 400) j)"


@pytest.mark.trap("22")
def test_dropped_and_fast_default_columns_from_before(daemon, sql):
    """Holes in the attribute numbers, and old rows that are shorter than the table is wide."""
    sql(
        "create table t (gone int, id int primary key, a text, gone2 text, b int)",
        "insert into t select i, i, 'a' || i, 'x', i from generate_series(1, 300) i",
        "alter table t drop column gone, add column d int default 7, add column e timestamptz default now()",
        "alter table t drop column gone2, add column f text",
        "insert into t values (1000, 'new', 1, 8, now(), 'f')",
    )
    running = daemon(["public.t"]).start_and_load()
    sql("update t set b = b + 1 where id < 50", "update t set id = -id where id < 10", "delete from t where id = 40")
    running.compare([("public", "t")])


@pytest.mark.trap("22")
def test_generated_columns(daemon, sql, server):
    """The server sends no stored generated column before version 18; what the lake has is the same either way."""
    sql(
        "create table t (id int primary key, a int, b int generated always as (a * 2) stored, c text)",
        "insert into t (id, a, c) select i, i, 'c' from generate_series(1, 100) i",
    )
    if server.major >= 18:
        sql("alter table t add column v int generated always as (a * 3) virtual")
    running = daemon(["public.t"]).start_and_load()
    sql("update t set a = a + 1 where id < 20", "insert into t (id, a) values (200, 5)", "delete from t where id = 30")
    running.compare([{"schema": "public", "table": "t", "drop": ["b", "v"]}])


@pytest.mark.trap("22", "24")
def test_things_that_are_no_plain_tables(daemon, sql):
    """A pattern takes the tables among them, and the rest does no harm."""
    sql(
        "create table t (id int primary key)",
        "insert into t values (1)",
        "create unlogged table u (id int primary key)",
        "insert into u values (1)",
        "create view v as select * from t",
        "create materialized view m as select * from t",
        "create sequence s",
        "create type c as (a int)",
        "create table nothing ()",
        "insert into nothing default values",
    )
    running = daemon(["public.*"]).start_and_load()
    sql("insert into t values (2)", "insert into u values (2)", "insert into nothing default values")
    running.compare([("public", "t")])
    assert not {("public", name) for name in "vmsc"} & set(running.states())
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("24")
def test_row_security_never_hides_rows(server, database, daemon, sql):
    """A policy that hides rows from our role must be an error, not a lake with fewer rows."""
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, 'x' from generate_series(1, 100) i",
        "alter table t enable row level security",
        "create policy few on t using (id <= 10)",
    )
    server.execute(
        database,
        "drop role if exists watcher",
        f"create role watcher login replication password '{server.PASSWORD}'",
        f'grant connect, create on database "{database}" to watcher',
        "grant usage on schema public to watcher",
        "grant select on all tables in schema public to watcher",
        "create publication millrace_shop for table t",
        "create publication millrace_shop_inserts with (publish = 'insert, truncate')",
        user="postgres",
    )
    running = daemon(["public.t"], user="watcher")
    done = running.command("check")
    said = done.stdout + done.stderr
    if done.returncode == 0:
        running.start()
        wait_for(lambda: running.ended() or "row" in running.log() and "security" in running.log(), 20, "an error")
        said = running.log()
        assert running.states_or_none().get(("public", "t")) != "Table completed"
        running.kill()
    assert "row" in said and "security" in said, said
    server.execute(database, "alter role watcher bypassrls", user="postgres")
    running.start()
    running.wait_states()
    running.compare([("public", "t")])
    running.close()
    server.execute(database, "drop owned by watcher", "drop role watcher", user="postgres")


# (type of the key, literal of row i)
KEYS = [
    ("bigint", "i"),
    ("numeric", "i / 8.0"),
    ("numeric(10,3)", "i / 8.0"),
    ("double precision", "i / 3.0"),
    ("real", "i / 3.0"),
    ("text", "'it''s \"' || i || E' \\\\ \\n{,}'"),
    ("char(8)", "'k' || i"),
    ("bytea", "decode(md5(i::text), 'hex')"),
    ("uuid", "md5(i::text)::uuid"),
    ("date", "date '1999-12-31' + i"),
    ("time", "time '00:00' + i * interval '1.5 s'"),
    ("timestamp", "timestamp '2024-01-01' + i * interval '1.000001 s'"),
    ("timestamptz", "timestamptz '2024-03-31 00:30+00' + i * interval '7 min'"),
    ("interval", "i * interval '1 day 2.5 s'"),
    ("inet", "inet '10.0.0.0' + i"),
    ("jsonb", "jsonb_build_object('a', i, 'b', null)"),
    ("text[]", "array['a,b', 'q\"', null, i::text]"),
    ("int[]", "array[i, null]"),
    ("mood", "('{a,\"b c\",d,e,f,g,h,i,j,k}'::mood[])[i]"),
    ("int4range", "int4range(i, i + 1)"),
    ("boolean", "i % 2 = 0"),
]


@pytest.mark.trap("11")
def test_large_values_are_looked_up_by_keys_of_every_type(daemon, sql):
    sql("create type mood as enum ('a', 'b c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k')")
    for number, (kind, literal) in enumerate(KEYS):
        rows = 2 if kind == "boolean" else 10
        sql(
            f"create table t{number} (k {kind}, part int, n int, a text, primary key (k, part))",
            f"alter table t{number} alter a set storage external",
            f"insert into t{number} select {literal}, 7, 0, {BIG.format('i')} from generate_series(1, {rows}) i",
        )
    running = daemon(["public.*"]).start_and_load()
    for number in range(len(KEYS)):
        sql(f"update t{number} set n = n + 1", f"update t{number} set part = 8", f"update t{number} set n = n + 1")
    running.compare([("public", f"t{number}") for number in range(len(KEYS))])
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("19")
def test_settings_of_the_role_that_would_end_our_sessions(server, database, daemon, sql):
    """Timeouts and formats that an administrator gave to all roles are not for a load of hours."""
    sql(
        "create table t (id int primary key, at timestamptz, x double precision, v text)",
        "insert into t select i, now(), i / 3.0, repeat(md5(i::text), 30) from generate_series(1, 20000) i",
        "analyze t",
    )
    settings = {
        "statement_timeout": "'1s'",
        "lock_timeout": "'500ms'",
        "idle_in_transaction_session_timeout": "'1s'",
        "datestyle": "'German'",
        "extra_float_digits": "-5",
        "search_path": "nowhere",
        "client_encoding": "latin1",
        "standard_conforming_strings": "off",
    }
    if server.major >= 17:
        settings["transaction_timeout"] = "'2s'"
    for name, value in settings.items():
        server.execute(database, f'alter role cdc in database "{database}" set {name} = {value}', user="postgres")
    running = daemon(["public.t"], options={"full-load": {"parallel": 1, "rate-limit": "4MiB"}}).start_and_load()
    sql("update t set v = 'Ω ' || id, at = at + interval '1 s' where id <= 100")
    running.compare([("public", "t")])


def test_a_table_that_is_made_while_the_task_runs(daemon, sql):
    """It matches the pattern: the next start takes it at the latest, rows from before included."""
    sql("create table a (id int primary key)")
    running = daemon(["public.*"]).start_and_load()
    sql("create table b (id int primary key, v text)", "insert into b values (1, 'early')")
    running.terminate()
    sql("insert into b values (2, 'down')")
    running.start()
    wait_for(lambda: ("public", "b") in running.states_or_none(), 20, "the new table")
    running.wait_states()
    sql("insert into b values (3, 'late')", "insert into a values (1)")
    running.compare([("public", "a"), ("public", "b")])


@pytest.mark.trap("17", crash=True)
@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
@pytest.mark.fault("36", "a table is dropped and made again", promise="continues")
def test_a_table_that_is_made_anew_under_its_name(daemon, sql, down):
    """Another table with the old one's name: never mixed with the old one's rows."""
    sql("create table t (id int primary key, v text)", "create table other (id int primary key)")
    sql("insert into t select i, 'old' from generate_series(1, 50) i")
    running = daemon(["public.*"]).start_and_load()
    sql("update t set v = 'older' where id < 10")
    running.compare([("public", "t")])
    if down:
        running.kill()
    sql("drop table t", "create table t (id int primary key, v text)", "insert into t values (1, 'new'), (100, 'new')")
    sql("insert into other values (1)")
    if down:
        running.start()
    running.compare([("public", "other")])
    if not down:
        running.terminate()
        running.start()
    wait_for(lambda: "is loaded anew" in running.run("events"), 30, "the table's reload")
    running.wait_states()
    sql("insert into t values (101, 'later')", "delete from t where id = 1")
    running.compare([("public", "t"), ("public", "other")])


@pytest.mark.trap("12")
def test_a_replica_identity_that_changes(daemon, sql):
    """REPLICA IDENTITY FULL, pasted from `plan`: from then on updates and deletes are captured, after a reload if so told."""
    sql("create table t (a int, b text)", "insert into t values (1, 'x'), (1, 'x'), (2, 'y')")
    running = daemon(["public.t"]).start_and_load()
    sql("insert into t values (3, 'z')")
    running.compare([("public", "t")])
    sql("alter table t replica identity full", "insert into t values (4, 'w')")
    running.terminate()
    running.start()
    wait_for(lambda: running.states_or_none(), 20, "tables")
    running.run("reload", "shop", "public.t")
    running.wait_states()
    wait_for(lambda: running.tables()[("public", "t")]["capture"] == "all changes", 20, "all changes captured")
    sql("insert into t values (5, 'v')")
    running.wait_confirmed()
    sql("delete from t where a = 5")
    running.wait_confirmed()
    running.terminate()
    assert sum(file["rows"] for file in running.lake.files("public", "t")) >= 7


@pytest.mark.trap("22")
def test_wide_tables(daemon, sql):
    """As many columns as PostgreSQL takes: 1600."""
    columns = ", ".join(f"c{number} {'int' if number % 2 else 'text'}" for number in range(1599))
    values = ", ".join("i" if number % 2 else "'v' || i" for number in range(1599))
    sql(
        f"create table t (id int primary key, {columns})",
        f"insert into t select i, {values} from generate_series(1, 50) i",
    )
    running = daemon(["public.t"]).start_and_load()
    sql(
        "update t set c1 = 5 where id < 5",
        "delete from t where id = 7",
        f"insert into t select i, {values} from generate_series(60, 70) i",
    )
    running.compare([("public", "t")])


def test_hundreds_of_tables(daemon, sql):
    statements = []
    for number in range(300):
        statements += [f"create table t{number} (id int primary key, v text)", f"insert into t{number} values (1, 'x')"]
    sql("; ".join(statements))
    running = daemon(["public.*"]).start_and_load(seconds=120)
    sql("; ".join(f"update t{number} set v = 'y'; insert into t{number} values (2, 'z')" for number in range(300)))
    running.compare([("public", f"t{number}") for number in range(0, 300, 37)])

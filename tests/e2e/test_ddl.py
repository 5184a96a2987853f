"""Changes of shape, truncates, tables that come and go: followed, or as the policy says."""

import time

import duckdb
import pytest
from servers import wait_for

ADDED = "public", "t"


@pytest.fixture
def running(daemon, sql):
    sql(
        "create table t (id int primary key, v text, n int)",
        "create table bystander (id int primary key, v text)",
        "insert into t select i, 'v' || i, i from generate_series(1, 200) i",
    )
    return daemon(["public.*"]).start_and_load()


@pytest.mark.trap("17")
def test_added_columns_are_applied(running, sql):
    sql(
        "insert into t values (1001, 'before', 0)",
        "alter table t add column w text",
        "insert into t values (1002, 'after', 0, 'w')",
        "update t set w = 'filled' where id = 5",
        "alter table t add column x numeric(9,2), add column y timestamptz",
        "update t set x = 1.5, y = now() where id = 6",
        "delete from t where id = 7",
    )
    running.compare([ADDED])
    assert running.states()[ADDED] == "Table completed"
    table = next(row for row in running.catalog_tables("public") if row["name"] == "t")
    assert table["version"] >= 2 and {"w", "x", "y"} <= {column["name"] for column in table["columns"]}


@pytest.mark.trap("17", crash=True)
def test_a_column_added_while_the_daemon_is_down(running, sql):
    running.kill()
    sql(
        "insert into t values (1001, 'before', 0)",
        "alter table t add column w int",
        "insert into t values (1002, 'after', 0, 9)",
        "update t set w = 3 where id = 9",
    )
    running.start()
    running.compare([ADDED])
    assert running.states()[ADDED] == "Table completed"


@pytest.mark.trap("17", "39")
def test_a_column_added_during_a_load(daemon, sql):
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 20000) i",
        "analyze t",
    )
    running = daemon(["public.t"], options={"full-load": {"rate-limit": "4MiB"}})
    running.start()
    wait_for(lambda: running.states_or_none().get(ADDED) == "Full load", 20, "the load's beginning")
    # The load's lock holds this off until it is done.
    sql("alter table t add column w int", "update t set w = 1 where id < 100")
    running.wait_states(seconds=60)
    running.compare([ADDED])


# What is followed from the log alone, and what needs the table to be loaded anew.
FOLLOWED = {
    "drop column": "alter table t drop column n",
    "rename column": "alter table t rename column v to label",
    "longer type": "alter table t alter column v type text",
    "constant default": "alter table t add column w int default 7",
    "text default": "alter table t add column w text not null default 'it''s, {\"odd\"}'",
    "drop and add again": "alter table t drop column n, add column n text",
    "rows rewritten as they are": "vacuum full t",
    "a definition that shapes nothing": "alter table t alter column n set statistics 10",
    "swap names": "begin; alter table t rename column v to x; alter table t rename column n to v; "
    "alter table t rename column x to n; commit",
}
RELOADED = {
    "type that rewrites": "alter table t alter column n type text using 'n' || n",
    "same type, other values": "alter table t alter column n type int using n * 2",
    "same name and type": "alter table t drop column n, add column n int",
    "volatile default": "alter table t add column w double precision default random()",
    "identity": "alter table t add column w int generated always as identity",
    "key": "alter table t drop constraint t_pkey, add primary key (v)",
    "two changes": "alter table t rename column n to m; update t set v = 'between' where id = 4; "
    "alter table t drop column m",
}


@pytest.fixture
def varied(daemon, sql):
    """Columns that can be changed in every way."""
    sql(
        "create table t (id int primary key, v varchar(20), n int)",
        "create table bystander (id int primary key, v text)",
        "insert into t select i, 'v' || i, i from generate_series(1, 200) i",
    )
    return lambda **options: daemon(["public.*"], options=options).start_and_load()


@pytest.mark.trap("17", crash=True)
@pytest.mark.parametrize("restart", [False, True], ids=["live", "restarted"])
@pytest.mark.parametrize("change", [*FOLLOWED, *RELOADED])
@pytest.mark.fault("34, 35", "columns come, go, and change name, type and key between rows", promise="continues")
def test_changes_of_shape_are_followed(varied, sql, change, restart):
    """Rows from before, from the transaction itself and from after the change are all right, and nobody had to act."""
    running = varied()
    reloaded = change in RELOADED
    files = {file["path"] for file in running.json("catalog", "files", "public.t")}
    if restart:
        running.kill()
    sql(
        "update t set v = 'before' where id = 3",
        "delete from t where id = 12",
        {**FOLLOWED, **RELOADED}[change],
        "insert into t (id) values (5000)" if change != "key" else "insert into t (id, v) values (5000, 'x')",
        "update t set id = 6000 where id = 13",
        "delete from t where id = 14",
    )
    if restart:
        running.start()
    sql("insert into bystander select i, 'x' from generate_series(1, 50) i")
    running.compare([ADDED, ("public", "bystander")])
    wait_for(lambda: running.states()[ADDED] == "Table completed", 30, "the table")
    running.compare([ADDED])
    kept = files <= {file["path"] for file in running.json("catalog", "files", "public.t")}
    assert kept != reloaded, "loaded anew only where the log does not tell the rows"
    sql("insert into t (id) values (7000)" if change != "key" else "insert into t (id, v) values (7000, 'y')")
    running.compare([ADDED])
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


# While nobody looks: what the log shows by one name and type is several columns by then.
IN_DOUBT = {
    "added twice": ["alter table t add x text", "update t set x = 'old' where id = 3", "alter table t drop x"]
    + ["alter table t add x text"],
    "added, renamed, added": ["alter table t add x text", "update t set x = 'y' where id = 3"]
    + ["alter table t rename x to y", "alter table t add x text"],
    "renamed, dropped, added": ["alter table t rename v to c", "update t set c = 'old' where id = 3"]
    + ["alter table t drop c", "alter table t add c text"],
    "widened, dropped, added": ["alter table t alter v type text", "update t set v = 'old' where id = 3"]
    + ["alter table t drop v", "alter table t add v text"],
    "widened, dropped, added as it was": ["update t set v = 'first' where id = 2"]
    + ["alter table t alter v type varchar(30)", "alter table t drop v", "alter table t add v varchar(20)"]
    + ["update t set v = 'new' where id = 4"],
    "dropped, added": ["update t set n = 7 where id = 3", "alter table t drop n, add n int"],
}


@pytest.mark.trap("17", crash=True)
@pytest.mark.parametrize("statements", IN_DOUBT.values(), ids=IN_DOUBT)
def test_columns_that_look_the_same_are_told_apart(varied, sql, statements):
    running = varied(**{"on-change": {"discover": "0s"}})
    running.kill()
    sql(*statements, "insert into t (id) values (5000)")
    running.start()
    running.compare([ADDED])
    sql("update t set id = 6000 where id = 13", "delete from t where id = 14")
    running.compare([ADDED])


@pytest.mark.trap("17")
@pytest.mark.parametrize("change", ["same type, other values", "same name and type", "volatile default"])
def test_rewritten_rows_of_a_quiet_table_are_noticed(varied, sql, change):
    """Nothing is written to the table afterwards, so that the log says nothing."""
    running = varied(**{"on-change": {"discover": "1s"}})
    sql(RELOADED[change])
    running.compare([ADDED])


@pytest.mark.trap("17")
def test_a_name_that_is_used_again_is_another_column(varied, sql):
    running = varied()
    sql("update t set n = -1 where id = 1", "alter table t drop column n", "insert into t values (300, 'between')")
    running.compare([ADDED])
    sql("alter table t add column n int", "insert into t values (301, 'after', 301)")
    running.compare([ADDED])
    duck = duckdb.connect()
    old = duck.execute(f"select count(n) from ({running.lake.view('public', 't')}) where id <= 300").fetchone()
    assert old == (0,), "values of the dropped column are not those of the new one"


@pytest.mark.trap("17")
@pytest.mark.parametrize("change", [*RELOADED, "drop column", "constant default"])
def test_a_change_may_be_the_first_that_is_seen_of_a_table(varied, sql, change):
    """No row came since the load, so that the log has not shown the table before."""
    running = varied()
    if change == "two changes":
        sql("alter table t rename column n to m; alter table t drop column m, add column n int default 3")
    else:
        sql({**FOLLOWED, **RELOADED}[change])
    sql("insert into t (id, v) values (5000, 'x')")
    running.compare([ADDED])


@pytest.mark.trap("17")
def test_an_event_trigger_puts_changes_in_their_place(daemon, sql):
    """Tables that nobody writes to are followed at once, and nobody looks for them."""
    sql("create table t (id int primary key, v text, n int)", "create table u (id int primary key, v text)")
    sql("insert into t select i, 'v' || i, i from generate_series(1, 50) i", "insert into u select id, v from t")
    running = daemon(["public.*"], options={"on-change": {"discover": "0s"}})
    statements = running.json("grants", "shop", "--ddl-trigger")[0]["statements"]
    begin = next(index for index, statement in enumerate(statements) if statement.startswith("-- says in the log"))
    running.server.execute(running.database, *statements[begin:], user="postgres")
    running.start_and_load()
    columns = lambda table: [row["name"] for row in table_of(running, table)["columns"]]  # noqa: E731
    sql("alter table t add column w int default 7, drop column n", "begin; alter table u rename v to label; commit")
    wait_for(lambda: "w" in columns("t") and "n" not in columns("t"), 20, "the added column")
    wait_for(lambda: "label" in columns("u"), 20, "the renamed column")
    running.compare([ADDED, ("public", "u")])
    # What rewrites the rows is noticed as well, and a message that is not the trigger's is not believed.
    sql("alter table u add column w float default random()", "alter table t drop column v, add column v text")
    sql("select pg_logical_emit_message(true, 'millrace.ddl', 't'::regclass::oid || ' ' || md5('x'))")
    sql("select pg_logical_emit_message(true, 'millrace.ddl', repeat('x', 100000))")
    running.compare([ADDED, ("public", "u")])
    # The statement succeeds whatever becomes of the trigger.
    broken = "create or replace function millrace.announce_ddl() returns event_trigger language plpgsql as "
    running.server.execute(running.database, broken + "'begin end'", user="postgres")
    sql("alter table t add column late int", "insert into t (id, late) values (99, 1)")
    running.compare([ADDED, ("public", "u")])


def table_of(running, name):
    return next(row for row in running.catalog_tables("public") if row["name"] == name)


@pytest.mark.parametrize("policy", [{"on-change": {"schema": "stop"}}, {"on-error": {"table": "stop-task"}}])
@pytest.mark.fault("35", "a change of shape that the policy forbids", promise="stops safely")
def test_the_task_stops_with_a_table(varied, sql, policy):
    """It stays so over a restart, keeps what it has, and goes on after a reload."""
    truncate = {"on-change": {"truncate": "suspend"}} if "on-error" in policy else {}
    running = varied(**policy, **truncate)
    sql("truncate t" if truncate else RELOADED["key"], "insert into t (id, v) values (5000, 'x')")
    wait_for(lambda: running.task_record()["state"] == "stopped", 30, "the task's end")
    assert "TABLE-SUSPENDED" in str(running.task_record()["errors"])
    running.kill()
    running.start()
    sql("insert into bystander values (1, 'x')")
    assert running.task_record()["state"] == "stopped"
    running.run("reload", "shop", "public.t")
    running.run("resume", "shop")
    running.compare([ADDED, ("public", "bystander")])
    assert running.states()[ADDED] == "Table completed"


@pytest.mark.trap("17", crash=True)
def test_the_policy_suspends_instead(varied, sql):
    running = varied(**{"on-change": {"schema": "suspend"}})
    sql("update t set v = 'last' where id = 3", RELOADED["volatile default"], "insert into t (id) values (5000)")
    wait_for(lambda: running.states()[ADDED] == "Table error", 40, "the suspended table")
    assert "reload" in running.tables()[ADDED]["error"]
    sql("insert into bystander values (1, 'still flowing')")
    running.compare([("public", "bystander")])
    # It outlives a restart.
    running.kill()
    running.start()
    sql("insert into bystander values (2000, 'z')")
    running.compare([("public", "bystander")])
    assert running.states()[ADDED] == "Table error"
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")
    running.run("reload", "shop", "public.t")
    running.wait_states(tables=[ADDED], seconds=40)
    sql("insert into t (id, v) values (6000, 'after the reload')", "delete from t where id = 11")
    running.compare([ADDED, ("public", "bystander")])


@pytest.mark.trap("17", "41")
def test_tables_come_go_and_change_their_names(varied, sql):
    running = varied(**{"on-change": {"discover": "1s"}})
    sql(
        "create table fresh (id int primary key, v text)",
        "insert into fresh select i, 'x' from generate_series(1, 100) i",
        "insert into t values (5000, 'x', 1)",
    )
    wait_for(lambda: running.states().get(("public", "fresh")) == "Table completed", 30, "the new table")
    sql("update fresh set v = 'y' where id = 7", "delete from fresh where id = 8")
    running.compare([ADDED, ("public", "fresh")])
    sql("alter table fresh rename to renamed", "insert into renamed values (500, 'under the new name')")
    wait_for(lambda: running.states().get(("public", "renamed")) == "Table completed", 30, "the renamed table")
    wait_for(lambda: running.states()[("public", "fresh")] == "Table does not exist", 30, "the old name")
    sql("insert into renamed values (501, 'still')")
    running.compare([ADDED, ("public", "renamed")])
    sql("drop table renamed", "create table renamed (id int primary key, other int)", "insert into renamed values (1, 2)")
    running.compare([ADDED, ("public", "renamed")], seconds=60)
    sql("drop table renamed")
    wait_for(lambda: running.states()[("public", "renamed")] == "Table does not exist", 30, "the dropped table")
    sql("insert into t values (5001, 'still flowing', 1)")
    running.compare([ADDED])


@pytest.mark.trap("15", crash=True)
@pytest.mark.scorecard("TRUNCATE")
@pytest.mark.parametrize("restart", [False, True], ids=["live", "restarted"])
@pytest.mark.fault("36", "TRUNCATE with rows before, within and after", promise="continues")
def test_truncate_empties_the_tables(varied, sql, restart):
    """Several at once, cascading; rows before, within the same transaction and after it."""
    running = varied()
    sql("insert into bystander values (1, 'x')", "create table third (id int primary key references bystander)")
    running.wait_confirmed()
    if restart:
        running.kill()
    sql(
        "insert into t values (1000, 'before', 1)",
        "begin; insert into t values (1001, 'within', 1); truncate t, bystander cascade; "
        "insert into t values (1002, 'kept', 1), (1, 'again', 2); commit",
    )
    if restart:
        running.start()
    running.compare([ADDED, ("public", "bystander")])
    sql("insert into bystander values (2, 'y')", "update t set v = 'after' where id = 1", "truncate bystander cascade")
    running.compare([ADDED, ("public", "bystander")])
    duck = duckdb.connect()
    rows = duck.execute(f"select id, v from ({running.lake.view('public', 't')}) order by id").fetchall()
    assert rows == [(1, "after"), (1002, "kept")]
    assert set(running.states().values()) <= {"Table completed"}
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("15")
def test_truncate_can_be_passed_over(varied, sql):
    running = varied(**{"on-change": {"truncate": "ignore"}})
    sql("truncate t", "insert into t values (1000, 'new', 1)")
    duck = duckdb.connect()
    count = lambda: duck.execute(f"select count(*) from ({running.lake.view('public', 't')})").fetchone()  # noqa: E731
    wait_for(lambda: count() == (201,), 30, "the old rows and the new one")


@pytest.mark.trap("15")
def test_truncate_can_suspend(varied, sql):
    running = varied(**{"on-change": {"truncate": "suspend"}})
    sql("truncate t", "insert into t values (1000, 'new', 1)", "insert into bystander values (1, 'x')")
    running.compare([("public", "bystander")])
    wait_for(lambda: running.states()[ADDED] == "Table error", 30, "the suspended table")
    assert "truncated" in running.tables()[ADDED]["error"]
    running.run("reload", "shop", "public.t")
    running.wait_states(tables=[ADDED], seconds=40)
    running.compare([ADDED])


@pytest.mark.parametrize(
    "statement",
    [
        "alter type mood rename value 'sad' to 'blue'",
        "alter type mood rename value 'sad' to 'blue'; alter type mood add value 'sad'",
        "alter type pair add attribute z int",
        "alter type pair drop attribute y",
        "alter table t alter ip type inet",
        "alter table t alter x type text",
    ],
)
def test_old_rows_that_are_printed_otherwise_are_loaded_anew(daemon, sql, statement):
    """No row is written or rewritten."""
    sql("create type mood as enum ('sad', 'happy')", "create type pair as (x int, y text)", "create domain soul as mood")
    sql("create table t (id int primary key, m soul, c pair, moods mood[], ip cidr, x xml)")
    sql("""insert into t values (1, 'sad', row(1, 'a'), '{sad}', '1.2.3.4/32', '<?xml version="1.0" encoding="utf-8"?><a/>')""")
    running = daemon(["public.t"], options={"on-change": {"discover": "1s"}}).start_and_load()
    sql("alter type mood add value 'ok' before 'happy'", "insert into t (id, m) values (2, 'ok')")
    running.compare([("public", "t")])
    time.sleep(2.5)
    assert generation(running) == 1, "a label that comes is no reason to load anew"
    sql(*statement.split("; "))
    if statement.startswith("alter table"):
        # Of that the log tells with the next row.
        sql("insert into t (id, m) values (3, 'happy')")
    wait_for(lambda: generation(running) == 2, 20, "the table to be loaded anew")
    running.compare([("public", "t")])
    sql("insert into t (id, m) values (4, 'happy')")
    running.compare([("public", "t")])


def generation(running):
    """How often the one table was loaded."""
    (found,) = running.json("catalog", "tables", "public")
    return found["generation"]

"""Changes of shape: an added column is applied, everything else suspends that table, and a reload repairs it."""

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


CHANGES = {
    "truncate": "truncate t",
    "drop column": "alter table t drop column n",
    "rename column": "alter table t rename column v to label",
    "type": "alter table t alter column n type bigint",
    "type that rewrites": "alter table t alter column n type text using n::text",
    "constant default": "alter table t add column w int default 7",
    "volatile default": "alter table t add column w double precision default random()",
    "key": "alter table t drop constraint t_pkey, add primary key (v)",
    "rename table": "alter table t rename to t_renamed",
    "drop table": "drop table t",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_changes_suspend_the_table_and_only_that(running, sql, change):
    sql("update t set v = 'last' where id = 3", CHANGES[change])
    if change not in ("drop table", "rename table"):
        sql("insert into t (id) values (5000)" if change != "key" else "insert into t (id, v) values (5000, 'x')")
        sql("delete from t where id = 5000")
    if change == "rename table":
        sql("insert into t_renamed values (5000, 'x', 1)")
    sql("insert into bystander select i, 'x' from generate_series(1, 50) i")
    running.compare([("public", "bystander")])
    if change == "drop table":
        # Nothing in the log tells of it; the table's end is seen when the tables are looked at again.
        sql("insert into bystander values (1000, 'y')")
        running.compare([("public", "bystander")])
        return
    wait_for(lambda: running.states()[ADDED] in ("Table error", "Table does not exist"), 40, "the suspended table")
    record = running.tables()[ADDED]
    assert "reload" in str(record["error"]) if change != "rename table" else record["error"]
    assert any("t" in str(event) for event in [running.run("events")])
    sql("update bystander set v = 'still flowing'")
    running.compare([("public", "bystander")])
    # It outlives a restart.
    running.kill()
    running.start()
    sql("insert into bystander values (2000, 'z')")
    running.compare([("public", "bystander")])
    assert running.states()[ADDED] in ("Table error", "Table does not exist")
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")
    if change != "rename table":
        running.run("reload", "shop", "public.t")
        running.wait_states(seconds=40)
        text = "label" if change == "rename column" else "v"
        sql(f"insert into t (id, {text}) values (6000, 'after the reload')", "delete from t where id = 11")
        running.compare([ADDED, ("public", "bystander")])


def test_truncate_of_two_tables_with_a_bystander(running, sql):
    sql("insert into bystander values (1, 'x')", "create table third (id int primary key references bystander)")
    running.wait_confirmed()
    sql("truncate t, bystander, third")
    wait_for(
        lambda: {running.states()[ADDED], running.states()[("public", "bystander")]} == {"Table error"},
        30,
        "both suspended",
    )
    running.run("reload", "shop")
    running.wait_states(tables=[ADDED, ("public", "bystander")], seconds=40)
    sql("insert into t values (1, 'x', 1)")
    running.compare([ADDED, ("public", "bystander")])

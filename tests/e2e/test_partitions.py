"""Partitioned tables by their root and by their leaves, and the tables that inherit from others."""

import re
import time

import duckdb
import pytest
from servers import wait_for

DISCOVER = {"on-change": {"discover": "1s"}}
BIG = "(select string_agg(md5(random()::text || {0} || j), '') from generate_series(1, 200) j)"


def root(name, columns="id int, at int, v text, primary key (id, at)", by="range (at)"):
    """A partitioned table with two partitions: 0 to 100, 100 to 200."""
    return "; ".join(
        [
            f"create table {name} ({columns}) partition by {by}",
            f"create table {name}_a partition of {name} for values from (0) to (100)",
            f"create table {name}_b partition of {name} for values from (100) to (200)",
        ]
    )


def paths(running, table):
    """The files in the table's manifest."""
    return {file["path"] for file in running.lake.files("public", table)}


def reloads(running, table):
    """How often the table was loaded anew by itself."""
    return running.run("events").count(f"public.{table} is loaded anew")


@pytest.mark.trap("11", "13", "15", "16", crash=True)
@pytest.mark.scorecard("partitions")
@pytest.mark.parametrize("restart", [False, True], ids=["live", "restarted"])
def test_a_root_is_one_table(daemon, sql, restart):
    """Nested partitions, children with other column orders and dropped columns, large values, rows that move from one to
    another, new partitions and a TRUNCATE of the root: all of it under the root's name, and once."""
    sql(
        root("p", "id int, at int, v text, big text, primary key (id, at)"),
        "alter table p alter big set storage external",
        # Another order, a hole in the numbers, and an own storage.
        "create table odd (gone int, big text, v text, at int not null, id int not null)",
        "alter table odd drop column gone",
        "alter table p attach partition odd for values from (200) to (300)",
        "create table p_n partition of p for values from (300) to (500) partition by list (id)",
        "create table p_n_odd (v text, id int not null, big text, at int not null)",
        "alter table p_n attach partition p_n_odd for values in (1, 3, 5, 7, 9)",
        "create table p_n_rest partition of p_n default",
        "create table plain (id int primary key)",
        f"insert into p select i, i % 500, 'v' || i, {BIG.format('i')} from generate_series(1, 1000) i",
    )
    running = daemon(["public.*"], options=DISCOVER).start_and_load()
    assert set(running.states()) == {("public", "p"), ("public", "plain")}, "leaves are not captured by themselves"
    running.compare([("public", "p")])
    loaded = paths(running, "p")
    if restart:
        running.kill()
    sql(
        "update p set v = 'u' where id % 7 = 0",
        "update p set at = 499 - at where id % 11 = 0",
        "begin; update p set at = 1 where id = 3; update p set at = 301 where id = 3; commit",
        "begin; update p set id = -id where id = 5; update p set id = -id, at = 450 where id = -5; commit",
        "delete from p where id % 13 = 0",
        "create table p_c partition of p for values from (500) to (600)",
        "insert into p values (2000, 550, 'c', 'x'), (2001, 550, 'c', 'y')",
        "update p set at = 599 where id = 2000",
        "update odd set v = 'by the leaf' where id = 217",
        "alter table p add column w int default 7",
        "insert into p values (2002, 5, 'd', 'z', 8)",
        "update p set v = 'again' where id % 17 = 0",
    )
    if restart:
        running.start()
    running.compare([("public", "p")])
    assert loaded <= paths(running, "p"), "nothing of this needs a reload"
    sql("begin; insert into p values (3000, 1, 'lost', '', 1); truncate p; insert into p values (1, 1, 'x', 'y', 2); commit")
    sql("insert into p values (2, 350, 'x', 'y', 2)")
    running.compare([("public", "p")])
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


# What happens to partitions of t, and whether the root must be loaded anew for it.
UNTOLD = {
    "attach": "create table t_x (id int, at int, v text, primary key (id, at)); insert into t_x values (1, 201, 'before'); "
    "alter table t attach partition t_x for values from (200) to (300)",
    "attach at once": "do $$ begin create table t_x (like t including all);insert into t_x values (1, 201, 'before');"
    "alter table t attach partition t_x for values from (200) to (300);end $$",
    "attach nested": "create table t_n (id int not null, at int not null, v text) partition by list (id); "
    "create table t_n1 partition of t_n default; insert into t_n values (1, 201, 'before'); "
    "alter table t attach partition t_n for values from (200) to (300)",
    "detach": "alter table t detach partition t_a",
    "detach and attach again": "alter table t detach partition t_a; update t_a set v = 'elsewhere' where id % 7 = 1; "
    "delete from t_a where id % 50 = 3; alter table t attach partition t_a for values from (0) to (100)",
    "drop": "drop table t_a",
    "truncate": "truncate t_a",
    "truncate what is new": "create table t_x partition of t for values from (200) to (300); "
    "insert into t values (5000, 250, 'gone'); truncate t_x",
}
TOLD = {
    "create": "create table t_x partition of t for values from (200) to (300)",
    "attach empty": "create table t_x (like t including all); alter table t attach partition t_x for values from (200) to (300)",
    "truncate all": "truncate t",
}


@pytest.mark.trap("15", "16", crash=True)
@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_rows_that_come_and_go_with_partitions(daemon, sql, down):
    """What no row change tells of is noticed, and leads to a reload of that table; what the log tells does not."""
    changes = {f"t{number}": (how, how in UNTOLD) for number, how in enumerate([*UNTOLD, *TOLD])}
    for table in changes:
        sql(root(table), f"insert into {table} select i, i % 200, 'v' from generate_series(1, 400) i")
    running = daemon(["public.*"], options={**DISCOVER, "exclude": ["*.*_*"]}).start_and_load()
    loaded = {table: paths(running, table) for table in changes}
    if down:
        running.kill()
    for table, (how, _) in changes.items():
        sql(*re.sub(r"\bt\b", table, {**UNTOLD, **TOLD}[how].replace("t_", f"{table}_")).split("; "))
    if down:
        running.start()
    for table in changes:
        sql(f"insert into {table} values (9000, 150, 'later')", f"update {table} set v = 'u' where id % 10 = 0")
    running.compare([("public", table) for table in changes], seconds=90)
    running.wait_states()
    for table, (how, untold) in changes.items():
        kept = loaded[table] <= paths(running, table)
        if how != "truncate all":
            assert ((reloads(running, table) > 0), kept) == (untold, not untold), how
    for table in changes:
        sql(f"update {table} set v = 'w', at = at + 1 where at in (120, 99)")
    running.compare([("public", table) for table in changes])
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("16", "17", crash=True)
@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_default_that_is_gone_again(daemon, sql, down):
    """The rows that were there keep it, in partitions as in tables; only those know."""
    sql(root("p"), "create table t (id int primary key)", "insert into t select generate_series(1, 20)")
    sql("insert into p select i, i % 200, 'v' from generate_series(1, 400) i")
    running = daemon(["public.p", "public.t"], options={"on-change": {"discover": "0s"}}).start_and_load()
    if down:
        running.kill()
    for table, row in (("p", "(9000, 150, 'x', 1)"), ("t", "(9000, 1)")):
        sql(f"alter table {table} add column w int not null default 7; alter table {table} alter column w drop default")
        sql(f"insert into {table} values {row}")
    if down:
        running.start()
    running.compare([("public", "p"), ("public", "t")])


@pytest.mark.trap("16", "39", "40", crash=True)
def test_partitions_change_while_the_root_is_loaded(daemon, sql):
    """New ones, empty and with rows, while the load runs, and between two runs of it."""
    sql(
        root("p"),
        "insert into p select i, i % 200, repeat(md5(i::text), 30) from generate_series(1, 30000) i",
        "analyze p",
    )
    options = {**DISCOVER, "full-load": {"parallel": 2, "rate-limit": "6MiB"}}
    running = daemon(["public.p"], options=options)
    running.start()

    def during(low, kill):
        wait_for(lambda: running.states_or_none().get(("public", "p")) == "Full load", 20, "the load's beginning")
        time.sleep(1)
        sql(
            f"create table p_{low} partition of p for values from ({low}) to ({low + 50})",
            f"insert into p select i, {low} + i % 50, 'during' from generate_series(50000, 50100) i",
            f"create table x_{low} (like p including all)",
            f"insert into x_{low} select i, {low + 50}, 'attached' from generate_series(1, 100) i",
            f"alter table p attach partition x_{low} for values from ({low + 50}) to ({low + 100})",
            f"update p set at = {low + 50} where id = {low}",
        )
        if kill:
            running.kill()
            sql(f"update p set v = 'down' where id % 100 = 1", f"update p set at = {low + 51} where id = {low + 1}")
            running.start()

    during(200, True)
    during(300, False)
    running.wait_states(seconds=60)
    running.compare([("public", "p")], seconds=60)
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("11", "16")
def test_a_lookup_is_nobodys_deadlock(daemon, sql, server, database):
    """Who locks a root and then its partitions, as ALTER TABLE does, meets no lookup that holds them and waits for the
    root."""
    sql(
        root("p", "id int, at int, v text, big text, primary key (id, at)"),
        "alter table p alter big set storage external",
        f"insert into p select i, i % 200, 'v', {BIG.format('i')} from generate_series(1, 50) i",
    )
    running = daemon(["public.p"]).start_and_load()
    running.kill()
    sql("update p set v = 'changed'")
    # By then it has looked for a deadlock (`deadlock_timeout`) and looks no more: a later one would end the other session.
    lookup = (
        "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
        "and query like 'LOCK TABLE%' and clock_timestamp() - query_start > '2s'::interval"
    )
    with server.connect(database) as altering:
        altering.execute("lock table only p in access exclusive mode")
        running.start()
        wait_for(lambda: server.execute(database, lookup, user="postgres"), 30, "the lookup's wait for the root")
        altering.execute("lock table p_a, p_b in access exclusive mode")
    running.compare([("public", "p")])


@pytest.mark.trap("16")
def test_policies_for_partitions(daemon, sql):
    for table in ("t", "u"):
        sql(root(table), f"insert into {table} select i, i % 200, 'v' from generate_series(1, 400) i")
    policies = {"on-change": {"discover": "1s", "partition-gone": "ignore", "partition-attached": "suspend"}}
    running = daemon(["public.t", "public.u"], options=policies).start_and_load()
    sql("drop table t_a", "insert into t values (1000, 150, 'late')")
    wait_for(lambda: "public.t differs from its source" in running.run("events"), 20, "the event")
    duck = duckdb.connect()
    count = lambda: duck.execute(f"select count(*) from ({running.lake.view('public', 't')})").fetchone()[0]  # noqa: E731
    wait_for(lambda: count() == 401, 20, "rows of the dropped partition stay")
    sql(*UNTOLD["attach"].replace("t_x", "u_x").replace(" t ", " u ").split("; "))
    wait_for(lambda: running.states()[("public", "u")] == "Table error", 20, "the suspended table")
    assert "attached" in running.tables()[("public", "u")]["error"]
    assert running.states()[("public", "t")] == "Table completed"
    running.run("reload", "shop")
    running.wait_states()
    sql("insert into u values (3, 203, 'into the attached')")
    running.compare([("public", "t"), ("public", "u")])


@pytest.mark.trap("16")
def test_leaves_by_themselves(daemon, sql):
    """Only leaves are named: each is a table of its own, as it was before there were roots."""
    sql(root("p"), "insert into p select i, i % 200, 'v' from generate_series(1, 400) i")
    running = daemon(["public.p_*"], options=DISCOVER).start_and_load()
    assert set(running.states()) == {("public", "p_a"), ("public", "p_b")}
    sql(
        "update p set at = 199 - at where id % 3 = 0",
        "delete from p where id = 6",
        "create table p_c partition of p for values from (200) to (300)",
        "insert into p values (7000, 250, 'c')",
    )
    wait_for(lambda: running.states().get(("public", "p_c")) == "Table completed", 20, "the new leaf")
    sql("truncate p_a", "insert into p values (8000, 50, 'a')", "alter table p detach partition p_b")
    sql("insert into p_b values (9000, 9000, 'alone')")
    running.compare([("public", "p_a"), ("public", "p_b"), ("public", "p_c")])


@pytest.mark.trap("11", "12", "14", "16")
def test_identities_of_partitions_are_their_own(daemon, sql):
    """REPLICA IDENTITY is not handed on to partitions: what the log says of the root need not be true of an old row."""
    big = "alter table {0} alter v set storage external; alter table {0}_a alter v set storage external"
    sql(
        root("full_root"),
        big.format("full_root"),
        "alter table full_root replica identity full",
        root("full_leaf"),
        "alter table full_leaf_a replica identity full",
        root("nothing"),
        "alter table nothing_a replica identity nothing",
        root("keyless", "id int, at int, v text"),
        root("keyless_full", "id int, at int, v text"),
        *(f"alter table keyless_full{part} replica identity full" for part in ("", "_a", "_b")),
    )
    tables = ["full_root", "full_leaf", "nothing", "keyless", "keyless_full"]
    for table in tables:
        sql(f"insert into {table} select i, i, {BIG.format('i')} from generate_series(1, 150) i")
    running = daemon(["public.*"], options={"exclude": ["*.*_a", "*.*_b"]}).start_and_load()
    captured = {name: record["capture"] for (_, name), record in running.tables().items()}
    assert captured == {
        "full_root": "all changes",
        "full_leaf": "all changes",
        "nothing": "inserts only",
        "keyless": "inserts only",
        "keyless_full": "all changes",
    }
    for table in ("full_root", "full_leaf"):
        sql(
            f"update {table} set at = at + 1 where id % 5 = 0",
            f"update {table} set id = id + 1000 where id % 7 = 0",
            f"update {table} set v = null where id = 3",
            f"delete from {table} where id = 11",
        )
    for table in tables:
        sql(f"insert into {table} values (5000, 50, 'new')")
    running.compare([("public", table) for table in tables])
    # Nothing of ours makes the application's statements fail.
    sql("update nothing set v = 'x'", "delete from keyless where id = 1")
    sql("delete from keyless_full where id = 4")
    duck = duckdb.connect()

    def deleted():
        running.lake.relation(duck, running.lake.files("public", "keyless_full"))
        return duck.execute("select count(*) from lake where \"Op\" = 'D' and id = 4 and length(v) > 1000").fetchone()[0]

    wait_for(lambda: deleted() == 1, 20, "the whole deleted row")
    found = running.command("check").stdout
    assert "PG-PARTITION" in found and "pg_partition_tree" in found


@pytest.mark.trap("16")
def test_inheritance(daemon, sql):
    """A parent's rows are its own; its children are tables of their own, with the columns they add, at every level."""
    sql(
        "create table parent (id int primary key, v text)",
        "create table child (w int, primary key (id)) inherits (parent)",
        "create table grandchild (x text, primary key (id)) inherits (child)",
        "insert into parent select i, 'p' from generate_series(1, 50) i",
        "insert into child select i, 'c', i from generate_series(51, 90) i",
        "insert into grandchild select i, 'g', i, 'x' from generate_series(91, 120) i",
    )
    running = daemon(["public.*"], options=DISCOVER).start_and_load()
    alone = [{"schema": "public", "table": table, "only": True} for table in ("parent", "child", "grandchild")]
    running.compare(alone)
    sql(
        "update parent set v = 'all of them' where id % 10 = 0",
        "update only parent set v = 'own' where id = 7",
        "delete from parent where id in (3, 60, 100)",
        "alter table parent add column y int default 5",
        "insert into child (id, v, w) values (500, 'c', 1)",
        "update parent set v = 'wider' where id in (8, 98)",
        "truncate only child",
        "create table late (z int, primary key (id)) inherits (parent)",
        "insert into late values (700, 'l', 1, 2)",
    )
    wait_for(lambda: running.states().get(("public", "late")) == "Table completed", 20, "the new child")
    running.compare([*alone, {"schema": "public", "table": "late", "only": True}])

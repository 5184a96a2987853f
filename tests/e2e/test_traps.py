"""Known traps of following a log, each sprung by a test of its own that is not elsewhere: kills at named failpoints in the
places where others lost or doubled something. docs/traps.md lists them all (see traps.py)."""

import os
import re
import signal
import threading
import time

import duckdb
import pytest
from servers import wait_for

T = ("public", "t")
# From the first frame of a transaction to the catalog's commit, in the order of the way.
FLOW_POINTS = [
    "stream-between-frames-and-mark",
    "stream-after-fsync",
    "pg-log-before-confirm",
    "delivery-after-intent",
    "delivery-between-upload-and-commit",
    "delivery-after-commit",
]
# Before the transaction is readable, before its objects are in the catalog, and before anybody knows that they are.
FEW_POINTS = [FLOW_POINTS[0], FLOW_POINTS[4], FLOW_POINTS[5]]
# Every value is another one and does not compress.
NOISE = "(select string_agg(md5(random()::text || i || j), '') from generate_series(1, {}) j)"
QUICK = {"interval": "200ms"}


@pytest.fixture
def killed(sql):
    """Kills a daemon, commits statements, lets it die at a failpoint on its way with them, and starts it again."""

    def kill(running, point, *statements):
        if not running.ended():
            running.kill()
        if statements:
            sql(*statements)
        running.start(crash_at=point, ready=False)
        assert running.wait_exit(60) == -signal.SIGKILL, running.log()
        return running

    return kill


def count(running, table="t", where="true"):
    """Rows of the table's current state."""
    view = running.lake.view("public", table)
    return duckdb.connect().execute(f"select count(*) from ({view}) where {where}").fetchone()[0]


def accounted(running):
    """Waits until the fate of every captured row is known."""
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("1", crash=True)
def test_a_row_right_behind_a_commit_survives_the_restart(daemon, sql):
    """Killed when a transaction is durable, before or after it was confirmed; the next one begins where that one ends."""
    sql("create table t (v text)", "create table k (id int primary key)")
    running = daemon(["public.*"], buffer=QUICK).start_and_load()
    for number, point in enumerate([None, "stream-after-fsync", "pg-log-before-confirm", None]):
        copied = "insert into t select 'row ' || i from generate_series(1, 50) i"
        if point:
            running.kill()
            running.start(crash_at=point, ready=False)
            sql(copied)
            assert running.wait_exit(60) == -signal.SIGKILL
        else:
            sql(copied)
            running.wait_confirmed()
            running.kill()
        sql(f"insert into k values ({number})", copied)
        running.start()
    running.compare([T, ("public", "k")])
    accounted(running)


@pytest.mark.trap("2", crash=True)
@pytest.mark.fault("30", "a COPY of one log position, killed in the middle", promise="continues")
def test_a_copy_in_one_transaction_arrives_whole_and_once(daemon, sql, server, database, killed):
    """A thousand rows of one commit, more than a batch holds: nobody ever sees a part of them."""
    sql("create table t (id int, v text)")
    running = daemon(["public.t"], buffer={**QUICK, "size": "1MiB"}).start_and_load()
    copied = 0
    for point in FEW_POINTS:
        running.kill()
        with server.connect(database) as connection:
            with connection.cursor().copy("copy t from stdin") as copy:
                for number in range(1000):
                    copy.write_row((number, os.urandom(6000).hex()))
        copied += 1000
        killed(running, point)
        assert count(running) in (copied - 1000, copied), point
        running.start()
        running.compare([T])
    accounted(running)


@pytest.mark.trap("3", crash=True)
@pytest.mark.parametrize("point", FEW_POINTS)
def test_a_key_change_that_ends_a_transaction_is_whole(daemon, sql, killed, point):
    """No version of the table has the row twice or not at all."""
    sql("create table t (id int primary key, v text)", "insert into t select i, 'x' from generate_series(1, 20) i")
    running = daemon(["public.t"], buffer=QUICK).start_and_load()
    key_last = "begin; update t set v = 'y' where id = {0}; update t set id = {0} + 100 where id = {0}; commit"
    killed(running, point, key_last.format(1), key_last.format(2), "update t set id = 500 where id = 3")
    assert count(running) == 20
    running.start()
    sql(key_last.format(101))
    running.compare([T])
    assert count(running, where="id in (1, 2, 3, 101)") == 0
    accounted(running)


@pytest.mark.trap("5", crash=True)
@pytest.mark.fault("32", "transactions end in another order than they begin", promise="continues")
def test_the_transaction_that_begins_first_and_commits_last(daemon, server, database, sql):
    """The slot is confirmed beyond its first rows while it is open, and the daemon dies; all of it arrives."""
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"], buffer=QUICK).start_and_load()
    with server.connect(database) as first, server.connect(database) as second:
        first.execute("insert into t select i, 'first' from generate_series(1, 10) i")
        second.execute("insert into t values (100, 'second')")
        second.commit()
        running.wait_confirmed()
        running.kill()
        first.execute("insert into t values (11, 'first, later')")
        second.execute("update t set v = 'second, again' where id = 100")
        second.commit()
        running.start()
        running.wait_confirmed()
        first.execute("update t set v = 'first, last' where id = 100")
        running.kill()
        first.commit()
    running.start()
    running.compare([T])
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("public", "t"))
    rows = duck.execute("select v, left(change_order, 32) from lake where id in (1, 11, 100) order by change_order").fetchall()
    assert [v for v, _ in rows] == ["second", "second, again", "first", "first, later", "first, last"]
    assert len({commit for v, commit in rows if v.startswith("first")}) == 1, "one commit, whatever it wrote when"


@pytest.mark.trap("6", crash=True)
@pytest.mark.fault("4, 5", "SIGKILL between commit, checkpoint and confirmation", promise="continues")
def test_killed_between_the_target_and_the_source(daemon, sql, killed):
    """Every place between a row's first frame and its confirmation; the table has no key, so a second copy would show."""
    sql("create table t (id int, v text)")
    running = daemon(["public.t"], buffer=QUICK).start_and_load()
    for number, point in enumerate(FLOW_POINTS):
        killed(running, point, f"insert into t select i, '{point}' from generate_series(1, {10 + number}) i")
        # A source that knew more than we do would be refused here.
        running.start()
        wait_for(lambda point=point: count(running, where=f"v = '{point}'"), 30, point)
    running.compare([T])
    accounted(running)


@pytest.mark.trap("7", "8", "46")
def test_what_does_not_fit_is_neither_confirmed_nor_lost(daemon, sql):
    """Delivery waits and the stream is full: the session lives, the slot stays where the stream ends, memory stays flat,
    and the lag says how late it is."""
    sql("create table t (id bigint primary key, v text)", "create table elsewhere (v text)")
    options = {"stream": {"disk-bound": "12MiB", "retention": "1s", "compress": False}}
    running = daemon(["public.t"], options=options, buffer=QUICK).start_and_load()
    running.wait_confirmed()
    running.run("pause", "shop")
    before = running.rss()
    for number in range(6):
        rows = f"generate_series({number * 6000}, {number * 6000 + 5999}) i"
        sql(f"insert into t select i, {NOISE.format(20)} from {rows}")
    session = "select active_pid from pg_replication_slots where slot_name = 'millrace_shop'"
    pid = sql(session, user="postgres")
    end = int(sql("select pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0][0])
    for _ in range(5):
        # Others write, and keepalives go by.
        sql("insert into elsewhere values (repeat('x', 100))")
        time.sleep(1)
        assert running.confirmed_lsn() < end, "more is confirmed than the stream may hold"
    assert sql(session, user="postgres") == pid, "the session was lost"
    assert running.rss() - before < 192 << 20, f"memory grew from {before} to {running.rss()}"
    assert running.metrics()[("millrace_target_lag_seconds",)] > 3
    running.run("resume", "shop")
    running.compare([T])
    wait_for(lambda: running.metrics()[("millrace_target_lag_seconds",)] == 0, 20, "no lag")


@pytest.mark.trap("15", crash=True)
@pytest.mark.parametrize("point", FEW_POINTS)
def test_truncate_and_insert_in_one_transaction(daemon, sql, killed, point):
    """The old rows or the new ones, never both and never none of them."""
    sql(
        "create table t (id int primary key generated by default as identity, v text)",
        "create table n (v text)",
        "insert into t (v) select 'old' from generate_series(1, 30) i",
        "insert into n select 'old' from generate_series(1, 30) i",
    )
    running = daemon(["public.*"], buffer=QUICK).start_and_load()
    killed(
        running,
        point,
        "insert into t (v) values ('last of the old')",
        "begin; insert into t (v) values ('in vain'); truncate t, n restart identity; "
        "insert into t (v) select 'new' from generate_series(1, 7); insert into n values ('new'), ('new'); commit",
    )
    assert (count(running, where="v = 'new'"), count(running, where="v = 'old'")) in ((0, 30), (7, 0))
    running.start()
    sql("insert into t (v) values ('newer')", "update t set v = 'newest' where id = 1")
    running.compare([T, ("public", "n")])
    assert (count(running), count(running, "n")) == (8, 2)
    accounted(running)


@pytest.mark.trap("17", crash=True)
@pytest.mark.parametrize("point", [FLOW_POINTS[0], FLOW_POINTS[4]])
def test_two_changes_of_shape_before_a_kill(daemon, sql, killed, point):
    """Columns come and go in transactions with rows, and an enum learns a word, before anything of it is confirmed."""
    sql(
        "create type mood as enum ('sad')",
        "create table t (id int primary key, m mood, a int, b int, c text)",
        "insert into t select i, 'sad', i, i, 'c' from generate_series(1, 50) i",
    )
    running = daemon(["public.t"], buffer=QUICK).start_and_load()
    killed(
        running,
        point,
        "update t set c = 'before' where id = 1",
        "begin; alter table t add column w int default 3; insert into t (id, w) values (100, 4); "
        "update t set w = 5 where id = 2; commit",
        "alter type mood add value 'glad'",
        "begin; update t set m = 'glad' where id = 3; alter table t drop column a, drop column b; "
        "update t set c = 'after' where id = 4; commit",
        "delete from t where id = 5",
    )
    running.start()
    sql("alter table t add column a text", "update t set a = 'another' where id = 6")
    running.compare([T], seconds=90)
    wait_for(lambda: running.states()[T] == "Table completed", 30, "the table")
    accounted(running)


@pytest.mark.trap("17")
def test_a_table_that_changes_its_shape_twice_and_then_rests(daemon, sql):
    """It is loaded anew once; that the log showed another shape last is no reason to begin again."""
    sql("create table t (id int primary key, v text, n int)", "insert into t select i, 'v', i from generate_series(1, 50) i")
    running = daemon(["public.t"], buffer=QUICK).start_and_load()
    sql(
        "alter table t rename column n to m; update t set v = 'between' where id = 4; alter table t drop column m",
        "create table elsewhere (v text)",
    )
    wait_for(lambda: "is loaded anew" in running.run("events"), 20, "the reload")
    wait_for(lambda: running.states()[T] == "Table completed", 20, "its end")
    running.compare([T])
    sql("update t set v = 'after' where id = 5", "alter table t add column n text default 'x'", "insert into t values (99)")
    running.compare([T])
    assert running.log(10**6).count("load begins again") < 3


@pytest.mark.trap("17", crash=True)
@pytest.mark.parametrize("killed_first", [False, True], ids=["live", "killed"])
def test_somebody_alters_our_publication(daemon, sql, killed_first):
    """What was not published is in no log; the tables are loaded anew, and those that nobody asked for stay outside."""
    sql(
        "create table t (id int primary key, v text)",
        "create table narrowed (id int primary key, v text)",
        "create table other (id int primary key)",
        "create table stranger (id int primary key)",
        "insert into t values (1, 'x')",
        "insert into narrowed values (1, 'x')",
    )
    tables = ["public.t", "public.narrowed", "public.other"]
    running = daemon(tables, buffer=QUICK, options={"on-change": {"discover": "1s"}}).start_and_load()
    if killed_first:
        running.kill()
    sql(
        "begin; alter publication millrace_shop drop table t, narrowed; "
        "alter publication millrace_shop add table narrowed (id), stranger; commit",
        "insert into t values (2, 'unseen')",
        "insert into narrowed values (2, 'unseen')",
        "insert into stranger values (1)",
        "delete from t where id = 1",
        user="postgres",
    )
    if killed_first:
        running.start()
    # Of the narrowed one the log may have told it sooner.
    anew = r"table public\.(\w+).* loaded anew"
    wait_for(lambda: set(re.findall(anew, running.run("events"))) == {"t", "narrowed"}, 20, "both tables noticed")
    wait_for(lambda: set(running.states_or_none().values()) == {"Table completed"}, 30, "the reloads")
    sql("insert into t values (3, 'after')", "insert into narrowed values (3, 'after')", "insert into other values (1)")
    running.compare([T, ("public", "narrowed"), ("public", "other")])
    published = sql("select tablename from pg_publication_tables where pubname = 'millrace_shop' order by 1")
    assert published == [("narrowed",), ("other",), ("t",)]
    accounted(running)


@pytest.mark.trap("39", crash=True)
@pytest.mark.parametrize("point", [None, "pg-load-inside-segment", "load-before-commit"])
@pytest.mark.fault("6", "rows change while a killed load reads their part", promise="continues")
def test_rows_change_while_their_part_is_read(daemon, sql, point):
    """Changed, deleted, re-keyed, inserted before and behind the place of the reader; nothing comes back, nothing twice."""
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 20000) i",
        "analyze t",
    )
    running = daemon(["public.t"], buffer=QUICK, options={"full-load": {"parallel": 2, "rate-limit": "8MiB"}})
    running.start(crash_at=point, ready=False)
    wait_for(lambda: running.ended() or running.states_or_none().get(T) == "Full load", 30, "the load", every=0.02)
    sql(
        "update t set v = 'changed' where id % 1000 = 1",
        "delete from t where id % 1000 = 2",
        "update t set id = -id where id % 1000 = 3",
        "insert into t select i, 'new' from generate_series(30000, 30010) i",
        "begin; insert into t values (40000, 'gone'); delete from t where id = 40000; commit",
        "begin; delete from t where id = 4; insert into t values (4, 'again'); commit",
        "update t set v = 'twice' where id % 1000 = 1",
    )
    if point:
        assert running.wait_exit(60) == -signal.SIGKILL
        sql("update t set v = 'while down' where id % 1000 = 5", "delete from t where id % 1000 = 6")
        running.start()
    running.wait_states(seconds=90)
    sql("delete from t where id = 7")
    running.compare([T])
    accounted(running)


@pytest.mark.trap("40", crash=True)
@pytest.mark.parametrize(
    "point", ["pg-before-slot", "load-between-segment-and-record", "load-after-commit", "delivery-after-intent"]
)
@pytest.mark.fault("6", "SIGKILL at each step from the slot to the first change", promise="continues")
def test_killed_between_the_slot_and_the_first_change(daemon, sql, point):
    """A first start that dies at each step of the way into CDC while rows change; with and without a key."""
    sql(
        "create table t (id int primary key, v text)",
        "create table n (v text)",
        "insert into t select i, 'loaded' from generate_series(1, 500) i",
        "insert into n select 'loaded' from generate_series(1, 500) i",
    )
    running = daemon(["public.*"], buffer=QUICK)
    done = threading.Event()

    def write():
        number = 0
        while not done.is_set():
            number += 1
            sql(
                f"begin; update t set v = '{number}' where id % 50 = {number} % 50; delete from t where id = {number}; "
                f"insert into t values ({number} + 1000, 'new'); insert into n values ('{number}'); commit"
            )
            time.sleep(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        running.start(crash_at=point, ready=False)
        assert running.wait_exit(60) == -signal.SIGKILL
        running.start()
        running.wait_states()
    finally:
        done.set()
        writer.join()
    running.compare([T, ("public", "n")])
    accounted(running)


LARGE = "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 15000) i"


@pytest.mark.trap("41", crash=True)
@pytest.mark.parametrize("point", ["load-between-segment-and-record", "load-before-commit", "load-after-commit"])
def test_a_reload_is_killed_while_others_stream(daemon, sql, point):
    """Until the new generation is whole, the old one is what readers see; asked for twice, it is still one."""
    sql("create table t (id int primary key, v text)", "create table other (v text)", LARGE, "analyze t")
    running = daemon(["public.*"], buffer=QUICK).start_and_load()
    running.kill()
    running.start(crash_at=point)
    running.run("reload", "shop", "public.t")
    # The second may be refused while the first is under way, or not be answered any more.
    running.command("reload", "shop", "public.t")
    sql("insert into other values ('during')", "update t set v = 'during' where id % 100 = 0", "delete from t where id = 8")
    assert running.wait_exit(60) == -signal.SIGKILL
    assert count(running) in (14999, 15000)
    sql("insert into other values ('down')", "delete from t where id = 9")
    running.start()
    wait_for(lambda: set(running.states_or_none().values()) == {"Table completed"}, 60, "both tables")
    sql("insert into t values (-1, 'after')")
    running.compare([T, ("public", "other")])
    accounted(running)


@pytest.mark.trap("41", crash=True)
def test_a_table_is_dropped_while_it_is_loaded_anew_and_another_joins(daemon, sql):
    """Neither holds the others up, and a kill in the middle of it changes nothing."""
    sql("create table t (id int primary key, v text)", "create table other (id int primary key)", LARGE, "analyze t")
    options = {"on-change": {"discover": "1s"}, "full-load": {"rate-limit": "6MiB"}}
    running = daemon(["public.*"], buffer=QUICK, options=options).start_and_load()
    running.run("reload", "shop", "public.t")
    wait_for(lambda: running.states()[T] == "Table is being reloaded", 20, "the reload", every=0.05)
    dropper = threading.Thread(target=lambda: sql("drop table t"))
    dropper.start()
    sql("create table joined (id int primary key, v text)", "insert into joined select i, 'x' from generate_series(1, 50) i")
    sql("insert into other values (1)")
    time.sleep(0.5)
    running.kill()
    dropper.join(30)
    sql("insert into other values (2)", "update joined set v = 'down' where id = 5")
    running.start()
    wait_for(lambda: running.states_or_none().get(("public", "joined")) == "Table completed", 40, "the new table")
    wait_for(lambda: running.states()[T] == "Table does not exist", 40, "the dropped table")
    sql("insert into other values (3)", "delete from joined where id = 6")
    running.compare([("public", "other"), ("public", "joined")])


# What becomes of one key within one batch: statements on row {0}.
PAIRS = [
    "insert into t values ({0}, 'i', {1}); update t set n = 'u' where id = {0}",
    "update t set n = 'u' where id = {0}; update t set n = 'v' where id = {0}",
    "insert into t values ({0}, 'i', {1}); delete from t where id = {0}",
    "delete from t where id = {0}; insert into t values ({0}, 'again', {1})",
    "update t set n = 'u' where id = {0}; delete from t where id = {0}",
    "update t set a = {1} where id = {0}; update t set n = 'large is not sent' where id = {0}",
    "update t set id = -{0} where id = {0}; update t set id = {0} where id = -{0}",
    "update t set id = {0} + 1000 where id = {0}; insert into t values ({0}, 'takes its key', {1})",
]


@pytest.mark.trap("42", crash=True)
@pytest.mark.parametrize("point", [None, "delivery-between-upload-and-commit"])
def test_every_pair_of_changes_within_one_batch(daemon, sql, killed, point):
    """In one transaction and in two, all in one batch of delivery, with large values that the second does not send."""
    big = NOISE.format(300)
    sql(
        "create table t (id int primary key, n text, a text)",
        "alter table t alter a set storage external",
        f"insert into t select i, 'loaded', {big} from generate_series(1, 100) i where i % 8 in (1, 3, 4, 5, 6, 7)",
        "create table pair (k int primary key deferrable, v text)",
        "alter table pair replica identity full",
        "insert into pair values (1, 'one'), (2, 'two')",
    )
    running = daemon(["public.*"], buffer=QUICK).start_and_load()
    statements = ["update pair set k = 3 - k"]
    for number, pair in enumerate(PAIRS):
        for id, whole in ((number + 8, True), (number + 16, False)):
            text = pair.format(id, big.replace("i ||", ""))
            statements += [f"begin; {text}; commit"] if whole else text.split("; ")
    if point:
        killed(running, point, *statements)
        running.start()
    else:
        sql(*statements)
    running.compare([T, ("public", "pair")])
    accounted(running)


@pytest.mark.trap("44", crash=True)
@pytest.mark.fault("46", "two daemons with different state folders on one slot", promise="stops safely")
def test_two_daemons_on_one_slot(daemon, sql):
    """One of them has another state folder and knows nothing of the first: it takes nothing from it, alive or killed."""
    sql("create table t (id int primary key)", "create table u (id int primary key)", "insert into t values (1)")
    first = daemon(["public.t"], buffer=QUICK).start_and_load()
    second = daemon(["public.u"], buffer=QUICK)

    def refused():
        done = second.command("run", timeout=60)
        said = done.stdout + done.stderr
        assert done.returncode == 3 and "of that name already" in said and "another name" in said, said

    refused()
    sql("insert into t values (2)")
    first.compare([T])
    first.kill()
    sql("insert into t values (3)")
    refused()
    first.start()
    sql("insert into t values (4)")
    first.compare([T])
    assert first.task_record()["errors"] == []


@pytest.mark.trap("49")
def test_the_lag_of_an_idle_task_is_zero(daemon, sql):
    """Nothing happens for a while, or only elsewhere: neither lag grows; after a change both come back to 0."""
    sql("create table t (id int primary key)", "create table elsewhere (v text)", "insert into t values (1)")
    running = daemon(["public.t"], buffer=QUICK).start_and_load()
    lags = lambda: [running.metrics().get((f"millrace_{end}_lag_seconds",)) for end in ("source", "target")]  # noqa: E731
    sql("insert into t values (2)")
    running.compare([T])
    wait_for(lambda: lags() == [0, 0], 10, "no lag")
    for _ in range(20):
        sql("insert into elsewhere values ('x')")
        time.sleep(0.15)
        assert lags() == [0, 0]

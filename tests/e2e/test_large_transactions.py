"""Transactions that the server sends before they commit: whatever they do, the lake shows what a small one would.

The database's `logical_decoding_work_mem` is 64 kB, so that a few hundred rows are a large transaction. Each test asserts
that the server did send them ahead.
"""

import glob
import os
import signal
import time

import duckdb
import pytest
from servers import Proxy, wait_for
from test_s3 import ENVIRONMENT, target

T, U = ("public", "t"), ("public", "u")
ROWS = "insert into t select i, md5(i::text), i from generate_series({}, {}) i"


@pytest.fixture
def prepared(sql, database):
    """Two tables with rows of before, in a database whose large transactions are small."""
    sql(
        f"alter database \"{database}\" set logical_decoding_work_mem = '64kB'",
        "create table t (id int primary key, v text, n int)",
        "create table u (id int primary key, big text, n int)",
        "alter table u alter big set storage external",
        ROWS.format(1, 100),
        "insert into u select i, (select string_agg(md5(i || ' ' || j), '') from generate_series(1, 150) j), i "
        "from generate_series(1, 100) i",
    )


@pytest.fixture
def running(prepared, daemon):
    return daemon(["public.*"], buffer={"interval": "300ms"}).start_and_load()


def sent_ahead(running):
    """How many transactions the server sent before their commit, and how often it did so in parts."""
    return running.server.execute(
        running.database,
        "select coalesce(sum(stream_txns), 0)::int, coalesce(sum(stream_count), 0)::int from pg_stat_replication_slots",
        user="postgres",
    )[0]


def spilled(running):
    """Bytes of open transactions on the daemon's disk."""
    return sum(os.path.getsize(path) for path in glob.glob(f"{running.state}/streams/*/spill/*"))


def lake_ids(running, table="t"):
    duck = duckdb.connect()
    return {row[0] for row in duck.execute(f"select id from ({running.lake.view('public', table)})").fetchall()}


def compare(running, tables=(T, U), transactions=1):
    """Source and lake are the same, large transactions came ahead, and nothing is left of them."""
    running.compare(tables)
    assert sent_ahead(running)[0] >= transactions, "the server sent nothing ahead"
    assert spilled(running) == 0
    assert set(running.states().values()) == {"Table completed"}
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("23")
def test_commits_of_every_kind_of_change(running, sql):
    """Inserts, updates that leave large values out, key changes, deletes, and the next small transaction."""
    sql(
        ROWS.format(1000, 9000),
        "update t set v = v || 'x', n = null where id % 2 = 0",
        "begin; update u set n = n + 1000; update u set id = id + 10000 where id % 3 = 0; "
        + ROWS.format(10001, 13000)
        + "; delete from t where id % 5 = 0; update u set n = 7 where id % 7 = 0; commit",
        "insert into t values (99999, 'small', 1)",
    )
    compare(running, transactions=3)


@pytest.mark.trap("23")
def test_rollbacks_leave_nothing(running, sql):
    """A transaction, savepoints within savepoints, and a loop that catches errors."""
    sql(
        "begin; " + ROWS.format(1000, 5000) + "; rollback",
        "begin; "
        + ROWS.format(10000, 11000)
        + "; savepoint a; "
        + ROWS.format(11001, 13000)
        + "; update u set n = -1; savepoint b; "
        + ROWS.format(13001, 15000)
        + "; rollback to b; "
        + ROWS.format(13001, 13500)
        + "; savepoint c; "
        + ROWS.format(15001, 16000)
        + "; release c; savepoint d; delete from t where id > 12000; rollback to a; "
        # The shape was shown within what rolled back.
        + ROWS.format(16001, 18000)
        + "; commit",
        """do $$ begin for i in 20000 .. 21999 loop
             begin insert into t values (i, repeat('x', 100), i); if i % 3 = 0 then raise 'no'; end if;
             exception when raise_exception then null; end;
           end loop; end $$""",
        # Everything of the top transaction stands in sub-transactions.
        "begin; savepoint a; "
        + ROWS.format(30000, 33000)
        + "; rollback to a; savepoint b; "
        + ROWS.format(30000, 33000)
        + "; commit",
    )
    # From 18 on the server does not send what has rolled back by then.
    compare(running, transactions=3)
    assert not lake_ids(running) & {1000, 5000, 11001, 13001, 15001, 20001 - 20001 % 3}


@pytest.mark.trap("23")
@pytest.mark.trap("5")
def test_interleaved_transactions(running, sql, server, database):
    """Two are open at once and end in the other order; what commits meanwhile does not wait for them."""
    with server.connect(database) as one, server.connect(database) as two, server.connect(database) as three:
        for part in range(6):
            for connection, first in ((one, 100_000), (two, 200_000), (three, 300_000)):
                begin = first + part * 1500
                connection.execute(ROWS.format(begin, begin + 1499))
                connection.execute(f"update u set n = {first} where id % 10 = {first // 100_000}")
            sql(f"insert into t values ({part + 1000}, 'meanwhile', 0)")
        wait_for(lambda: 1005 in lake_ids(running), 20, "small transactions while large ones are open")
        assert not lake_ids(running) & {100_000, 200_000, 300_000}
        assert spilled(running) > 0
        two.commit()
        sql("update t set v = 'after two' where id = 1000")
        three.rollback()
        one.commit()
    compare(running, transactions=2)


@pytest.mark.trap("23")
@pytest.mark.trap("17")
def test_schema_changes_inside(running, sql):
    """In order with the rows; and what rolls back is not the shape of those that come after."""
    sql(
        "begin; "
        + ROWS.format(1000, 3000)
        + "; alter table t add column gone int; update t set gone = 1; rollback",
        "insert into t values (101, 'as before', 1)",
        "begin; "
        + ROWS.format(4000, 6000)
        + "; savepoint a; create table gone (i int); alter table u add column gone int; "
        + "update u set gone = 1; rollback to a; "
        + ROWS.format(6001, 7000)
        + "; alter table t add column w text; insert into t select i, 'v', i, 'w' from generate_series(7001, 9000) i; "
        + "create table made (id int primary key); insert into made select generate_series(1, 3000); "
        + "alter table t rename v to x; update t set x = x || 'y' where id > 8000; commit",
        "insert into t values (102, 'after', 1, 'w')",
    )
    compare(running)
    assert columns(running, "t") == {"id", "x", "n", "w"} and columns(running, "u") == {"id", "big", "n"}


def columns(running, table):
    """Names of the source's columns, as the catalog knows them."""
    found = next(row for row in running.catalog_tables("public") if row["name"] == table)
    return {column["name"] for column in found["columns"]} - {"Op", "commit_timestamp", "change_order"}


@pytest.mark.trap("23")
@pytest.mark.trap("17")
def test_a_transaction_that_the_server_cannot_send_ahead(running, sql):
    """A change of shape that rolled back to its savepoint, and another one of the same table: the server fails (seen in
    15, 17 and 18), is asked for the whole transaction, and later sends large ones ahead again."""
    sql(
        "begin; "
        + ROWS.format(4000, 6000)
        + "; savepoint a; alter table t add column gone int; "
        + ROWS.format(6001, 7000).replace("i from", "i, 1 from")
        + "; rollback to a; "
        + ROWS.format(6001, 7000)
        + "; alter table t add column w text; insert into t select i, 'v', i, 'w' from generate_series(7001, 9000) i; "
        + "commit",
        "insert into t values (102, 'after', 1, 'w')",
    )
    compare(running)
    assert columns(running, "t") == {"id", "v", "n", "w"}
    assert "could not map filen" in running.log(tail=10**6), "the server can, and this test may go"
    running.kill()
    before = sent_ahead(running)[0]
    running.start()
    sql("insert into t select i, 'v', i, 'w' from generate_series(20000, 24000) i")
    compare(running)
    assert sent_ahead(running)[0] > before


@pytest.mark.trap("23")
@pytest.mark.trap("15")
def test_truncates_inside(running, sql):
    sql(
        "begin; " + ROWS.format(1000, 4000) + "; truncate t, u; " + ROWS.format(1, 3000) + "; commit",
        "begin; " + ROWS.format(5000, 8000) + "; savepoint a; truncate t; rollback to a; commit",
        "insert into u values (1, 'again', 1)",
    )
    compare(running, transactions=2)


@pytest.mark.trap("23", crash=True)
def test_prepared_transactions_come_at_their_commit(running, sql, server, database):
    """`two_phase` is off: whatever is prepared arrives at COMMIT PREPARED, also if we and the server went in between."""
    sql(
        "begin; " + ROWS.format(1000, 4000) + "; prepare transaction 'stays'",
        "begin; " + ROWS.format(5000, 8000) + "; prepare transaction 'goes'",
        "insert into t values (20000, 'meanwhile', 1)",
    )
    wait_for(lambda: 20000 in lake_ids(running), 20, "what commits meanwhile")
    assert not lake_ids(running) & {1000, 5000}
    running.kill()
    running.start()
    sql("rollback prepared 'goes'", "insert into t values (20001, 'later', 1)", "commit prepared 'stays'")
    compare(running)
    assert {1000, 4000, 20001} <= lake_ids(running) and 5000 not in lake_ids(running)


@pytest.mark.trap("23", crash=True)
@pytest.mark.trap("6", crash=True)
@pytest.mark.fault("32", "a large transaction is open across a SIGKILL", promise="continues")
def test_killed_while_a_transaction_is_open(running, sql, server, database):
    """Its rows were not confirmed, so they come again; the files of before are gone."""
    with server.connect(database) as open_one:
        open_one.execute(ROWS.format(1000, 9000))
        sql(*(f"insert into t values ({i}, 'meanwhile', 0)" for i in range(20000, 20020)))
        wait_for(lambda: spilled(running) > 0, 20, "the open transaction's rows")
        running.wait_confirmed()
        running.kill()
        assert spilled(running) > 0, "nothing cleared up"
        running.start()
        wait_for(lambda: spilled(running) == 0, 20, "the files of before to go")
        open_one.execute(ROWS.format(9001, 12000))
        wait_for(lambda: spilled(running) > 500_000, 20, "all its rows again")
        running.kill()
        open_one.execute("delete from t where id % 4 = 0")
        open_one.commit()
    running.start()
    compare(running)


@pytest.mark.trap("23", crash=True)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("point", ["pg-spill-after-write", "pg-spill-before-replay", "pg-spill-inside-replay"])
@pytest.mark.fault("31", "SIGKILL while a large transaction is spilled and replayed", promise="continues")
def test_killed_at_a_failpoint(prepared, daemon, sql, point, times):
    running = daemon(["public.*"], buffer={"interval": "300ms"}).start_and_load()
    running.kill()
    running.start(crash_at=f"{point}:{times}", ready=False)
    # More rows than one pull takes, so that a part of them is in the stream when it dies within.
    for number in range(3):
        sql(
            f"begin; insert into t select i, repeat(md5(i::text), 3), i from generate_series({number * 100_000 + 1000}, "
            f"{number * 100_000 + 71_000}) i; savepoint a; update u set n = n - 1; "
            f"{'rollback to a' if number == 1 else 'release a'}; commit"
        )
    assert running.wait_exit(60) == -signal.SIGKILL
    running.start()
    compare(running)


@pytest.mark.trap("23")
@pytest.mark.fault("31", "a transaction larger than the stream's bound", promise="continues")
def test_larger_than_the_disk_bound(prepared, daemon, sql):
    """A transaction above the stream's bound passes; while it is open, the others go on."""
    running = daemon(
        ["public.*"],
        buffer={"interval": "300ms"},
        options={"stream": {"retention": "1s", "disk-bound": "24MiB", "compress": False}},
    ).start_and_load()
    large = "insert into t select i, repeat(md5(i::text), 10), i from generate_series({}, {}) i"
    with running.server.connect(running.database) as open_one:
        open_one.execute(large.format(100_000, 230_000))
        wait_for(lambda: spilled(running) > 30 << 20, 60, "more than the bound")
        for number in range(5):
            sql(large.format(1000 + number * 100, 1000 + number * 100 + 99))
        wait_for(lambda: 1499 in lake_ids(running), 60, "others go on")
        open_one.commit()
    compare(running)
    assert "beyond its disk bound" in running.log(tail=10**6)


@pytest.mark.trap("23", crash=True)
@pytest.mark.trap("46", crash=True)
def test_at_the_disk_bound_an_open_transaction_waits(prepared, daemon, sql, s3):
    """The target is away and the stream at its bound: what the server sends ahead waits there like everything else, also
    behind a kill."""
    rows = (
        "insert into t select i, (select string_agg(md5(random()::text || i || j), '') from generate_series(1, 30) j), i "
        "from generate_series({}, {}) i"
    )
    with Proxy(s3.port) as proxy:
        running = daemon(
            ["public.*"],
            target=target(s3, "spill/", proxy.port),
            s3=s3,
            environment=ENVIRONMENT,
            buffer={"interval": "300ms"},
            options={"stream": {"retention": "1s", "disk-bound": "40MiB", "compress": False}},
        ).start_and_load()
        proxy.cut()
        with running.server.connect(running.database) as open_one:
            for number in range(1, 5):
                sql(rows.format(number * 20_000, number * 20_000 + 9_999))
                open_one.execute(rows.format(number * 20_000 + 10_000, number * 20_000 + 19_999))
            time.sleep(5)
            # What is allocated: a segment is given its length at once.
            files = glob.glob(f"{running.state}/streams/**", recursive=True)
            held = sum(os.stat(path).st_blocks * 512 for path in files if os.path.isfile(path))
            assert spilled(running) > 1 << 20 and held < 48 << 20, "the bound, and little beyond it"
            running.kill()
            running.start()
            proxy.heal()
            open_one.commit()
        compare(running)

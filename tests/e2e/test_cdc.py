"""Changes: everything that commits, in order, whole, and nothing else."""

import time

import pytest
from conftest import SEED
from servers import wait_for
from workload import ACCOUNTS, CENTS, PATTERNS, TABLES, Shop

import duckdb


@pytest.mark.trap("5", "12", "13", "14")
def test_a_busy_shop(server, database, daemon):
    """The whole workload from before the load on, and a ledger of what was acknowledged."""
    shop = Shop(server, database, SEED)
    shop.create()
    shop.start(writers=3, pause=0.005)
    running = daemon(PATTERNS)
    running.start_and_load()
    shop.sensor_open.set()
    time.sleep(6)
    shop.stop()
    shop.mark()
    running.compare(TABLES)
    assert not shop.check_ledger(ledger(running))
    assert balance(running) == CENTS * ACCOUNTS
    assert not torn_transfers(running)
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("5")
def test_every_published_state_is_made_of_whole_transactions(server, database, daemon):
    """At any moment, one table alone shows whole transactions, and all of them do at the smallest `complete_through`."""
    shop = Shop(server, database, SEED, scale=100)
    shop.create()
    running = daemon(PATTERNS, buffer={"interval": "300ms", "size": "200KB"}).start_and_load()
    shop.start(writers=3, pause=0.002)
    seen = set()
    for _ in range(12):
        assert balance(running) == CENTS * ACCOUNTS
        seen.add(orphans_at_the_smallest_cut(running))
        time.sleep(0.2)
    shop.stop()
    assert {count for count, _ in seen} == {0}
    assert len({cut for _, cut in seen}) > 1, "the cut moves on"


def orphans_at_the_smallest_cut(running):
    """(order lines without their order, the cut), all tables cut where the slowest is complete."""
    through = {row["name"]: row["complete_through"] for row in running.catalog_tables("shop")}
    cut = min(lsn_digits(through[table]) for table in ("orders", "order_line"))
    duck = duckdb.connect()
    for table, key in (("orders", "id"), ("order_line", "order_id, line")):
        running.lake.relation(duck, running.lake.files("shop", table), f"all_{table}")
        duck.execute(
            f"create view {table} as select * from (select * from all_{table} where left(change_order, 32) < '{cut}' "
            f"qualify row_number() over (partition by {key} order by change_order desc) = 1) where \"Op\" <> 'D'"
        )
    orphans = duck.execute("select count(*) from order_line where order_id not in (select id from orders)").fetchone()[
        0
    ]
    return orphans, cut


def lsn_digits(position):
    """`X/Y`, or the state's hexadecimal, as the 32 digits that a `change_order` begins with."""
    high, _, low = position.rpartition("/")
    return f"{(int(high or '0', 16) << 32) + int(low, 16):032x}"


def ledger(running):
    """The (writer, seq) pairs in the lake."""
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("shop", "ledger"))
    return duck.execute("select writer, seq from lake where \"Op\" <> 'D'").fetchall()


def balance(running):
    """The sum of all accounts in the lake's current state."""
    duck = duckdb.connect()
    return int(duck.execute(f"select sum(cents) from ({running.lake.view('shop', 'account')})").fetchone()[0])


def torn_transfers(running):
    """Commits of which the lake holds one half: a transfer updates two accounts."""
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("shop", "account"))
    return duck.execute(
        "select left(change_order, 32), count(*) from lake where \"Op\" = 'U' group by 1 " "having count(*) % 2 = 1"
    ).fetchall()


@pytest.mark.trap("13", "42")
def test_one_transaction_tells_its_story_in_order(daemon, sql, server, database):
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"]).start_and_load()
    with server.connect(database) as connection:
        connection.execute("insert into t values (1, 'a'), (2, 'b')")
        connection.execute("update t set v = 'c' where id = 1")
        connection.execute("delete from t where id = 1")
        connection.execute("insert into t values (1, 'again')")
        connection.execute("update t set id = 3 where id = 2")
    running.compare([("public", "t")])
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("public", "t"))
    rows = duck.execute('select "Op", id, v, change_order from lake order by change_order').fetchall()
    assert [(op, id) for op, id, _, _ in rows] == [("I", 1), ("I", 2), ("U", 1), ("D", 1), ("I", 1), ("D", 2), ("I", 3)]
    ordinals = [int(order[32:], 16) for *_, order in rows]
    assert len({order[:32] for *_, order in rows}) == 1 and ordinals == sorted(set(ordinals)) and ordinals[0] >= 1


@pytest.mark.trap("11", "42")
@pytest.mark.scorecard("PK update")
@pytest.mark.fault("39", "large values that an update does not send", promise="continues")
def test_unchanged_toast_is_filled_and_key_changes_keep_it(daemon, sql):
    big = "string_agg(md5(random()::text || i), '')"
    sql(
        "create table t (id int primary key, n int, a text, b bytea, j jsonb, l text[])",
        "alter table t alter a set storage external, alter b set storage external",
        f"insert into t select k, 0, (select {big} from generate_series(1, 1000) i where k > 0), "
        f"(select {big}::bytea from generate_series(1, 500) i where k > 0), "
        f"(select to_jsonb({big}) from generate_series(1, 500) i where k > 0), "
        f"array[(select {big} from generate_series(1, 500) i where k > 0), null] from generate_series(1, 40) k",
    )
    running = daemon(["public.t"]).start_and_load()
    sql(
        "update t set n = n + 1",
        "update t set id = id + 1000 where id <= 20",
        "update t set n = n + 1 where id % 2 = 0",
        "update t set a = 'short' where id = 21",
        "update t set n = 9 where id = 21",
        "update t set a = null where id = 22",
        "delete from t where id = 23",
        "begin; update t set n = 5 where id = 24; update t set id = 5024 where id = 24; commit",
    )
    running.compare([("public", "t")])
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("public", "t"))
    # Every row in a file is whole, not only the newest of its key.
    assert (
        duck.execute(
            "select count(*) from lake where \"Op\" in ('I', 'U') and (b is null or j is null or l is null)"
        ).fetchone()[0]
        == 0
    )


@pytest.mark.trap("11")
def test_updates_after_a_value_was_read_late(daemon, sql, server, database):
    """The lookup happens after the change: a row whose key is gone by then is superseded, not lost and not stuck."""
    sql(
        "create table t (id int primary key, n int, a text)",
        "alter table t alter a set storage external",
        "insert into t select i, 0, repeat(md5(i::text), 400) from generate_series(1, 50) i",
    )
    running = daemon(["public.t"]).start_and_load()
    with server.connect(database) as connection:
        for round in range(20):
            connection.execute("update t set n = n + 1")
            connection.commit()
            connection.execute("update t set id = -id where id %% 5 = %s", (round % 5,))
            connection.commit()
            connection.execute("delete from t where id = %s", (-round,))
            connection.execute("insert into t values (%s, 0, repeat('z', 9000)) on conflict do nothing", (round,))
            connection.commit()
    running.compare([("public", "t")])
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("12", "13", "14")
def test_replica_identities(daemon, sql):
    sql(
        "create table by_index (a int not null, b text not null, c text)",
        "create unique index on by_index (b)",
        "alter table by_index replica identity using index by_index_b_idx",
        "create table by_full (id int primary key, v text)",
        "alter table by_full replica identity full",
        "create table deferred (id int primary key deferrable, v text)",
        "alter table deferred replica identity full",
        "insert into by_index values (1, 'x', 'c'), (2, 'y', 'd')",
        "insert into by_full values (1, 'a'), (2, 'b')",
        "insert into deferred values (1, 'a'), (2, 'b'), (3, 'c')",
    )
    running = daemon(["public.*"]).start_and_load()
    sql(
        "update by_index set c = 'new' where a = 1",
        "update by_index set b = 'z' where a = 2",
        "insert into by_index values (3, 'y', 'e')",
        "delete from by_index where a = 1",
        "update by_full set v = 'c' where id = 1",
        "update by_full set id = 9 where id = 2",
        "delete from by_full where id = 1",
        "update deferred set id = 3 - id where id < 3",
        "update deferred set id = (id % 3) + 1",
        "delete from deferred where id = 2",
    )
    running.compare([("public", "by_index"), ("public", "by_full"), ("public", "deferred")])
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("public", "by_full"))
    deleted = duck.execute("select id, v from lake where \"Op\" = 'D' order by id").fetchall()
    assert (1, "c") in deleted, "where the source sends the old row, a delete carries it"


@pytest.mark.trap("12", "14")
def test_the_application_is_never_broken(daemon, sql):
    """Tables whose identity cannot carry updates are published for inserts only, so the application's UPDATE works."""
    sql(
        "create table nokey (v text)",
        "create table deferred (id int primary key deferrable)",
        "create table nothing (id int primary key, v text)",
        "alter table nothing replica identity nothing",
    )
    running = daemon(["public.*"]).start_and_load()
    sql(
        "insert into nokey values ('a'), ('a'), ('b')",
        "insert into deferred values (1)",
        "insert into nothing values (1, 'x')",
    )
    running.wait_confirmed()
    running.compare([("public", "nokey"), ("public", "deferred"), ("public", "nothing")])
    sql("update nokey set v = 'c'", "delete from deferred", "update nothing set v = 'y'")
    plan = running.run("plan")
    assert "REPLICA IDENTITY FULL" in plan.upper() and "nokey" in plan
    assert sql("select count(*) from pg_publication where puballtables") == [(0,)]


def test_a_large_transaction(daemon, sql):
    """More rows than a batch, a pull and a frame hold, in one commit; and one that rolls back."""
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"]).start_and_load()
    sql(
        "begin; insert into t select i, 'gone' from generate_series(1, 100000) i; rollback",
        "insert into t select i, md5(i::text) from generate_series(1, 200000) i",
        "update t set v = 'x' where id % 2 = 0",
        "delete from t where id % 3 = 0",
    )
    running.compare([("public", "t")])


@pytest.mark.trap("7")
@pytest.mark.fault("33", "captured tables are idle in a busy database", promise="continues")
def test_idle_tables_let_the_log_go(daemon, sql, server):
    """Nothing captured changes, the server is busy: the slot advances all the same, within a mark's 10 s."""
    sql("create table t (id int primary key)", "create table elsewhere (v text)")
    running = daemon(["public.t"]).start_and_load()
    before = running.confirmed_lsn()
    sql("insert into elsewhere select md5(i::text) from generate_series(1, 50000) i")
    target = int(sql("select pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0][0])
    wait_for(lambda: running.confirmed_lsn() >= target, 40, "an idle table's slot")
    assert running.confirmed_lsn() > before


def test_mode_cdc_takes_changes_from_now_on(daemon, sql):
    sql("create table t (id int primary key, v text)", "insert into t values (1, 'before')")
    running = daemon(["public.t"], mode="cdc").start_and_load()
    sql("insert into t values (2, 'after')")
    # The catalog knows the table from its first delivery on.
    wait_for(lambda: running.catalog_tables("public") and running.lake.files("public", "t"), 20, "a file")
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("public", "t"))
    assert duck.execute('select "Op", id, v from lake').fetchall() == [("I", 2, "after")]


@pytest.mark.trap("1", "6", crash=True)
def test_nothing_is_read_twice_after_a_restart(daemon, sql):
    sql("create table t (v text)")
    running = daemon(["public.t"]).start_and_load()
    for round in range(4):
        sql(f"insert into t select 'r{round}' from generate_series(1, 500)")
        if round % 2:
            running.kill()
        else:
            assert running.terminate() == 0
        sql(f"insert into t select 'while down {round}' from generate_series(1, 100)")
        running.start()
    running.compare([("public", "t")])


@pytest.mark.trap("10")
@pytest.mark.fault("23", "connections are cut, the server restarts", promise="continues")
def test_the_source_goes_away_and_comes_back(daemon, sql, server, database):
    """Connection cut, server restarted: the task goes on by itself."""
    from servers import Proxy

    sql("create table t (id int primary key, v text)", "insert into t select i, 'x' from generate_series(1, 100) i")
    with Proxy(server.port) as proxy:
        running = daemon(["public.t"], port=proxy.port).start_and_load()
        proxy.cut()
        sql("update t set v = 'cut' where id <= 50")
        time.sleep(2)
        proxy.heal()
        running.compare([("public", "t")])
        server.stop()
        server.start()
        sql("update t set v = 'restarted' where id > 50")
        running.compare([("public", "t")], seconds=90)


def test_a_backlog_over_a_unix_socket(server, sql, daemon):
    """It is read in moments there, one after the other, and single changes behind it at once."""
    sql("create table journal (id int primary key, v text)")
    running = daemon(["public.journal"], source={"host": server.folder}).start_and_load()
    running.terminate()
    insert = "insert into journal select i, md5(i::text) from generate_series({}, {}) i"
    inserts = [insert.format(first, first + 999) for first in range(0, 60_000, 1000)]
    sql(*inserts, "update journal set v = 'updated' where id < 5000", "delete from journal where id >= 55000")
    running.start()
    running.compare([("public", "journal")])
    sql("insert into journal values (100000, 'alone')")
    running.compare([("public", "journal")], seconds=10)

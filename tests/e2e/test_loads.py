"""What happens around a load while it runs."""

import threading
import time

import duckdb
import psycopg
import pytest
from servers import Postgres, wait_for


@pytest.mark.trap("24", "39")
def test_a_commit_that_waits_for_a_standby_while_a_load_starts(sql, server, database, daemon):
    """A transaction that waits for a synchronous standby is in the log and not yet visible: its change must not be lost
    between a snapshot that does not see it and a position that is behind it."""
    sql("create table t (id int primary key, v text)", "insert into t select i, 'old' from generate_series(1, 100) i")
    # The daemon's own commits (publications) must not wait; the table's owner's do.
    server.execute(
        database,
        "alter role cdc set synchronous_commit = local",
        "alter system set synchronous_standby_names = 'nobody'",
        "select pg_reload_conf()",
        user="postgres",
    )
    try:
        time.sleep(0.3)
        writer = server.connect(database, autocommit=True)
        thread = threading.Thread(target=lambda: writer.execute("update t set v = 'new' where id = 7"), daemon=True)
        thread.start()
        wait_for(
            lambda: server.execute(
                database,
                "set synchronous_commit = local",
                "select 1 from pg_stat_activity where wait_event = 'SyncRep'",
                user="postgres",
            ),
            10,
            "the wait",
        )
        running = daemon(["public.t"])
        running.start()
        try:
            running.wait_states(seconds=8)
        except TimeoutError:
            # A slot waits for the transactions that run while it is made; this one is one of them.
            pass
        server.execute(
            database,
            "set synchronous_commit = local",
            "alter system reset synchronous_standby_names",
            "select pg_reload_conf()",
            user="postgres",
        )
        thread.join(20)
        assert not thread.is_alive()
        running.wait_states()
        running.compare([("public", "t")])
        duck = duckdb.connect()
        assert duck.execute(f"select v from ({running.lake.view('public', 't')}) where id = 7").fetchone() == ("new",)
    finally:
        server.execute(
            database,
            "set synchronous_commit = local",
            "alter system reset synchronous_standby_names",
            "select pg_reload_conf()",
            "alter role cdc reset synchronous_commit",
            user="postgres",
        )


@pytest.mark.trap("24")
@pytest.mark.parametrize("statement", ["vacuum full t", "cluster t using t_pkey"])
def test_a_rewrite_in_the_middle_of_a_load(daemon, sql, server, database, statement):
    """VACUUM FULL gives every row another place, and later ctid ranges of an older snapshot would come back empty. The
    load's lock holds it off, or the load notices and starts again; nothing is lost either way."""
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 30000) i",
        "delete from t where id <= 15000",
        "analyze t",
    )
    running = daemon(["public.t"], options={"full-load": {"parallel": 2, "rate-limit": "4MiB"}})
    running.start()
    wait_for(
        lambda: running.states_or_none().get(("public", "t")) == "Full load", 20, "the load's beginning", every=0.02
    )

    def rewrite():
        try:
            sql(statement)
        except psycopg.errors.LockNotAvailable:
            pass

    threads = [threading.Thread(target=rewrite, daemon=True)]
    threads[0].start()
    sql("insert into t values (99999, 'late')")
    running.wait_states(seconds=90)
    threads[0].join(30)
    sql("update t set v = 'after' where id = 20000")
    running.compare([("public", "t")])


@pytest.mark.trap("24", crash=True)
def test_a_rewrite_between_two_runs_of_a_load(daemon, sql):
    """Segments that a crash left are worth nothing once the table has other storage."""
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 30000) i",
        "analyze t",
    )
    running = daemon(["public.t"], options={"full-load": {"parallel": 1, "rate-limit": "4MiB"}})
    running.start()
    wait_for(lambda: running.states_or_none().get(("public", "t")) == "Full load", 20, "the load's beginning")
    time.sleep(1.5)
    running.kill()
    sql("delete from t where id % 2 = 0", "vacuum full t")
    running.start_and_load()
    running.compare([("public", "t")])


@pytest.mark.trap("39", "40", crash=True)
@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
@pytest.mark.fault("1", "a load is killed between its segments while rows change", promise="continues")
def test_a_load_that_is_killed_goes_on(daemon, sql, keyed):
    """Rows change between the two runs: keyed tables keep finished segments, tables without a key start again."""
    sql(
        f"create table t (id int {'primary key' if keyed else ''}, v text)",
        "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 40000) i",
        "analyze t",
    )
    running = daemon(["public.t"], options={"full-load": {"parallel": 2, "rate-limit": "6MiB"}})
    running.start()
    for round in range(3):
        wait_for(lambda: running.states_or_none().get(("public", "t")) == "Full load", 20, "the load's beginning")
        time.sleep(0.8)
        running.kill()
        if keyed:
            sql(
                f"update t set v = 'round {round}' where id % 10 = {round}",
                f"delete from t where id % 100 = {round + 50}",
                f"update t set id = id + 100000 where id % 1000 = {round}",
            )
        sql(
            f"insert into t select i, 'new {round}' from generate_series({50000 + round * 100}, {50050 + round * 100}) i"
        )
        running.start()
    running.wait_states(seconds=90)
    sql("insert into t values (77777, 'last')")
    running.compare([("public", "t")])


@pytest.mark.trap("17", "40", crash=True)
def test_a_column_added_between_two_runs_of_a_load(daemon, sql):
    """No rewrite, so finished segments would be kept: but they were read without the column, and rows of theirs that
    were changed since carry it."""
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 40000) i",
        "analyze t",
    )
    running = daemon(["public.t"], options={"full-load": {"parallel": 2, "rate-limit": "8MiB"}})
    running.start()
    wait_for(lambda: running.states_or_none().get(("public", "t")) == "Full load", 20, "the load's beginning")
    time.sleep(1.5)
    running.kill()
    sql("alter table t add column w int", "update t set w = id where id % 7 = 0", "insert into t values (90000, 'x', 1)")
    running.start()
    running.wait_states(seconds=90)
    sql("update t set w = -1 where id = 5")
    running.compare([("public", "t")])


@pytest.mark.trap("39")
def test_changes_flow_while_a_long_load_runs(daemon, sql):
    """The slot's confirmed position moves on during a load: a long load never makes the source keep its log."""
    sql(
        "create table big (id int primary key, v text)",
        "create table other (id int primary key, v text)",
        "insert into big select i, repeat(md5(i::text), 30) from generate_series(1, 30000) i",
        "analyze big",
    )
    running = daemon(["public.big", "public.other"], options={"full-load": {"rate-limit": "2MiB"}})
    running.start()
    wait_for(lambda: running.states_or_none().get(("public", "big")) == "Full load", 20, "the load's beginning")
    before = running.confirmed_lsn()
    sql("update big set v = 'x' where id < 500", "insert into other select i, 'x' from generate_series(1, 500) i")
    end = int(sql("select pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0][0])
    wait_for(lambda: (running.confirmed_lsn() or 0) > (before or 0), 15, "the confirmed position during a load")
    assert running.states()[("public", "big")] == "Full load", "the load was too short to tell"
    running.wait_states(seconds=90)
    running.compare([("public", "big"), ("public", "other")])
    assert end


@pytest.mark.trap("24")
def test_a_long_transaction_is_told_about_and_waited_for(daemon, sql, server, database):
    """A slot waits for older transactions; `check` names the one that will hold it up, and the load is right after."""
    sql("create table t (id int primary key, v text)", "insert into t values (1, 'old')")
    holder = server.connect(database)
    holder.execute("update t set v = 'held' where id = 1")
    pid = holder.info.backend_pid
    running = daemon(["public.t"])
    done = running.command("check")
    running.start()
    time.sleep(2)
    holder.commit()
    holder.close()
    running.wait_states()
    running.compare([("public", "t")])
    assert done.returncode == 0, "a long transaction is a warning"
    assert pid


def test_a_server_without_logical_wal(tmp_path):
    """`wal_level = replica`: told by check, and healed by what check says."""
    with Postgres(settings={"wal_level": "replica"}) as server:
        from daemon import Daemon

        server.create_database("shop")
        server.execute("shop", "create table t (id int primary key)", "insert into t values (1)")
        with Daemon(server, "shop", ["public.t"]) as running:
            done = running.command("check")
            assert done.returncode == 3 and "wal_level" in done.stdout + done.stderr
            server.settings["wal_level"] = "logical"
            server.stop()
            server.start()
            running.start_and_load()
            running.compare([("public", "t")])

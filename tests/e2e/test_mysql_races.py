"""MariaDB and MySQL as sources: what happens to a table at the wrong moment, while it waits for its load, while it is
loaded, while the daemon is down, while a commit is under way, and when the server crashes."""

import os
import sqlite3
import threading

import pytest

from daemon import Daemon
from servers import Proxy, wait_for


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request):
    """One of the two."""
    return request.getfixturevalue(request.param)


def rows_loaded(run):
    """Rows of loads under way."""
    return sum(value for name, value in run.metrics().items() if name[0] == "millrace_full_load_rows")


def finished_segments(run):
    """Parts of tables that are loaded and in the state."""
    with sqlite3.connect(f"file:{run.state}/state.db?mode=ro", uri=True, timeout=5) as state:
        names = "select name from sqlite_master where type = 'table' and name not like 'sqlite%'"
        (table,) = state.execute(names).fetchone()
        (count,) = state.execute(f"select count(*) from {table} where key like 'segment/%'").fetchone()
    return count


def large(server, sql, rows, name="large"):
    """A table that takes some seconds under a limit of bytes per second."""
    sql(
        f"create table {name} (id int primary key, text varchar(300))",
        f"insert into {name} select seq, repeat(sha2(seq, 256), 4) from {server.numbers(rows)}",
        f"analyze table {name}",
    )


def test_tables_that_change_while_they_wait_for_their_load(server, database, sql, daemon):
    """Some of them wait: which come first is chance. One that is done is kept from a RENAME by the snapshot, which must not
    wait for it in turn."""
    large(server, sql, 25_000)
    several, tables, changes = range(3), ["large"], []
    for n in several:
        sql(
            f"create table dropped{n} (id int primary key, a int, c int)",
            f"insert into dropped{n} values (1, 10, 100), (2, 20, 200)",
            f"create table added{n} (id int primary key, a int)",
            f"insert into added{n} values (1, 10), (2, 20)",
            f"create table swapped{n} (a int, b int)",
            f"insert into swapped{n} values (1, 1)",
            f"create table other{n} (a int, b int)",
            f"insert into other{n} values (7, 7)",
        )
        changes += [
            f"update dropped{n} set a = 11 where id = 1",
            f"alter table dropped{n} drop column a",
            f"update added{n} set a = 11 where id = 1",
            f"alter table added{n} add column d int default 5",
            f"insert into other{n} values (8, 8)",
            f"rename table swapped{n} to was_swapped{n}, other{n} to swapped{n}",
            f"insert into swapped{n} values (9, 9)",
        ]
        tables += [f"dropped{n}", f"added{n}", f"swapped{n}"]
    slowly = {"full-load": {"parallel": 1, "rate-limit": "2MiB"}}
    run = daemon([f"{database}.{table}" for table in tables], server=server, options=slowly)
    run.start()
    wait_for(lambda: rows_loaded(run) > 1000, 60, "a part of the large table", every=0.02)
    sql(*changes)
    run.wait_states(seconds=90)
    run.compare([(database, table) for table in tables], seconds=60)


def test_finished_parts_of_a_table_that_was_replaced_are_not_kept(server, database, sql, daemon):
    large(server, sql, 200_000)
    sql(
        "create table other like large",
        "insert into other select id, concat('new', text) from large where id % 5 = 0",
        "analyze table other",
    )
    run = daemon([f"{database}.large"], server=server, options={"full-load": {"rate-limit": "10MiB"}})
    run.start()
    wait_for(lambda: finished_segments(run) > 0, 90, "a part that is finished")
    run.kill()
    sql("rename table large to was_large, other to large")
    run.start()
    run.wait_states(seconds=90)
    run.compare([(database, "large")], seconds=60)


def test_a_reload_that_begins_while_another_table_is_looked_at(server, database, sql, daemon):
    """The catalog is asked about a table with a generated column before its first row; meanwhile the one whose rows stand
    before it in the same transaction is taken up for its reload."""
    looked_at = [f"x{number}" for number in range(8)]
    sql("create table y (id int primary key)", "insert into y values (1)")
    for table in looked_at:
        sql(f"create table {table} (id int primary key, g int as (id * 2) stored)", f"insert into {table} (id) values (1)")
    with Proxy(server.port) as proxy:
        run = daemon([f"{database}.*"], server=server, port=proxy.port)
        run.start_and_load()
        proxy.round_trip = 0.2
        run.run("reload", "shop", f"{database}.y")
        with server.connect(database, autocommit=False) as connection, connection.cursor() as cursor:
            for number, table in enumerate(looked_at):
                cursor.execute("insert into y values (%s)", (10 + number,))
                cursor.execute(f"insert into {table} (id) values (2)")
                connection.commit()
        run.wait_states()
        proxy.round_trip = 0.0
        run.compare([(database, table) for table in ["y", *looked_at]], seconds=30)


class HeldCommit:
    """A commit that is in the binary log and not yet in the engine, for some seconds: it waits for a replica."""

    def __init__(self, server, sql, *statements):
        self.prefix, replica = "rpl_semi_sync_master", "slave"
        if server.TYPE == "mysql":
            self.prefix, replica = "rpl_semi_sync_source", "replica"
            if not sql(f"select 1 from information_schema.plugins where plugin_name = '{self.prefix}'"):
                sql(f"install plugin {self.prefix} soname 'semisync_source.so'", user="root")
        settings = ["enabled = 0", "enabled = 1", "wait_point = AFTER_SYNC", "timeout = 4000", f"wait_no_{replica} = 1"]
        sql(*(f"set global {self.prefix}_{setting}" for setting in settings), user="root")
        end = lambda: sql(server.STATUS, user="root")[0][1]  # noqa: E731
        before = end()
        self.thread = threading.Thread(target=sql, args=statements)
        self.thread.start()
        wait_for(lambda: end() != before, 10, "the commit in the log")

    def end(self, sql):
        self.thread.join()
        sql(f"set global {self.prefix}_enabled = 0", user="root")


def test_commits_that_are_under_way_when_a_load_begins(server, database, sql, daemon):
    sql("create table t (id int primary key)", "create table n (id int)", "insert into t values (1)")
    held = HeldCommit(server, sql, "insert into t values (2)")
    run = daemon([f"{database}.t"], server=server).start_and_load()
    held.end(sql)
    sql("flush binary logs", user="root")
    sql("insert into t values (3)")
    run.compare([(database, "t")])
    run.terminate()
    # A table that comes later, with the log taken up behind the commit, on a server where nothing else happens.
    held = HeldCommit(server, sql, "begin", "insert into n values (2)", "insert into t values (4)", "commit")
    run.write_config(run.config_text.replace(f'["{database}.t"]', f'["{database}.t", "{database}.n"]'))
    run.start()
    run.wait_states(tables=[(database, "n"), (database, "t")])
    held.end(sql)
    run.compare([(database, "t"), (database, "n")])
    sql("flush binary logs", "flush binary logs", user="root")
    run.run("reload", "shop", f"{database}.n")
    run.wait_states()
    run.compare([(database, "t"), (database, "n")])


def test_a_large_commit_is_looked_up_when_it_is_done(server, database, sql, daemon):
    """It is handed out in parts, and its rows are not visible while the first parts are."""
    sql("create table t (id int primary key, a int default 7, text mediumtext)", "insert into t values (0, 1, 'x')")
    run = daemon([f"{database}.t"], server=server).start_and_load()
    rows = f"insert into t (id, text) select seq, repeat('x', 9000) from {server.numbers(5000)}"
    held = HeldCommit(server, sql, "set binlog_row_image = 'MINIMAL'", rows)
    held.end(sql)
    run.compare([(database, "t")], seconds=60)


@pytest.fixture
def lockless(mysql):
    """Makes a user who may not lock."""
    mysql.execute(
        "mysql",
        f"create user lockless@'%' identified by '{mysql.PASSWORD}'",
        "grant select, replication slave, replication client on *.* to lockless@'%'",
        user="root",
    )
    yield "lockless"
    mysql.execute("mysql", "drop user lockless@'%'", user="root")


@pytest.mark.trap("32")
@pytest.mark.parametrize("server", ["mysql"], indirect=True)
def test_a_user_who_may_not_lock_loads_tables_with_a_key(server, database, sql, daemon, lockless):
    sql("create table t (id int primary key, a int, b text)", "insert into t values (1, 1, 'x')")
    run = daemon([f"{database}.t"], server=server, user=lockless)
    run.run("check")
    held = HeldCommit(server, sql, "begin", "insert into t values (2, 2, 'y')", "delete from t where id = 1", "commit")
    run.start_and_load()
    held.end(sql)
    run.compare([(database, "t")])
    # While the log is under way, and a commit is held that it has read.
    held = HeldCommit(server, sql, "insert into t values (3, 3, 'z')")
    run.run("reload", "shop", f"{database}.t")
    run.wait_states()
    held.end(sql)
    run.compare([(database, "t")])
    # What the log does not tell is looked up.
    sql("set binlog_row_image = 'MINIMAL'", "update t set a = 9", user="root")
    run.compare([(database, "t")])


@pytest.mark.trap("32")
@pytest.mark.parametrize("server", ["mysql"], indirect=True)
def test_a_user_who_may_not_lock_loads_no_table_without_a_key(server, database, sql, daemon, lockless):
    sql("create table t (id int primary key)", "create table later (id int)")
    codes = lambda run: {finding["code"] for finding in run.json("check", code=3)["findings"]}  # noqa: E731
    with Daemon(server, database, [f"{database}.*"], user=lockless) as other:
        assert "MYSQL-RELOAD" in codes(other)
    sql("drop table later")
    pattern = {"on-change": {"discover": "2s"}}
    run = daemon([f"{database}.*"], server=server, user=lockless, options=pattern)
    run.run("check")
    run.start_and_load()
    sql("create table later (id int)", "insert into later values (1)", "insert into t values (1)")
    run.wait_states("Table error", tables=[(database, "later")])
    assert "may not hold commits" in str(run.tables()[(database, "later")])
    run.compare([(database, "t")])
    with server.connect("mysql", "root", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("set global gtid_mode = 'ON_PERMISSIVE'")
        try:
            assert "MYSQL-RELOAD" in codes(run)
        finally:
            cursor.execute("set global gtid_mode = 'ON'")


def test_a_transaction_that_a_crash_cut_off_is_not_delivered(server, database, daemon):
    with type(server)({"innodb-flush-log-at-trx-commit": 1}) as server:
        sql = lambda *statements, user="shop": server.execute(database, *statements, user=user)  # noqa: E731
        server.create_database(database)
        sql("create table t (id int primary key, a int)", "insert into t values (1, 1)")
        run = daemon([f"{database}.t"], server=server).start_and_load()
        run.terminate()
        sql("insert into t values (2, 2)", "insert into t values (3, 3)")
        file = sql(server.STATUS, user="root")[0][0]
        end = sql(f"show binlog events in '{file}'", user="root")[-1]
        assert end[2] == "Xid"
        server.process.kill()
        server.process.wait()
        os.truncate(f"{server.data}/{file}", end[1])
        server.start()
        # What the crash of a whole machine would have taken from the engine as well.
        sql("set sql_log_bin = 0", "delete from t where id = 3", "set sql_log_bin = 1", user="root")
        sql("insert into t values (4, 4)")
        run.start()
        run.compare([(database, "t")])
        assert run.states() == {(database, "t"): "Table completed"}


def test_rows_that_are_not_whole_stop_only_their_table(server, database, sql, daemon):
    sql(
        "create table sound (id int primary key)",
        "create table narrowed (id int primary key, a int, b text)",
        "insert into narrowed values (1, 1, 'x')",
        "create table keyless (a int default 3, b int default 5)",
    )
    tables = ["sound", "narrowed", "keyless"]
    run = daemon([f"{database}.{table}" for table in tables], server=server).start_and_load()
    run.terminate()
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute("set binlog_row_image = 'MINIMAL'")
        cursor.execute("update narrowed set a = 2")
        cursor.execute("alter table narrowed drop column b")
        cursor.execute("insert into keyless values ()")
        cursor.execute("insert into keyless (a) values (1)")
    sql("insert into sound values (1)")
    run.start()
    run.compare([(database, table) for table in tables], seconds=60)

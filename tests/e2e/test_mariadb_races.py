"""MariaDB as a source: what happens to a table at the wrong moment, while it waits for its load, while it is loaded, while
the daemon is down, while a commit is under way."""

import sqlite3

import pytest

from servers import MariaDB, Proxy, wait_for


@pytest.fixture(scope="module")
def server():
    """A private MariaDB."""
    with MariaDB() as running:
        yield running


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


def large(sql, rows, name="large"):
    """A table that takes some seconds under a limit of bytes per second."""
    sql(
        f"create table {name} (id int primary key, text varchar(300))",
        f"insert into {name} select seq, repeat(md5(seq), 9) from seq_1_to_{rows}",
        f"analyze table {name}",
    )


def test_tables_that_change_while_they_wait_for_their_load(server, database, sql, daemon):
    """Some of them wait: which come first is chance. One that is done is kept from a RENAME by the snapshot, which must not
    wait for it in turn."""
    large(sql, 25_000)
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
    large(sql, 200_000)
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

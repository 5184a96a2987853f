"""MariaDB and MySQL as sources, from the first load to changes, crashes and what is refused."""

import sqlite3
import threading

import pytest

from servers import wait_for


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request):
    """One of the two."""
    return request.getfixturevalue(request.param)


def shop(server, sql, rows=1000):
    """Three tables: a plain one, one with a composite key of texts, one without a key."""
    sql(
        "create table orders (id int primary key auto_increment, customer varchar(40) character set utf8mb4, "
        "amount decimal(10,2) not null, placed datetime(6), note text)",
        "create table items (sku varchar(20) character set latin1, place int unsigned, price double, "
        "primary key (sku, place))",
        "create table visits (at timestamp(3) null, path varchar(100))",
        f"insert into orders (customer, amount, placed) select concat('Zoë ', seq), seq / 7, "
        f"'2024-01-01' + interval seq second from {server.numbers(rows)}",
        f"insert into items select concat('é', seq), seq, seq / 3 from {server.numbers(rows)}",
        f"insert into visits select '2024-03-31 01:30:00' + interval seq second, seq from {server.numbers(rows)}",
    )


TABLES = ["orders", "items", "visits"]


def changes(sql):
    """Inserts, updates, deletes, moves of keys, several in one transaction."""
    sql(
        "insert into orders (customer, amount) values ('new', 1.5), ('a''b\\\\c\\n', -2)",
        "update orders set note = repeat('ü', 5000) where id % 10 = 0",
        "delete from orders where id % 7 = 0",
        "update orders set id = id + 100000 where id % 11 = 0",
        "begin",
        "update items set price = -price where place < 50",
        "update items set sku = concat(sku, 'x') where place between 50 and 60",
        "delete from items where place > 990",
        "insert into items values ('twice', 1, null)",
        "update items set price = 2 where sku = 'twice'",
        "commit",
        "begin",
        "insert into items values ('never', 1, null)",
        "rollback",
        "insert into visits values ('2024-10-27 01:30:00.123', 'new'), (null, null)",
    )


def test_a_database_is_loaded_and_followed(server, database, daemon):
    sql = lambda *statements: server.execute(database, *statements)  # noqa: E731
    shop(server, sql)
    run = daemon([f"{database}.*"], server=server)
    run.start_and_load()
    run.compare([(database, table) for table in TABLES])
    changes(sql)
    run.compare([(database, table) for table in TABLES])


def test_the_shortest_config(server, database, daemon):
    server.execute(database, "create table t (id int primary key)", "insert into t values (1), (2)")
    run = daemon([f"{database}.t"], server=server, minimal=True, task=None)
    run.task = database
    run.run("check")
    run.start_and_load()
    server.execute(database, "insert into t values (3)")
    # Its delivery waits for a minute.
    run.compare([(database, "t")], seconds=120)


@pytest.mark.trap("26", crash=True)
def test_kill_9_loses_nothing_and_doubles_nothing(server, database, daemon):
    sql = lambda *statements: server.execute(database, *statements)  # noqa: E731
    shop(server, sql, rows=20_000)
    run = daemon([f"{database}.*"], server=server)
    stop = threading.Event()

    def write():
        number = 0
        with server.connect(database) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                number += 1
                cursor.execute("begin")
                cursor.execute("insert into orders (customer, amount) values ('w', %s)", (number,))
                cursor.execute("update orders set amount = amount + 1 where id %% 997 = %s", (number % 997,))
                cursor.execute("insert into visits values (now(3), %s)", (str(number),))
                cursor.execute("update items set price = %s where place = %s", (number, number % 20_000))
                cursor.execute("delete from items where place = %s", ((number * 7919) % 20_000,))
                cursor.execute("commit" if number % 5 else "rollback")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        run.start()
        for pause in (0.3, 1.5, 2.5, 1.0):
            stop.wait(pause)
            run.kill()
            run.start()
        run.wait_states(seconds=90)
        stop.wait(2)
        run.kill()
        run.start()
    finally:
        stop.set()
        writer.join()
    run.compare([(database, table) for table in TABLES])


@pytest.mark.trap("32", crash=True)
def test_a_large_table_is_read_in_parts_and_goes_on_after_a_kill(server, database, daemon):
    server.execute(
        database,
        "create table big (id bigint unsigned, part int, text varchar(300), primary key (id, part))",
        f"insert into big select seq * 3, 1, repeat(sha2(seq, 256), 4) from {server.numbers(100_000)}",
        f"insert into big select 18446744073709000000 + seq, 2, repeat(sha2(seq, 256), 4) from {server.numbers(100_000)}",
        "analyze table big",
    )
    run = daemon([f"{database}.big"], server=server, options={"full-load": {"rate-limit": "6MiB"}})
    run.start()
    # Few rows, so that they are changed long before the load is through.
    wait_for(lambda: rows_loaded(run) > 20_000, 60, "a part of the load")
    few = "where part = 2 and id % 5 = 0 limit 500"
    server.execute(database, f"delete from big {few}", f"update big set text = 'new' {few}")
    wait_for(lambda: finished_segments(run) > 0, 60, "a part that is finished")
    run.kill()
    run.start()
    run.wait_states(seconds=120)
    run.compare([(database, "big")], seconds=90)
    assert "load goes on after its finished segments" in run.log(100_000)


# The first column of a key, and what is in it. Of the first two the collation takes cases and accents for the same, and puts
# them otherwise than their bytes; the third is as good as random; others are far apart, or in few values.
KEYS = {
    "words": ("varchar(60)", "concat(elt(1 + seq % 4, 'Zebra ', 'apple ', 'Äpfel ', '_'), seq)"),
    "latin": ("varchar(60) character set latin1 collate latin1_german2_ci", "concat(elt(1 + seq % 3, 'Ü', 'u', 'zz'), ' it''s ', seq)"),
    "uuids": ("char(36)", "insert(insert(left(sha2(seq, 256), 34), 9, 0, '-'), 14, 0, '-')"),
    "cyrillic": ("varchar(60)", "concat(elt(1 + seq % 4, 'Яблоко ', 'Арбуз ', 'Oleg ', 'éclair '), seq)"),
    "exact": ("varchar(40) character set utf8mb4 collate utf8mb4_bin", "concat(if(seq % 2, 'a', 'B'), lpad(seq, 9, '0'))"),
    "any_bytes": ("varbinary(40)", "concat(char(seq % 250), unhex(left(sha2(seq, 256), 40)))"),
    "decimals": ("decimal(30,4)", "pow(seq, 4) * if(seq % 2, -1, 1) + 0.25"),
    "dates": ("date", "if(seq % 99 = 0, '1000-01-01', date_add('1999-01-01', interval seq % 9000 day))"),
    "moments": ("datetime(3)", "date_add('1999-01-01', interval seq * 777 second)"),
    "stamps": ("timestamp(6)", "date_add('2001-01-01', interval seq * 0.777 second)"),
    "sentinel": ("date", "if(seq % 99 = 0, '9999-12-31', date_add('1999-01-01', interval seq % 9000 day))"),
    "outlier": ("bigint unsigned", "if(seq = 60000, 18446744073709551615, seq)"),
    "prefixed": ("varchar(40)", "concat('order-2024-', lpad(seq, 12, '0'))"),
}


@pytest.mark.trap("32")
def test_tables_are_divided_by_keys_of_any_order(server, database, daemon):
    count = 60_000
    for name, (ty, value) in KEYS.items():
        server.execute(
            database,
            "set sql_mode = ''",
            f"create table {name} (k {ty}, n int, text varchar(900), primary key (k, n)) charset utf8mb4",
            f"insert into {name} select {value}, seq, repeat(sha2(seq, 256), 11) from {server.numbers(count)}",
            f"analyze table {name}",
        )
    run = daemon([f"{database}.*"], server=server, options={"full-load": {"parallel": 3}})
    run.start()
    run.wait_states(seconds=150)
    files = {name: run.lake.files(database, name) for name in KEYS}
    assert {name: sum(file["rows"] for file in own) for name, own in files.items()} == dict.fromkeys(KEYS, count)
    # No part has nearly everything, where a guess can do anything.
    largest = {name: max(file["rows"] for file in own) for name, own in files.items() if name != "cyrillic"}
    uneven = {name: rows for name, rows in largest.items() if rows > 0.8 * count}
    assert not uneven
    run.compare([(database, name) for name in KEYS], seconds=120)


def finished_segments(run):
    """Parts of tables that are loaded and in the state."""
    with sqlite3.connect(f"file:{run.state}/state.db?mode=ro", uri=True, timeout=5) as state:
        names = "select name from sqlite_master where type = 'table' and name not like 'sqlite%'"
        (table,) = state.execute(names).fetchone()
        (count,) = state.execute(f"select count(*) from {table} where key like 'segment/%'").fetchone()
    return count


def rows_loaded(run):
    """Rows of loads under way."""
    return sum(value for name, value in run.metrics().items() if name[0] == "millrace_full_load_rows")

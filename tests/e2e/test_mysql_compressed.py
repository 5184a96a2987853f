"""MariaDB's compressed events (`log_bin_compress`) and MySQL's compressed transactions (`binlog_transaction_compression`)."""

import pytest

from daemon import Daemon
from servers import MariaDB, MySQL
from test_mysql import TABLES, changes, shop

SETTINGS = {
    MariaDB: {"log-bin-compress": "ON", "log-bin-compress-min-len": 10},
    MySQL: {"binlog-transaction-compression": "ON"},
}
# What SHOW BINLOG EVENTS calls them.
EVENTS = {
    MariaDB: {"Query_compressed", "Write_rows_compressed_v1", "Update_rows_compressed_v1", "Delete_rows_compressed_v1"},
    MySQL: {"Transaction_payload"},
}


@pytest.fixture(params=[MariaDB, MySQL], ids=["mariadb", "mysql"], scope="module")
def server(request):
    """A server that compresses its log."""
    kind = request.param
    if kind is MySQL and MySQL.missing():
        pytest.skip(MySQL.missing())
    with kind(SETTINGS[kind]) as running:
        yield running


@pytest.mark.scorecard("MySQL: compressed binlog")
@pytest.mark.trap("29")
@pytest.mark.fault("30", "SIGKILL inside a compressed transaction of many rows", promise="continues")
def test_what_comes_compressed_is_read(server, database):
    """Before and after a kill; a part of it may be handed out already when it comes."""
    sql = lambda *statements: server.execute(database, *statements)  # noqa: E731
    shop(server, sql)
    with Daemon(server, database, [f"{database}.*"]) as run:
        run.start_and_load()
        changes(sql)
        run.compare([(database, table) for table in TABLES])
        sql("alter table orders add column later varchar(30) default 'a rather long default value'")
        run.terminate()
        insert = "insert into items select concat('more', seq), 1, seq from"
        sql(f"{insert} {server.numbers(100000)}", "update items set price = price + 1", "truncate visits")
        run.start(crash_at="stream-between-frames-and-mark")
        run.wait_exit(60)
        run.start()
        sql("delete from items where place = 1 and price > 100", "insert into visits values (null, 'after')")
        # Two phases: more than is kept in memory, prepared and at once.
        many = f"insert into visits select null, concat('{{}}', seq, repeat('x', 80)) from {server.numbers(200000)}"
        sql("xa start 'two'", many.format("two"), "xa end 'two'", "xa prepare 'two'", "xa commit 'two'")
        sql("xa start 'one'", many.format("one"), "xa end 'one'", "xa commit 'one' one phase")
        run.compare([(database, table) for table in TABLES])
    files = [row[0] for row in server.execute("mysql", "show binary logs", user="root")]
    events = [row[2] for file in files for row in server.execute("mysql", f"show binlog events in '{file}'", user="root")]
    assert EVENTS[type(server)] <= set(events)

"""MariaDB and MySQL as sources: transactions of two phases (XA), whose rows stand in the log before they count, and rows in
the log that never count, because they were rolled back."""

import pytest

from servers import MariaDB, MySQL, wait_for
from test_mysql_races import HeldCommit

# A value of some hundred bytes.
TEXT = "repeat(sha2(id, 512), 3)"


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request):
    """One of the two, whose user may hold commits: a snapshot of MariaDB has no exact place while one is prepared."""
    server = request.getfixturevalue(request.param)
    server.execute("mysql", "grant reload on *.* to cdc@'%'", user="root")
    yield server
    if server.TYPE == "mariadb":
        server.execute("mysql", "revoke reload on *.* from cdc@'%'", user="root")


def prepare(sql, name, *statements):
    """Leaves a transaction prepared; the session ends."""
    sql(f"xa start {name}", *statements, f"xa end {name}", f"xa prepare {name}")


@pytest.fixture(autouse=True)
def none_is_left(server, database):
    """A prepared transaction locks its tables until somebody ends it, also for who drops them."""
    yield
    for _, length, _, name in server.execute("mysql", "xa recover", user="root"):
        name = name.encode() if isinstance(name, str) else name
        server.execute("mysql", f"xa rollback x'{name[:length].hex()}', x'{name[length:].hex()}', 1", user="root")


@pytest.mark.trap("29")
def test_they_count_where_they_are_committed(server, database, sql, daemon):
    """In any order, beside others, with every way to end; what is rolled back never shows."""
    sql("create table t (id int primary key, a int, text varchar(600))", "create table n (a int)", "create table other (a int)")
    sql(f"insert into t select seq, 0, null from {server.numbers(9)}")
    run = daemon([f"{database}.t", f"{database}.n"], server=server).start_and_load()
    prepare(sql, "'one','branch'", "insert into t values (11, 1, 'x')", "update t set a = 1 where id = 1", "insert into n values (1)")
    prepare(sql, "'two'", "delete from t where id = 2", "insert into other values (1)")
    prepare(sql, "'gone'", "insert into t values (99, 9, 'never')", "update t set a = 99 where id = 3")
    prepare(sql, "'strange '' `\"','\\\\'", "update t set id = 40 where id = 4", "savepoint s", "update t set a = 4 where id = 40")
    sql("insert into t values (12, 2, 'between')", "insert into n values (2)")
    run.compare([(database, "t"), (database, "n")])
    sql("xa commit 'two'", "update t set a = 5 where id = 5", "xa rollback 'gone'", "xa commit 'one','branch'")
    sql("xa start 'once'", "insert into t values (13, 3, 'at once')", "xa end 'once'", "xa commit 'once' one phase")
    sql("xa start 'two'", "insert into t values (14, 3, 'a name again')", "xa end 'two'", "xa prepare 'two'", "xa commit 'two'")
    sql("xa commit 'strange '' `\"','\\\\'")
    run.compare([(database, "t"), (database, "n")])
    assert run.states() == {(database, "t"): "Table completed", (database, "n"): "Table completed"}


@pytest.mark.trap("29")
@pytest.mark.fault("32", "XA transactions that were prepared before a kill and a new file of the log", promise="continues")
def test_what_was_prepared_before_is_found_in_the_log(server, database, sql, daemon):
    """Before the first start, before a kill, in an older file of the log, and under a name that was used before."""
    sql("create table t (id int primary key, a int)", "insert into t values (1, 1), (2, 2), (3, 3), (4, 4)")
    prepare(sql, "'early'", "update t set a = 10 where id = 1")
    prepare(sql, "'again'", "update t set a = 19 where id = 2")
    sql("xa rollback 'again'")
    prepare(sql, "'again'", "update t set a = 20 where id = 2")
    run = daemon([f"{database}.t"], server=server).start_and_load()
    prepare(sql, "'kill'", "update t set a = 30 where id = 3")
    sql("insert into t values (5, 5)")
    run.compare([(database, "t")])
    run.kill()
    sql("flush binary logs", "flush binary logs", user="root")
    sql("xa commit 'early'", "update t set a = 40 where id = 4", "xa commit 'again'")
    run.start(crash_at="stream-between-frames-and-mark")
    run.wait_exit(60)
    run.start()
    sql("xa commit 'kill'", "insert into t values (6, 6)")
    run.compare([(database, "t")])
    # Loaded while it is prepared, committed behind that.
    prepare(sql, "'load'", "update t set a = 60 where id = 6", "delete from t where id = 5")
    run.run("reload", "shop", f"{database}.t")
    run.wait_states()
    sql("xa commit 'load'", "insert into t values (7, 7)")
    run.compare([(database, "t")])


@pytest.mark.trap("29")
def test_large_ones_are_read_twice(server, database, sql, daemon):
    """More than is kept in memory; the second table is not captured."""
    sql("create table t (id int primary key, text varchar(600))", "create table other like t")
    run = daemon([f"{database}.t"], server=server).start_and_load()
    rows = f"select seq, repeat(sha2(seq, 512), 4) from {server.numbers(60_000)}"
    prepare(sql, "'large'", f"insert into other {rows}", f"insert into t {rows}", "delete from t where id < 30000 and id % 3 = 0")
    sql("insert into t values (100001, 'between')")
    run.compare([(database, "t")])
    sql("xa commit 'large'", "insert into t values (100002, 'behind')")
    sql("xa start 'whole'", f"update t set text = {TEXT}", "xa end 'whole'", "xa commit 'whole' one phase")
    run.compare([(database, "t")], seconds=90)
    assert run.peak_rss() < 384 << 20


@pytest.mark.trap("29")
@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_changes_that_are_gone_from_the_log_are_told(server, database, sql, daemon):
    """Prepared where no log was written: nobody knows what it changed. MySQL does not log such a commit either."""
    sql("create table t (id int primary key, a int)", "insert into t values (1, 1)")
    run = daemon([f"{database}.t"], server=server).start_and_load()
    server.execute(database, "set sql_log_bin = 0", "xa start 'x'", "update t set a = 2", "xa end 'x'", "xa prepare 'x'", user="root")
    server.execute(database, "xa commit 'x'", user="root")
    wait_for(lambda: "LOG-LOST" in str(run.task_record()), 30, "the refusal", every=0.3)
    assert "sql_log_bin" in str(run.task_record())
    run.run("reload", "shop")
    run.run("resume", "shop")
    run.wait_states(seconds=60)
    run.compare([(database, "t")])


@pytest.mark.trap("29")
def test_a_load_that_begins_while_one_is_committed(server, database, sql, daemon):
    """It is in the log and not yet visible, and so for the values of a row that the log has in part."""
    sql("create table t (id int primary key, a int, b int)", "insert into t values (1, 1, 1), (2, 2, 2)")
    run = daemon([f"{database}.t"], server=server)
    prepare(sql, "'held'", "update t set a = 10 where id = 1", "insert into t values (3, 3, 3)")
    held = HeldCommit(server, sql, "xa commit 'held'")
    run.start_and_load()
    held.end(sql)
    run.compare([(database, "t")])
    part = "set session binlog_row_image = 'MINIMAL'"
    prepare(lambda *rest: server.execute(database, part, *rest, user="root"), "'part'", "update t set a = 5", "update t set b = 6")
    held = HeldCommit(server, sql, "xa commit 'part'")
    held.end(sql)
    run.compare([(database, "t")])
    prepare(sql, "'open'", "update t set b = 7")
    run.run("reload", "shop", f"{database}.t")
    run.wait_states()
    sql("xa commit 'open'")
    run.compare([(database, "t")])


@pytest.mark.trap("29")
@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_a_user_who_may_not_lock_is_told_so(server, database, sql, daemon):
    """MariaDB only: a snapshot's place is not exact while such a transaction is prepared."""
    sql("create table t (id int primary key, a int)", "insert into t values (1, 1)")
    server.execute(
        "mysql",
        f"create or replace user lockless@'%' identified by '{server.PASSWORD}'",
        "grant select, replication slave, replication client on *.* to lockless@'%'",
        user="root",
    )
    prepare(sql, "'open'", "update t set a = 2")
    run = daemon([f"{database}.t"], server=server, user="lockless")
    run.start()
    wait_for(lambda: "GRANT RELOAD" in str(run.task_record()), 30, "the remedy", every=0.3)
    sql("xa commit 'open'")
    run.wait_states(seconds=60)
    run.compare([(database, "t")])


@pytest.mark.trap("29")
@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_rows_that_were_rolled_back_and_are_in_the_log(server, database, sql, daemon):
    """MariaDB writes them where a temporary table or one of another engine was changed as well."""
    sql(
        "create table t (id int primary key, a int)",
        "insert into t values (1, 1)",
        "create table memory (id int primary key) engine = MyISAM",
    )
    run = daemon([f"{database}.t"], server=server).start_and_load()
    whole = "begin", "insert into t values (2, 2)", "update t set a = 99", "create temporary table x (i int)", "rollback"
    part = [
        "begin",
        "insert into t values (4, 4)",
        "savepoint `a b`",
        "insert into t values (5, 5)",
        "create temporary table y (i int)",
        "savepoint inner_one",
        "delete from t",
        "rollback to savepoint `A B`",
        "insert into t values (6, 6)",
        "commit",
    ]
    sql(*whole)
    sql("insert into t values (3, 3)")
    run.compare([(database, "t")])
    sql(*part)
    # Another rollback of the same kind ends the log.
    sql(*[statement.replace("(4", "(44") for statement in part[:-2]], "rollback")
    sql("begin", "insert into t values (7, 7)", "insert into memory values (1)", "rollback")
    run.compare([(database, "t")])
    run.terminate()
    sql(*whole)
    sql("insert into t values (8, 8)")
    sql(*[statement.replace("values (4", "values (14").replace("values (6", "values (16") for statement in part])
    run.start()
    run.compare([(database, "t")])
    assert run.states() == {(database, "t"): "Table completed"}

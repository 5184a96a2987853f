"""MariaDB and MySQL as sources: columns that are added, dropped, renamed or made longer are followed without a new load, also where the
catalog is ahead of the log; what is not followed is loaded anew; and a log that names no columns."""

import signal

import pytest
from daemon import Daemon
from servers import wait_for
from test_mysql_care import found_codes, loaded, server  # noqa: F401

SUSPENDED = "table is suspended"

FOLLOWED = {
    "add": "alter table t add c int",
    "add first": "alter table t add column c int default -7 first",
    "add in the middle": "alter table t add column c varchar(30) not null default 'it''s' after id",
    "add several": "alter table t add (c decimal(12,3) default 1.5, d bigint unsigned, e enum('x','y') default 'y'), "
    "add f double default 3 comment 'first, after', add index i (a, b)",
    "add a text of another character set": "alter table t add c text character set latin1, add d varchar(9) default 'd'",
    "drop": "alter table t drop column a",
    "drop and add again": "alter table t drop a, add column a varchar(20) default 'new'",
    "rename": "alter table t rename column a to z",
    "rename, and add by the old name": "alter table t rename column a to z, add column a int default 5",
    "longer": "alter table t modify a varchar(40) default 'x', add d decimal(9,2) default 1",
    "declared anew under another name": "alter table t change a label text first, change b n int null comment 'x'",
    "more labels, more digits": "alter table t modify labels enum('x','y') default 'y', modify money decimal(9,2)",
    "one after the other": "alter table t add column c int default 1; alter table t drop column a; "
    "insert into t (id, c) values (6, 6); alter table t rename column b to z; alter table t add d varchar(9) default 'd' first",
}

NOT_FOLLOWED = {
    "another type": "alter table t modify b bigint unsigned",
    "shorter": "alter table t modify a varchar(2)",
    "never null": "alter table t modify a varchar(20) not null",
    "a moment that is not said to be null": "alter table t add column c timestamp",
    "an empty default": "alter table t add c varchar(9) default ''",
    "without a sign": "alter table t modify d decimal(9,2) unsigned",
    "another character set": "alter table t modify a varchar(20) character set utf8mb4",
    "a moment": "alter table t add column c timestamp not null default current_timestamp",
    "a label in another case": "alter table t add column c enum('x','y') default 'Y'",
    "more than ASCII": "alter table t add column c varchar(9) default 'é'",
    "a number that is printed otherwise": "alter table t add column c varchar(9) default 007",
    "an escaped text": r"alter table t add column c varchar(9) default 'a\nb'",
    "swapped names": "alter table t rename column a to b, rename column b to a",
    "a generated one": "alter table t add column g int generated always as (b * 2) stored",
    "a column with a key of its own": "alter table t drop primary key, add column c int not null auto_increment primary key, add unique (id)",
    "part of the key": "alter table t modify b int not null default 3, drop primary key, add primary key (id, b)",
}


def change_around(server, database, statements):
    """Rows before and behind the statements, naming no column that these may touch."""
    own = [statement.strip() for statement in statements.split(";")]
    server.execute(
        database,
        "set names utf8mb4, sql_mode = ''",
        "insert into t (id, b) values (3, 3)",
        "update t set b = 30 where id = 3",
        *own,
        "insert into t (id) values (4)",
        "update t set id = 40 where id = 4",
        "delete from t where id in (1, 3)",
    )


@pytest.mark.scorecard("MySQL: FIRST, AFTER")
@pytest.mark.trap("31")
@pytest.mark.fault("34", "columns of MariaDB and MySQL are added, dropped, renamed: followed", promise="continues")
@pytest.mark.parametrize("statements", FOLLOWED.values(), ids=FOLLOWED)
def test_altered_columns_are_followed(server, database, loaded, statements):  # noqa: F811
    run = loaded("alter table t add labels enum('x') default 'x', add money decimal(5,2) default -1.5")
    change_around(server, database, statements)
    run.compare([(database, "t")])
    assert SUSPENDED not in run.log(100_000)
    run.kill()
    run.start()
    server.execute(database, "insert into t (id) values (5)", "update t set id = 20 where id = 2")
    run.compare([(database, "t")])
    assert SUSPENDED not in run.log(100_000)


@pytest.mark.trap("31")
@pytest.mark.parametrize("statements", NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_what_is_not_followed_is_loaded_anew(server, database, loaded, statements):  # noqa: F811
    run = loaded("alter table t add d decimal(9,2) default -5")
    change_around(server, database, statements)
    run.compare([(database, "t")])
    assert SUSPENDED in run.log(100_000)


@pytest.mark.trap("31", crash=True)
@pytest.mark.parametrize(
    "later",
    [
        "alter table t drop column c",
        "alter table t drop column c; alter table t add column c varchar(9) default 'x'",
        "alter table t modify c varchar(20)",
        "alter table t modify c int unsigned; insert into t (id, c) values (7, 4000000000)",
        "alter table t drop column a; alter table t rename column c to a",
        "alter table t drop column c; alter table t add c int not null; alter table t modify c varchar(5) not null",
        "alter table t add e enum('a','b') not null; alter table t modify e enum('z','a','b') not null",
        "alter table t add v varchar(9); insert into t (id, v) values (7, 'x  '); alter table t modify v char(9)",
        "alter table t add f float; insert into t (id, f) values (7, 1.2345); alter table t modify f float(7,2)",
        "alter table t modify a varchar(2); alter table t modify a varchar(20)",
        "alter table t modify b int not null; alter table t modify b int; insert into t (id) values (7)",
        "alter table t rename column a to x; alter table t rename column b to a; alter table t rename column x to b",
        "drop table t; create table t (id int primary key, b int, a int)",
    ],
)
def test_a_catalog_that_is_ahead_of_the_log(server, database, loaded, later):  # noqa: F811
    run = loaded()
    run.kill()
    change_around(server, database, f"alter table t add column c int default 3; insert into t (id, c) values (6, 7); {later}")
    run.start()
    run.compare([(database, "t")])


@pytest.mark.trap("31", crash=True)
@pytest.mark.parametrize("failpoint", ["stream-after-fsync", "stream-between-frames-and-mark"])
def test_the_daemon_is_killed_where_a_shape_is_kept(server, database, loaded, failpoint):  # noqa: F811
    run = loaded()
    run.kill()
    change_around(server, database, FOLLOWED["one after the other"])
    run.start(crash_at=failpoint, ready=False)
    run.wait_exit(60)
    run.start()
    server.execute(database, "insert into t (id) values (5)")
    run.compare([(database, "t")])


@pytest.mark.trap("31")
def test_a_left_out_column_is_given_another_name(server, database, daemon):
    """It stays out, with its table, until the config says what it is now."""
    server.execute(database, "create table t (id int primary key, a varchar(20), b int)")
    server.execute(database, "insert into t (id, a, b) values (1, 'one', 1), (2, 'two', 2)")
    run = daemon([{"from": f"{database}.t", "drop": ["a"]}], server=server).start_and_load()
    change_around(server, database, "alter table t rename column b to c, add column b int")
    run.compare([{"schema": database, "table": "t", "drop": ["a"]}])
    assert SUSPENDED not in run.log(100_000)
    change_around(server, database, "delete from t where id = 40; alter table t rename column a to z")
    wait_for(lambda: run.tables()[(database, "t")]["state"] == "Table error", 20, "the table to stand still")
    assert SUSPENDED in run.log(100_000)
    changed = run.config_text.replace('"drop": ["a"]', '"drop": ["z"]')
    assert changed != run.config_text
    run.write_config(changed)
    run.process.send_signal(signal.SIGHUP)
    run.compare([{"schema": database, "table": "t", "drop": ["z"]}])


def test_a_renamed_column_of_which_rows_are_looked_up(server, database, loaded):  # noqa: F811
    run = loaded()
    run.kill()
    names = "alter table t rename column a to x; alter table t add column a varchar(20) default 'other'"
    minimal = "set binlog_row_image = 'MINIMAL'; update t set b = 3 where id = 1; update t set b = 4 where id = 2"
    server.execute(database, *minimal.split(";"), *names.split(";"), user="root")
    run.start()
    run.compare([(database, "t")])


@pytest.mark.trap("31")
@pytest.mark.parametrize("metadata", ["MINIMAL", "NO_LOG"])
def test_a_log_that_names_no_columns(server, database, metadata):  # noqa: F811
    if metadata == "NO_LOG" and server.TYPE == "mysql":
        metadata = "MINIMAL"
    known = server.execute("mysql", "select @@global.binlog_row_metadata", user="root")[0][0]
    server.execute("mysql", f"set global binlog_row_metadata = '{metadata}'", user="root")
    try:
        server.execute(
            database,
            "create table t (id int unsigned primary key, a varchar(20) character set latin1, b bigint unsigned, c text)",
            "insert into t (id, a, b) values (1, 'one', 1), (2, 'two', 2)",
            "create table made (id int primary key, g int generated always as (id + 1) stored)",
        )
        with Daemon(server, database, [f"{database}.t"]) as run:
            assert found_codes(run, 0) == {"MYSQL-ROW-METADATA"}
            run.start_and_load()
            server.execute(
                database,
                "set names utf8mb4",
                "insert into t values (4000000000, 'é', 18446744073709551615, 'ü')",
                "update t set a = 'ö' where id = 2",
                "delete from t where id = 1",
            )
            run.compare([(database, "t")])
            assert SUSPENDED not in run.log(100_000)
            change_around(server, database, "alter table t drop column a, add column a varchar(20) default 'new' first")
            run.compare([(database, "t")])
            server.execute(database, "delete from t where id = 40")
            run.kill()
            change_around(server, database, "alter table t rename column b to z, add column b bigint unsigned after id")
            run.start()
            run.compare([(database, "t")])
        for table, mode in (("made", "full-load-and-cdc"), ("t", "cdc")):
            with Daemon(server, database, [f"{database}.{table}"], mode=mode) as refused:
                assert found_codes(refused, 3) == {"MYSQL-ROW-METADATA"}
    finally:
        server.execute("mysql", f"set global binlog_row_metadata = '{known}'", user="root")

"""MariaDB and MySQL as sources: changes of shape, what cannot be read and is refused, and what `check` finds and `grants` mends."""

import re
import time

import pytest

from daemon import Daemon
from servers import wait_for


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request):
    """One of the two."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def loaded(server, database, daemon):
    """Runs a task whose one table is loaded."""

    def start(*statements, **options):
        server.execute(database, "create table t (id int primary key, a varchar(20), b int)", *statements)
        server.execute(database, "insert into t (id, a, b) values (1, 'one', 1), (2, 'two', 2)")
        return daemon([f"{database}.t"], server=server, **options).start_and_load()

    return start


@pytest.mark.trap("29")
@pytest.mark.fault("36", "TRUNCATE at MariaDB and MySQL", promise="continues")
def test_a_truncate_is_applied(server, database, loaded):
    run = loaded()
    server.execute(database, "insert into t values (3, 'x', 3)", "truncate t", "insert into t values (4, 'y', 4)")
    run.compare([(database, "t")])


@pytest.mark.scorecard("MySQL: FIRST, AFTER")
@pytest.mark.trap("31")
@pytest.mark.parametrize(
    "statement",
    [
        "alter table t add column c int default 7 first",
        "alter table t drop column a, add column a varchar(20) default 'new'",
        "alter table t rename column a to z",
        "alter table t change b b bigint unsigned",
        "alter table t modify a varchar(20) character set utf8mb3",
        "alter table t drop primary key, modify a varchar(20) not null default 'k', add primary key (a, id)",
        "alter table t add column g int generated always as (b * 2) stored",
    ],
)
@pytest.mark.fault("34, 35", "tables of MariaDB and MySQL are altered", promise="continues")
def test_an_altered_table_is_right_again(server, database, loaded, statement):
    run = loaded()
    server.execute(database, "insert into t values (3, 'x', 3)", statement, "insert into t (id, b) values (4, 4)")
    run.compare([(database, "t")])
    server.execute(database, "insert into t (id, b) values (5, 5)", "delete from t where id = 1")
    run.compare([(database, "t")])


def test_statements_that_change_no_column_load_nothing_anew(server, database, loaded):
    run = loaded()
    server.execute(
        database,
        "alter table t add index i (b), comment = 'drop column a'",
        "create table other (id int)",
        "alter table other add column x int",
        "create view v as select * from t",
        "analyze table t",
        "optimize table t",
        "insert into t values (3, 'x', 3)",
    )
    run.compare([(database, "t")])
    assert "table is suspended" not in run.log(100_000)


@pytest.mark.scorecard("MySQL: RENAME TABLE, DROP TABLE")
@pytest.mark.trap("31")
@pytest.mark.fault("36", "tables of MariaDB and MySQL swap their names", promise="continues")
def test_a_table_that_takes_another_ones_place_is_loaded(server, database, loaded):
    run = loaded()
    server.execute(
        database,
        "create table _t_gho like t",
        "alter table _t_gho add column c int default 9",
        "insert into _t_gho select *, 5 from t",
        "insert into t values (3, 'x', 3)",
        "insert into _t_gho values (3, 'x', 3, 5)",
        "rename table t to _t_del, _t_gho to t",
        "insert into t values (4, 'y', 4, 4)",
    )
    run.compare([(database, "t")], seconds=90)


def wait_error(run, words, seconds=60):
    """Waits until the task's record tells something; gives its text."""

    def told():
        text = str(run.task_record())
        return text if all(word in text for word in words) else None

    return wait_for(told, seconds, f"{words} in the task's record", every=0.3)


@pytest.mark.trap("29")
def test_a_change_as_a_statement_is_refused(server, database, loaded):
    run = loaded()
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute("set binlog_format = 'STATEMENT'")
        cursor.execute("update t set b = b + 1")
    assert "ROW" in wait_error(run, ["LOG-LOST", "statement instead of its rows", "binlog_format"])
    run.run("reload", "shop")
    run.run("resume", "shop")
    server.execute(database, "insert into t values (3, 'x', 3)")
    run.compare([(database, "t")], seconds=90)


@pytest.mark.trap("28")
@pytest.mark.fault("28", "the binary log is purged", promise="stops safely")
def test_a_purged_log_is_refused_and_a_reload_mends(server, database, loaded):
    run = loaded()
    run.terminate()
    server.execute(database, "insert into t values (3, 'x', 3)", "flush binary logs", user="root")
    server.execute(database, "insert into t values (4, 'y', 4)", "flush binary logs", user="root")
    newest = server.execute(database, "show binary logs", user="root")[-1][0]
    wait_for(lambda: _purged(server, database, newest), 20, "the purge")
    run.start(ready=False)
    wait_error(run, ["LOG-LOST", "purged"])
    run.run("reload", "shop")
    run.run("resume", "shop")
    run.compare([(database, "t")], seconds=90)


def _purged(server, database, newest):
    server.execute(database, f"purge binary logs to '{newest}'", user="root")
    return len(server.execute(database, "show binary logs", user="root")) == 1


@pytest.mark.trap("27")
@pytest.mark.fault("27", "MariaDB and MySQL begin their log anew (RESET)", promise="stops safely")
def test_a_log_that_began_anew_is_refused(server, database, loaded):
    run = loaded()
    run.terminate()
    time.sleep(1.1)
    server.execute(database, server.RESET, user="root")
    for number in range(20):
        server.execute(database, f"insert into t values ({10 + number}, repeat('x', 20), 1)")
    run.start(ready=False)
    wait_for(lambda: any(code in str(run.task_record()) for code in ("SOURCE-CHANGED", "LOG-LOST")), 60, "the refusal")


def test_a_server_that_restarts_is_followed(server, database, loaded):
    run = loaded()
    server.execute(database, "insert into t values (3, 'x', 3)")
    server.stop()
    server.start()
    server.execute(database, "insert into t values (4, 'y', 4)", "flush binary logs", user="root")
    server.execute(database, "insert into t values (5, 'y', 5)")
    run.compare([(database, "t")], seconds=90)


@pytest.mark.trap("29")
@pytest.mark.fault("39", "MariaDB and MySQL log a part of each row", promise="continues")
def test_a_partial_row_is_made_whole(server, database, loaded):
    run = loaded("alter table t add column bits bit(9) default 257", "alter table t add column at timestamp(3) null")
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute("set binlog_row_image = 'MINIMAL'")
        cursor.execute("update t set b = b + 10 where id = 1")
        cursor.execute("insert into t (id, b) values (7, 7)")
        cursor.execute("update t set id = 8 where id = 2")
        cursor.execute("delete from t where id = 7")
    run.compare([(database, "t")])


@pytest.mark.trap("29")
@pytest.mark.parametrize("server", ["mysql"], indirect=True)
def test_parts_of_json_are_made_whole(server, database, sql, daemon):
    document = "json_object('a', json_array(1, 2, 3), 'b', repeat('x', 500), 'n', null)"
    sql(
        "create table t (id int primary key, one json, text varchar(9), two json)",
        "create table keyless (one json)",
        f"insert into t select seq, {document}, 'old', {document} from {server.numbers(9)}",
        f"insert into keyless values ({document})",
    )
    run = daemon([f"{database}.t", f"{database}.keyless"], server=server).start_and_load()
    file, before = sql(server.STATUS, user="root")[0][:2]
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute("set binlog_row_value_options = 'PARTIAL_JSON'")
        for number, statement in enumerate(
            [
                "two = json_set(two, '$.a[1]', 20)",
                "one = json_remove(one, '$.a[0]'), two = json_replace(two, '$.b', 'short')",
                "one = json_set(one, '$.a[0]', 9), text = 'new'",
                "one = json_set(one, '$.a[0]', 9), two = null",
                "one = null, two = json_set(two, '$.n', 1)",
                "one = json_set(one, '$.a[0]', 1), text = 'same'",
                "id = 70, one = json_set(one, '$.a[0]', 7)",
            ],
            1,
        ):
            cursor.execute(f"update t set {statement} where id = {number}")
        cursor.execute("set binlog_row_image = 'MINIMAL'")
        cursor.execute("update t set two = json_set(two, '$.a[1]', 80) where id = 8")
        cursor.execute("update t set one = json_set(one, '$.a[0]', 90), text = 'less' where id = 9")
        cursor.execute("update t set text = 'again' where id = 8")
    run.compare([(database, "t")])
    kinds = [row[2] for row in sql(f"show binlog events in '{file}' from {before}", user="root")]
    assert kinds.count("Update_rows_partial") >= 8, kinds
    assert "table is suspended" not in run.log(100_000)
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute("set binlog_row_value_options = 'PARTIAL_JSON'")
        cursor.execute("update keyless set one = json_set(one, '$.a[0]', 90)")
    # Nothing tells its rows apart: it is loaded anew.
    run.compare([(database, "t"), (database, "keyless")], seconds=60)


def test_many_wide_rows_are_looked_up_in_short_statements(server, database, daemon):
    names = [f"a_name_that_is_nearly_as_long_as_a_name_may_be_at_all_{number:06}" for number in range(300)]
    columns = ", ".join(f"{name} tinyint default 1" for name in names)
    before = server.execute(
        database,
        f"create table wide (k varbinary(700) primary key, a int, {columns})",
        f"insert into wide (k, a) select concat(repeat('k', 690), seq), 1 from {server.numbers(1000)}",
        "select @@global.max_allowed_packet",
    )
    server.execute(database, "set global max_allowed_packet = 4194304", user="root")
    try:
        run = daemon([f"{database}.wide"], server=server).start_and_load()
        server.execute(database, "set binlog_row_image = 'MINIMAL'", "update wide set a = 2", user="root")
        run.compare([(database, "wide")])
    finally:
        server.execute(database, f"set global max_allowed_packet = {before[0][0]}", user="root")


@pytest.mark.trap("29")
def test_a_table_whose_changes_are_in_no_log_is_refused(server, database, daemon, sql):
    sql(
        "create table parent (id int primary key)",
        "insert into parent values (1), (2), (3)",
        "create table t (id int primary key)",
        "insert into t values (1)",
    )
    pattern = {"on-change": {"discover": "2s"}}
    run = daemon([f"{database}.parent", f"{database}.t", f"{database}.later*"], server=server, options=pattern)
    run.run("check")
    run.start_and_load()
    key = "foreign key (p) references parent (id) on delete cascade on update set null"
    sql(
        "alter table t engine = MyISAM",
        "create table later_engine (id int primary key) engine = MyISAM",
        f"create table later_key (id int primary key, p int, {key})",
        "insert into later_key values (10, 1), (20, 2), (30, 3)",
    )
    tables = [(database, name) for name in ("t", "later_engine", "later_key")]
    # From 9.6 on MySQL writes to its log what a foreign key does.
    refused = tables if server.TYPE == "mariadb" else tables[:2]
    run.wait_states("Table error", tables=refused)
    assert "knows no transactions" in str(run.tables()[tables[1]])
    sql("delete from parent where id = 1", "update parent set id = 4 where id = 2")
    run.compare([(database, "parent")] + [table for table in tables if table not in refused])
    with Daemon(server, database, [f"{database}.*"]) as other:
        codes = found_codes(other, 3)
        assert "MYSQL-ENGINE" in codes and ("MYSQL-CASCADE" in codes) == (tables[2] in refused), codes


def test_names_that_differ_in_case_or_accents_are_tables_of_their_own(server, database, daemon, sql):
    sql(
        "set names utf8mb4",
        "create table Orders (id int primary key, a int)",
        "create table orders (id int primary key, b int, g int generated always as (b + 1) stored)",
        "create table cafe (x int primary key)",
        "create table `café` (x int, y int, primary key (y, x))",
        "insert into Orders values (1, 1)",
        "insert into orders (id, b) values (2, 2)",
        "insert into cafe values (1)",
        "insert into `café` values (1, 2)",
    )
    run = daemon([f"{database}.{table}" for table in ("Orders", "cafe", "café")], server=server)
    run.start_and_load()
    sql("insert into Orders values (3, 3)", "insert into cafe values (3)", "insert into `café` values (3, 4)")
    # A column of this name is generated in the other table.
    sql("alter table Orders add column g int", "insert into Orders values (4, 4, 4)")
    run.compare([(database, table) for table in ("Orders", "cafe", "café")])


def test_check_finds_everything_and_its_remedies_heal(server, database):
    server.execute(
        database,
        "create table t (id int primary key)",
        "create table m (id int primary key) engine = MyISAM",
        "create table c (id int primary key, hidden int)",
        "create user weak@'%' identified by 'wheel and race'",
        f"grant select (id) on `{database}`.c to weak@'%'",
        user="root",
    )
    names = ["binlog_format", "binlog_row_image", "binlog_row_metadata"]
    values = [server.execute("mysql", f"select @@global.{name}", user="root")[0][0] for name in names]
    run = Daemon(server, database, [f"{database}.{table}" for table in ("t", "m", "c", "gone")], user="weak")
    with run:
        for name, value in zip(names, ["MIXED", "MINIMAL", "MINIMAL"]):
            server.execute("mysql", f"set global {name} = '{value}'", user="root")
        try:
            codes = found_codes(run, 3)
            assert {"MYSQL-BINLOG-FORMAT", "MYSQL-ROW-IMAGE", "MYSQL-ROW-METADATA"} <= codes
            assert {"MYSQL-REPLICATION-RIGHTS", "MYSQL-TABLE-MISSING", "MYSQL-SELECT"} <= codes
            apply_fixes(server, run)
            codes = found_codes(run, 3)
            assert "MYSQL-ENGINE" in codes and "MYSQL-BINLOG-FORMAT" not in codes, codes
            for statement in run.run("grants", "shop").splitlines():
                if statement.startswith("GRANT") and ".`gone`" not in statement:
                    server.execute("mysql", statement.split(";")[0], user="root")
            apply_fixes(server, run)
            assert found_codes(run, 3) == {"MYSQL-TABLE-MISSING"}
        finally:
            for name, value in zip(names, values):
                server.execute("mysql", f"set global {name} = '{value}'", user="root")
            server.execute("mysql", "drop user weak@'%'", user="root")


def test_rights_that_come_by_a_role_count(server, database, sql):
    sql("create table t (id int primary key)")
    to = "for" if server.TYPE == "mariadb" else "to"
    sql(
        "create role reader",
        f"grant {server.RIGHTS} on *.* to reader",
        f"create user rolled@'%' identified by '{server.PASSWORD}'",
        "grant reader to rolled@'%'",
        f"set default role reader {to} rolled@'%'",
        user="root",
    )
    with Daemon(server, database, [f"{database}.t"], user="rolled") as run:
        assert findings(run, 0) == []
    sql("drop user rolled@'%'", "drop role reader", user="root")


def findings(run, code):
    """What `check` found."""
    found = run.json("check", code=code)
    return found if isinstance(found, list) else found["findings"]


def found_codes(run, code):
    """The codes of what `check` found at the source."""
    return {finding["code"] for finding in findings(run, code) if finding["code"].startswith("MYSQL")}


def apply_fixes(server, run):
    """Pastes every remedy that is SQL."""
    for finding in findings(run, 3):
        for line in finding["fix"]:
            if re.match("(SET|GRANT|ALTER) ", line) and "gone" not in line:
                server.execute("mysql", line.rstrip(";"), user="root")


@pytest.mark.parametrize("server", ["mariadb"], indirect=True)
def test_system_versioned_tables_are_left_out_and_told(server, database, daemon):
    server.execute(
        database,
        "create table t (id int primary key)",
        "create table v (id int primary key, a int) with system versioning",
        "insert into v values (1, 1)",
    )
    run = daemon([f"{database}.*"], server=server)
    findings = run.json("check")["findings"]
    assert [f["summary"] for f in findings if f["code"] == "MYSQL-VERSIONED"] == [f"{database}.v with system versioning: left out"]
    run.start_and_load()
    server.execute(database, "update v set a = 2", "insert into t values (1)")
    run.compare([(database, "t")])


@pytest.mark.parametrize("server", ["mysql"], indirect=True)
def test_what_amazons_servers_say_of_themselves_is_read(server, database, daemon):
    """Only what `check` reads: there is no such server here. This one has the table by which theirs are known."""
    server.execute(database, "create table keyed (id int primary key)", "create table keyless (id int)")
    codes = lambda tables, code, kind="mysql": {  # noqa: E731
        finding["code"]: finding
        for finding in daemon(tables, server=server, source={"type": kind}).json("check", code=code)["findings"]
    }
    assert "type: mysql" in str(codes([f"{database}.keyed"], 3, "rds-mysql")["MYSQL-SERVICE"]["fix"])
    server.execute(
        "mysql",
        "create table rds_configuration (name varchar(100), value varchar(100), description varchar(300))",
        "insert into rds_configuration values ('binlog retention hours', null, '')",
        user="root",
    )
    try:
        found = codes([f"{database}.keyed"], 0)
        assert "rds_set_configuration" in str(found["MYSQL-RETENTION"]["fix"])
        # Their lock is refused also to who has the right.
        assert "primary key" in str(codes([f"{database}.keyless"], 3)["MYSQL-RELOAD"]["fix"])
        server.execute("mysql", "update rds_configuration set value = '72'", user="root")
        assert "MYSQL-RETENTION" not in codes([f"{database}.keyed"], 0)
        server.execute("mysql", "set global binlog_row_image = 'MINIMAL'", user="root")
        for kind, place in (("rds-mysql", "DB parameter group"), ("aurora-mysql", "DB cluster parameter group")):
            found = codes([f"{database}.keyed"], 3, kind)
            assert f"{place}: binlog_row_image = FULL" in str(found["MYSQL-ROW-IMAGE"]["fix"])
            assert "MYSQL-SERVICE" not in found
            run = daemon([f"{database}.keyed"], server=server, source={"type": kind})
            assert "RELOAD" not in run.run("grants", "shop")
    finally:
        server.execute("mysql", "set global binlog_row_image = 'FULL'", user="root")
        server.execute("mysql", "drop table rds_configuration", user="root")


@pytest.mark.trap("28")
@pytest.mark.fault("46", "two daemons read with one server id at MariaDB and MySQL", promise="continues")
def test_two_readers_of_one_number_are_told(server, database, loaded, daemon):
    """The server ends the older one, so each ends the other, until one is gone; nothing is lost."""
    run = loaded(source={"server-id": 4711})
    other = daemon([f"{database}.t"], server=server, source={"server-id": 4711})
    other.start()
    wait_for(lambda: "LOG-BUSY" in run.log(1_000_000) + other.log(1_000_000), 60, "the other reader", every=0.3)
    other.terminate()
    server.execute(database, "insert into t values (3, 'x', 3)")
    run.compare([(database, "t")], seconds=90)

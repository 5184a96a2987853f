"""MariaDB and MySQL as sources: statements in the log that change tables in ways that are easily missed."""

import pytest

from servers import MariaDB, MySQL, wait_for


@pytest.fixture(params=[MariaDB, MySQL], ids=["mariadb", "mysql"], scope="module")
def server(request):
    """A private server that stores names in lower case, and takes them in any."""
    if request.param.missing():
        pytest.skip(request.param.missing())
    with request.param({"lower-case-table-names": 1}) as running:
        yield running


PARTED = "partition by range (id) (partition p0 values less than (10), partition p1 values less than maxvalue)"
# Each table, what is in it, and the statement whose effect must be seen.
CASES = {
    "set_truncate": ("(id int primary key)", "(1), (2)", "set statement lock_wait_timeout = 5 for truncate set_truncate"),
    "set_alter": (
        "(id int primary key, e enum('a','b'))",
        "(1, 'a'), (2, 'b')",
        "set statement lock_wait_timeout = 5 for alter table set_alter modify e enum('b','a')",
    ),
    "waits": (f"(id int primary key) {PARTED}", "(1), (20)", "alter table waits wait 5 drop partition p0"),
    "exchanged": (f"(id int primary key) {PARTED}", "(1), (20)", "select 1"),
    "exchanges": ("(id int primary key)", "(5)", "alter table exchanged exchange partition p0 with table exchanges"),
    "keyless": ("(id int primary key, a int)", "(1, 1)", "drop index `PRIMARY` on keyless"),
    "any_case": ("(id int primary key)", "(1), (2)", "truncate table ANY_CASE"),
}


def own(server, statement):
    """As the server takes it: MySQL has no words around a statement, and none for how long it waits."""
    if server.TYPE == "mariadb":
        return statement
    return statement.replace("set statement lock_wait_timeout = 5 for ", "/* alter */ ").replace(" wait 5 ", " ")


@pytest.mark.trap("31")
@pytest.mark.scorecard("MySQL: partition DDL")
def test_what_statements_do_is_seen(server, database, daemon):
    sql = lambda *statements: server.execute(database, *statements)  # noqa: E731
    for table, (definition, rows, _) in CASES.items():
        sql(f"create table {table} {definition}", f"insert into {table} values {rows}")
    sql("create table größe (id int primary key)", "insert into größe values (1)")
    run = daemon([f"{database}.*"], server=server).start_and_load()
    sql(*(own(server, statement) for _, _, statement in CASES.values()))
    # Rows of one value, which the key that went would make one.
    sql("insert into keyless values (1, 2), (1, 3)", "insert into set_alter values (3, 'a')")
    with server.connect(database, charset="latin1") as connection, connection.cursor() as cursor:
        cursor.execute("truncate table größe")
    run.compare([(database, table) for table in [*CASES, "größe"]], seconds=60)


@pytest.mark.parametrize("statement", ["select f(77)", "set statement lock_wait_timeout = 5 for update t set a = 99"])
def test_rows_changed_by_any_statement_are_refused(server, database, daemon, statement):
    server.execute("mysql", "set global log_bin_trust_function_creators = 1", user="root")
    server.execute(
        database,
        "create table t (id int primary key, a int)",
        "insert into t values (1, 1)",
        "create function f(x int) returns int modifies sql data begin update t set a = x; return x; end",
    )
    run = daemon([f"{database}.t"], server=server).start_and_load()
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute("set binlog_format = 'STATEMENT'")
        cursor.execute(own(server, statement))
    wait_for(lambda: "statement instead of its rows" in str(run.task_record()), 30, "the refusal", every=0.3)

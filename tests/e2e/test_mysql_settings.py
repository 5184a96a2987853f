"""MariaDB with settings that are far from its defaults: what a session pins, what `check` finds, and what is refused."""

import pytest

from servers import MariaDB

SETTINGS = {
    # Whatever a client asks for, its statements are read as latin1.
    "character-set-client-handshake": 0,
    "max-statement-time": 2,
    "binlog-ignore-db": "left_out",
    # The default; a server that is no replica may have it.
    "log-slave-updates": 0,
}


@pytest.fixture(scope="module")
def server():
    """A private MariaDB."""
    with MariaDB(SETTINGS) as running:
        running.execute("mysql", "set global sql_select_limit = 1000", user="root")
        yield running


def write(server, database, *statements, user="root"):
    """Runs statements in one session that depends on no setting either."""
    with server.connect(database, user) as connection, connection.cursor() as cursor:
        cursor.execute("set names utf8mb4, max_statement_time = 0")
        for statement in statements:
            cursor.execute(statement)


def test_a_session_depends_on_no_setting_of_the_server(server, database, daemon):
    write(
        server,
        database,
        "set sql_select_limit = 1000000",
        "create table texts (k varchar(20) character set utf8mb4 primary key, a int, b text)",
        "insert into texts values ('é', 1, 'b'), ('a', 1, 'b')",
        "create table floats (k float primary key, a int, b text)",
        "insert into floats values (1.1, 1, 'b'), (-3e38, 1, 'b'), (1e-40, 1, 'b')",
        "create table `tä` (id int primary key, text varchar(300))",
        "insert into `tä` select seq, repeat(md5(seq), 9) from seq_1_to_40000",
    )
    tables = ["texts", "floats", "tä"]
    limited = {"full-load": {"rate-limit": "2MiB"}}
    run = daemon([f"{database}.{table}" for table in tables], server=server, options=limited)
    run.run("check")
    run.start_and_load()
    write(server, database, "set binlog_row_image = 'MINIMAL'", "update texts set a = 9", "update floats set a = 9")
    # The comparison reads without limits.
    for setting in ("sql_select_limit = default", "max_statement_time = 0"):
        server.execute(database, f"set global {setting}", user="root")
    run.compare([(database, table) for table in tables])


def test_what_the_server_leaves_out_of_its_log_is_found(server, database, daemon):
    server.create_database("left_out")
    write(server, database, "create table t (id int primary key)", "create table left_out.t (id int primary key)")
    run = daemon([f"{database}.t", "left_out.t"], server=server)
    filtered = ("error", "MYSQL-BINLOG-FILTER")
    assert findings(run) == [filtered]
    write(server, database, "drop database left_out")
    run = daemon([f"{database}.t"], server=server)
    assert findings(run, code=0) == [("warning", "MYSQL-BINLOG-FILTER")]
    write(server, database, "change master to master_host = '127.0.0.1', master_port = 1, master_user = 'x'", "start slave")
    assert ("error", "MYSQL-REPLICA") in findings(run)


def findings(run, code=3):
    """Severity and code of everything that `check` found."""
    return [(finding["severity"], finding["code"]) for finding in run.json("check", code=code)["findings"]]

"""MariaDB with settings that are far from its defaults: what a session pins, what `check` finds, and what is refused."""

import pytest

from servers import MariaDB

SETTINGS = {
    # Whatever a client asks for, its statements are read as latin1.
    "character-set-client-handshake": 0,
    "max-statement-time": 2,
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

"""MariaDB and MySQL with settings that are far from its defaults: what a session pins, and what `check` finds; and what a server
sees of our sessions."""

import pytest

from daemon import Daemon
from servers import MariaDB, MySQL, wait_for

# What a server that is no replica logs of others does not matter: it is MariaDB's default.
SETTINGS = {
    # Whatever a client asks for, its statements are read as latin1.
    MariaDB: {"character-set-client-handshake": 0, "max-statement-time": 2, "log-slave-updates": 0},
    MySQL: {
        "max-execution-time": 300,
        "log-replica-updates": 0,
        "gtid-mode": "OFF",
        "enforce-gtid-consistency": "OFF",
        "binlog-checksum": "NONE",
        "binlog-order-commits": "OFF",
    },
}
NO_LIMIT = {"mariadb": "max_statement_time = 0", "mysql": "max_execution_time = 0"}
# Of nobody: how to follow him, and how to stop.
REPLICA = {
    "mariadb": ("change master to master_host = '127.0.0.1', master_port = 1, master_user = 'x'", "slave"),
    "mysql": ("change replication source to source_host = '127.0.0.1', source_port = 1, source_user = 'x'", "replica"),
}


@pytest.fixture(params=[MariaDB, MySQL], ids=["mariadb", "mysql"], scope="module")
def server(request):
    """A private server."""
    if request.param.missing():
        pytest.skip(request.param.missing())
    with request.param({"binlog-ignore-db": "left_out", **SETTINGS[request.param]}) as running:
        running.execute("mysql", "set global sql_select_limit = 1000", user="root")
        yield running


def write(server, database, *statements, user="root"):
    """Runs statements in one session that depends on no setting either."""
    with server.connect(database, user) as connection, connection.cursor() as cursor:
        cursor.execute(f"set names utf8mb4, {NO_LIMIT[server.TYPE]}")
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
        f"insert into `tä` select seq, repeat(sha2(seq, 256), 4) from {server.numbers(40_000)}",
    )
    tables = ["texts", "floats", "tä"]
    limited = {"full-load": {"rate-limit": "2MiB"}}
    run = daemon([f"{database}.{table}" for table in tables], server=server, options=limited)
    run.run("check")
    run.start_and_load()
    write(server, database, "set binlog_row_image = 'MINIMAL'", "update texts set a = 9", "update floats set a = 9")
    # The comparison reads without limits.
    for setting in ("sql_select_limit = default", NO_LIMIT[server.TYPE]):
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
    nobody, replica = REPLICA[server.TYPE]
    write(server, database, nobody, f"start {replica}")
    try:
        assert ("error", "MYSQL-REPLICA") in findings(run)
    finally:
        write(server, database, f"stop {replica}", f"reset {replica} all")


def findings(run, code=3):
    """Severity and code of everything that `check` found, but that MySQL has no GTIDs."""
    found = [(finding["severity"], finding["code"]) for finding in run.json("check", code=code)["findings"]]
    without = [("warning", "MYSQL-GTID")] if run.server.TYPE == "mysql" else []
    assert [finding for finding in found if finding in without] == without
    return [finding for finding in found if finding not in without]


def test_a_server_that_vanishes_is_noticed(server, database, daemon):
    write(server, database, "create table t (id int primary key)")
    daemon([f"{database}.t"], server=server).start_and_load()

    def timers():
        """Of our side of each connection to the server: 2 is keepalive (manual page proc_net_tcp)."""
        with open("/proc/net/tcp") as file:
            lines = [line.split() for line in file.readlines()[1:]]
        return [line[5][:2] for line in lines if line[2].endswith(f":{server.port:04X}") and line[3] == "01"]

    wait_for(lambda: set(timers()) == {"02"}, 10, "keepalive on every connection")


def test_nothing_but_the_place_is_asked_while_nobody_can_write(mysql):
    database = mysql.create_database("under_lock")
    mysql.execute(database, "create table t (id int primary key, a int, b int)", "insert into t values (1, 1, 1)")
    mysql.execute(database, "set global log_output = 'TABLE', global general_log = on", user="root")
    try:
        with Daemon(mysql, database, [f"{database}.t"]) as run:
            run.start_and_load()
            # A value that the log does not tell is looked up, without the lock.
            mysql.execute(database, "set binlog_row_image = 'MINIMAL'", "update t set a = 77", user="root")
            run.compare([(database, "t")])
    finally:
        mysql.execute("mysql", "set global general_log = off, global log_output = default", user="root")
        mysql.drop_database(database)
    select = "select command_type, convert(argument using utf8mb4) from general_log order by event_time"
    rows = mysql.execute("mysql", select, user="root")
    said = [f"{command} {argument}" for command, argument in rows]
    locked = said.index("Query FLUSH TABLES WITH READ LOCK")
    unlocked = said.index("Query UNLOCK TABLES", locked)
    # The head of the file, where the place's file is known by.
    heads = [index for index, text in enumerate(said) if text.startswith("Binlog Dump") and "Pos: 4" in text]
    assert [index for index in heads if index > unlocked], said
    assert not [index for index in heads if locked < index < unlocked], said
    assert not [text for text in said[said.index("Query update t set a = 77") :] if "READ LOCK" in text], said

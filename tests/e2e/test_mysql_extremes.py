"""MariaDB and MySQL as sources: transactions larger than the stream's bound, values larger than a packet, logs that are
encrypted or get GTIDs while they are read, a daemon that stands still, and one whose state is of yesterday."""

import os
import shutil
import signal
import tempfile
import time

import pytest
from daemon import Daemon
from servers import MariaDB, MySQL, wait_for
from test_mysql_care import server  # noqa: F401

MIB = 1 << 20


@pytest.mark.trap("26", crash=True)
@pytest.mark.fault("31", "a transaction of MariaDB and MySQL larger than the stream's bound, and a SIGKILL in it", promise="continues")
def test_a_transaction_larger_than_the_bound(server, database, sql, daemon):  # noqa: F811
    sql("create table t (id int primary key, a varchar(1000))", "create table other (id int primary key)")
    run = daemon(
        [f"{database}.*"],
        server=server,
        options={"stream": {"retention": "1s", "disk-bound": "40MiB", "compress": False}},
    ).start_and_load()
    sql(f"insert into t select seq, repeat('x', 1000) from {server.numbers(80_000)}", "insert into other values (1)")
    wait_for(lambda: stream_bytes(run) > 20 * MIB, 60, "a part of the transaction in the stream")
    run.kill()
    run.start()
    run.compare([(database, "t"), (database, "other")], seconds=120)
    assert run.peak_rss() < 400 * MIB


def stream_bytes(run):
    """What the task's stream has on disk."""
    folder = f"{run.state}/streams"
    files = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in names]
    return sum(os.stat(file).st_blocks * 512 for file in files if os.path.exists(file))


@pytest.mark.trap("29")
def test_values_larger_than_a_packet(server, database, sql, daemon):  # noqa: F811
    """A body of 2^24-1 bytes goes on in the next packet, in a result and in the log."""
    known = server.execute("mysql", "select @@global.max_allowed_packet", user="root")[0][0]
    server.execute("mysql", f"set global max_allowed_packet = {256 * MIB}", user="root")
    try:
        sql(
            "create table t (id int primary key, a longblob)",
            f"insert into t values (1, repeat('l', {17 * MIB})), (2, repeat('m', {(1 << 24) - 1 - 40})), (3, 'small')",
        )
        run = daemon([f"{database}.t"], server=server, options={"max-value": "18MiB"}).start_and_load()
        sql(
            "update t set id = 5 where id = 1",
            f"insert into t values (6, repeat('o', {(1 << 24) - 70})), (7, 'small')",
        )
        run.compare([(database, "t")])
        sql(f"insert into t values (8, repeat('p', {19 * MIB})), (9, 'small')")
        wait_for(lambda: run.dead_letters(), 60, "a dead letter")
        assert [letter["column"] for letter in run.dead_letters()] == ["a"]
        sql("delete from t where id = 8")
        run.compare([(database, "t")])
    finally:
        server.execute("mysql", f"set global max_allowed_packet = {known}", user="root")


@pytest.mark.trap("29")
def test_images_without_blobs_are_made_whole(server, database, sql, daemon):  # noqa: F811
    sql(
        "create table t (id int primary key, a text, b blob, c int, d varchar(20))",
        "insert into t values (1, 'text', 'blob', 1, 'd'), (2, null, '', 2, 'd'), (3, 'x', 'y', 3, null)",
    )
    run = daemon([f"{database}.t"], server=server).start_and_load()
    server.execute(
        database,
        "set binlog_row_image = 'NOBLOB'",
        "update t set c = 10 where id = 1",
        "update t set a = 'other' where id = 2",
        "update t set id = 30 where id = 3",
        "insert into t values (4, 'new', 'new', 4, 'new')",
        "delete from t where id = 4",
        user="root",
    )
    run.compare([(database, "t")])


@pytest.mark.trap("45", crash=True)
@pytest.mark.fault("50", "yesterday's state folder is put back, of a task from MariaDB and MySQL", promise="continues")
def test_a_state_folder_from_yesterday(server, database, sql, daemon):  # noqa: F811
    """The server keeps its log for everybody, so what came since is read once more; what was delivered since is listed in no
    catalog."""
    sql("create table t (id int primary key, a int)", "insert into t values (1, 1)")
    run = daemon([f"{database}.t"], server=server).start_and_load()
    run.compare([(database, "t")])
    run.terminate()
    shutil.copytree(run.state, run.state + ".yesterday", ignore=shutil.ignore_patterns("*.sock"))
    run.start()
    sql(f"insert into t select seq + 10, seq from {server.numbers(1000)}", "update t set a = 2 where id = 1")
    run.compare([(database, "t")])
    run.terminate()
    shutil.rmtree(run.state)
    os.rename(run.state + ".yesterday", run.state)
    sql("delete from t where id = 11")
    run.start()
    sql("insert into t values (5000, 1)")
    run.compare([(database, "t")])


@pytest.mark.fault("18", "the daemon stands still while MariaDB and MySQL send more than buffers hold", promise="continues")
def test_a_daemon_that_stands_still(server, database, sql, daemon):  # noqa: F811
    """The server would give a replica up that takes nothing for so long."""
    sql("create table t (id int primary key, a varchar(1000))")
    known = server.execute("mysql", "select @@global.net_write_timeout", user="root")[0][0]
    server.execute("mysql", "set global net_write_timeout = 3", user="root")
    try:
        run = daemon([f"{database}.t"], server=server).start_and_load()
        sql("insert into t values (-1, 'before')")
        run.compare([(database, "t")])
        run.process.send_signal(signal.SIGSTOP)
        sql(f"insert into t select seq, repeat('x', 1000) from {server.numbers(40_000)}")
        time.sleep(10)
        run.process.send_signal(signal.SIGCONT)
        sql("insert into t values (-2, 'after')")
        run.compare([(database, "t")])
        assert "reading the binary log" not in run.log(100_000), "the session was lost"
    finally:
        server.execute("mysql", f"set global net_write_timeout = {known}", user="root")


@pytest.mark.scorecard("MySQL: stopped in a full load")
def test_a_server_that_is_stopped_inside_a_load(server, database, sql, daemon):  # noqa: F811
    rows = f"select seq, repeat('x', 1000) from {server.numbers(12_000)}"
    sql(
        "create table t (id int primary key, a varchar(1000))",
        "create table keyless (id int, a varchar(1000))",
        f"insert into t {rows}",
        f"insert into keyless {rows}",
    )
    run = daemon([f"{database}.*"], server=server, options={"full-load": {"rate-limit": "4MiB"}})
    run.start()
    wait_for(lambda: "Full load" in run.states_or_none().values(), 30, "the load's beginning")
    server.stop()
    time.sleep(1)
    server.start()
    sql("update t set a = 'later' where id < 10", "insert into keyless values (0, 'later')")
    run.wait_states(seconds=120)
    run.compare([(database, "t"), (database, "keyless")])


@pytest.mark.trap("29", crash=True)
def test_an_encrypted_log_is_read():
    """The server decrypts what it sends."""
    with tempfile.TemporaryDirectory(prefix="millrace-keys-") as folder:
        os.chmod(folder, 0o755)
        with open(f"{folder}/keys", "w") as file:
            file.write("1;" + "a7addd9adea9978fda19f21e6be987880e68ac92632ca052e5bb42b1a506939a\n")
        os.chmod(f"{folder}/keys", 0o644)
        settings = {
            "plugin-load-add": "file_key_management",
            "file-key-management-filename": f"{folder}/keys",
            "encrypt-binlog": "ON",
        }
        with MariaDB(settings) as server:
            server.create_database("shop")
            server.execute("shop", "create table t (id int primary key, a text)", "insert into t values (1, 'secret')")
            with open(f"{server.data}/binlog.000001", "rb") as file:
                assert b"secret" not in file.read(), "the log is not encrypted"
            with Daemon(server, "shop", ["shop.t"]) as run:
                run.start_and_load()
                server.execute("shop", "insert into t values (2, 'more')", "flush logs", "update t set a = 'x' where id = 1")
                run.compare([("shop", "t")])
                run.kill()
                server.execute("shop", "insert into t values (3, 'behind')")
                run.start()
                run.compare([("shop", "t")])


@pytest.mark.trap("27", crash=True)
def test_gtids_are_switched_on_while_the_log_is_read():
    if MySQL.missing():
        pytest.skip(MySQL.missing())
    with MySQL({"gtid-mode": "OFF", "enforce-gtid-consistency": "OFF"}) as server:
        server.create_database("shop")
        server.execute("shop", "create table t (id int primary key, a int)", "insert into t values (1, 1)")
        with Daemon(server, "shop", ["shop.t"]) as run:
            run.start_and_load()
            number = 1
            for step in ("enforce_gtid_consistency = ON", *(f"gtid_mode = {m}" for m in ("OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"))):
                server.execute("mysql", f"set global {step}", user="root")
                for _ in range(3):
                    number += 1
                    server.execute("shop", f"insert into t values ({number}, 0)", f"update t set a = a + {number} where id = 1")
                run.compare([("shop", "t")])
                run.kill()
                number += 1
                server.execute("shop", f"insert into t values ({number}, 0)")
                run.start()
                run.compare([("shop", "t")])
            server.execute("shop", "flush logs", "insert into t values (1000, 1)")
            run.compare([("shop", "t")])

"""MariaDB and MySQL behind a name that leads to another server after a failover: what GTIDs tell of it, and what is
refused."""

import contextlib
import threading

import pytest

from daemon import Daemon
from servers import MariaDB, MySQL, Proxy, wait_for

SHOP = [
    "create table t (id int primary key, v varchar(40))",
    "create table keyless (n int, v varchar(40))",
    "insert into t values (1, 'loaded'), (2, 'loaded')",
    "insert into keyless values (1, 'loaded')",
]
TABLES = [("shop", "t"), ("shop", "keyless")]


@pytest.fixture(params=[MariaDB, MySQL], ids=["mariadb", "mysql"])
def pair(request):
    """A primary and its replica."""
    kind = request.param
    if kind is MySQL and MySQL.missing():
        pytest.skip(MySQL.missing())
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(kind({"server-id": number, **UPDATES[kind]})) for number in (1, 2)]
        for server in servers:
            server.execute("mysql", kind.RESET, user="root")
        primary, replica = servers
        follow(replica, primary)
        primary.create_database("shop")
        primary.execute("shop", *SHOP)
        yield primary, replica


UPDATES = {MariaDB: {"log-slave-updates": "ON"}, MySQL: {"performance-schema": "ON"}}


def follow(replica, primary):
    """Makes a server the replica of another one."""
    if isinstance(replica, MySQL):
        options = "source_auto_position = 1, get_source_public_key = 1, source_user = 'shop', source_connect_retry = 1"
        to = f"change replication source to source_host = '127.0.0.1', source_port = {primary.port}, {options}"
        replica.execute("mysql", to, "start replica", user="root")
    else:
        options = "master_use_gtid = slave_pos, master_user = 'shop', master_connect_retry = 1"
        to = f"change master to master_host = '127.0.0.1', master_port = {primary.port}, {options}"
        replica.execute("mysql", to, "start slave", user="root")


def promote(replica):
    """From now on it follows nobody."""
    word = "replica" if isinstance(replica, MySQL) else "slave"
    replica.execute("mysql", f"stop {word}", f"reset {word} all", user="root")


def wait_replayed(replica, primary):
    """Waits until the replica has executed everything that the primary has."""
    if isinstance(replica, MySQL):
        gtids = primary.execute("mysql", "select @@global.gtid_executed", user="root")[0][0]
        waited = f"select wait_for_executed_gtid_set('{gtids}', 60)"
    else:
        gtids = primary.execute("mysql", "select @@global.gtid_binlog_pos", user="root")[0][0]
        waited = f"select master_gtid_wait('{gtids}', 60)"
    assert replica.execute("mysql", waited, user="root")[0][0] == 0


def switch(run, proxy, server):
    """The name leads to another server."""
    proxy.cut()
    proxy.target = server.port
    proxy.heal()
    run.server = server


def wait_error(run, words, seconds=60):
    """Waits until the task's record tells something."""

    def told():
        text = str(run.task_record())
        return all(word in text for word in words)

    wait_for(told, seconds, f"{words} in the task's record", every=0.3)


def write(server, number):
    """A transaction of both tables."""
    with server.connect("shop", autocommit=False) as connection, connection.cursor() as cursor:
        cursor.execute(f"insert into t values ({number}, 'new')")
        cursor.execute(f"update t set v = 'changed {number}' where id = 1")
        cursor.execute(f"insert into keyless values ({number}, 'new')")
        connection.commit()


def history(run):
    """The number of the history that the task's position is of."""
    position = run.task_record()["position"] or ""
    return int(position.split(":")[0]) if ":" in position else 0


@pytest.mark.scorecard("MySQL: GTID")
@pytest.mark.trap("27", crash=True)
@pytest.mark.fault("24", "MariaDB and MySQL fail over to a replica, and back", promise="continues")
def test_a_failover_is_followed(pair):
    """And one back: everything once, nothing loaded anew, and the order goes on rising, whatever the files are called."""
    primary, replica = pair
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["shop.*"], port=proxy.port) as run:
        run.start_and_load()
        write(primary, 10)
        run.compare(TABLES)
        # Files of the replica have other numbers and lengths.
        replica.execute("mysql", *["flush binary logs"] * 3, user="root")
        write(primary, 11)
        wait_replayed(replica, primary)
        primary.stop()
        promote(replica)
        write(replica, 12)
        switch(run, proxy, replica)
        run.compare(TABLES)
        run.kill()
        write(replica, 13)
        run.start()
        run.compare(TABLES)
        primary.start()
        follow(primary, replica)
        wait_replayed(primary, replica)
        replica.stop()
        promote(primary)
        write(primary, 14)
        switch(run, proxy, primary)
        run.compare(TABLES)
        run.kill()
        run.start()
        write(primary, 15)
        run.compare(TABLES)
        assert "loaded anew" not in run.log(100_000)
        wait_for(lambda: "2:" in str(run.task_record()), 30, "the second later history")


@pytest.mark.trap("27", crash=True)
@pytest.mark.fault("24", "MariaDB and MySQL fail over, and the daemon is killed meanwhile", promise="continues")
def test_a_failover_is_followed_when_the_daemon_dies_in_it(pair):
    primary, replica = pair
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["shop.*"], port=proxy.port) as run:
        run.start_and_load()
        write(primary, 10)
        run.compare(TABLES)
        run.kill()
        write(primary, 11)
        wait_replayed(replica, primary)
        primary.stop()
        promote(replica)
        switch(run, proxy, replica)
        run.start(crash_at="takeover-after-mark", ready=False)
        run.wait_exit(60)
        write(replica, 12)
        run.start()
        run.compare(TABLES)


@pytest.mark.trap("27")
@pytest.mark.fault("24", "the MariaDB or MySQL that took over lacks transactions", promise="stops safely")
def test_a_server_that_lacks_what_was_replicated_is_refused(pair):
    """An asynchronous replica may be promoted without the last transactions: the lake has them, and it has not."""
    primary, replica = pair
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["shop.*"], port=proxy.port) as run:
        run.start_and_load()
        wait_replayed(replica, primary)
        promote(replica)
        write(primary, 10)
        run.compare(TABLES)
        primary.stop()
        write(replica, 11)
        switch(run, proxy, replica)
        wait_error(run, ["SOURCE-CHANGED", "without transactions that were replicated", "millrace reload"])
        run.run("reload", "shop")
        run.run("resume", "shop")
        run.compare(TABLES, seconds=90)


def test_a_server_that_purged_what_was_not_replicated_is_refused(pair):
    primary, replica = pair
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["shop.*"], port=proxy.port) as run:
        run.start_and_load()
        write(primary, 10)
        run.compare(TABLES)
        run.terminate()
        write(primary, 11)
        wait_replayed(replica, primary)
        promote(replica)
        primary.stop()
        replica.execute("mysql", "flush binary logs", user="root")
        newest = replica.execute("mysql", "show binary logs", user="root")[-1][0]

        def purged():
            replica.execute("mysql", f"purge binary logs to '{newest}'", user="root")
            return len(replica.execute("mysql", "show binary logs", user="root")) == 1

        wait_for(purged, 30, "the purge")
        switch(run, proxy, replica)
        run.start(ready=False)
        wait_error(run, ["LOG-LOST", "purged"])
        run.run("reload", "shop")
        run.run("resume", "shop")
        run.compare(TABLES, seconds=90)


@pytest.mark.trap("27")
def test_what_was_written_to_the_replica_alone(pair):
    """It stands in the log of the new server before what we have. MySQL tells it by its set; MariaDB has no words for it,
    and is refused."""
    primary, replica = pair
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["shop.*"], port=proxy.port) as run:
        run.start_and_load()
        wait_replayed(replica, primary)
        replica.execute("shop", "insert into t values (99, 'written to the replica')")
        write(primary, 10)
        run.compare(TABLES)
        wait_replayed(replica, primary)
        primary.stop()
        promote(replica)
        switch(run, proxy, replica)
        if isinstance(replica, MySQL):
            run.compare(TABLES)
            return
        wait_error(run, ["SOURCE-CHANGED", "was written to it alone", "millrace reload"])
        run.run("reload", "shop")
        run.run("resume", "shop")
        run.compare(TABLES, seconds=90)


def test_a_load_that_saw_more_than_the_log_was_read_to(pair):
    """The other server need not have what only the load has seen."""
    primary, replica = pair
    primary.execute("shop", "create table noise (n int)", user="root")
    done = threading.Event()

    def write_elsewhere():
        with primary.connect("shop", "root") as connection, connection.cursor() as cursor:
            while not done.wait(0.005):
                cursor.execute("insert into noise values (1)")

    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["shop.t", "shop.keyless"], port=proxy.port) as run:
        writer = threading.Thread(target=write_elsewhere)
        writer.start()
        try:
            # Before the load begins: it must see more than what was there when the task began.
            wait_for(lambda: primary.execute("shop", "select count(*) from noise", user="root")[0][0] > 5, 30, "noise")
            # Behind the second of two tables: a moment later the log may have been read as far.
            run.start(crash_at="load-after-commit:2", ready=False)
            run.wait_exit(60)
        finally:
            done.set()
            writer.join()
        wait_replayed(replica, primary)
        primary.stop()
        promote(replica)
        write(replica, 11)
        switch(run, proxy, replica)
        run.start(ready=False)
        wait_error(run, ["SOURCE-CHANGED", "was loaded with changes that the log was not read to"])
        run.run("reload", "shop")
        run.run("resume", "shop")
        run.compare(TABLES, seconds=90)


def test_a_failover_inside_a_load(pair):
    """What was loaded of a table at the old server is not kept."""
    primary, replica = pair
    primary.execute("shop", f"insert into t select seq + 100, repeat('x', 40) from {primary.numbers(200000)}")
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["shop.*"], port=proxy.port) as run:
        wait_replayed(replica, primary)
        run.start(crash_at="mysql-load-inside-segment", ready=False)
        run.wait_exit(60)
        write(primary, 10)
        wait_replayed(replica, primary)
        primary.stop()
        promote(replica)
        write(replica, 11)
        switch(run, proxy, replica)
        run.start_and_load()
        write(replica, 12)
        run.compare(TABLES)


@pytest.mark.trap("27", crash=True)
def test_domains_that_follow_each_other_in_another_order_come_once():
    """MariaDB keeps an order within a domain only: another server may have written what we have behind what we have not."""
    with MariaDB({"server-id": 1}) as old, MariaDB({"server-id": 2}) as new:
        for server in (old, new):
            server.execute("mysql", "reset master", user="root")
            named(server, 0, 1, "create database shop")
            named(server, 0, 2, "create table shop.keyless (n int, v varchar(40))")
        with Proxy(old.port) as proxy, Daemon(old, "shop", ["shop.*"], port=proxy.port) as run:
            run.start_and_load()
            named(old, 0, 3, "insert into shop.keyless values (1, 'first of domain 0')")
            run.compare([("shop", "keyless")])
            run.terminate()
            old.stop()
            named(new, 1, 1, "insert into shop.keyless values (2, 'first of domain 1')")
            named(new, 1, 2, "insert into shop.keyless values (3, 'second of domain 1')")
            named(new, 0, 3, "insert into shop.keyless values (1, 'first of domain 0')")
            switch(run, proxy, new)
            run.start()
            run.compare([("shop", "keyless")])
            run.kill()
            named(new, 1, 3, "insert into shop.keyless values (4, 'third of domain 1')")
            run.start()
            run.compare([("shop", "keyless")])


def named(server, domain, number, statement):
    """Runs a statement as if it had come from server 1 under this GTID."""
    with server.connect("mysql", "root") as connection, connection.cursor() as cursor:
        cursor.execute(f"set session server_id = 1, gtid_domain_id = {domain}, gtid_seq_no = {number}")
        cursor.execute(statement)

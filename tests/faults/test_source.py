"""What a source does besides its network: it stops at once, recovers, has no connection left, ends our sessions, takes
rights away, gets another password; long, short and prepared transactions stand across its restarts."""

import os
import random
import re
import signal
import sqlite3
import subprocess
import time

import psycopg
import pytest
import verify
from servers import Postgres, Proxy, wait_for


@pytest.fixture
def primary():
    """A server of the test's own, with a database `shop`, whose commits survive its immediate stop."""
    with Postgres(settings={"fsync": "on", "full_page_writes": "on", "max_connections": 30}) as server:
        server.create_database("shop")
        yield server


@pytest.fixture
def bank(primary, fault):
    """The workload; its writers are ended."""
    made = verify.Bank(primary, "shop", fault.seed)
    yield made
    made.stopping.set()


@pytest.fixture
def running(primary, bank):
    """A daemon that is not started yet."""
    with verify.Watched(primary, "shop", verify.PATTERNS) as made:
        yield made


@pytest.fixture
def loaded(running, bank):
    """The daemon, loaded, with writers at work."""
    running.start_and_load()
    bank.start(writers=2, pause=0.02)
    verify.arrival(running, bank)
    return running


def check_reloaded(running, bank):
    """The shared check without its look at the folder: files that a reload replaced stay there for a while."""
    bank.stop()
    bank.mark()
    running.compare(verify.TABLES, seconds=60)
    assert not bank.problems(running)
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 20, "unaccounted = 0")


def said(running):
    """Everything that the task says is wrong."""
    return " ".join(
        " ".join([error["code"], error["summary"], *error["detail"], *error["fix"]])
        for error in running.task_record()["errors"]
    )


def wait_said(running, text, seconds=40):
    """Waits until the task says so; gives all of it."""
    try:
        wait_for(lambda: re.search(text, said(running)), seconds, text, every=0.2)
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {said(running)}\n{running.log()}") from None
    return said(running)


@pytest.mark.fault("23", "the source stops at once under load and starts again, three times", promise="continues")
def test_the_source_stops_at_once_under_load(loaded, bank, primary, fault):
    """pg_ctl stop -m immediate: it recovers from its log when it starts."""
    for _ in range(3):
        time.sleep(1)
        primary.stop(signal.SIGQUIT)
        time.sleep(0.5)
        primary.start()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=20)
    verify.check(loaded, bank)


@pytest.mark.fault("23", "the source stops at once while it is loaded", promise="continues")
def test_the_source_stops_at_once_while_it_is_loaded(primary, bank, fault):
    bank.add_letters(40_000)
    options = {"full-load": {"rate-limit": "6MB"}}
    with verify.Watched(primary, "shop", verify.PATTERNS, options=options) as running:
        running.start()
        bank.start(writers=1, pause=0.05)
        wait_for(lambda: "Full load" in running.states_or_none().values(), 30, "the load")
        time.sleep(2)
        assert "Full load" in running.states().values()
        primary.stop(signal.SIGQUIT)
        primary.start()
        with fault.recovering():
            running.wait_states(seconds=60)
        verify.check(running, bank)


def finished_segments(running):
    """How many segments of the partitioned table are on record."""
    with sqlite3.connect(f"file:{running.state}/state.db?mode=ro", uri=True) as state:
        return state.execute("select count(*) from state where key like 'segment/%postcard%'").fetchone()[0]


@pytest.mark.fault("1", "the connections of a load die in the middle of a table", promise="continues")
def test_a_load_goes_on_after_its_finished_segments(primary, bank, fault):
    """What is finished is not read again. Each partition is a segment at least; which of them is read first is open."""
    primary.execute(
        "shop",
        "create table bank.postcard (id bigint primary key, body text) partition by range (id)",
        "create table bank.postcard_a partition of bank.postcard for values from (0) to (20000)",
        "create table bank.postcard_b partition of bank.postcard for values from (20000) to (1000000)",
        "insert into bank.postcard select i, repeat(md5(i::text), 40) from generate_series(1, 40000) i",
        "analyze bank.postcard",
    )
    options = {"full-load": {"parallel": 1, "rate-limit": "10MB"}}
    with Proxy(primary.port) as proxy, verify.Watched(
        primary, "shop", ["bank.*"], port=proxy.port, options=options
    ) as running:
        running.start()
        bank.start(writers=1, pause=0.05)
        wait_for(lambda: os.path.exists(f"{running.state}/state.db"), 20, "the state")
        wait_for(lambda: finished_segments(running) >= 1, 60, "a finished segment", every=0.02)
        proxy.reset()
        time.sleep(1.5)
        proxy.reset()
        with fault.recovering():
            running.wait_states(seconds=90)
        kept = max(map(int, re.findall(r"bank.postcard segments=(\d+)", running.log(10**6))), default=0)
        fault.outcome(f"{kept} segments were kept")
        assert kept > 0, running.log()
        running.compare([("bank", "postcard")])
        verify.check(running, bank)


@pytest.mark.fault("19", "an administrator ends our sessions, again and again", promise="continues", quick=True)
def test_our_sessions_are_ended(loaded, bank, primary, fault):
    ended = 0
    for _ in range(10):
        rows = primary.execute(
            "shop", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'cdc'", user="postgres"
        )
        ended += len(rows)
        time.sleep(0.4)
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=10)
    fault.outcome(f"{ended} sessions ended")
    assert ended >= 5
    verify.check(loaded, bank)


@pytest.mark.fault("19", "the source has no connection left", promise="continues")
def test_the_source_has_no_connection_left(loaded, bank, primary, fault):
    """Said with what to do about it; when there is one again, everything goes on."""
    bank.stop()
    hoard = []
    primary.execute(
        "shop", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'cdc'", user="postgres"
    )
    try:
        while True:
            hoard.append(primary.connect("shop"))
    except psycopg.OperationalError:
        pass
    # Walsenders have places of their own (max_wal_senders), so that the log goes on; a load needs plain sessions.
    loaded.command("reload", "shop", "bank.visit")
    words = wait_said(loaded, "53300")
    assert "max_connections" in words, words
    for one in hoard:
        one.close()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=20)
    loaded.wait_states(seconds=40)
    wait_for(lambda: "53300" not in said(loaded), 20, "the error to go")
    check_reloaded(loaded, bank)


@pytest.mark.fault("23", "the source starts up and takes no connections yet", promise="continues")
def test_the_source_takes_no_connections_yet(loaded, bank, primary, fault):
    """A server in recovery without hot standby answers everybody with 57P03."""
    bank.stop()
    primary.stop()
    open(f"{primary.data}/standby.signal", "w").close()
    log = open(f"{primary.folder}/log", "ab")
    starting = subprocess.Popen(
        [f"{primary.programs}/postgres", "-D", primary.data, "-p", str(primary.port), "-k", primary.folder]
        + ["-c", "hot_standby=off", "-c", "listen_addresses=127.0.0.1", "-c", "wal_level=logical"]
        + ["-c", "max_connections=30", "-c", "max_prepared_transactions=10"],
        cwd=primary.folder,
        env=primary.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **primary._user(),
    )
    try:
        wait_said(loaded, "57P03")
    finally:
        starting.send_signal(signal.SIGQUIT)
        starting.wait(20)
        log.close()
    subprocess.run(["rm", f"{primary.data}/standby.signal"], check=True)
    primary.start()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=20)
    assert said(loaded) == "" or "57P03" not in said(loaded)
    verify.check(loaded, bank)


@pytest.mark.fault("19", "the role gets another password", promise="continues")
def test_the_password_is_changed_under_way(loaded, bank, primary, fault):
    """Refused until the file holds the new one, which needs no restart."""
    primary.execute("shop", "alter role cdc password 'another wheel'", user="postgres")
    primary.execute(
        "shop", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'cdc'", user="postgres"
    )
    words = wait_said(loaded, "28P01")
    assert "AUTHENTICATION" in words and "password" in words, words
    with open(loaded.password_file, "w") as file:
        file.write("another wheel\n")
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=45)
    verify.check(loaded, bank)


@pytest.mark.fault("37", "the right to read one table is taken away", promise="continues")
def test_one_table_may_not_be_read(primary, bank, fault):
    """Its load is refused and it is suspended; the others flow. With the right back, it is loaded again."""
    primary.execute(
        "shop",
        "create role reader login replication",
        f"alter role reader password '{Postgres.PASSWORD}'",
        "grant usage on schema bank to reader",
        "grant select on all tables in schema bank to reader",
        "create publication millrace_shop for table bank.account, bank.ledger, bank.letter",
        "create publication millrace_shop_inserts for table bank.visit with (publish = 'insert, truncate')",
        user="postgres",
    )
    with verify.Watched(primary, "shop", verify.PATTERNS, user="reader") as running:
        running.start_and_load()
        bank.start(writers=2, pause=0.02)
        verify.arrival(running, bank)
        primary.execute("shop", "revoke select on bank.visit from reader", user="postgres")
        running.run("reload", "shop", "bank.visit")
        visit = ("bank", "visit")
        wait_for(lambda: running.states_or_none().get(visit) == "Table error", 30, "the table to be suspended")
        verify.arrival(running, bank)
        words = running.tables()[visit]["error"]
        assert "permission denied" in words, words
        fault.outcome("that table is suspended: permission denied")
        primary.execute("shop", "grant select on bank.visit to reader", user="postgres")
        running.run("reload", "shop", "bank.visit")
        with fault.recovering():
            running.wait_states(seconds=40)
        check_reloaded(running, bank)


@pytest.mark.fault("32", "open, prepared and short transactions across restarts of both sides", promise="continues")
def test_open_and_prepared_transactions_across_restarts(loaded, bank, primary, fault):
    """A prepared transaction outlives the server. What was open in its sessions is gone, and must not be seen."""
    prepared = primary.connect("shop")
    prepared.execute("insert into bank.letter values (-1000, 'prepared, then committed')")
    prepared.execute("prepare transaction 'kept'")
    prepared.execute("insert into bank.letter values (-1001, 'prepared, then rolled back')")
    prepared.execute("prepare transaction 'dropped'")
    prepared.close()
    gone = primary.connect("shop")
    gone.execute("insert into bank.letter select -2000 - i, repeat('gone', 500) from generate_series(1, 3000) i")
    verify.arrival(loaded, bank)
    loaded.kill()
    bank.run(1, writers=1, pause=0.01)
    loaded.start()
    verify.arrival(loaded, bank)
    primary.stop(signal.SIGQUIT)
    primary.start()
    with pytest.raises(psycopg.OperationalError):
        gone.commit()
    open_one = primary.connect("shop")
    open_one.execute("insert into bank.letter select -9000 - i, repeat('open', 500) from generate_series(1, 3000) i")
    loaded.kill()
    loaded.start()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=30)
    with primary.connect("shop", autocommit=True) as ending:
        ending.execute("commit prepared 'kept'")
        ending.execute("rollback prepared 'dropped'")
    loaded.kill()
    open_one.commit()
    open_one.close()
    loaded.start()
    verify.check(loaded, bank)
    found = primary.execute("shop", "select count(*) from bank.letter where id = -1000 or id < -9000")
    assert found == [(3001,)]


@pytest.mark.fault("30", "a COPY of a million rows, killed and reset in its middle", promise="continues")
def test_a_burst_of_one_position(loaded, bank, primary, fault):
    """All rows of one COPY page share a position in the log."""
    bank.stop()
    with primary.connect("shop") as connection, connection.cursor() as cursor:
        with cursor.copy("copy bank.visit (writer, seq) from stdin") as copy:
            for block in range(100):
                copy.write("".join(f"{100 + block}\t{seq}\n" for seq in range(10_000)))
    rng = random.Random(f"{fault.seed}/burst")
    for _ in range(4):
        time.sleep(rng.uniform(0.2, 1.2))
        loaded.kill()
        loaded.start()
        primary.execute(
            "shop", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'cdc'", user="postgres"
        )
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=90)
    verify.check(loaded, bank)


@pytest.mark.fault("19", "an encrypted connection is cut in the middle of a record", promise="continues")
def test_an_encrypted_connection_is_cut(fault):
    """Neither half a record nor a missing close_notify is taken for an end of the log."""
    with Postgres() as server:
        key, certificate = f"{server.data}/server.key", f"{server.data}/server.crt"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
            + ["-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
            **server._user(),
        )
        subprocess.run(["chmod", "600", key], check=True)
        server.stop()
        server.settings["ssl"] = "on"
        server.start()
        server.create_database("shop")
        bank = verify.Bank(server, "shop", fault.seed)
        rng = random.Random(f"{fault.seed}/tls")
        source = {"tls": {"mode": "require"}}
        with Proxy(server.port) as proxy, verify.Watched(
            server, "shop", verify.PATTERNS, port=proxy.port, source=source
        ) as running:
            running.start_and_load()
            bank.start(writers=2, pause=0.02)
            verify.arrival(running, bank)
            encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl and usename = 'cdc'"
            assert server.execute("shop", encrypted, user="postgres")[0][0] >= 1
            for _ in range(8):
                before = proxy.seen()["connections"]
                proxy.reset_after(rng.randint(1, 60_000))
                wait_for(lambda: proxy.seen()["connections"] > before, 30, "the next connection")
            with fault.recovering():
                verify.arrival(running, bank, seconds=15)
            verify.check(running, bank)

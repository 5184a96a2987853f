"""MariaDB and MySQL as sources that fail: their network, their process, their data of yesterday."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
import verify
from mysql_bank import MysqlBank
from servers import MariaDB, MySQL, Proxy, wait_for

# What a server acknowledged survives its end.
DURABLE = {"innodb-flush-log-at-trx-commit": 1, "sync-binlog": 1}
FOUND_SECONDS = 60


@pytest.fixture(params=[MariaDB, MySQL], ids=["mariadb", "mysql"])
def primary(request):
    """A server of the test's own."""
    kind = request.param
    if kind is MySQL:
        if MySQL.missing():
            pytest.skip(MySQL.missing())
        durable = {**DURABLE, "innodb-flush-method": "O_DIRECT"}
    else:
        durable = DURABLE
    with kind(durable) as server:
        yield server


@pytest.fixture
def bank(primary, fault):
    """The workload; its writers are ended."""
    made = MysqlBank(primary, "bank", fault.seed)
    yield made
    made.stopping.set()


@pytest.fixture
def link(primary):
    """The proxy between daemon and source."""
    with Proxy(primary.port) as proxy:
        yield proxy


@pytest.fixture
def loaded(primary, bank, link):
    """The daemon behind the proxy, loaded, with writers at work."""
    with verify.Watched(primary, "bank", verify.PATTERNS, port=link.port) as running:
        running.start_and_load()
        bank.start(writers=2, pause=0.02)
        verify.arrival(running, bank)
        yield running


def errors(running):
    """Everything that the task says is wrong."""
    return " ".join(str(error) for error in running.task_record()["errors"])


@pytest.mark.fault("19", "MariaDB and MySQL reset the connection in the middle of a message", promise="continues")
def test_resets_in_the_middle_of_messages(loaded, bank, link, fault):
    rng = random.Random(f"{fault.seed}/resets")
    for _ in range(8):
        before = link.seen()["connections"]
        link.reset_after(rng.randint(1, 30_000))
        wait_for(lambda: link.seen()["connections"] > before, 30, "the next connection")
        time.sleep(rng.random())
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=15)
    verify.check(loaded, bank)


@pytest.mark.fault("19", "an administrator ends our sessions at MariaDB and MySQL", promise="continues")
def test_our_sessions_are_ended(loaded, bank, primary, fault):
    ended = 0
    for _ in range(6):
        sessions = "select id from information_schema.processlist where user = 'cdc'"
        for (session,) in primary.execute("mysql", sessions, user="root"):
            try:
                primary.execute("mysql", f"kill {session}", user="root")
                ended += 1
            except Exception as error:  # noqa: BLE001: it ended by itself meanwhile
                assert "1094" in str(error), error
        time.sleep(1)
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=15)
    fault.outcome(f"{ended} sessions were ended")
    assert ended >= 3
    verify.check(loaded, bank)


@pytest.mark.fault("20", "MariaDB and MySQL hang without a reset", promise="continues")
def test_the_source_hangs_while_changes_flow(loaded, bank, link, fault):
    link.hang()
    hung = time.monotonic()
    wait_for(lambda: "CONNECTION" in errors(loaded), FOUND_SECONDS, "the hang to be found", every=0.2)
    fault.outcome(f"found after {time.monotonic() - hung:.0f} s")
    link.heal()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=15)
    assert not errors(loaded)
    verify.check(loaded, bank)


@pytest.mark.fault("22", "the network to MariaDB and MySQL flaps", promise="continues")
def test_the_network_flaps(loaded, bank, link, fault):
    rng = random.Random(f"{fault.seed}/flaps")
    until, flaps = time.monotonic() + 15, 0
    while time.monotonic() < until:
        rng.choice([link.cut, link.reset, link.hang])()
        time.sleep(rng.uniform(0.05, 0.6))
        link.heal()
        time.sleep(rng.uniform(0.05, 1.5))
        flaps += 1
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=15)
    fault.outcome(f"{flaps} flaps")
    verify.check(loaded, bank)


@pytest.mark.fault("23", "MariaDB and MySQL are killed under load and start again, three times", promise="continues")
def test_the_source_is_killed_under_load(loaded, bank, primary, fault):
    for _ in range(3):
        time.sleep(1)
        primary.stop(signal.SIGKILL)
        time.sleep(0.5)
        primary.start()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=30)
    verify.check(loaded, bank)


@pytest.mark.fault("23", "MariaDB and MySQL are killed while they are loaded", promise="continues")
def test_the_source_is_killed_while_it_is_loaded(primary, bank, fault):
    bank.add_letters(30_000)
    options = {"full-load": {"rate-limit": "5MB"}}
    with verify.Watched(primary, "bank", verify.PATTERNS, options=options) as running:
        running.start()
        bank.start(writers=4, pause=0.002)
        wait_for(lambda: "Full load" in running.states_or_none().values(), 30, "the load")
        time.sleep(2)
        assert "Full load" in running.states().values()
        primary.stop(signal.SIGKILL)
        primary.start()
        with fault.recovering():
            running.wait_states(seconds=90)
        verify.check(running, bank)


@pytest.mark.fault("25", "MariaDB and MySQL come back from an older backup", promise="stops safely")
def test_an_older_backup_is_refused_and_reloaded(loaded, bank, primary, fault):
    """The source went back behind what we have. The reload that the error names brings what it has now."""
    bank.stop()
    primary.stop()
    yesterday = f"{primary.folder}/yesterday"
    subprocess.run(["cp", "-a", primary.data, yesterday], check=True)
    primary.start()
    bank.run(2)
    verify.arrival(loaded, bank)
    primary.stop()
    shutil.rmtree(primary.data)
    os.rename(yesterday, primary.data)
    primary.start()
    primary.execute("bank", "insert into letter values (123, 'restored')")
    said = wait_for(lambda: re.search("LOG-LOST|SOURCE-CHANGED", errors(loaded)), 40, "the refusal", every=0.2)
    assert "millrace reload" in errors(loaded), errors(loaded)
    fault.outcome(said.group())
    loaded.run("reload", "shop")
    loaded.run("resume", "shop")
    loaded.wait_states(seconds=90)
    primary.execute("bank", "insert into letter values (124, 'goes on')", "delete from letter where id = 123")
    loaded.compare(verify.TABLES, seconds=90)

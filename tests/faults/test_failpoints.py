"""SIGKILL at every named failpoint; the workload and the comparison are those of `make crash` (tests/e2e/crash.py)."""

import glob
import os
import re
import signal
import time

import pytest
from crash import (
    FLOW_POINTS,
    LOAD_POINTS,
    MYSQL_POINTS,
    REMAKE_POINTS,
    TAKEOVER_POINTS,
    Session,
    crash_in_flow,
    crash_in_load,
)
from daemon import CHECKOUT
from servers import MariaDB, MySQL, wait_for
from verify import Watched


@pytest.mark.fault("1, 6", "SIGKILL at every failpoint of a load and its commit", promise="continues")
@pytest.mark.parametrize("point", LOAD_POINTS)
def test_every_failpoint_of_the_load(server, fault, point):
    rows = crash_in_load(server, point, fault.seed)
    assert rows > 0
    fault.outcome(f"{point}: {rows} rows identical")


@pytest.mark.fault("2, 4, 5", "SIGKILL at every failpoint of the flow", promise="continues")
def test_every_failpoint_of_the_flow(server, fault):
    slowest = 0
    with Session(server, "crash_flow_all", fault.seed) as session:
        session.work()
        session.daemon.start()
        session.loaded()
        session.daemon.kill()
        for point in FLOW_POINTS:
            began = time.monotonic()
            rows = crash_in_flow(session, point)
            assert rows > 0
            session.daemon.kill()
            slowest = max(slowest, time.monotonic() - began)
    fault.outcome(f"{len(FLOW_POINTS)} failpoints, each compared, in {slowest:.0f} s at most; {rows} rows identical")


SHARED_POINTS = [point for point in LOAD_POINTS + FLOW_POINTS if not point.startswith("pg-")]


@pytest.mark.fault(
    "1, 2, 4, 5, 6", "SIGKILL at every failpoint of a load and of the flow from MariaDB and MySQL", promise="continues"
)
@pytest.mark.parametrize("kind", [MariaDB, MySQL], ids=["mariadb", "mysql"])
def test_every_failpoint_of_mariadb_and_mysql(fault, kind):
    if kind is MySQL and MySQL.missing():
        pytest.skip(MySQL.missing())
    with kind() as server:
        found = [killed_at(server, point, f"shop_{number}") for number, point in enumerate(MYSQL_POINTS + SHARED_POINTS)]
    fault.outcome(f"{server.TYPE}: {len(found)} failpoints, each compared, {sum(found)} rows identical")


def killed_at(server, point, database):
    """Gives how many rows are there at the end."""
    server.create_database(database)
    server.execute(
        database,
        "create table t (id int primary key, text varchar(300))",
        f"insert into t select seq, repeat(sha2(seq, 256), 4) from {server.numbers(100_000)}",
    )
    written = 0
    with Watched(server, database, [f"{database}.t"]) as running:
        running.start(ready=False, crash_at=f"{point}:1")

        def died():
            nonlocal written
            written += 1
            server.execute(database, f"insert into t values ({-written}, 'meanwhile')")
            return running.ended()

        wait_for(died, 60, f"{point} to be passed", every=0.2)
        assert running.process.returncode == -signal.SIGKILL, running.log()
        running.start_and_load()
        rows = sum(result.lake_rows for result in running.compare([(database, "t")]))
    assert rows == 100_000 + written, point
    return rows


@pytest.mark.quick
def test_every_failpoint_is_in_a_list():
    """A failpoint that is added to the sources is killed at, too."""
    named = set()
    for folder in ("src", "connectors"):
        for path in glob.glob(os.path.join(CHECKOUT, folder, "**", "*.rs"), recursive=True):
            with open(path) as file:
                named |= set(re.findall(r'fail_point!\(\s*"([^"]+)"', file.read()))
    listed = LOAD_POINTS + FLOW_POINTS + REMAKE_POINTS + TAKEOVER_POINTS + MYSQL_POINTS
    assert named == set(listed) and len(listed) == len(set(listed))

"""`make crash`: SIGKILL at every named failpoint and N times at random, under a running workload; afterwards source and
lake are compared row by row. Nothing may be lost, nothing may be there twice.

    crash.py [--kills 50] [--points all|few|NAME,…] [--seed S]

The binary of MILLRACE_BIN must be built with `--features failpoints`; the random kills use MILLRACE_SHIPPED_BIN where
it is given. The seed is printed; the same seed gives the same workload and the same waits.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))

from compare import Difference  # noqa: E402
from daemon import Daemon, Failed  # noqa: E402
from servers import Postgres, wait_for  # noqa: E402
from workload import PATTERNS, TABLES, Shop  # noqa: E402

# Passed while tables load, in the order of the way.
LOAD_POINTS = [
    "pg-before-slot",
    "pg-after-slot",
    "pg-load-inside-segment",
    "load-between-segment-and-record",
    "load-before-commit",
    "load-after-commit",
]
# Passed while changes flow.
FLOW_POINTS = [
    "pg-spill-after-write",
    "pg-spill-before-replay",
    "pg-spill-inside-replay",
    "stream-between-frames-and-mark",
    "stream-after-fsync",
    "pg-log-before-confirm",
    "target-during-upload",
    "target-after-upload",
    "delivery-after-intent",
    "delivery-between-upload-and-commit",
    "delivery-after-commit",
]
# Passed while a new slot is made in place of a lost one (test_source_care.py).
REMAKE_POINTS = ["remake-before-slot", "remake-after-slot", "remake-after-mark"]
# Passed while another server of MariaDB or MySQL takes over (test_mysql_failover.py).
TAKEOVER_POINTS = ["takeover-after-mark"]
# The same of a load and of the flow from MariaDB and MySQL, beside those of all sources (../faults/test_failpoints.py).
MYSQL_POINTS = ["mysql-load-inside-segment", "mysql-log-before-confirm"]
FEW = [
    "pg-after-slot",
    "load-between-segment-and-record",
    "load-before-commit",
    "stream-between-frames-and-mark",
    "delivery-between-upload-and-commit",
]
OPTIONS = {"stream": {"retention": "2s"}}


class Session:
    """One database, one workload, one daemon that is killed again and again."""

    def __init__(self, server, database, seed, scale=120, tables=TABLES):
        server.create_database(database)
        # A few hundred rows are a large transaction, which the server sends before it commits.
        server.execute(
            database, f"alter database \"{database}\" set logical_decoding_work_mem = '64kB'", user="postgres"
        )
        self.server, self.database, self.rng, self.tables = server, database, random.Random(seed), tables
        self.shop = Shop(server, database, seed, scale=scale)
        self.shop.create()
        self.daemon = Daemon(server, database, PATTERNS, buffer={"interval": "1s", "size": "4MiB"}, options=OPTIONS)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.suppress(Exception):
            self.shop.stop()
        self.daemon.close(keep=kind is not None)
        self.server.execute("postgres", f'drop database "{self.database}" with (force)', user="postgres")

    def work(self):
        """Starts the writers unless they write already."""
        if not self.shop.threads:
            self.shop.start(writers=2, pause=0.01)

    def loaded(self):
        """Waits until every table is loaded; from then on the table without a key and with full identity changes, too:
        rows from before its load would be in its audit and its load."""
        self.daemon.wait_states(seconds=120)
        self.shop.sensor_open.set()

    def crash_at(self, point, times=1, seconds=60):
        """Starts the daemon, which must die at the failpoint while the workload runs."""
        self.work()
        self.daemon.start(crash_at=f"{point}:{times}", ready=False)
        try:
            code = self.daemon.wait_exit(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{point}:{times} was not passed within {seconds} s\n{self.daemon.log()}") from None
        if code != -signal.SIGKILL:
            raise Failed(f"{point}: the daemon ended with {code}, not by SIGKILL\n{self.daemon.log()}")

    def compare(self):
        """Ends the writers and compares everything, ledger and accounts included."""
        if self.daemon.ended():
            self.daemon.start()
        self.loaded()
        time.sleep(0.5)
        self.shop.stop()
        self.shop.mark()
        results = self.daemon.compare(self.tables, seconds=120)
        wait_for(lambda: self.daemon.metrics().get(("millrace_unaccounted_rows",)) == 0, 20, "unaccounted = 0")
        return sum(result.lake_rows for result in results)


def crash_in_load(server, point, seed, times=1):
    """A fresh shop whose first load dies at the point, goes on, and dies again there once in a reload of all tables."""
    with Session(server, f"crash_{point.replace('-', '_')}_{times}", seed) as session:
        if point == "pg-load-inside-segment":
            # It is passed from a segment's second batch on.
            session.shop.add_orders(150_000)
        session.crash_at(point, times)
        session.daemon.start()
        session.loaded()
        rows = session.compare()
        if point.startswith("load") or point == "pg-load-inside-segment":
            session.daemon.run("reload", "shop", "shop.document")
            session.daemon.run("reload", "shop", "shop.page_view")
            session.daemon.wait_states(seconds=60)
            rows = session.compare()
        return rows


def crash_in_flow(session, point, times=1):
    """The loaded shop's daemon dies at the point and starts again."""
    session.crash_at(point, times)
    return session.compare()


def kill_at_random(session, kills, seed, compare_every=10):
    """Kills at random moments: while it starts, flows, delivers, loads a table again."""
    rng = random.Random(f"{seed}/kills")
    shipped = os.environ.get("MILLRACE_SHIPPED_BIN")
    if shipped:
        os.environ["MILLRACE_BIN"] = shipped
    rows = 0
    for number in range(1, kills + 1):
        session.work()
        if session.daemon.ended():
            session.daemon.start(ready=False)
        if rng.random() < 0.25:
            wait_for(lambda: session.daemon.http("/healthz"), 30, "the daemon")
            table = rng.choice(["shop.document", "shop.page_view", "shop.orders", "shop.seat", "shop.product"])
            # A reload may be refused while the one before is under way.
            session.daemon.command("reload", "shop", table)
        wait = rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 3.0)])
        time.sleep(wait)
        if session.daemon.ended():
            raise Failed(f"the daemon ended by itself:\n{session.daemon.log()}")
        session.daemon.kill()
        if number % compare_every == 0 or number == kills:
            rows = session.compare()
            say(f"{number} random kills: {rows} rows identical")
            session.daemon.kill()
    return rows


def say(text):
    print(f"crash: {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("MILLRACE_KILLS", "50")))
    parser.add_argument("--points", default="all")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MILLRACE_TEST_SEED") or time.time_ns() % 10**9))
    arguments = parser.parse_args()
    known = LOAD_POINTS + FLOW_POINTS
    points = {"all": known, "few": FEW, "none": []}.get(arguments.points) or [
        point for point in arguments.points.split(",") if point and point != "none"
    ]
    rng = random.Random(arguments.seed)
    failures = []
    say(f"seed {arguments.seed}, {len(points)} failpoints, {arguments.kills} random kills")

    def attempt(title, what):
        began = time.monotonic()
        try:
            say(f"{title}: {what()} rows identical, {time.monotonic() - began:.0f} s")
        except (Difference, Failed, TimeoutError, AssertionError) as error:
            failures.append(title)
            say(f"{title}: FAILED\n{error}")

    with Postgres() as server:
        for point in [point for point in points if point not in FLOW_POINTS]:
            attempt(f"{point}", lambda point=point: crash_in_load(server, point, arguments.seed))
        if any(point in FLOW_POINTS for point in points) or arguments.kills:
            with Session(server, "crash_flow", arguments.seed) as session:
                session.work()
                session.daemon.start()
                session.loaded()
                session.daemon.kill()
                for point in [point for point in points if point in FLOW_POINTS]:
                    for times in (1, rng.randint(2, 12)):
                        attempt(
                            f"{point}:{times}", lambda point=point, times=times: crash_in_flow(session, point, times)
                        )
                        if not session.daemon.ended():
                            session.daemon.kill()
                if arguments.kills:
                    attempt(
                        f"{arguments.kills} random kills",
                        lambda: kill_at_random(session, arguments.kills, arguments.seed),
                    )
    say(f"{len(failures)} failed: {failures}" if failures else "nothing lost, nothing twice")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

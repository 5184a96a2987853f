"""`make kills`: SIGKILL at random moments under load, and how long it takes each time until all is well again.

After each kill the daemon is started at once and a row is committed; the seconds count from the kill until that row is
durable in the stream (the slot confirms it), and until the catalog lists it at `interval: 1s`. A quarter of the kills
fall into loads of tables, some of the kills into the start after the kill before. Every so often, and at the end,
source and lake are compared row by row: nothing is lost, nothing is there twice.

    kills.py [--kills 200] [--seed S] [--json FILE]

The binary is that of MILLRACE_BIN. kills_mysql.py is the same with MariaDB or MySQL.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))

from compare import Difference, position  # noqa: E402
from crash import Session  # noqa: E402
from daemon import Failed, binary  # noqa: E402
from servers import Postgres, wait_for  # noqa: E402
from soak_record import quantiles  # noqa: E402
from workload import KINDS, Shop  # noqa: E402

RECOVERED_P95_MAX = 5.0
COMPARE_EVERY = 25
# Of `shop.orders`, so that its load takes long enough to be hit.
ORDERS = 300_000
# Large texts and COPY now and then only, so that the load is many transactions and not few large ones.
LIGHT = [(kind, weight) for kind, weight in KINDS if kind not in (Shop._copy, Shop._bulk)] + [(Shop._transfer, 20)]
# Where the next row is looked for, and how that is said.
PLACES = {"stream": "durable in the stream", "catalog": "in the catalog"}


def say(text):
    print(f"kills: {text}", flush=True)


class PostgresWork:
    """The busy shop at a PostgreSQL. A source of kills has a daemon, says what is reloaded, and compares."""

    NAME = "PostgreSQL"
    RELOADED = ["shop.document", "shop.page_view", "shop.orders", "shop.orders", "shop.orders"]

    def __init__(self, session):
        self.session, self.server, self.shop, self.daemon = session, session.server, session.shop, session.daemon

    @classmethod
    @contextlib.contextmanager
    def open(cls, seed):
        """Everything loaded, and at work."""
        with Postgres() as server, Session(server, "kills", seed) as session:
            work = cls(session)
            work.shop.kinds, work.shop.large = LIGHT, (2_000, 10_000)
            work.shop.add_orders(ORDERS)
            work.start()
            work.daemon.start()
            session.loaded()
            yield work
            work.shop.stop()

    def start(self):
        """Begins to write."""
        self.shop.start(writers=2, pause=0.03)

    def commits(self):
        """Acknowledged transactions."""
        return self.shop.commits()

    def compare(self):
        """Ends the writers, and compares everything; gives how many rows."""
        return self.session.compare()

    def recover(self, killed):
        """Commits a row; gives the seconds from the kill until it is at each place."""
        self.shop.mark()
        with self.server.connect(self.session.database, "postgres", autocommit=True) as connection:
            marked = int(connection.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0])
            query = (
                "select confirmed_flush_lsn - '0/0'::pg_lsn >= %s from pg_replication_slots "
                "where database = current_database() and slot_name like 'millrace_%%' and not temporary"
            )

            def durable():
                must_live(self.daemon)
                row = connection.execute(query, (marked,)).fetchone()
                return row and row[0]

            wait_for(durable, 60, "the row is durable", every=0.02)
            stream = time.monotonic() - killed
        wait_for(lambda: complete(self.daemon, marked), 60, "the row is in the catalog", every=0.05)
        return {"stream": stream, "catalog": time.monotonic() - killed}


def complete(daemon, marked, schema="shop"):
    """Whether the catalog has everything of the ledger up to a position."""
    try:
        tables = json.loads(daemon.run("catalog", "tables", schema, "--json"))
    except Failed:
        return False
    return any(table["name"] == "ledger" and position(table["complete_through"]) >= marked for table in tables)


def must_live(daemon):
    """It ended only where it was killed."""
    if daemon.ended():
        raise Failed(f"the daemon ended by itself:\n{daemon.log()}")


def kill(work, rng):
    """One kill, perhaps inside a load, perhaps a second one inside the start; gives what it was and its recovery."""
    daemon, in_load = work.daemon, False
    if rng.random() < 0.25:
        # It may be refused while the one before is under way.
        daemon.command("reload", "shop", rng.choice(work.RELOADED))
        time.sleep(rng.uniform(0, 0.4))
        in_load = any(state != "Table completed" for state in daemon.states_or_none().values())
    else:
        time.sleep(rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 2.0)]))
    must_live(daemon)
    kills = 0
    while kills == 0 or (kills == 1 and rng.random() < 0.15):
        if kills:
            time.sleep(rng.uniform(0, 0.6))
        daemon.kill()
        killed = time.monotonic()
        daemon.start(ready=False)
        kills += 1
    seconds = {where: round(value, 3) for where, value in work.recover(killed).items()}
    return {"kills": kills, "in_load": in_load, **seconds}


def run(work, kills, seed):
    """All of it; gives the recoveries and the number of compared rows."""
    rng, found, done, rows, next_compare = random.Random(f"{seed}/kills"), [], 0, 0, COMPARE_EVERY
    while done < kills:
        found.append(kill(work, rng))
        done += found[-1]["kills"]
        if done >= next_compare or done >= kills:
            next_compare += COMPARE_EVERY
            rows = work.compare()
            say(f"{work.NAME}: {done} kills, {work.commits()} commits: {rows} rows identical")
            work.start()
    return found, rows


def build():
    """Which program it was: its version, the beginning of its SHA-256, and the day (UTC) that it was run."""
    with open(binary(), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    said = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {"version": said, "sha256": digest[:16], "day": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}


def main(kind):
    """Kills with a source of this kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("MILLRACE_KILLS", "200")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MILLRACE_TEST_SEED") or time.time_ns() % 10**9))
    parser.add_argument("--json", help="writes the figures there")
    arguments = parser.parse_args()
    say(f"{kind.NAME}: seed {arguments.seed}, {arguments.kills} kills")
    try:
        with kind.open(arguments.seed) as work:
            found, rows = run(work, arguments.kills, arguments.seed)
            commits = work.commits()
    except (Difference, Failed, TimeoutError) as error:
        say(f"FAILED: {error}")
        return 1
    each = {where: [one[where] for one in found] for where in PLACES if where in found[0]}
    record = {"build": build(), "source": kind.NAME, "seed": arguments.seed, "rows": rows, "commits": commits}
    record |= {"kills": sum(one["kills"] for one in found), "in_loads": sum(one["in_load"] for one in found)}
    record |= {where: quantiles(values) for where, values in each.items()}
    for where in each:
        figures = ", ".join(f"{what} {record[where][what]:.2f} s" for what in ("p50", "p95", "max"))
        say(f"from the kill to the next row {PLACES[where]}: {figures}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({**record, "each": each}, file)
            file.write("\n")
    slow = [where for where in each if record[where]["p95"] >= RECOVERED_P95_MAX]
    failed = f"FAILED: p95 of {slow} is not below {RECOVERED_P95_MAX} s"
    say(failed if slow else f"{record['kills']} kills: nothing lost, nothing twice")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(PostgresWork))

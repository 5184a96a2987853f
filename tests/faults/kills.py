"""`make kills`: SIGKILL at random moments under load, and how long it takes each time until all is well again.

After each kill the daemon is started at once and a row is committed; the seconds count from the kill until that row is
durable in the stream (the slot confirms it), and until the catalog lists it at `interval: 1s`. A quarter of the kills
fall into loads of tables, some of the kills into the start after the kill before. Every so often, and at the end,
source and lake are compared row by row: nothing is lost, nothing is there twice.

    kills.py [--kills 200] [--seed S] [--json FILE]

The binary is that of MILLRACE_BIN.
"""

import argparse
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))

from compare import Difference  # noqa: E402
from crash import Session  # noqa: E402
from daemon import Failed  # noqa: E402
from servers import Postgres, wait_for  # noqa: E402
from workload import KINDS, Shop  # noqa: E402

RECOVERED_P95_MAX = 5.0
COMPARE_EVERY = 25
RELOADED = ["shop.document", "shop.page_view", "shop.orders", "shop.orders", "shop.orders"]
# Of `shop.orders`, so that its load takes long enough to be hit.
ORDERS = 300_000
# Large texts and COPY now and then only, so that the load is many transactions and not few large ones.
LIGHT = [(kind, weight) for kind, weight in KINDS if kind not in (Shop._copy, Shop._bulk)] + [(Shop._transfer, 20)]


def say(text):
    print(f"kills: {text}", flush=True)


def position(text):
    """The catalog's `X/Y` as a number."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def complete(daemon, marked):
    """Whether the catalog has everything of the ledger up to a position."""
    try:
        tables = json.loads(daemon.run("catalog", "tables", "shop", "--json"))
    except Failed:
        return False
    return any(table["name"] == "ledger" and position(table["complete_through"]) >= marked for table in tables)


def recover(session, killed):
    """Commits a row; gives the seconds from the kill until it is durable, and until it is in the catalog."""
    session.shop.mark()
    with session.server.connect(session.database, "postgres", autocommit=True) as connection:
        marked = int(connection.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0])
        query = (
            "select confirmed_flush_lsn - '0/0'::pg_lsn >= %s from pg_replication_slots "
            "where database = current_database() and slot_name like 'millrace_%%' and not temporary"
        )

        def durable():
            if session.daemon.ended():
                raise Failed(f"the daemon ended by itself:\n{session.daemon.log()}")
            row = connection.execute(query, (marked,)).fetchone()
            return row and row[0]

        wait_for(durable, 60, "the row is durable", every=0.02)
        stream = time.monotonic() - killed
    wait_for(lambda: complete(session.daemon, marked), 60, "the row is in the catalog", every=0.05)
    return stream, time.monotonic() - killed


def kill(session, rng):
    """One kill, perhaps inside a load, perhaps a second one inside the start; gives what it was and its recovery."""
    in_load = False
    if rng.random() < 0.25:
        # It may be refused while the one before is under way.
        session.daemon.command("reload", "shop", rng.choice(RELOADED))
        time.sleep(rng.uniform(0, 0.4))
        in_load = any(state != "Table completed" for state in session.daemon.states_or_none().values())
    else:
        time.sleep(rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 2.0)]))
    if session.daemon.ended():
        raise Failed(f"the daemon ended by itself:\n{session.daemon.log()}")
    session.daemon.kill()
    killed = time.monotonic()
    session.daemon.start(ready=False)
    kills = 1
    if rng.random() < 0.15:
        time.sleep(rng.uniform(0, 0.6))
        session.daemon.kill()
        killed = time.monotonic()
        session.daemon.start(ready=False)
        kills = 2
    stream, catalog = recover(session, killed)
    return {"kills": kills, "in_load": in_load, "stream": round(stream, 3), "catalog": round(catalog, 3)}


def quantiles(values):
    """Median, 95th percentile, maximum."""
    values = sorted(values)
    return {"p50": values[len(values) // 2], "p95": values[int(len(values) * 0.95)], "max": values[-1]}


def run(server, kills, seed):
    """All of it; gives the recoveries and the number of compared rows."""
    rng, found, done, rows = random.Random(f"{seed}/kills"), [], 0, 0
    with Session(server, "kills", seed) as session:
        session.shop.kinds, session.shop.large = LIGHT, (2_000, 10_000)
        session.shop.add_orders(ORDERS)
        session.shop.start(writers=2, pause=0.03)
        session.daemon.start()
        session.loaded()
        next_compare = COMPARE_EVERY
        while done < kills:
            found.append(kill(session, rng))
            done += found[-1]["kills"]
            if done >= next_compare or done >= kills:
                next_compare += COMPARE_EVERY
                rows = session.compare()
                say(f"{done} kills, {sum(session.shop.done.values())} commits: {rows} rows identical")
                session.shop.start(writers=2, pause=0.03)
        session.shop.stop()
    return found, done, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("MILLRACE_KILLS", "200")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MILLRACE_TEST_SEED") or time.time_ns() % 10**9))
    parser.add_argument("--json", help="writes the figures there")
    arguments = parser.parse_args()
    say(f"seed {arguments.seed}, {arguments.kills} kills")
    try:
        with Postgres() as server:
            found, done, rows = run(server, arguments.kills, arguments.seed)
    except (Difference, Failed, TimeoutError) as error:
        say(f"FAILED: {error}")
        return 1
    record = {"seed": arguments.seed, "kills": done, "in_loads": sum(one["in_load"] for one in found), "rows": rows}
    for where in ("stream", "catalog"):
        record[where] = quantiles([one[where] for one in found])
        figures = ", ".join(f"{name} {value:.2f} s" for name, value in record[where].items())
        goal = "durable in the stream" if where == "stream" else "in the catalog"
        say(f"from the kill to the next row {goal}: {figures}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {**record, "each": {where: [one[where] for one in found] for where in ("stream", "catalog")}}, file
            )
            file.write("\n")
    slow = [where for where in ("stream", "catalog") if record[where]["p95"] >= RECOVERED_P95_MAX]
    say(
        f"FAILED: p95 of {slow} is not below {RECOVERED_P95_MAX} s"
        if slow
        else f"{done} kills: nothing lost, nothing twice"
    )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

"""The random kills of `make kills` with a MariaDB as the source.

After each kill the daemon is started at once and a row is committed; the seconds count from the kill until the row is
in a file that the catalog lists, at `interval: 1s`. What is durable in the stream comes before that. Every so often,
and at the end, source and lake are compared row by row.

    kills_mariadb.py [--kills 200] [--seed S] [--json FILE]

The binary is that of MILLRACE_BIN.
"""

import argparse
import json
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))

import pyarrow.parquet  # noqa: E402
from compare import Difference  # noqa: E402
from daemon import Daemon, Failed  # noqa: E402
from kills import COMPARE_EVERY, RECOVERED_P95_MAX, quantiles  # noqa: E402
from servers import MariaDB, wait_for  # noqa: E402

ROWS, PLACES = 100_000, 5_000
TABLES = ["orders", "items", "ledger"]


def say(text):
    print(f"kills: MariaDB: {text}", flush=True)


class Work:
    """Three tables, and a writer that changes them in transactions, some of which are rolled back."""

    def __init__(self, server, seed):
        self.server, self.rng, self.commits, self.failure = server, random.Random(seed), 0, None
        self.stopping, self.thread = threading.Event(), None
        server.execute(
            "shop",
            "create table orders (id int primary key auto_increment, customer varchar(40), amount decimal(10,2), "
            "note text)",
            "create table items (sku varchar(20), place int unsigned, price double, primary key (sku, place))",
            "create table ledger (writer int, seq bigint, primary key (writer, seq))",
            f"insert into orders (customer, amount) select concat('c', seq), seq / 7 from seq_1_to_{ROWS}",
            f"insert into items select concat('s', seq), seq, seq / 3 from seq_1_to_{PLACES}",
        )

    def start(self):
        """Begins to write."""
        self.stopping.clear()
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def stop(self):
        """Ends the writer."""
        self.stopping.set()
        self.thread.join(30)
        if self.failure:
            raise self.failure

    def write(self):
        """Until stopped, about thirty transactions a second."""
        try:
            with self.server.connect("shop") as connection, connection.cursor() as cursor:
                while not self.stopping.wait(0.03):
                    number = self.rng.randint(1, ROWS)
                    cursor.execute("begin")
                    cursor.execute("insert into orders (customer, amount) values ('w', %s)", (number,))
                    cursor.execute("update orders set amount = amount + 1, note = 'n' where id = %s", (number,))
                    cursor.execute("delete from orders where id = %s", (self.rng.randint(1, ROWS),))
                    place = self.rng.randint(1, PLACES)
                    cursor.execute("update items set price = price + 1 where place = %s", (place,))
                    cursor.execute("update items set sku = concat('m', %s) where place = %s", (number, place // 2))
                    ends = self.rng.random() < 0.9
                    cursor.execute("commit" if ends else "rollback")
                    self.commits += ends
        except Exception as error:  # noqa: BLE001: told by `stop`
            self.failure = error


def listed(daemon, seen, seq):
    """Whether the row of the ledger is in a file that the catalog lists; `seen` are files without it."""
    try:
        files = daemon.lake.files("shop", "ledger")
    except Failed:
        return False
    for file in files:
        if file["path"] in seen:
            continue
        rows = pyarrow.parquet.read_table(daemon.lake.local(file["path"]), columns=["seq"])["seq"].to_pylist()
        if seq in rows:
            return True
        seen.add(file["path"])
    return False


def kill(daemon, server, rng, seq, seen):
    """One kill; gives its recovery in seconds."""
    in_load = False
    if rng.random() < 0.2:
        daemon.command("reload", "shop", f"shop.{rng.choice(['orders', 'items'])}")
        time.sleep(rng.uniform(0, 0.4))
        in_load = any(state != "Table completed" for state in daemon.states_or_none().values())
    else:
        time.sleep(rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 1.5)]))
    if daemon.ended():
        raise Failed(f"the daemon ended by itself:\n{daemon.log()}")
    daemon.kill()
    killed = time.monotonic()
    daemon.start(ready=False)
    server.execute("shop", f"insert into ledger values (1, {seq})")
    wait_for(lambda: listed(daemon, seen, seq), 60, "the row is in the catalog", every=0.05)
    return {"in_load": in_load, "catalog": round(time.monotonic() - killed, 3)}


def run(server, kills, seed):
    """All of it; gives the recoveries and the number of compared rows."""
    server.create_database("shop")
    work, rng, found, seen, rows = Work(server, seed), random.Random(f"{seed}/kills"), [], set(), 0
    with Daemon(server, "shop", ["shop.*"]) as daemon:
        daemon.start_and_load(seconds=120)
        work.start()
        for number in range(1, kills + 1):
            found.append(kill(daemon, server, rng, number, seen))
            if number % COMPARE_EVERY == 0 or number == kills:
                work.stop()
                daemon.wait_states(seconds=90)
                rows = sum(result.lake_rows for result in daemon.compare([("shop", table) for table in TABLES]))
                wait_for(lambda: daemon.metrics().get(("millrace_unaccounted_rows",)) == 0, 20, "unaccounted = 0")
                say(f"{number} kills, {work.commits} commits: {rows} rows identical")
                work.start()
        work.stop()
    return found, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("MILLRACE_KILLS", "200")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MILLRACE_TEST_SEED") or time.time_ns() % 10**9))
    parser.add_argument("--json", help="writes the figures there")
    arguments = parser.parse_args()
    say(f"seed {arguments.seed}, {arguments.kills} kills")
    try:
        with MariaDB() as server:
            found, rows = run(server, arguments.kills, arguments.seed)
    except (Difference, Failed, TimeoutError) as error:
        say(f"FAILED: {error}")
        return 1
    record = {
        "seed": arguments.seed,
        "kills": len(found),
        "in_loads": sum(one["in_load"] for one in found),
        "rows": rows,
    }
    record["catalog"] = quantiles([one["catalog"] for one in found])
    figures = ", ".join(f"{name} {value:.2f} s" for name, value in record["catalog"].items())
    say(f"from the kill to the next row in the catalog: {figures}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({**record, "each": {"catalog": [one["catalog"] for one in found]}}, file)
            file.write("\n")
    slow = record["catalog"]["p95"] >= RECOVERED_P95_MAX
    say(
        f"FAILED: p95 is not below {RECOVERED_P95_MAX} s"
        if slow
        else f"{len(found)} kills: nothing lost, nothing twice"
    )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

"""`make large-transaction`: one transaction of 10 M rows (MILLRACE_ROWS) through the daemon at default settings: its peak
resident memory (under 512 MiB), its disk, and every row compared by count and sum. A fifth of the rows is rolled back to
a savepoint in between, and small transactions commit meanwhile.

    large_transaction.py [--rows 10000000]
"""

import argparse
import glob
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(__file__))

import duckdb  # noqa: E402
from daemon import Daemon  # noqa: E402
from servers import Postgres, wait_for  # noqa: E402

BUDGET = 512 << 20
INSERT = "insert into big select i, md5(i::text), (i % 100)::numeric(12,2), now(), repeat(md5(i::text), 2) from generate_series({}, {}) i"


def say(text):
    print(f"large-transaction: {text}", flush=True)


class Disk(threading.Thread):
    """Watches how large the daemon's folders for the stream and for open transactions become."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.folder, self.stop, self.spill, self.all = f"{daemon.state}/streams", threading.Event(), 0, 0

    def run(self):
        while not self.stop.wait(0.2):
            sizes = {}
            for path in glob.glob(f"{self.folder}/**", recursive=True):
                try:
                    found = os.stat(path)
                except FileNotFoundError:
                    continue
                sizes[path] = found.st_blocks * 512
            self.all = max(self.all, sum(sizes.values()))
            self.spill = max(self.spill, sum(size for path, size in sizes.items() if "/spill/" in path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=int(os.environ.get("MILLRACE_ROWS", "10000000")))
    rows = parser.parse_args().rows
    with Postgres() as server:
        database = server.create_database("large")
        server.execute(
            database,
            "create table big (id bigint primary key, name text, price numeric(12,2), at timestamptz, note text)",
            "create table small (id int primary key)",
        )
        with Daemon(server, database, ["public.*"]) as daemon:
            daemon.start_and_load()
            disk = Disk(daemon)
            disk.start()
            idle, began = daemon.peak_rss(), time.monotonic()
            with server.connect(database) as connection:
                part = rows // 4
                for number in range(4):
                    connection.execute(INSERT.format(number * part + 1, (number + 1) * part))
                    connection.execute("savepoint s")
                    connection.execute(INSERT.format(rows * 2 + 1, rows * 2 + rows // 20))
                    connection.execute("rollback to s")
                    server.execute(database, f"insert into small values ({number})")
                say(f"{part * 4} rows are written in {time.monotonic() - began:.0f} s")
                duck = duckdb.connect()

                def count(table, what="count(*)"):
                    if not daemon.lake.files("public", table):
                        return (0,)
                    return duck.execute(f"select {what} from ({daemon.lake.view('public', table)})").fetchone()

                wait_for(lambda: count("small") == (4,), 600, "small transactions while the large one is open", every=2)
                say(f"small ones are in the lake, {time.monotonic() - began:.0f} s; peak {daemon.peak_rss() >> 20} MiB")
                committed = time.monotonic()
                connection.commit()
            expected = server.execute(database, "select count(*), sum(id), sum(price) from big")[0]
            what = "count(*), sum(id), sum(price)"
            wait_for(lambda: daemon.tables()[("public", "big")]["inserts"] >= expected[0], 1800, "delivery", every=1)
            seconds = time.monotonic() - committed
            found = count("big", what)
            disk.stop.set()
            disk.join()
            streamed = server.execute(
                database, "select stream_txns, pg_size_pretty(stream_bytes) from pg_stat_replication_slots", user="postgres"
            )[0]
            peak = daemon.peak_rss()
            say(
                f"{found[0]} rows in the lake {seconds:.0f} s after the commit; the server sent {streamed[1]} ahead; peak "
                f"{peak / 2**20:.0f} MiB (idle {idle / 2**20:.0f}), {disk.spill / 2**20:.0f} MiB of spill, "
                f"{disk.all / 2**20:.0f} MiB with the stream"
            )
            problems = []
            if tuple(map(int, found)) != tuple(map(int, expected)):
                problems.append(f"the lake has {found}, the source {expected}")
            if peak > BUDGET:
                problems.append(f"a peak of {peak >> 20} MiB is above {BUDGET >> 20}")
            if streamed[0] < 1:
                problems.append("the server sent nothing ahead")
            wait_for(lambda: daemon.metrics().get(("millrace_unaccounted_rows",)) == 0, 30, "unaccounted = 0")
    for problem in problems:
        say(f"FAILED: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""`make memory`: peak resident memory of full loads and of changes at default settings: 1 M and 6 M rows within 10 % of
each other, 1 and 1,000 tables within the budget, all under 512 MiB. The same number of rows changes everywhere, enough to
fill the buffers of the stream and the delivery.

    memory.py [--rows 1000000,6000000] [--tables 1000]
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))

from daemon import Daemon  # noqa: E402
from servers import Postgres, wait_for  # noqa: E402

BUDGET = 512 << 20
CHANGES = 600_000
ROW = (
    "i as id, md5(i::text) as name, (i % 100)::numeric(12,2) as price, now() as at, i % 7 as kind, "
    "repeat(md5(i::text), 2) as note"
)


def say(text):
    print(f"memory: {text}", flush=True)


def measure(server, database, tables, title):
    """Loads everything at default settings, then follows the changes; gives the peak in bytes."""
    with Daemon(server, database, tables, buffer={"interval": "60s"}) as daemon:
        daemon.start_and_load(seconds=900)
        peak_of_load = daemon.peak_rss()
        names = [
            row[0]
            for row in server.execute(
                database,
                "select relname from pg_class where relkind = 'r' and relnamespace " "= 'public'::regnamespace",
            )
        ]
        with server.connect(database) as connection:
            update = f"set note = 'x' where id <= {CHANGES // len(names)}"
            changes = sum(connection.execute(f"update {name} {update}").rowcount for name in names)
        began = time.monotonic()
        wait_for(
            lambda: sum(record["updates"] for record in daemon.tables().values()) >= changes, 300, "delivery", every=2
        )
        peak = daemon.peak_rss()
        say(
            f"{title}: {peak_of_load / 2**20:.0f} MiB after the load, {peak / 2**20:.0f} MiB after the changes "
            f"(delivered in {time.monotonic() - began:.0f} s)"
        )
        return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,6000000")
    parser.add_argument("--tables", type=int, default=1000)
    arguments = parser.parse_args()
    peaks, problems = [], []
    with Postgres(settings={"max_locks_per_transaction": 1024}) as server:
        for rows in map(int, arguments.rows.split(",")):
            database = server.create_database(f"rows_{rows}")
            server.execute(
                database,
                f"create table big as select {ROW} from generate_series(1, {rows}) i",
                "alter table big add primary key (id)",
                "vacuum analyze big",
            )
            peaks.append(measure(server, database, ["public.*"], f"{rows} rows in 1 table"))
            server.execute("postgres", f"drop database {database} with (force)", user="postgres")
        database = server.create_database("many")
        with server.connect(database) as connection:
            for number in range(arguments.tables):
                connection.execute(f"create table t{number} as select {ROW} from generate_series(1, 1000) i")
                connection.execute(f"alter table t{number} add primary key (id)")
        server.execute(database, "analyze")
        peaks.append(measure(server, database, ["public.*"], f"1000 rows in each of {arguments.tables} tables"))
    for peak in peaks:
        if peak > BUDGET:
            problems.append(f"a peak of {peak >> 20} MiB is above {BUDGET >> 20}")
    if len(peaks) > 2 and abs(peaks[1] - peaks[0]) > 0.1 * max(peaks[0], peaks[1]):
        problems.append(f"the peaks {peaks[0] >> 20} and {peaks[1] >> 20} MiB differ by more than 10 %")
    for problem in problems:
        say(f"FAILED: {problem}")
    if not problems:
        say("bounded")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

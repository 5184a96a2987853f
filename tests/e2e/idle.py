"""`make idle`: what a daemon with one task costs while nothing happens, and how soon it streams after a start.

One table, everything delivered, then a minute of quiet: resident memory (and what of it is the daemon's own), CPU time.
Then it is ended and started again a few times: the seconds from the start of the process until the server shows our
session streaming from the slot.

    idle.py [--seconds 60] [--starts 5] [--json FILE]

The binary is that of MILLRACE_BIN.
"""

import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))

from daemon import Daemon  # noqa: E402
from servers import Postgres, wait_for  # noqa: E402

RESIDENT_MAX, CORE_SHARE_MAX, START_MAX = 40 << 20, 0.005, 1.0
# For the load's memory to be given back, and for what runs at longer intervals to run.
SETTLE = 30


def say(text):
    print(f"idle: {text}", flush=True)


def memory(pid):
    """Resident, proportional and private bytes, and those of them that are files (the program)."""
    found = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            parts = line.split()
            if len(parts) == 3 and parts[2] == "kB":
                found[parts[0].rstrip(":")] = int(parts[1]) * 1024
    return found["Rss"], found["Pss"], found["Private_Dirty"] + found["Private_Clean"], found["Anonymous"]


def streaming(server):
    """Whether the server shows a session that streams."""
    rows = server.execute("shop", "select state from pg_stat_replication where state = 'streaming'", user="postgres")
    return bool(rows)


def time_starts(server, daemon, starts):
    """Seconds from the start of the process to streaming, for each start."""
    found = []
    with server.connect("shop", "postgres", autocommit=True) as connection:
        for _ in range(starts):
            daemon.terminate()
            wait_for(lambda: not streaming(server), 10, "the old session is gone")
            began = time.monotonic()
            daemon.start(ready=False)
            query = "select from pg_stat_replication where state = 'streaming'"
            wait_for(lambda: connection.execute(query).fetchone() is not None, 30, "streaming", every=0.005)
            found.append(time.monotonic() - began)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000, help="that the table has, so that a load went before")
    parser.add_argument("--json", help="writes the figures there")
    arguments = parser.parse_args()
    with Postgres() as server:
        server.create_database("shop")
        server.execute(
            "shop",
            "create table t (id int primary key, v text, at timestamptz default now())",
            f"insert into t select i, md5(i::text) from generate_series(1, {arguments.rows}) i",
        )
        with Daemon(server, "shop", ["public.t"], minimal=True) as daemon:
            daemon.start_and_load()
            server.execute("shop", "update t set v = 'x' where id <= 1000")
            time.sleep(SETTLE)
            before = daemon.cpu_seconds()
            began = time.monotonic()
            time.sleep(arguments.seconds)
            share = (daemon.cpu_seconds() - before) / (time.monotonic() - began)
            resident, proportional, private, anonymous = memory(daemon.process.pid)
            threads = len(os.listdir(f"/proc/{daemon.process.pid}/task"))
            # What a daemon holds that only ever followed changes.
            starts = time_starts(server, daemon, arguments.starts)
            time.sleep(min(SETTLE, arguments.seconds))
            fresh = memory(daemon.process.pid)
    record = {
        "resident": resident,
        "proportional": proportional,
        "private": private,
        "anonymous": anonymous,
        "resident_after_restart": fresh[0],
        "anonymous_after_restart": fresh[3],
        "threads": threads,
        "core_share": round(share, 5),
        "start_to_streaming": [round(seconds, 3) for seconds in starts],
    }
    mib = lambda value: f"{value / 2**20:.1f} MiB"  # noqa: E731
    say(
        f"after a load of {arguments.rows} rows: {mib(resident)} resident ({mib(anonymous)} of it anonymous, "
        f"{threads} threads), {share * 100:.2f} % of a core over {arguments.seconds:.0f} s"
    )
    say(f"after a restart: {mib(fresh[0])} resident ({mib(fresh[3])} anonymous)")
    say(
        f"from start to streaming, {len(starts)} starts: median {statistics.median(starts):.2f} s, "
        f"at most {max(starts):.2f} s"
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
    wrong = [f"{mib(most)} resident" for most in [max(resident, fresh[0])] if most > RESIDENT_MAX]
    wrong += [f"{share * 100:.2f} % of a core"] if share > CORE_SHARE_MAX else []
    wrong += [f"{max(starts):.2f} s to streaming"] if max(starts) > START_MAX else []
    for problem in wrong:
        say(f"FAILED: {problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

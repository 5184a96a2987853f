"""Freshness: from just before a commit is sent to the source until it is readable in the stream, and until the catalog
lists it, with the daemon's defaults.

One client inserts rows, each in a transaction of its own, at a steady rate, and notes the clock before each. Readable in
the stream: `millrace follow` says that the stream's durable head covers the row; so the source's fsync, the stream's
fsync and a message over a local socket are included. Listed in the catalog: the state's records, read every 10 ms, count
the row as delivered. The yardstick is `pg_recvlogical` with `test_decoding` into a pipe: no disk but the source's.

    freshness.py PORT DATABASE RATE COUNT      writes, and prints the clocks (seconds, monotonic) as JSON
"""

import json
import os
import subprocess
import sys
import threading
import time

from measure import HERE, delivered, heads, percentile, result, say

from daemon import Daemon
from servers import Postgres, client_program, stop_process

import psycopg

TABLE = """create table ticks (
  id bigint generated always as identity primary key, at timestamptz default now(), note text)"""
# Commits per second, and how many are measured.
RATES = {20: 300, 1000: 10_000}
INTERVALS = {"1s": 300, "5s": 400, "60s": 2500}
BARS = {"p50_ms": ("<=", 8), "p99_ms": ("<=", 25)}


def write(port, database, rate, count):
    """Inserts at a steady rate; gives the clock before each."""
    clocks = []
    with psycopg.connect(host="127.0.0.1", port=port, dbname=database, user="shop", autocommit=True) as connection:
        connection.prepare_threshold = 0
        cursor = connection.cursor()
        first = time.monotonic() + 0.01
        for number in range(count):
            wait = first + number / rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            clocks.append(time.monotonic())
            cursor.execute("insert into ticks (note) values ('a tick of the clock')")
    return clocks


def run_writer(server, database, rate, count):
    """The writer as a process of its own."""
    command = [sys.executable, os.path.join(HERE, "freshness.py"), str(server.port), database, str(rate), str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def delays(clocks, seen):
    """Milliseconds from each clock to the first of `seen` (moment, count so far) that counts it."""
    found, at = [], 0
    for number, clock in enumerate(clocks, 1):
        while seen[at][1] < number:
            at += 1
        found.append((seen[at][0] - clock) * 1e3)
    return found


def summary(found, clocks):
    """The figures of one run."""
    return {
        "p50_ms": percentile(found, 50),
        "p99_ms": percentile(found, 99),
        "max_ms": max(found),
        "commits_per_s": (len(clocks) - 1) / (clocks[-1] - clocks[0]),
    }


def watch(source, count):
    """Collects (moment, count) from an iterator on a thread until `count` is reached; gives the list and the thread."""
    seen = []

    def run():
        for moment, number in source:
            seen.append((moment, number))
            if number >= count:
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return seen, thread


def measure_stream(server, database, daemon, rate, count):
    """One run: commit to readable in the stream."""
    follower = heads(daemon)
    base = next(follower)[1]["captured"]
    seen, thread = watch(((moment, head["captured"] - base) for moment, head in follower), count)
    before, began = daemon.cpu_seconds(), time.monotonic()
    clocks = run_writer(server, database, rate, count)
    thread.join(30)
    figures = summary(delays(clocks, seen), clocks)
    return {**figures, "core_percent": (daemon.cpu_seconds() - before) / (time.monotonic() - began) * 100}


def commits_of(pipe):
    """(moment, count) for each commit that test_decoding shows."""
    count = 0
    for line in pipe:
        if line.startswith(b"COMMIT"):
            count += 1
            yield time.monotonic(), count


def measure_yardstick(server, database, rate, count):
    """The same with pg_recvlogical."""
    server.execute(database, "select pg_create_logical_replication_slot('tap', 'test_decoding')", user="postgres")
    address = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-d", database]
    process = subprocess.Popen(
        [client_program("pg_recvlogical"), *address, "--slot", "tap", "--start", "-f", "-"], stdout=subprocess.PIPE
    )
    try:
        time.sleep(1)
        seen, thread = watch(commits_of(process.stdout), count)
        clocks = run_writer(server, database, rate, count)
        thread.join(30)
    finally:
        stop_process(process)
    server.execute(database, "select pg_drop_replication_slot('tap')", user="postgres")
    figures = summary(delays(clocks, seen), clocks)
    return {f"yardstick_{name}": value for name, value in figures.items() if name != "commits_per_s"}


def polled(daemon, base):
    """(moment, count) of what the catalog lists, every 10 ms."""
    while True:
        count = delivered(daemon)
        yield time.monotonic(), count - base
        time.sleep(0.01)


def measure_catalog(server, database, daemon, count):
    """One run: commit to listed in the catalog."""
    base = delivered(daemon)
    seen, thread = watch(polled(daemon, base), count)
    clocks = run_writer(server, database, 20, count)
    thread.join(120)
    return summary(delays(clocks, seen), clocks)


def start(server, database, interval):
    """A daemon that has loaded the table and follows it."""
    daemon = Daemon(server, database, ["public.ticks"], task=f"fresh{interval}", buffer={"interval": interval})
    daemon.start_and_load()
    return daemon


def bench_stream(server, database, pairs):
    """Rounds of pg_recvlogical and the daemon, at each rate."""
    found = {rate: [] for rate in RATES}
    with start(server, database, "60s") as daemon:
        for number in range(pairs):
            for rate, count in RATES.items():
                yardstick = measure_yardstick(server, database, rate, count)
                pair = {**measure_stream(server, database, daemon, rate, count), **yardstick}
                found[rate].append(pair)
                say(
                    f"freshness {number + 1}/{pairs} at {rate}/s ({pair['commits_per_s']:.0f}/s reached): readable "
                    f"p50 {pair['p50_ms']:.2f} ms, p99 {pair['p99_ms']:.2f} ms, max {pair['max_ms']:.1f} ms; "
                    f"pg_recvlogical p50 {pair['yardstick_p50_ms']:.2f} ms, p99 {pair['yardstick_p99_ms']:.2f} ms"
                )
    return {
        f"freshness-stream-{rate}": result(
            f"commit to readable in the stream, {rate:,} commits/s",
            "pg_recvlogical into a pipe, without a disk",
            rows,
            BARS,
            "milliseconds; the fsyncs of the source and of the stream included",
        )
        for rate, rows in found.items()
    }


def bench_catalog(server, database, pairs):
    """Rounds at each flush interval; one round of the default, which takes minutes."""
    results = {}
    for interval, count in INTERVALS.items():
        rows = []
        with start(server, database, interval) as daemon:
            for number in range(1 if interval == "60s" else pairs):
                rows.append(measure_catalog(server, database, daemon, count))
                say(
                    f"freshness {number + 1}/{pairs}, interval {interval}: in the catalog "
                    f"p50 {rows[-1]['p50_ms']:.0f} ms, p99 {rows[-1]['p99_ms']:.0f} ms"
                )
        results[f"freshness-catalog-{interval}"] = result(
            f"commit to listed in the catalog, interval {interval}, 20 commits/s",
            "the flush interval",
            rows,
            {},
            "milliseconds; a row waits for half the interval on average",
        )
    return results


def bench(options):
    """The stream first, then the catalog. The source fsyncs, as a source does."""
    with Postgres(settings={"fsync": "on", "full_page_writes": "on"}) as server:
        database = server.create_database("fresh")
        server.execute(database, TABLE)
        results = bench_stream(server, database, options.pairs)
        if not options.no_catalog:
            results |= bench_catalog(server, database, options.pairs)
        return results


if __name__ == "__main__":
    port, database, rate, count = sys.argv[1:]
    print(json.dumps(write(int(port), database, float(rate), int(count))))

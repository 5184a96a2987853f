"""`make bench`: full load and drain beside the source's own programs, in pairs in the same run. Never a timed test: it
prints ratios and what they are measured against, and writes bench/results.md.

    bench.py [--pairs 5] [--rows 6001215] [--changes 2000000] [--only load|drain] [--write bench/results.md]

Full load: TPC-H `lineitem` to local Parquet (snappy, fsynced) against `COPY lineitem TO STDOUT (FORMAT binary)` to
/dev/null. Drain: a backlog of row changes through the durable stream into Parquet against `pg_recvlogical` with pgoutput
to /dev/null, timed until `sent_lsn` passes the end (it notices its own end position only after all later log).
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "tests", "e2e"))

from daemon import Daemon, Failed  # noqa: E402
from servers import Postgres, client_program, stop_process, wait_for  # noqa: E402

LINEITEM = """create table lineitem (
  l_orderkey bigint not null, l_partkey bigint not null, l_suppkey bigint not null, l_linenumber int not null,
  l_quantity numeric(15,2) not null, l_extendedprice numeric(15,2) not null, l_discount numeric(15,2) not null,
  l_tax numeric(15,2) not null, l_returnflag char(1) not null, l_linestatus char(1) not null, l_shipdate date not null,
  l_commitdate date not null, l_receiptdate date not null, l_shipinstruct char(25) not null, l_shipmode char(10) not null,
  l_comment varchar(44) not null)"""
CHANGES = """create table orders (
  id bigint primary key, customer bigint, status text, total numeric(12,2), placed timestamptz, ship_on date, priority int,
  clerk text, comment text)"""


def say(text):
    print(f"bench: {text}", flush=True)


def server_cpu(server):
    """CPU seconds of the server's processes that ended or run, from /proc of the postmaster and its children."""
    ticks = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(entry) == server.process.pid:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == server.process.pid:
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def records(daemon, prefix):
    """The state's records below a prefix, read as any `sqlite3` could; costs the daemon nothing."""
    try:
        with sqlite3.connect(f"file:{daemon.state}/state.db?mode=ro", uri=True, timeout=1) as state:
            table = state.execute(
                "select name from sqlite_master where type = 'table' and name not like 'sqlite%'"
            ).fetchone()
            if not table:
                return []
            return [
                json.loads(value)
                for _, value in state.execute(
                    f"select key, value from {table[0]} where key >= ? and key < ?", (prefix, prefix + "\uffff")
                )
            ]
    except sqlite3.OperationalError:
        return []


def wait_quickly(daemon, condition, seconds, what):
    """Polls every 10 ms while the daemon lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        if daemon.ended():
            raise Failed(f"the daemon ended with {daemon.process.returncode}:\n{daemon.log()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}\n{daemon.log()}")
        time.sleep(0.01)


# -- full load


def make_lineitem(server, rows):
    """TPC-H's table; `rows` other than SF1's 6,001,215 takes the first so many."""
    database = server.create_database("tpch")
    server.execute(database, LINEITEM)
    generator = os.path.join(os.path.dirname(sys.executable), "tpchgen-cli")
    with server.connect(database) as connection, subprocess.Popen(
        [generator, "csv", "-s", "1", "--tables", "lineitem", "--stdout"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        with connection.cursor().copy("copy lineitem from stdin (format csv, header)") as copy:
            while piece := process.stdout.read(1 << 20):
                copy.write(piece)
    if process.returncode != 0:
        raise RuntimeError(f"tpchgen-cli ended with {process.returncode}")
    server.execute(
        database,
        (
            f"delete from lineitem where ctid not in (select ctid from lineitem limit {rows})"
            if rows < 6_000_000
            else "select 1"
        ),
        "alter table lineitem add primary key (l_orderkey, l_linenumber)",
    )
    server.execute(database, "vacuum (freeze, analyze) lineitem", "checkpoint", user="postgres")
    count, heap = server.execute(database, "select count(*), pg_relation_size('lineitem') from lineitem")[0]
    say(f"lineitem: {count:,} rows, {heap >> 20} MiB")
    return database, count


def time_copy(server, database):
    """(wall, client CPU) of one binary COPY to nowhere."""
    began, before = time.monotonic(), os.times()
    subprocess.run(
        [
            client_program("psql"),
            "-X",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(server.port),
            "-U",
            "shop",
            "-d",
            database,
            "-c",
            r"\copy lineitem to '/dev/null' (format binary)",
        ],
        check=True,
    )
    after = os.times()
    return (
        time.monotonic() - began,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def time_load(server, database, parallel, count):
    """(wall, CPU, peak RSS) of one full load from the start of the process to the commit in the catalog."""
    with Daemon(
        server,
        database,
        ["public.lineitem"],
        task=f"load{parallel}",
        mode="full-load",
        compression="snappy",
        options={"full-load": {"parallel": parallel}},
    ) as daemon:
        began = time.monotonic()
        daemon.start(ready=False)
        wait_quickly(
            daemon,
            lambda: any(record["state"] == "Table completed" for record in records(daemon, "table/")),
            600,
            "the load",
        )
        wall, cpu, peak = time.monotonic() - began, daemon.cpu_seconds(), daemon.peak_rss()
        listed = sum(file["rows"] for file in daemon.lake.files("public", "lineitem"))
        assert listed == count, f"{listed} rows in the lake, {count} at the source"
        return wall, cpu, peak


def bench_load(pairs, rows):
    """Pairs of COPY, load with one range, COPY, load with two."""
    with Postgres(settings={"shared_buffers": "512MB"}) as server:
        database, count = make_lineitem(server, rows)
        time_copy(server, database)
        found = {1: [], 2: []}
        for number in range(pairs):
            for parallel in (1, 2):
                limit, limit_cpu = time_copy(server, database)
                before = server_cpu(server)
                wall, cpu, peak = time_load(server, database, parallel, count)
                spent = server_cpu(server) - before
                found[parallel].append((wall / limit, wall, limit, cpu / count * 1e6, peak, spent, limit_cpu))
                say(
                    f"load {number + 1}/{pairs}, {parallel} range(s): COPY {limit:.2f} s, daemon {wall:.2f} s, "
                    f"ratio {wall / limit:.2f}, {cpu / count * 1e6:.2f} CPU s/M, {peak >> 20} MiB"
                )
    bars = {1: 1.1, 2: 0.85}
    return [
        [
            f"full load, {parallel} range(s)",
            f"{median(found[parallel], 2):.2f} s (COPY binary)",
            f"{median(found[parallel], 1):.2f} s",
            f"{median(found[parallel], 0):.2f} (≤ {bars[parallel]})",
            f"{median(found[parallel], 3):.2f} (≤ 0.9)",
            f"{int(median(found[parallel], 4)) >> 20} MiB",
            str(pairs),
        ]
        for parallel in (1, 2)
    ]


def median(rows, column):
    return statistics.median(row[column] for row in rows)


# -- drain


def make_backlog(server, database, changes):
    """`changes` row changes in transactions of a thousand: half inserts, a quarter updates, a quarter deletes."""
    with server.connect(database) as connection:
        for number in range(changes // 1000):
            base = number * 500
            connection.execute(
                "insert into orders select i, i %% 1000, 'new', (i %% 99999) / 7.0, now(), current_date, i %% 5, "
                "'Clerk#' || i %% 1000, md5(i::text) || ' carefully final deposits' from generate_series(%s::bigint, %s::bigint) i",
                (base, base + 499),
            )
            connection.execute(
                "update orders set status = 'paid', total = total + 1 where id between %s and %s", (base, base + 249)
            )
            connection.execute("delete from orders where id between %s and %s", (base + 250, base + 499))
            connection.commit()


def copy_slot(server, database, name):
    """A fresh copy of the slot that nobody consumes."""
    server.execute(
        database,
        f"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}'",
        f"select pg_copy_logical_replication_slot('base', '{name}')",
        user="postgres",
    )


def time_recvlogical(server, database, publication, end):
    """(wall, CPU) of pg_recvlogical until `sent_lsn` passes `end`."""
    copy_slot(server, database, "yardstick")
    with server.connect(database, "postgres", autocommit=True) as watcher:
        began = time.monotonic()
        process = subprocess.Popen(
            [
                client_program("pg_recvlogical"),
                "-h",
                "127.0.0.1",
                "-p",
                str(server.port),
                "-U",
                "postgres",
                "-d",
                database,
                "--slot",
                "yardstick",
                "--start",
                "-o",
                "proto_version=1",
                "-o",
                f"publication_names={publication}",
                "-f",
                "/dev/null",
            ]
        )
        try:
            wait_for(
                lambda: watcher.execute(
                    "select sent_lsn >= %s::pg_lsn from pg_stat_replication where application_name = 'pg_recvlogical'",
                    (end,),
                ).fetchone()
                == (True,),
                600,
                "pg_recvlogical",
                every=0.02,
            )
            wall = time.monotonic() - began
            with open(f"/proc/{process.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            cpu = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
        finally:
            stop_process(process)
    time.sleep(0.3)
    return wall, cpu


def time_drain(server, daemon, database, fresh, changes):
    """(wall until durable, wall until in the catalog, CPU, peak) of the daemon over the same backlog."""
    shutil.rmtree(daemon.state)
    shutil.copytree(fresh, daemon.state)
    shutil.rmtree(daemon.lake_folder, ignore_errors=True)
    slot = f"millrace_{daemon.task}"
    copy_slot(server, database, slot)

    def delivered():
        return sum(
            record["counts"]["inserts"] + record["counts"]["updates"] + record["counts"]["deletes"]
            for record in records(daemon, "checkpoint/")
        )

    began = time.monotonic()
    daemon.start(ready=False)
    wait_quickly(daemon, lambda: delivered() >= changes, 600, "the drain")
    wall, cpu, peak = time.monotonic() - began, daemon.cpu_seconds(), daemon.peak_rss()
    assert delivered() == changes, f"{delivered()} changes delivered, {changes} made"
    daemon.terminate()
    return wall, cpu, peak


def bench_drain(pairs, changes):
    """Pairs of pg_recvlogical and the daemon over one retained backlog."""
    found = []
    with Postgres(
        settings={
            "shared_buffers": "512MB",
            "max_slot_wal_keep_size": -1,
            "max_wal_size": "16GB",
            "checkpoint_timeout": "1h",
        }
    ) as server:
        database = server.create_database("drain")
        server.execute(database, CHANGES)
        with Daemon(server, database, ["public.orders"], task="drain", buffer={"interval": "1s"}) as daemon:
            daemon.start_and_load()
            daemon.terminate()
            fresh = f"{daemon.folder}/fresh"
            shutil.copytree(daemon.state, fresh, ignore=shutil.ignore_patterns("control.sock", "reserve", "lock"))
            server.execute(
                database, "select pg_copy_logical_replication_slot('millrace_drain', 'base')", user="postgres"
            )
            make_backlog(server, database, changes)
            end = server.execute(database, "select pg_current_wal_flush_lsn()")[0][0]
            server.execute(database, "select pg_switch_wal()", "checkpoint", user="postgres")
            say(f"backlog: {changes:,} row changes")
            for number in range(pairs):
                limit, limit_cpu = time_recvlogical(server, database, "millrace_drain", end)
                wall, cpu, peak = time_drain(server, daemon, database, fresh, changes)
                found.append((limit / wall, wall, limit, cpu / changes * 1e6, peak))
                say(
                    f"drain {number + 1}/{pairs}: pg_recvlogical {limit:.2f} s, daemon {wall:.2f} s, rate ratio "
                    f"{limit / wall:.2f}, {cpu / changes * 1e6:.2f} CPU s/M, {peak >> 20} MiB"
                )
    return [
        [
            "drain into Parquet",
            f"{median(found, 2):.2f} s (pg_recvlogical)",
            f"{median(found, 1):.2f} s",
            f"{median(found, 0):.2f} (≥ 1.1)",
            f"{median(found, 3):.2f} (≤ 4)",
            f"{int(median(found, 4)) >> 20} MiB",
            str(pairs),
        ]
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6_001_215)
    parser.add_argument("--changes", type=int, default=2_000_000)
    parser.add_argument("--only", choices=["load", "drain"])
    parser.add_argument("--write", default=os.path.join(HERE, "results.md"))
    arguments = parser.parse_args()
    rows = []
    if arguments.only != "drain":
        rows += bench_load(arguments.pairs, arguments.rows)
    if arguments.only != "load":
        rows += bench_drain(arguments.pairs, arguments.changes)
    head = ["job", "yardstick", "millrace", "ratio (bar)", "CPU s per M rows (bar)", "peak memory", "pairs"]
    table = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(row) + " |" for row in table)
    print(f"\n{text}")
    note = (
        f"# What `make bench` measured\n\n{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"PostgreSQL {os.environ.get('MILLRACE_TEST_PG', '15')}, load average at the end {os.getloadavg()[0]:.1f}; medians of "
        "the pairs. A full load's ratio is wall time over the paired COPY's (below 1: faster); a drain's is the rate over "
        "the paired `pg_recvlogical`'s (above 1: faster). Walls of the daemon count from the start of its process to the "
        f"commit in the catalog.\n\n{text}\n"
    )
    with open(arguments.write, "w") as file:
        file.write(note)
    say(f"written to {arguments.write}")


if __name__ == "__main__":
    main()

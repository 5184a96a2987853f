"""Full load of TPC-H's `lineitem` to local Parquet (snappy, fsynced), beside `COPY lineitem TO STDOUT (FORMAT binary)`
to /dev/null and beside connectorx."""

import os
import subprocess
import sys
import time

from measure import records, result, run_measured, say, server_cpu, wait_quickly
from peers import time_connectorx

from daemon import Daemon
from servers import Postgres, client_program

LINEITEM = """create table lineitem (
  l_orderkey bigint not null, l_partkey bigint not null, l_suppkey bigint not null, l_linenumber int not null,
  l_quantity numeric(15,2) not null, l_extendedprice numeric(15,2) not null, l_discount numeric(15,2) not null,
  l_tax numeric(15,2) not null, l_returnflag char(1) not null, l_linestatus char(1) not null, l_shipdate date not null,
  l_commitdate date not null, l_receiptdate date not null, l_shipinstruct char(25) not null,
  l_shipmode char(10) not null, l_comment varchar(44) not null)"""
BARS = {1: ("<=", 1.0), 2: ("<=", 0.8)}


def generate_lineitem():
    """A process that writes the table as CSV with a header, at scale factor 1."""
    generator = os.path.join(os.path.dirname(sys.executable), "tpchgen-cli")
    command = [generator, "csv", "-s", "1", "--tables", "lineitem", "--stdout"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def make_lineitem(server, rows):
    """TPC-H's table; `rows` other than SF1's 6,001,215 takes the first so many."""
    database = server.create_database("tpch")
    server.execute(database, LINEITEM)
    with server.connect(database) as connection, generate_lineitem() as process:
        with connection.cursor().copy("copy lineitem from stdin (format csv, header)") as copy:
            while piece := process.stdout.read(1 << 20):
                copy.write(piece)
    if process.returncode != 0:
        raise RuntimeError(f"tpchgen-cli ended with {process.returncode}")
    if rows < 6_000_000:
        server.execute(database, f"delete from lineitem where ctid not in (select ctid from lineitem limit {rows})")
    server.execute(database, "alter table lineitem add primary key (l_orderkey, l_linenumber)")
    server.execute(database, "vacuum (freeze, analyze) lineitem", "checkpoint", user="postgres")
    count, heap = server.execute(database, "select count(*), pg_relation_size('lineitem') from lineitem")[0]
    say(f"lineitem: {count:,} rows, {heap >> 20} MiB")
    return database, count


def time_copy(server, database):
    """(wall, client CPU) of one binary COPY to nowhere."""
    address = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "shop", "-d", database]
    copy = r"\copy lineitem to '/dev/null' (format binary)"
    return run_measured([client_program("psql"), "-X", "-q", *address, "-c", copy])[:2]


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
            every=0.05,
        )
        wall, cpu, peak = time.monotonic() - began, daemon.cpu_seconds(), daemon.peak_rss()
        listed = sum(file["rows"] for file in daemon.lake.files("public", "lineitem"))
        assert listed == count, f"{listed} rows in the lake, {count} at the source"
        return wall, cpu, peak


def measure_pair(server, database, count, parallel):
    """COPY, then the load."""
    limit, limit_cpu = time_copy(server, database)
    before = server_cpu(server)
    wall, cpu, peak = time_load(server, database, parallel, count)
    return {
        "ratio": wall / limit,
        "wall_s": wall,
        "yardstick_s": limit,
        "cpu_s_per_million": cpu / count * 1e6,
        "yardstick_cpu_s_per_million": limit_cpu / count * 1e6,
        "server_cpu_s_per_million": (server_cpu(server) - before) / count * 1e6,
        "peak_mib": peak / 2**20,
    }


def measure_peer(server, database, count, load):
    """connectorx, beside the load with one range that was measured in the same round."""
    wall, cpu, peak = time_connectorx(server, database, "lineitem", count)
    return {
        "ratio": wall / load["wall_s"],
        "cpu_ratio": cpu / count * 1e6 / load["cpu_s_per_million"],
        "wall_s": load["wall_s"],
        "yardstick_s": wall,
        "cpu_s_per_million": load["cpu_s_per_million"],
        "yardstick_cpu_s_per_million": cpu / count * 1e6,
        "peak_mib": load["peak_mib"],
        "yardstick_peak_mib": peak / 2**20,
    }


def bench(options):
    """Rounds of COPY, load with one range, connectorx, COPY, load with two."""
    with Postgres(settings={"shared_buffers": "512MB"}) as server:
        database, count = make_lineitem(server, options.rows)
        time_copy(server, database)
        found, peers = {1: [], 2: []}, []
        for number in range(options.pairs):
            for parallel in (1, 2):
                pair = measure_pair(server, database, count, parallel)
                found[parallel].append(pair)
                say(
                    f"load {number + 1}/{options.pairs}, {parallel} range(s): COPY {pair['yardstick_s']:.2f} s, daemon "
                    f"{pair['wall_s']:.2f} s, ratio {pair['ratio']:.2f}, {pair['cpu_s_per_million']:.2f} CPU s/M, "
                    f"{pair['peak_mib']:.0f} MiB"
                )
                if parallel == 1 and not options.no_peers:
                    peers.append(measure_peer(server, database, count, pair))
                    say(
                        f"connectorx {peers[-1]['yardstick_s']:.2f} s, {peers[-1]['ratio']:.2f} times ours, "
                        f"{peers[-1]['cpu_ratio']:.2f} times its CPU"
                    )
    frame = {"cpu_s_per_million": ("<=", 0.65), "peak_mib": ("<=", 200)}
    results = {
        f"load-{parallel}": result(
            f"full load, {parallel} range{'s' if parallel > 1 else ''}",
            "COPY binary to nowhere",
            found[parallel],
            {"ratio": BARS[parallel], **frame},
            "ratio of wall times, below 1 is faster",
        )
        for parallel in (1, 2)
    }
    if peers:
        results["load-connectorx"] = result(
            "full load, 1 range, beside connectorx",
            "connectorx and pyarrow",
            peers,
            {"ratio": (">=", 2.0), "cpu_ratio": (">=", 3.0)},
            "the peer's wall time by ours, and its CPU time by ours; its file is not fsynced",
        )
    return results

"""MariaDB: a full load beside one unbuffered `SELECT *` of the text protocol by a bare client
(`connectors/mysql/examples/select.rs`), and a backlog of row changes into Parquet beside
`mariadb-binlog --read-from-remote-server -v` to /dev/null."""

import contextlib
import json
import os
import shutil
import subprocess
import time

from load import LINEITEM, generate_lineitem
from measure import delivered, process_cpu, records, result, run_measured, say, wait_quickly

from daemon import Daemon
from servers import MariaDB

SETTINGS = {"innodb-buffer-pool-size": "1G", "innodb-log-file-size": "1G", "max-binlog-size": "1G"}
ORDERS = """create table orders (
  id bigint primary key, customer bigint, status text, total decimal(12,2), placed timestamp(6), ship_on date,
  priority int, clerk text, comment text)"""


def bare_client():
    """The example, beside the binary."""
    return os.path.join(os.path.dirname(os.environ["MILLRACE_BIN"]), "examples", "select")


def make_lineitem(server, rows):
    """TPC-H's table with its primary key; gives the number of rows."""
    server.create_database("tpch")
    server.execute("tpch", LINEITEM.rstrip().rstrip(")") + ", primary key (l_orderkey, l_linenumber))")
    path = f"{server.folder}/lineitem.csv"
    with open(path, "wb") as file, generate_lineitem() as process:
        for number, line in enumerate(process.stdout):
            if number > rows:
                process.kill()
                break
            file.write(line)
    os.chmod(path, 0o644)
    server.execute(
        "tpch",
        "set sql_log_bin = 0",
        f"load data infile '{path}' into table lineitem character set utf8mb4 "
        "fields terminated by ',' optionally enclosed by '\"' ignore 1 lines",
        "analyze table lineitem",
        user="root",
    )
    os.remove(path)
    count = server.execute("tpch", "select count(*) from lineitem")[0][0]
    say(f"MariaDB: lineitem has {count:,} rows")
    return count


def time_select(server):
    """(wall of the statement, CPU of the client)."""
    command = [bare_client(), "127.0.0.1", str(server.port), "tpch", "cdc", "lineitem"]
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "MYSQL_PWD": MariaDB.PASSWORD}
    ) as process:
        found = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, found["rows"]


def time_load(server, parallel, count):
    """(wall, CPU, peak) of one full load from the start of the process to the commit in the catalog."""
    with Daemon(
        server,
        "tpch",
        ["tpch.lineitem"],
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
        listed = sum(file["rows"] for file in daemon.lake.files("tpch", "lineitem"))
        assert listed == count, f"{listed} rows in the lake, {count} at the source"
        return wall, cpu, peak


def bench_load(server, options):
    """Pairs, with one range and with two."""
    count, found = make_lineitem(server, options.rows), {1: [], 2: []}
    time_select(server)
    for number in range(options.pairs):
        for parallel, pairs in found.items():
            limit, limit_cpu, rows = time_select(server)
            assert rows == count
            wall, cpu, peak = time_load(server, parallel, count)
            pairs.append(
                {
                    "ratio": wall / limit,
                    "wall_s": wall,
                    "yardstick_s": limit,
                    "cpu_s_per_million": cpu / count * 1e6,
                    "yardstick_cpu_s_per_million": limit_cpu / count * 1e6,
                    "peak_mib": peak / 2**20,
                }
            )
            say(
                f"load {number + 1}/{options.pairs}, {parallel} range(s): SELECT {limit:.2f} s, daemon {wall:.2f} s, "
                f"ratio {wall / limit:.2f}, {cpu / count * 1e6:.2f} CPU s/M, {peak >> 20} MiB"
            )
    return {
        f"load-mariadb-{parallel}": result(
            f"full load of lineitem, {parallel} range{'s' * (parallel > 1)} (MariaDB)",
            "SELECT * of the text protocol to nowhere",
            pairs,
            {"ratio": ("<=", 1.3)},
            "ratio of walls, below 1 is faster",
        )
        for parallel, pairs in found.items()
    }


def make_backlog(server, changes):
    """`changes` row changes in transactions of a thousand: half inserts, a quarter updates, a quarter deletes."""
    with server.connect("drain", "root") as connection, connection.cursor() as cursor:
        for number in range(changes // 1000):
            base = number * 500
            cursor.execute(
                f"insert into orders select {base} + seq, seq % 1000, 'new', (seq % 99999) / 7.0, now(6), current_date, "
                f"seq % 5, concat('Clerk#', seq % 1000), concat(md5(seq), ' carefully final deposits') from seq_1_to_500"
            )
            cursor.execute(
                f"update orders set status = 'paid', total = total + 1 where id between {base + 1} and {base + 250}"
            )
            cursor.execute(f"delete from orders where id between {base + 251} and {base + 500}")
            connection.commit()


def time_binlog(server, file, position):
    """(wall, CPU) of mariadb-binlog over everything from there on, each row in words."""
    command = [shutil.which("mariadb-binlog"), "--no-defaults", "--read-from-remote-server", "--to-last-log", "-v"]
    command += ["-h", "127.0.0.1", "-P", str(server.port), "-u", "root", f"--start-position={position}", file]
    return run_measured(["sh", "-c", 'exec "$@" > /dev/null', "sh", *command])[:2]


def time_drain(daemon, fresh, changes):
    """(wall, CPU, peak) of the daemon over the backlog, until the catalog lists it."""
    shutil.rmtree(daemon.state)
    shutil.copytree(fresh, daemon.state)
    shutil.rmtree(daemon.lake_folder, ignore_errors=True)
    began = time.monotonic()
    daemon.start(ready=False)
    wait_quickly(daemon, lambda: delivered(daemon) >= changes, 600, "the drain")
    wall, cpu, peak = time.monotonic() - began, process_cpu(daemon.process.pid), daemon.peak_rss()
    assert delivered(daemon) == changes, f"{delivered(daemon)} changes delivered, {changes} made"
    daemon.kill()
    return wall, cpu, peak


def bench_drain(server, options):
    """Pairs over one backlog."""
    server.create_database("drain")
    server.execute("drain", ORDERS)
    found = []
    with Daemon(server, "drain", ["drain.orders"], task="drain", buffer={"interval": "1s"}) as daemon:
        daemon.start_and_load()
        daemon.terminate()
        fresh = f"{daemon.folder}/fresh"
        shutil.copytree(daemon.state, fresh, ignore=shutil.ignore_patterns("control.sock", "reserve", "lock"))
        file, position = server.execute("drain", "show master status", user="root")[0][:2]
        make_backlog(server, options.changes)
        say(f"MariaDB: a backlog of {options.changes:,} row changes")
        millions = options.changes / 1e6
        for number in range(options.pairs):
            limit, limit_cpu = time_binlog(server, file, position)
            wall, cpu, peak = time_drain(daemon, fresh, options.changes)
            found.append(
                {
                    "ratio": limit / wall,
                    "wall_s": wall,
                    "yardstick_s": limit,
                    "cpu_s_per_million": cpu / millions,
                    "yardstick_cpu_s_per_million": limit_cpu / millions,
                    "peak_mib": peak / 2**20,
                }
            )
            say(
                f"drain {number + 1}/{options.pairs}, MariaDB: mariadb-binlog {limit:.2f} s, into Parquet {wall:.2f} s = "
                f"{limit / wall:.2f} times, {cpu / millions:.2f} CPU s/M, {peak >> 20} MiB"
            )
    return {
        "drain-mariadb": result(
            "drain into Parquet (MariaDB)",
            "mariadb-binlog --read-from-remote-server -v",
            found,
            {"ratio": (">=", 0.6), "cpu_s_per_million": ("<=", 4.0)},
            "ratio of rates, above 1 is faster",
        )
    }


def bench(options):
    """The load, then the drain."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(MariaDB(settings=SETTINGS))
        return bench_load(server, options) | bench_drain(server, options)

"""Drain: a backlog of row changes through the durable stream into Parquet, and up to the durable stream alone, beside
`pg_recvlogical` with pgoutput to /dev/null, timed until `sent_lsn` passes the end (it notices its own end position only
after all later log), and beside the server's decoding alone (`pg_logical_slot_peek_binary_changes` up to the end)."""

import contextlib
import re
import shutil
import subprocess
import time

from line import Line
from measure import delivered, heads, process_cpu, result, say, server_cpu, wait_quickly

from daemon import Daemon
from servers import Postgres, client_program, stop_process, wait_for

CHANGES = """create table orders (
  id bigint primary key, customer bigint, status text, total numeric(12,2), placed timestamptz, ship_on date,
  priority int, clerk text, comment text)"""
SERVER = {"listen_addresses": "*", "shared_buffers": "512MB", "max_slot_wal_keep_size": -1, "max_wal_size": "16GB", "checkpoint_timeout": "1h"}
# How the server is reached, and the round trip in seconds.
WAYS = {"tcp": 0.0, "unix": 0.0, "1ms": 0.001, "30ms": 0.03}
WAY_NAMES = {"tcp": "TCP on one machine", "unix": "a Unix socket", "1ms": "a round trip of 1 ms", "30ms": "a round trip of 30 ms"}


def make_backlog(server, database, changes):
    """`changes` row changes in transactions of a thousand: half inserts, a quarter updates, a quarter deletes."""
    with server.connect(database) as connection:
        for number in range(changes // 1000):
            base = number * 500
            connection.execute(
                "insert into orders select i, i %% 1000, 'new', (i %% 99999) / 7.0, now(), current_date, i %% 5, "
                "'Clerk#' || i %% 1000, md5(i::text) || ' carefully final deposits' "
                "from generate_series(%s::bigint, %s::bigint) i",
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


def time_recvlogical(server, database, publication, end, host, under):
    """(wall, CPU) of pg_recvlogical until `sent_lsn` passes `end`."""
    copy_slot(server, database, "yardstick")
    command = [*under, client_program("pg_recvlogical"), "-h", host, "-p", str(server.port), "-U", "postgres"]
    command += ["-d", database]
    command += ["--slot", "yardstick", "--start", "-o", "proto_version=1", "-o", f"publication_names={publication}"]
    passed = "select sent_lsn >= %s::pg_lsn from pg_stat_replication where application_name = 'pg_recvlogical'"
    with server.connect(database, "postgres", autocommit=True) as watcher:
        began = time.monotonic()
        process = subprocess.Popen([*command, "-f", "/dev/null"])
        try:
            wait_for(
                lambda: watcher.execute(passed, (end,)).fetchone() == (True,), 600, "pg_recvlogical", every=0.02
            )
            wall, cpu = time.monotonic() - began, process_cpu(process.pid)
        finally:
            stop_process(process)
    time.sleep(0.3)
    return wall, cpu


def time_decoding(server, database, publication, end):
    """Wall of the server's decoding without any sending."""
    copy_slot(server, database, "floor")
    began = time.monotonic()
    server.execute(
        database,
        "select count(*) from pg_logical_slot_peek_binary_changes('floor', "
        f"'{end}', null, 'proto_version', '1', 'publication_names', '{publication}')",
        user="postgres",
    )
    return time.monotonic() - began


def time_drain(server, daemon, database, fresh, changes, base, under, into_stream):
    """(wall, CPU, peak) of the daemon over the backlog: until the catalog lists it, or (`into_stream`, with a state in
    which the task is paused) until the durable stream holds it."""
    shutil.rmtree(daemon.state)
    shutil.copytree(fresh, daemon.state)
    shutil.rmtree(daemon.lake_folder, ignore_errors=True)
    copy_slot(server, database, f"millrace_{daemon.task}")
    began = time.monotonic()
    daemon.start(ready=False, under=under)
    if into_stream:
        head = next(head for _, head in heads(daemon) if head["captured"] >= base + changes)
        wall, cpu, peak = time.monotonic() - began, daemon.cpu_seconds(), daemon.peak_rss()
        assert head["captured"] == base + changes, f"{head['captured'] - base} changes captured, {changes} made"
        assert delivered(daemon) == 0, "a paused task delivers nothing"
    else:
        wait_quickly(daemon, lambda: delivered(daemon) >= changes, 600, "the drain")
        wall, cpu, peak = time.monotonic() - began, daemon.cpu_seconds(), daemon.peak_rss()
        assert delivered(daemon) == changes, f"{delivered(daemon)} changes delivered, {changes} made"
    # A drain at the end would only take time.
    daemon.kill()
    return wall, cpu, peak


class Backlog:
    """A server with a backlog, and the daemon's states to begin from."""

    def __init__(self, stack, changes):
        self.changes = changes
        self.server = stack.enter_context(Postgres(settings=SERVER))
        with open(f"{self.server.data}/pg_hba.conf", "a") as hba:
            hba.writelines(f"host {database} all {Line.far}/32 trust\n" for database in ("all", "replication"))
        self.server.execute("postgres", "select pg_reload_conf()", user="postgres")
        self.database = self.server.create_database("drain")
        self.server.execute(self.database, CHANGES)
        self.daemon = stack.enter_context(
            Daemon(self.server, self.database, ["public.orders"], task="drain", buffer={"interval": "1s"})
        )
        self.config = self.daemon.config_text
        self.daemon.start_and_load()
        self.base = next(heads(self.daemon))[1]["captured"]
        self.daemon.terminate()
        self.fresh = self._keep("fresh")
        self.daemon.start()
        self.daemon.run("pause", "drain")
        self.daemon.terminate()
        self.paused = self._keep("paused")
        self.server.execute(
            self.database, "select pg_copy_logical_replication_slot('millrace_drain', 'base')", user="postgres"
        )
        make_backlog(self.server, self.database, changes)
        self.end = self.server.execute(self.database, "select pg_current_wal_flush_lsn()")[0][0]
        self.server.execute(self.database, "select pg_switch_wal()", "checkpoint", user="postgres")
        say(f"PostgreSQL {self.server.major}: a backlog of {changes:,} row changes")

    def _keep(self, name):
        kept = f"{self.daemon.folder}/{name}"
        shutil.copytree(self.daemon.state, kept, ignore=shutil.ignore_patterns("control.sock", "reserve", "lock"))
        return kept

    def reach(self, host):
        """Has the daemon reach the server there, in the clear as the yardstick does."""
        there = f'"host": "{host}", "tls": {{"mode": "disable"}}'
        self.daemon.write_config(re.sub(r'"host": "[^"]*"', there, self.config))

    def pair(self, host, under):
        """pg_recvlogical, then the daemon twice, then the server alone."""
        limit, limit_cpu = time_recvlogical(self.server, self.database, "millrace_drain", self.end, host, under)
        before = server_cpu(self.server)
        wall, cpu, peak = time_drain(
            self.server, self.daemon, self.database, self.fresh, self.changes, self.base, under, into_stream=False
        )
        spent = server_cpu(self.server) - before
        alone, alone_cpu, alone_peak = time_drain(
            self.server, self.daemon, self.database, self.paused, self.changes, self.base, under, into_stream=True
        )
        floor = time_decoding(self.server, self.database, "millrace_drain", self.end)
        millions = self.changes / 1e6
        common = {
            "yardstick_s": limit,
            "yardstick_cpu_s_per_million": limit_cpu / millions,
            "decode_only_s": floor,
        }
        into_parquet = {
            "ratio": limit / wall,
            "wall_s": wall,
            "cpu_s_per_million": cpu / millions,
            "server_cpu_s_per_million": spent / millions,
            "peak_mib": peak / 2**20,
            "share_of_decode_only": floor / wall,
            **common,
        }
        into_stream = {
            "ratio": limit / alone,
            "wall_s": alone,
            "cpu_s_per_million": alone_cpu / millions,
            "peak_mib": alone_peak / 2**20,
            "share_of_decode_only": floor / alone,
            **common,
        }
        return into_parquet, into_stream


@contextlib.contextmanager
def way_to(server, way):
    """(host, command that others run under) to reach the server that way."""
    if way == "unix":
        yield server.folder, []
    elif WAYS[way] == 0:
        yield "127.0.0.1", []
    else:
        with Line(WAYS[way]) as line:
            yield line.near, line.under


def told(half):
    """One half of a pair in words."""
    return f"{half['wall_s']:.2f} s = {half['ratio']:.2f} times, {half['cpu_s_per_million']:.2f} CPU s/M"


def bench_way(backlog, way, pairs):
    """The pairs of one way to the server."""
    with way_to(backlog.server, way) as (host, under):
        backlog.reach(host)
        found = []
        for number in range(pairs):
            found.append(backlog.pair(host, under))
            parquet, stream = found[-1]
            say(
                f"drain {number + 1}/{pairs}, {backlog.server.major} over {way}: pg_recvlogical "
                f"{parquet['yardstick_s']:.2f} s, into Parquet {told(parquet)}, {parquet['peak_mib']:.0f} MiB; "
                f"into the stream {told(stream)}; decoding alone {parquet['decode_only_s']:.2f} s"
            )
    where = f"PostgreSQL {backlog.server.major}, {WAY_NAMES[way]}"
    suffix = f"{backlog.server.major}-{way}"
    note = "ratio of rates, above 1 is faster"
    # The bars are meant for the first way; the others are shown beside it.
    judged = (backlog.server.major, way) == (15, "tcp")
    return {
        f"drain-parquet-{suffix}": result(
            f"drain into Parquet ({where})",
            "pg_recvlogical",
            [parquet for parquet, _ in found],
            {"ratio": (">=", 1.6), "cpu_s_per_million": ("<=", 3.0)} if judged else {},
            note,
        ),
        f"drain-stream-{suffix}": result(
            f"drain into the stream ({where})",
            "pg_recvlogical",
            [stream for _, stream in found],
            {"ratio": (">=", 2.2)} if judged else {},
            note,
        ),
    }


def bench(options):
    """All ways to one server after the other."""
    results = {}
    with contextlib.ExitStack() as stack:
        backlog = Backlog(stack, options.changes)
        for way in options.over:
            results |= bench_way(backlog, way, options.pairs)
    return results

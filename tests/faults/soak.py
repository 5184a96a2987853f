"""`make soak MINUTES=…`: hours of transfers between accounts with random faults, and everything watched meanwhile.

The sum of the accounts is constant in a reader's view that is cut at the smallest `complete_through`; no row is ever
unaccounted for; there is one slot; memory, the stream on disk and the log that the source keeps stay bounded; at the
end source and lake are identical row by row. In the first half the daemon is killed and ended as well; in the
second half its process lives on through all other faults, so that its memory can be judged.

    soak.py [--source postgresql|mariadb|mysql] [--minutes 120] [--seed S] [--out FOLDER]

The binary is that of MILLRACE_BIN. What was seen so far is written each minute (record.json in the folder), so a soak
that is stopped early (SIGTERM) counts for as long as it was; docs/soak.md is written at the end with --record.
What differs between sources is in soak_sources.py.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bank  # noqa: E402
import kills  # noqa: E402
import soak_page  # noqa: E402
import soak_record  # noqa: E402
from compare import Difference  # noqa: E402
from daemon import CHECKOUT, Daemon, Failed  # noqa: E402
from servers import MotoS3, Proxy, temporary_folder, wait_for  # noqa: E402
from soak_sources import SOURCES, PostgresSource  # noqa: E402

SAMPLE_EVERY, LOOK_EVERY, COUNT_EVERY = 10, 5, 2
RECOVERY_MAX = 180
OPTIONS = {"stream": {"retention": "60s", "disk-bound": "512MiB"}, "on-change": {"discover": "10s"}}
# What is met while the daemon or the server is away.
AWAY = (Failed, OSError, TimeoutError, subprocess.SubprocessError)


class Soak:
    """One server, one target, one daemon, the workload, and the threads that watch. `kind` is one of `SOURCES`, and the
    server one that it opened."""

    def __init__(self, kind, server, s3, source_proxy, target_proxy, seed, out):
        self.server, self.s3, self.source, self.target, self.out = server, s3, source_proxy, target_proxy, out
        self.seed, self.rng = seed, random.Random(f"{seed}/faults")
        self.stopping, self.quiet = threading.Event(), threading.Event()
        self.faults, self.samples, self.problems, self.added = [], [], [], []
        self.unaccounted = {"looks": 0, "not zero": 0}
        self.drains, self.wrong_looks, self.build = [], 0, kills.build()
        self.away, self.kinds = AWAY + kind.AWAY, FAULTS | {name: at_source(do) for name, do in kind.FAULTS.items()}
        self.database = kind(server, seed)
        self.bank = self.database.bank
        self.daemon = Daemon(
            server,
            kind.SCHEMA,
            kind.PATTERNS,
            target={
                "type": "s3",
                "bucket": s3.bucket,
                "prefix": "soak/",
                "endpoint": f"http://127.0.0.1:{target_proxy.port}",
                "access-key-id": s3.KEY,
                "secret-access-key": {"env": "MILLRACE_S3_SECRET"},
            },
            s3=s3,
            port=source_proxy.port,
            options=OPTIONS,
            buffer={"interval": "5s"},
            environment={"MILLRACE_S3_SECRET": s3.SECRET},
        )
        self.reader = bank.Reader(bank.catalog_of(self.daemon), self.fetch, kind.SCHEMA, **kind.ACCOUNTS)
        self.client = s3.client()

    def fetch(self, path):
        """An object's bytes, past the proxy."""
        place = urllib.parse.urlsplit(path)
        return self.client.get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"].read()

    def problem(self, text):
        """Something that must not be; the soak goes on and fails at its end."""
        self.problems.append({"minute": round(self.minutes(), 1), "what": text})
        say(f"PROBLEM: {text}")

    def minutes(self):
        """Since the faults began."""
        return (time.monotonic() - self.began) / 60

    # -- watching

    def watch(self, what, every):
        """Runs `what` every so many seconds in a thread of its own until the end."""

        def loop():
            while not self.stopping.wait(every):
                if self.quiet.is_set():
                    continue
                try:
                    what()
                except self.away:
                    pass  # the daemon or the server is away, as faults want it
                except Exception as error:  # noqa: BLE001: a finding
                    self.problem(f"{what.__name__}: {type(error).__name__}: {error}")

        threading.Thread(target=loop, daemon=True).start()

    def look(self):
        """The reader's view."""
        found = self.reader.look()
        self.wrong_looks += bool(found)
        for wrong in found[:3]:
            self.problem(wrong)

    def count(self):
        """Unaccounted rows."""
        value = self.daemon.metrics().get(("millrace_unaccounted_rows",))
        if value is not None:
            self.unaccounted["looks"] += 1
            if value != 0:
                self.unaccounted["not zero"] += 1
                self.problem(f"unaccounted rows = {value:.0f}")

    def sample(self):
        """What the daemon and the server hold now."""
        process = self.daemon.process.pid
        found = {"minute": round(self.minutes(), 3), "run": self.daemon.runs, "rss": self.daemon.rss()}
        found["peak"] = self.daemon.peak_rss()
        found["threads"] = len(os.listdir(f"/proc/{process}/task"))
        found["files"] = len(os.listdir(f"/proc/{process}/fd"))
        found["cpu"] = round(self.daemon.cpu_seconds(), 2)
        found["state"] = folder_bytes(self.daemon.state)
        metrics = self.daemon.metrics()
        found["stream"] = metrics.get(("millrace_stream_bytes",))
        try:
            held, wrong = self.database.held()
            found |= held
            for text in wrong:
                self.problem(text)
        finally:
            self.samples.append(found)
            with open(f"{self.out}/samples.jsonl", "a") as file:
                file.write(json.dumps(found) + "\n")

    def write(self):
        """The record so far; gives it."""
        return soak_record.write(self, f"{self.out}/record.json")

    # -- faults

    def recover(self, kind, began, ended, until=None):
        """Commits a row and waits until it is durable in the stream and complete in the catalog; notes the seconds
        since the fault ended."""
        fault = {"kind": kind, "minute": round(self.minutes(), 2), "lasted": round(ended - began, 2)}
        with self.database.marked() as (durable, complete):
            if durable:
                fault["stream"] = self.since(ended, durable, 0.05, f"{kind}: durable")
            fault["catalog"] = self.since(ended, lambda: complete(self.daemon), 0.25, f"{kind}: in the catalog")
        if until:
            fault["done"] = self.since(ended, until, 0.5, f"{kind}: done")
        self.faults.append(fault)
        say(f"{self.minutes():6.1f} min {kind}: {json.dumps({k: v for k, v in fault.items() if k != 'kind'})}")

    def since(self, ended, condition, every, what):
        """Waits, and gives the seconds since `ended`."""

        def checked():
            if self.daemon.ended():
                self.problem(f"{what}: the daemon ended with {self.daemon.process.returncode}: {self.daemon.log(800)}")
                self.daemon.start(ready=False)
            return condition()

        try:
            wait_for(checked, RECOVERY_MAX, what, every)
        except TimeoutError as error:
            self.problem(f"{error}\n{self.daemon.log(1500)}")
        return round(time.monotonic() - ended, 2)

    def next_fault(self, kind):
        """Does one, and waits for what follows."""
        began = time.monotonic()
        until = self.kinds[kind](self)
        # A kill's recovery counts from the kill, the restart included.
        ended = began if kind in ("kill", "kill in start") else time.monotonic()
        self.recover(kind, began, ended, until)

    def kill(self):
        self.daemon.kill()
        self.daemon.start(ready=False)

    def kill_in_start(self):
        self.kill()
        time.sleep(self.rng.uniform(0, 1))
        self.kill()

    def terminate(self):
        began = time.monotonic()
        try:
            code = self.daemon.terminate(patience=60)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            code = "none within 60 s"
        self.drains.append(round(time.monotonic() - began, 2))
        if code != 0:
            self.problem(f"SIGTERM: exit {code}: {self.daemon.log(800)}")
        if self.drains[-1] > 30:
            self.problem(f"SIGTERM took {self.drains[-1]} s")
        self.daemon.start(ready=False)

    def terminate_without_target(self):
        self.target.hang()
        time.sleep(2)
        try:
            self.terminate()
        finally:
            self.target.heal()

    def freeze(self):
        self.daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(2, 12))
        self.daemon.process.send_signal(signal.SIGCONT)

    def through(self, proxy, how, seconds):
        if how == "slow":
            proxy.round_trip = self.rng.choice([0.01, 0.05, 0.2])
        else:
            getattr(proxy, how)()
        time.sleep(self.rng.uniform(1, seconds))
        proxy.heal()

    def restart_server(self, how):
        self.server.stop(how)
        time.sleep(self.rng.uniform(0, 5))
        self.server.start()

    def reload_config(self):
        """SIGHUP with a broken config, which changes nothing, then with another retention."""
        good = self.daemon.config_text
        old, new = ("60s", "90s") if '"retention": 60s' in good else ("90s", "60s")
        self.daemon.write_config("tasks: [")
        self.daemon.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        self.daemon.write_config(good.replace(f'"retention": {old}', f'"retention": {new}'))
        self.daemon.process.send_signal(signal.SIGHUP)

    def add_table(self):
        name = f"extra_{len(self.added)}"
        self.database.add_table(name)
        self.added.append((self.database.SCHEMA, name))
        return lambda: self.is_loaded(name)

    def add_column(self):
        table, column = self.rng.choice(self.database.WIDENED), f"c{self.rng.getrandbits(40):x}"
        default = self.rng.choice(["", " default 7"])
        schema = self.database.SCHEMA
        self.server.execute(schema, f"alter table {schema}.{table} add column {column} int{default}")

    def large_transaction(self):
        self.database.large_transaction(10**9 + self.rng.getrandbits(40), 10_000)

    def reload_table(self):
        table = self.rng.choice(self.database.RELOADABLE)
        # It may be refused while the one before is under way.
        done = self.daemon.command("reload", self.daemon.task, f"{self.database.SCHEMA}.{table}")
        if done.returncode != 0:
            say(f"reload of {table}: {done.stdout}{done.stderr}".strip())
        return lambda: self.is_loaded(table)

    def is_loaded(self, table):
        """Whether it is, as the daemon says."""
        return self.daemon.states_or_none().get((self.database.SCHEMA, table)) == "Table completed"

    # -- the whole

    def run(self, minutes):
        """Faults for so many minutes, then the comparison."""
        self.began = time.monotonic()
        self.daemon.start_and_load(seconds=120)
        self.database.load_is_over()
        self.bank.start(writers=2, pause=0.08)
        for what, every in (
            (self.look, LOOK_EVERY),
            (self.count, COUNT_EVERY),
            (self.sample, SAMPLE_EVERY),
            (self.write, 60),
        ):
            self.watch(what, every)
        bag, late = [], False
        while self.minutes() < minutes and not self.stopping.wait(self.rng.uniform(4, 20)):
            if not late and self.minutes() >= minutes / 2:
                bag, late = [], True
                say("from now on the daemon's process lives on")
            if not bag:
                bag = [kind for kind in self.kinds if not (late and kind in RESTARTS)]
                bag += [] if late else ["kill"] * 4 + ["terminate"]
                self.rng.shuffle(bag)
            try:
                self.next_fault(bag.pop())
            except self.away as error:
                self.problem(f"{type(error).__name__}: {error}")
                if self.daemon.ended():
                    self.daemon.start(ready=False)
            while self.bank.failures:
                self.problem(f"a writer ended: {self.bank.failures.pop()}")
                self.bank.start(writers=1, pause=0.08)
        self.finish()

    def finish(self):
        """Ends the writers, and compares everything."""
        self.source.heal()
        self.target.heal()
        self.lasted = self.minutes()
        self.bank.stop()
        self.bank.mark()
        say(f"{self.lasted:.1f} minutes are over, {self.bank.commits()} commits; comparing")
        self.quiet.set()
        self.compared = []
        try:
            self.daemon.wait_states(seconds=120)
            self.compared = self.daemon.compare(self.database.TABLES + self.added, seconds=240)
            wait_for(lambda: self.daemon.metrics().get(("millrace_unaccounted_rows",)) == 0, 20, "unaccounted = 0")
        except (Difference, TimeoutError, AssertionError, Failed) as error:
            self.problem(str(error)[:20_000])
        found = [(row[0], row[1]) for row in self.lake_ledger()]
        for wrong in self.bank.check_ledger(found):
            self.problem(f"ledger: {wrong}")
        self.look()
        for wrong in soak_record.judge(self.samples):
            self.problem(wrong)
        self.stopping.set()
        for wrong in soak_record.blind(self.write(), self.kinds, RESTARTS):
            self.problem(wrong)
        self.write()

    def lake_ledger(self):
        """(writer, seq) of every ledger row in the lake."""
        import pyarrow.parquet

        for file in self.daemon.lake.files(self.database.SCHEMA, "ledger"):
            table = pyarrow.parquet.read_table(self.daemon.lake.local(file["path"]), columns=["writer", "seq"])
            yield from zip(table["writer"].to_pylist(), table["seq"].to_pylist())


FAULTS = {
    "kill": Soak.kill,
    "kill in start": Soak.kill_in_start,
    "terminate": Soak.terminate,
    "terminate while the target hangs": Soak.terminate_without_target,
    "freeze": Soak.freeze,
    "source cut": lambda soak: soak.through(soak.source, "cut", 15),
    "source hangs": lambda soak: soak.through(soak.source, "hang", 20),
    "source slow": lambda soak: soak.through(soak.source, "slow", 15),
    "target cut": lambda soak: soak.through(soak.target, "cut", 30),
    "target hangs": lambda soak: soak.through(soak.target, "hang", 30),
    "target slow": lambda soak: soak.through(soak.target, "slow", 15),
    "server restarted": lambda soak: soak.restart_server(soak.database.RESTARTED),
    "server crashed": lambda soak: soak.restart_server(soak.database.CRASHED),
    "sessions ended": lambda soak: soak.database.end_sessions(),
    "config reloaded": Soak.reload_config,
    "table added": Soak.add_table,
    "column added": Soak.add_column,
    "large transaction": Soak.large_transaction,
    "table reloaded": Soak.reload_table,
}
RESTARTS = {"kill", "kill in start", "terminate", "terminate while the target hangs"}


def at_source(do):
    """A fault of the soak from one of its source."""
    return lambda soak: do(soak.database)


def folder_bytes(folder):
    """Size of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                pass
    return total


def say(text):
    print(f"soak: {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES") or 120))
    parser.add_argument("--source", choices=SOURCES, default=os.environ.get("SOURCE") or PostgresSource.NAME.lower())
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MILLRACE_TEST_SEED") or time.time_ns() % 10**9))
    parser.add_argument("--out", help="where the record goes (default: a new folder)")
    parser.add_argument("--record", action="store_true", help="write docs/soak.md, docs/soak.svg and docs/soak.json")
    arguments = parser.parse_args()
    out = arguments.out or temporary_folder("millrace-soak-")
    os.makedirs(out, exist_ok=True)
    kind = SOURCES[arguments.source]
    say(f"{kind.NAME}, seed {arguments.seed}, {arguments.minutes:.0f} minutes, record in {out}")
    with kind.open() as server, MotoS3() as s3, Proxy(server.port) as source, Proxy(s3.port) as target:
        soak = Soak(kind, server, s3, source, target, arguments.seed, out)
        signal.signal(signal.SIGTERM, lambda *_: soak.stopping.set())
        try:
            soak.run(arguments.minutes)
        finally:
            soak.stopping.set()
            soak.daemon.close(keep=bool(soak.problems))
    for line in soak_record.summary(f"{out}/record.json"):
        say(line)
    if arguments.record:
        soak_page.publish(f"{out}/record.json", f"{out}/samples.jsonl", os.path.join(CHECKOUT, "docs"))
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())

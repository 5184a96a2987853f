"""Runs the real binary: writes its config, starts it, asks it, kills it, starts it again.

`MILLRACE_BIN` names the binary (default: `millrace` in the target folder's debug build, built with `--features
failpoints`). `MILLRACE_CRASH_AT=name[:n]` makes such a build send itself SIGKILL when it passes the failpoint for the
n-th time.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import compare
import psycopg
from servers import Postgres, free_port, stop_process, wait_for

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def binary():
    """The program under test."""
    found = os.environ.get("MILLRACE_BIN") or os.path.join(
        os.environ.get("CARGO_TARGET_DIR", os.path.join(CHECKOUT, "target")), "debug", "millrace"
    )
    if not os.path.exists(found):
        raise FileNotFoundError(f"{found} is not there: cargo build --features failpoints")
    return found


class Failed(Exception):
    """A command ended with an exit code that was not expected."""


class Daemon:
    """One daemon with its config, state folder and local lake. It survives its process: `start` after `kill` goes on
    where the state is. One task, named `task`."""

    def __init__(
        self,
        server,
        database,
        tables,
        *,
        task="shop",
        mode="full-load-and-cdc",
        target=None,
        buffer=None,
        user="cdc",
        port=None,
        options=None,
        minimal=False,
        compression=None,
        s3=None,
        source=None,
        environment=None,
    ):
        self.server, self.database, self.task, self.s3 = server, database, task, s3
        self.folder = tempfile.mkdtemp(prefix="millrace-e2e-")
        self.state, self.lake_folder = f"{self.folder}/state", f"{self.folder}/lake"
        self.listen = f"127.0.0.1:{free_port()}"
        self.config_file = f"{self.folder}/millrace.yaml"
        self.password_file = f"{self.folder}/password"
        self.process, self.runs, self.logs = None, 0, []
        with open(self.password_file, "w") as file:
            file.write(Postgres.PASSWORD + "\n")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": self.folder,
            "PGPASSWORD": Postgres.PASSWORD,
            "MYSQL_PWD": Postgres.PASSWORD,
            "RUST_BACKTRACE": os.environ.get("RUST_BACKTRACE", "0"),
            "RUST_LOG": os.environ.get("RUST_LOG", "info,millrace::delivery=debug"),
            **(environment or {}),
        }
        buffer = buffer or {"interval": "1s"}
        if minimal:
            text = (f"task: {task}\n" if task else "") + (
                f"source: {server.url(database, user)}\ntarget: file://{self.lake_folder}/\n"
                f"tables: {json.dumps(tables, ensure_ascii=False)}\n"
                f"state-dir: {self.state}\nlisten: {self.listen}\n"
            )
        else:
            lake = target or {"type": "file", "path": self.lake_folder}
            lake = {**lake, "buffer": buffer, **({"format": {"compression": compression}} if compression else {})}
            text = self.full_form(
                {
                    "source": {
                        "type": server.TYPE,
                        "host": "127.0.0.1",
                        "port": port or server.port,
                        "database": database,
                        "user": user,
                        "password": {"file": self.password_file},
                        **(source or {}),
                    },
                    "lake": lake,
                },
                {task: {"mode": mode, "source": "source", "target": "lake", "tables": tables, **(options or {})}},
            )
        self.write_config(text)
        self.lake = compare.Lake(
            lambda *arguments: self.run("catalog", *arguments), s3 and s3.client(), f"{self.folder}/mirror"
        )

    def full_form(self, endpoints, tasks):
        """A config of the full form; values are written as JSON, which YAML contains, durations and sizes without quotes."""

        def written(value):
            return re.sub(r'"(\d+(?:ms|[smhd]|[KMG]i?B|B))"', r"\1", json.dumps(value, ensure_ascii=False))

        lines = ["version: 1", f"state-dir: {self.state}", f"listen: {self.listen}", "endpoints:"]
        lines += [f"  {name}: {written(value)}" for name, value in endpoints.items()]
        lines += ["tasks:"]
        for name, task in tasks.items():
            lines += [f"  {name}:"]
            lines += [f"    {key}: {written(value)}" for key, value in task.items()]
        return "\n".join(lines) + "\n"

    def write_config(self, text):
        """Replaces the config file."""
        self.config_text = text
        with open(self.config_file, "w") as file:
            file.write(text)

    # -- the process

    def start(self, crash_at=None, ready=True, under=(), **environment):
        """Starts `millrace run`; with `ready`, waits until it answers. `under` is a command that ends by executing the
        one that is appended to it, so that the process stays our child."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self.runs += 1
        self.log_file = f"{self.folder}/run-{self.runs}.log"
        extra = {"MILLRACE_CRASH_AT": crash_at} if crash_at else {}
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                [*under, binary(), "run", "--config", self.config_file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, **extra, **environment},
                start_new_session=True,
            )
        if ready:
            wait_for(lambda: self.http("/healthz") is not None or self.ended(), 30, "the daemon's first answer")
            if self.ended() and not crash_at:
                raise Failed(f"the daemon ended with {self.process.returncode}:\n{self.log()}")
        return self

    def ended(self):
        """Whether the process is gone."""
        return self.process is None or self.process.poll() is not None

    def log(self, tail=6000):
        """The end of the newest log."""
        with open(self.log_file, errors="replace") as file:
            return file.read()[-tail:]

    def kill(self):
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self, patience=60):
        """SIGTERM; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience)

    def wait_exit(self, seconds):
        """Waits for the process to end by itself; gives the exit code (negative: the signal)."""
        return self.process.wait(seconds)

    def rss(self):
        """Resident memory in bytes."""
        return self._status("VmRSS")

    def peak_rss(self):
        """Highest resident memory so far in bytes."""
        return self._status("VmHWM")

    def _status(self, name):
        with open(f"/proc/{self.process.pid}/status") as file:
            found = [int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":")]
        if not found:
            raise Failed("the process has just ended")
        return found[0]

    def cpu_seconds(self):
        """User and system time of the process so far."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # -- asking it

    def http(self, path, timeout=5):
        """(status, text) of the HTTP surface, or None where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.listen}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return None

    def metrics(self):
        """Metrics by name and labels: {("millrace_rows_total", "captured"): 3.0, …}; the task's label is left out."""
        found = {}
        for line in (self.http("/metrics") or (0, ""))[1].splitlines():
            if line.startswith("#") or not line.strip():
                continue
            left, value = line.rsplit(" ", 1)
            name, _, labels = left.partition("{")
            labels = dict(part.split("=", 1) for part in labels.rstrip("}").split(",") if "=" in part)
            labels.pop("task", None)
            found[(name, *(label.strip('"') for label in labels.values()))] = float(value)
        return found

    def command(self, *arguments, timeout=60):
        """Runs a command with our config; gives the finished process."""
        return subprocess.run(
            [binary(), *arguments, "--config", self.config_file],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )

    def run(self, *arguments, code=0, timeout=60):
        """Runs a command that must end with `code`; gives its output."""
        done = self.command(*arguments, timeout=timeout)
        if done.returncode != code:
            raise Failed(
                f"millrace {' '.join(arguments)}: exit {done.returncode}, expected {code}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def json(self, *arguments, code=0):
        """The JSON a command prints."""
        text = self.run(*arguments, "--json", code=code)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise Failed(f"millrace {' '.join(arguments)} --json printed no JSON ({error}): {text[:500]}") from None

    def tables(self):
        """{(schema, table): record} of the task's tables, by their names at the source."""
        found = {}
        for record in rows_of(self.json("tables", self.task), "tables"):
            found[table_name(record)] = record
        return found

    def states(self):
        """{(schema, table): DMS's word}."""
        return {table: record["state"] for table, record in self.tables().items()}

    def states_or_none(self):
        """The same, and nothing while the daemon has no answer yet."""
        try:
            return self.states()
        except Failed:
            return {}

    def task_record(self):
        """Our task in `status --json`."""
        for record in rows_of(self.json("status"), "tasks"):
            if (record.get("name") or record.get("task")) == self.task:
                return record
        raise Failed(f"status knows no task {self.task}")

    def catalog_tables(self, database):
        """The catalog's tables of a database."""
        return rows_of(self.json("catalog", "tables", database), "tables")

    def dead_letters(self):
        """The rows in the dead letters."""
        return rows_of(self.json("dead-letter", "list", self.task), "dead_letters")

    def wait_states(self, expected="Table completed", seconds=60, tables=None):
        """Waits until all tables (or those named) are in a state."""

        def there():
            if self.ended():
                raise Failed(f"the daemon ended with {self.process.returncode}:\n{self.log()}")
            try:
                self.seen = self.states()
            except Failed as error:
                self.seen = str(error)
                return False
            chosen = {table: state for table, state in self.seen.items() if tables is None or table in tables}
            return chosen and len(chosen) >= len(tables or [0]) and all(s == expected for s in chosen.values())

        try:
            wait_for(there, seconds, f"all tables in state {expected!r}", every=0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.seen}\n{self.log()}") from None

    def start_and_load(self, seconds=60, **options):
        """Starts, and waits until every table is loaded."""
        self.start(**options)
        self.wait_states(seconds=seconds)
        return self

    def confirmed_lsn(self):
        """`confirmed_flush_lsn` of our slot as a number, None without a slot."""
        row = self.server.execute(
            self.database,
            "select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots "
            f"where slot_name like 'millrace_{self.task.replace('-', '_')}%' and not temporary",
        )
        return int(row[0][0]) if row and row[0][0] is not None else None

    def wait_confirmed(self, seconds=60):
        """Waits until everything that is committed at the source now is durable here."""
        end = int(self.server.execute(self.database, "select pg_current_wal_flush_lsn() - '0/0'::pg_lsn")[0][0])
        # The log must move for a keepalive to say so.
        self.server.execute(self.database, "select pg_logical_emit_message(true, 'test', 'x')", user="postgres")
        wait_for(lambda: (self.confirmed_lsn() or 0) >= end, seconds, "the slot's confirmed position")

    # -- comparing

    def compare(self, tables, seconds=60, **options):
        """Compares tables, given as (schema, table) or (schema, table, audit) or dicts of `compare_table`'s arguments.
        Delivery lags behind capture, so it is repeated until nothing differs, or it did so in a look that began when the
        time was over: one look at many files may take longer than that."""
        deadline = time.monotonic() + seconds
        todo = [self._arguments(table) for table in tables]
        done = []
        while True:
            waiting, is_last = [], time.monotonic() > deadline
            for arguments in todo:
                with self.server.connect(self.database, self.server.ADMIN) as connection:
                    try:
                        result = compare.compare_table(connection, self.lake, **arguments, **options)
                    except Failed as error:
                        result = compare.Result(f"{arguments['schema']}.{arguments['table']}", problems=[str(error)])
                (waiting if result.problems else done).append((arguments, result))
            if not waiting:
                return sorted((result for _, result in done), key=lambda result: result.table)
            if is_last:
                text = self.log() if self.runs else ""
                raise compare.Difference(
                    "source and lake differ:\n"
                    + "\n".join(str(result) for _, result in waiting)
                    + f"\n--- the daemon's log ({self.folder})\n{text}"
                )
            todo = [arguments for arguments, _ in waiting]
            time.sleep(0.5)

    @staticmethod
    def _arguments(table):
        if isinstance(table, dict):
            return table
        return dict(zip(("schema", "table", "audit"), table))

    # -- the end

    def close(self, keep=False):
        """Ends the process and removes everything, at the source too."""
        if not self.ended():
            self.kill()
        if keep or os.environ.get("MILLRACE_TEST_KEEP"):
            print(f"kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.server.drop_slots()
        except psycopg.OperationalError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(keep=kind is not None and kind is not KeyboardInterrupt)


def rows_of(value, key):
    """A command's rows, whether it prints an array or an object that holds it."""
    return value if isinstance(value, list) else value[key]


def table_name(record):
    """(schema, table) of a record of `tables --json`."""
    found = record.get("name") or record.get("table")
    if isinstance(found, dict):
        return found["schema"], found["name"]
    if "schema" in record:
        return record["schema"], found
    return tuple(found.split(".", 1))


def end_process(process):
    """Ends a child politely, then not."""
    stop_process(process)

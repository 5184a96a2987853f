"""What the jobs share: CPU seconds, peaks of memory, the daemon's records, and pairs put into results."""

import json
import operator
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "tests", "e2e"))

from daemon import Failed  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


def say(text):
    """One line for who waits."""
    print(f"bench: {text}", flush=True)


def result(title, yardstick, pairs, bars, note="", peer=False):
    """What a job found: a dict per pair, and the bars by the name of a figure, as (`<=` or `>=`, number)."""
    names = sorted({name for pair in pairs for name in pair})
    medians = {name: statistics.median(p[name] for p in pairs if p.get(name) is not None) for name in names}
    compare = {"<=": operator.le, ">=": operator.ge}
    reached = {name: compare[sign](medians[name], bar) for name, (sign, bar) in bars.items()}
    return {
        "title": title,
        "yardstick": yardstick,
        "note": note,
        "peer": peer,
        "pairs": pairs,
        "medians": medians,
        "bars": {name: f"{sign} {bar}" for name, (sign, bar) in bars.items()},
        "reached": reached,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": round(os.getloadavg()[0], 2),
    }


def server_cpu(server):
    """CPU seconds of the server's processes that ended or run, from /proc of the postmaster and its children."""
    ticks = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = stat(entry)
            except OSError:
                continue
            if int(entry) == server.process.pid:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == server.process.pid:
                ticks += sum(map(int, fields[11:13]))
    return ticks / TICKS


def stat(pid):
    """The fields of /proc/PID/stat behind the program's name."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def process_cpu(pid):
    """User and system seconds of a process so far."""
    return sum(map(int, stat(pid)[11:13])) / TICKS


def run_measured(command, environment=None):
    """(wall, CPU seconds, peak bytes of memory) of a command that must succeed."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


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


def delivered(daemon):
    """Row changes that the catalog lists."""
    counts = [record["counts"] for record in records(daemon, "checkpoint/")]
    return sum(count["inserts"] + count["updates"] + count["deletes"] for count in counts)


def wait_quickly(daemon, condition, seconds, what, every=0.01):
    """Polls while the daemon lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        if daemon.ended():
            raise Failed(f"the daemon ended with {daemon.process.returncode}:\n{daemon.log()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}\n{daemon.log()}")
        time.sleep(every)


def heads(daemon, patience=30):
    """What `millrace follow TASK --json` prints, read from the control socket: (monotonic seconds, head)."""
    deadline = time.monotonic() + patience
    while True:
        follower = socket.socket(socket.AF_UNIX)
        try:
            follower.connect(f"{daemon.state}/control.sock")
            break
        except OSError:
            follower.close()
            if time.monotonic() > deadline or daemon.ended():
                raise Failed(f"no daemon answers:\n{daemon.log()}") from None
            time.sleep(0.002)
    with follower, follower.makefile("rb") as lines:
        follower.sendall(json.dumps({"command": "follow", "task": daemon.task}).encode() + b"\n")
        for line in lines:
            seen = time.monotonic()
            reply = json.loads(line)
            if reply == "done":
                return
            if "failed" in reply:
                # The task is not there yet.
                if time.monotonic() > deadline:
                    raise Failed(f"following: {reply}")
                time.sleep(0.002)
                yield from heads(daemon, deadline - time.monotonic())
                return
            yield seen, reply["head"]


def percentile(values, percent):
    """The value that so many per cent do not exceed."""
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def machine():
    """What the figures were measured on."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) >> 20
    return {"cores": os.cpu_count(), "cpu": model, "memory_gib": memory, "kernel": os.uname().release}

"""Faults of memory, descriptors and clock, and of a process that is paused."""

import contextlib
import datetime
import glob
import http.client
import os
import re
import signal
import sqlite3
import threading
import time

import pytest
import verify
from machine import need, need_root
from servers import wait_for
from test_disk import segments
from verify import Baseline, arrival, check

QUICK = {"interval": "500ms"}
LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"


@pytest.mark.fault("15", "no file descriptors are left for a while", promise="continues", quick=True)
def test_no_descriptors(bank, daemon, fault, server):
    """The limit is lowered to what is open, and raised again. What needs a descriptor is tried again, files of our own log
    too, and the process lives on."""
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.run(1)
    # Somebody asked before and asks on; a new connection cannot be taken without a descriptor.
    asking = http.client.HTTPConnection(running.listen, timeout=5)
    answers = [health(asking)]
    limit(running, Baseline.of(running).descriptors - 2)
    bank.start(writers=2)
    for _ in range(12):
        with contextlib.suppress(OSError, http.client.HTTPException):
            answers.append(health(asking))
        time.sleep(0.5)
    asking.close()
    assert not running.ended(), running.log()
    assert "Too many open files" in running.log(10**6), running.log()
    assert set(answers) == {200} and len(answers) > 12, answers
    limit(running, 1024)
    with fault.recovering():
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(
        f"EMFILE is told, lived on; {len(answers)} answers of /healthz meanwhile over a connection from before; "
        f"{rows} rows identical"
    )


def health(connection):
    """The status of `/healthz` over a connection that stays open."""
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.fault("15", "a limit of 64 descriptors from the start", promise="continues")
def test_few_descriptors(bank, daemon, fault):
    need("prlimit", "util-linux")
    running = daemon(verify.PATTERNS, buffer=QUICK)
    bank.start(writers=3)
    running.start(under=["prlimit", "--nofile=64:64"])
    running.wait_states(seconds=60)
    time.sleep(3)
    assert running.http("/healthz")[0] == 200
    with fault.recovering():
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"works with 64, {rows} rows identical")


def limit(running, descriptors):
    """Sets the soft limit of a running process."""
    import resource

    _, hard = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))


def memory_group(mebibytes):
    """A memory control group of its own: (folder, the command that runs another one in it)."""
    need_root()
    name = f"millrace-test-{os.getpid()}"
    for base, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = f"{base}/{name}"
        try:
            os.mkdir(folder)
            with open(f"{folder}/{file}", "w") as limit_file:
                limit_file.write(str(mebibytes << 20))
        except OSError:
            if os.path.isdir(folder):
                os.rmdir(folder)
            continue
        return folder, ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    return pytest.skip("no memory control group can be made here")


def kills_for_memory(folder):
    """How many processes of the group were killed for want of memory (version 2, version 1)."""
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(FileNotFoundError), open(f"{folder}/{name}") as file:
            return int(re.search(r"^oom_kill (\d+)$", file.read(), re.MULTILINE)[1])
    raise AssertionError(f"{folder} does not say how many were killed")


@contextlib.contextmanager
def watched_spill(running):
    """Most bytes of open transactions on the daemon's disk meanwhile, in a list of one."""
    most, done = [0], threading.Event()

    def watch():
        while not done.wait(0.05):
            with contextlib.suppress(OSError):
                most[0] = max(most[0], sum(map(os.path.getsize, glob.glob(f"{running.state}/streams/*/spill/*"))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join(10)


@pytest.mark.fault("16", "a limit of 512 MiB and a transaction of 530 MiB", promise="continues")
def test_little_memory(bank, daemon, fault, server, database):
    """The transaction is larger than the limit: it is sent ahead, spilled to disk, and replayed from there."""
    server.execute("postgres", f"alter database \"{database}\" set logical_decoding_work_mem = '1MB'", user="postgres")
    mebibytes = 512
    folder, under = memory_group(mebibytes)
    running = daemon(verify.PATTERNS, buffer=QUICK)
    try:
        running.start(under=under)
        running.wait_states()
        bank.start(writers=1)
        with watched_spill(running) as most:
            bank.add_letters(280_000, 2000)
            with fault.recovering():
                arrival(running, bank, seconds=240)
        assert not running.ended(), running.log()
        peak = running.peak_rss()
        assert peak <= mebibytes << 20 and kills_for_memory(folder) == 0
        assert most[0] > 50 << 20, f"{most[0]} bytes were spilled"
        # It is the memory group's limit that is tested; memory that was needed once may stay.
        running.before = None
        rows = check(running, bank, seconds=120)
        fault.outcome(
            f"peak {peak >> 20} MiB resident, {most[0] >> 20} MiB spilled, oom_kill 0, {rows} rows identical"
        )
    finally:
        if not running.ended():
            running.kill()
        os.rmdir(folder)


@pytest.mark.fault("16", "the memory limit is below what the tasks may need", promise="continues")
def test_too_small_a_memory_limit_is_told(bank, daemon, fault):
    folder, under = memory_group(256)
    running = daemon(verify.PATTERNS, buffer=QUICK)
    try:
        running.start(under=under)
        said = running.log(10**6)
        assert "the memory limit is below what the tasks may need" in said and f"limit_bytes={256 << 20}" in said, said
        running.wait_states()
        arrival(running, bank)
        fault.outcome(f"told at the start; {check(running, bank)} rows identical")
    finally:
        if not running.ended():
            running.kill()
        os.rmdir(folder)
    running.start()
    assert "the memory limit is below" not in running.log(10**6)


@pytest.mark.fault("17", "the clock jumps an hour forward, and back", promise="continues")
def test_the_clock_jumps(bank, daemon, fault, tmp_path):
    """Nothing leaves the stream early, delivered or not; positions rise, and everything flows on."""
    need("faketime", "faketime")
    library = glob.glob(LIBRARY)
    if not library:
        pytest.skip("needs libfaketime: apt-get install faketime")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    fake = {
        "LD_PRELOAD": library[0],
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
    }
    running = daemon(verify.PATTERNS, buffer=QUICK, options={"stream": {"retention": "30m"}})
    running.start(**fake)
    running.wait_states()
    bank.run(2)
    # The next process begins a new segment; the closed one ends with changes that are not delivered.
    running.run("pause", running.task)
    bank.run(1)
    running.wait_confirmed()
    running.kill()
    running.start(**fake)
    bank.start(writers=2)
    kept, objects, heads = segments(running), [], [newest_position(running)]
    for jump in (3600, -3600, 0):
        time.sleep(2.5)
        before = count_files(running)
        offset.write_text(f"{jump:+}\n")
        time.sleep(4)
        # Makes it say something.
        seen = len(running.log(10**6))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "config is taken" in running.log(10**6)[seen:], 10, "a word about the config")
        assert not running.ended(), running.log()
        if jump == 3600:
            assert set(kept) <= set(segments(running)), "a segment went that was not delivered"
            running.run("resume", running.task)
            arrival(running, bank)
            # It is looked every ten seconds whether something may go.
            time.sleep(12)
            assert set(kept) <= set(segments(running)), "a delivered segment went half an hour early"
        objects.append(count_files(running) - before)
        heads.append(newest_position(running))
        assert abs(told_time(running) - time.time() - jump) < 600, "the process does not believe the clock"
    assert all(one < two for one, two in zip(heads, heads[1:])), f"positions rise: {heads}"
    with fault.recovering():
        arrival(running, bank)
    bank.stop()
    # A restart at another time, too.
    running.kill()
    offset.write_text("-3600\n")
    running.start(**fake)
    arrival(running, bank)
    rows = check(running, bank)
    assert max(objects) < 150, f"no flood of objects: {objects}"
    fault.outcome(f"{rows} rows identical, objects per jump {objects}")


def told_time(running):
    """The newest time stamp of the daemon's log, in seconds since 1970."""
    found = re.findall(r"^(?:\x1b\[\dm)?(\d{4}-\d\d-\d\dT[\d:]+)", running.log(10**6), re.MULTILINE)
    return datetime.datetime.fromisoformat(found[-1] + "+00:00").timestamp()


def newest_position(running):
    """The newest position in the log from which something was delivered; the objects are named after theirs."""
    listed = (file["path"] for file in running.lake.files("bank", "ledger"))
    positions = [int(found[1], 16) for path in listed if (found := re.search(r"-([0-9a-f]{16})\.parquet$", path))]
    return max(positions, default=0)


def count_files(running):
    """Objects in the lake."""
    return sum(len(files) for _, _, files in os.walk(running.lake_folder))


@pytest.mark.fault("18", "paused for longer than the server waits (SIGSTOP)", promise="continues")
def test_a_long_pause(bank, daemon, fault, server):
    """The server ends the session (its wal_sender_timeout for us is 60 s); the process finds out and connects anew."""
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.start(writers=1)
    time.sleep(1)
    running.process.send_signal(signal.SIGSTOP)
    active = "select count(*) from pg_replication_slots where active and database = current_database()"
    began = time.monotonic()
    wait_for(lambda: server.execute(bank.database, active) == [(0,)], 100, "the server's giving up", every=1)
    paused = time.monotonic() - began
    running.process.send_signal(signal.SIGCONT)
    with fault.recovering():
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"session ended by the server after {paused:.0f} s, connected anew, {rows} rows identical")


@pytest.mark.fault("49", "the state was written by a newer program", promise="stops safely", quick=True)
def test_a_newer_state_is_refused(bank, daemon, fault):
    """Nothing is touched, and the older state goes on when it is put back."""
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    assert running.terminate() == 0
    set_version(running, 99)
    done = running.command("run", timeout=30)
    said = done.stdout + done.stderr
    assert done.returncode in (2, 3) and "newer" in said and "fix:" in said, said
    set_version(running, 1)
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"refused with {done.returncode}: {said.splitlines()[0][:100]}; {rows} rows identical afterwards")


def set_version(running, version):
    """Overwrites the format version of the state."""
    with sqlite3.connect(f"{running.state}/state.db") as connection:
        connection.execute(f"pragma user_version = {version}")
    connection.close()


@pytest.mark.fault("48", "SIGHUP with a broken config under load", promise="continues", quick=True)
def test_a_broken_config_under_load(bank, daemon, fault):
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.start(writers=2)
    whole = running.config_text
    for broken, word in ((whole.replace("    mode:", "    moode:"), "moode"), ("{", "millrace.yaml"), ("", "config")):
        running.write_config(broken)
        seen = len(running.log(10**6))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: word in running.log(10**6)[seen:], 10, f"a word about {word}")
        assert running.http("/readyz")[0] == 200
    with fault.recovering():
        running.write_config(whole)
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"three broken files refused, the old config stays, {rows} rows identical")

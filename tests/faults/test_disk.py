"""Faults of our own disk: kills at every system call that makes something durable, damaged files, failing fsync, short
writes, full and read-only volumes."""

import collections
import glob
import os
import re
import sqlite3
import subprocess
import time

import pytest
import verify
from compare import position
from machine import Volume, attached, frozen, traced
from servers import wait_for
from test_stream import end_of_frames
from verify import arrival, check

QUICK = {"interval": "500ms"}
# docs/reliability.md, 16: what one task needs at most.
LARGE_TRANSACTION_RSS = 512 << 20
RENAMES = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,ftruncate"
SENDS = "sendto,write,writev,sendmsg"


@pytest.fixture
def volume(tmp_path):
    """Makes volumes; they are gone with the test."""
    made = []

    def make(path, mebibytes):
        made.append(Volume(path, mebibytes, str(tmp_path / f"image-{len(made)}")))
        return made[-1]

    yield make
    for one in made:
        one.close()


def segments(running):
    """Files of the stream's log, oldest first."""
    found = [path for path in glob.glob(f"{running.state}/streams/*/*") if os.path.isfile(path)]
    return sorted(path for path in found if re.fullmatch(r"[0-9a-fA-F]{16,}(\.\w+)?", os.path.basename(path)))


def flip(path, at):
    """Turns one bit of a byte."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


# -- kills at system calls


def count_calls(running, bank, calls, log, seconds=8):
    """How many of these calls one thread makes in a first start and some seconds of load, at most: `when=` counts per
    thread."""
    bank.start(writers=2, pause=0.005)
    running.start(under=traced(f"trace={calls}", log=log))
    running.wait_states()
    time.sleep(seconds)
    running.kill()
    with open(log) as file:
        return max(collections.Counter(line.split()[0] for line in file if "resumed" not in line).values())


def kill_sweep(running, bank, calls, whens):
    """Rounds in which the process dies at the n-th of these calls of one of its threads; gives at which it died."""
    died = []
    for when in whens:
        if not bank.threads:
            bank.start(writers=2, pause=0.005)
        running.start(ready=False, under=traced(f"inject={calls}:signal=KILL:when={when}"))
        try:
            assert running.wait_exit(12) == -9, running.log()
            died.append(when)
        except subprocess.TimeoutExpired:
            # No thread came to so many of them in that time.
            running.kill()
    return died


@pytest.mark.fault("3", "SIGKILL at the third fsync, the first rename, the fifth send", promise="continues", quick=True)
def test_killed_at_a_system_call(bank, daemon, fault):
    running = daemon(verify.PATTERNS, buffer=QUICK)
    died = sum(
        len(kill_sweep(running, bank, calls, (when,)))
        for calls, when in (("fsync,fdatasync", 3), (RENAMES, 1), (SENDS, 5))
    )
    assert died == 3
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"{died} kills, {rows} rows identical")


@pytest.mark.fault("3", "SIGKILL at each fsync, rename, write and send, or every k-th of many", promise="continues")
@pytest.mark.parametrize("calls", ["fsync,fdatasync", RENAMES, SENDS, "pwrite64,pwritev"])
def test_killed_at_each_system_call(bank, daemon, fault, calls, tmp_path):
    """How many there are is counted in a first run; up to twelve are all tried, of more the first four and eight others
    at equal distances."""
    options = {"stream": {"retention": "2s"}}
    counted = daemon(verify.PATTERNS, buffer=QUICK, options=options)
    n = count_calls(counted, bank, calls, str(tmp_path / "strace"))
    counted.server.drop_slots()
    running = daemon(verify.PATTERNS, buffer=QUICK, options=options)
    every = 1 if n <= 12 else (n - 4) // 8
    whens = list(range(1, n + 1)) if n <= 12 else [1, 2, 3, 4, *range(4 + every, n + 1, every)][:12]
    died = kill_sweep(running, bank, calls, whens)
    assert len(died) >= min(3, n), died
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    how = "each" if n <= 12 else f"one in {every}"
    fault.outcome(f"{calls.split(',')[0]}: {how}, killed at {len(died)} of {n}, {rows} rows identical")


# -- damaged files


@pytest.mark.fault("8", "the newest segment ends in the middle of a frame, or in zeroes", promise="continues")
@pytest.mark.parametrize("how", ["cut", "zeroed", "torn"])
def test_a_torn_end_of_the_log(bank, daemon, fault, how):
    """Bytes behind the last mark are those of appends that nobody was told of; they come again."""
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.run(2)
    running.wait_confirmed()
    running.kill()
    path = segments(running)[-1]
    with open(path, "r+b") as file:
        whole = file.read()
        end = end_of_frames(whole)
        file.truncate(end)
        file.seek(end)
        # The beginning of a frame that looks right: a copy of the last one, cut off, or with its second half missing.
        last = whole.rindex(b"Mf", 0, end) - 4
        copy = whole[last:end]
        if how == "cut":
            file.write(copy[: len(copy) // 2])
        elif how == "zeroed":
            file.write(copy[:10] + bytes(5000))
        else:
            file.write(copy[: len(copy) // 2] + bytes(512) + os.urandom(700))
    torn = os.path.getsize(path)
    with fault.recovering():
        running.start()
        arrival(running, bank)
    with open(path, "rb") as file:
        kept = file.read()
    assert kept[:end] == whole[:end], "what was marked stays"
    assert len(kept) == end, f"the file is cut to {end} bytes: {len(kept)}, torn {torn}"
    rows = check(running, bank)
    fault.outcome(f"{how}: cut from {torn} to {end} bytes, {rows} rows identical")


@pytest.mark.fault("9", "a bit flips in the middle of a segment", promise="stops safely")
def test_a_flipped_bit_in_a_segment(bank, daemon, fault):
    """The error names file and offset, at each start; nothing behind the place is delivered; the other task goes on; and
    what the error says to do makes everything right."""
    running = daemon(verify.PATTERNS, buffer={"interval": "600s"})
    bank.server.execute(bank.database, "create table public.other (id int primary key)")
    running.write_config(
        running.config_text + '  other:\n    source: source\n    target: lake\n    tables: ["public.other"]\n'
    )
    running.start_and_load()
    bank.run(3)
    running.wait_confirmed()
    delivered = running.lake.files("bank", "ledger")
    running.kill()
    # From now on everything that may be delivered is delivered soon.
    running.write_config(running.config_text.replace('"interval": 600s', '"interval": 500ms'))
    path = sorted(glob.glob(f"{running.state}/streams/{running.task}/*.log"))[0]
    with open(path, "rb") as file:
        end = end_of_frames(file.read())
    flip(path, end // 2)
    for number in range(2):
        running.start()
        wait_for(lambda: running.task_record()["state"] in ("failed", "stopped"), 30, "the task's end")
        told = running.run("status")
        assert "LOG-DAMAGED" in told and os.path.basename(path) in told and re.search(r"offset \d+", told), told
        assert running.http("/readyz")[0] == 503
        bank.server.execute(bank.database, f"insert into public.other values ({number})")
        wait_for(
            lambda: sum(file["rows"] for file in running.lake.files("public", "other")) == number + 1,
            30,
            "the other task's row in the catalog",
        )
        assert running.task_record()["state"] in ("failed", "stopped")
        assert not running.ended()
        if number == 0:
            running.kill()
    assert running.lake.files("bank", "ledger") == delivered, "nothing past the damage is delivered"
    running.run("delete", running.task)
    assert running.terminate() == 0
    with fault.recovering():
        running.start_and_load()
        arrival(running, bank)
    running.compare([*verify.TABLES, ("public", "other")])
    fault.outcome("LOG-DAMAGED names file and offset, the other task goes on, right after delete and load")


@pytest.mark.fault("9", "bytes of the state's database are damaged", promise="stops safely")
def test_damage_in_the_state(bank, daemon, fault):
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.run(1)
    assert running.terminate() == 0
    path = f"{running.state}/state.db"
    with sqlite3.connect(path) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()
    with open(path, "r+b") as file:
        page = file.read(100)[16] << 8
        # The head of the first page after the schema's: the root of the one table.
        file.seek(page)
        file.write(b"\xff" * 64)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("select sum(length(value)) from state").fetchall()
    running.start(ready=False)
    code = running.wait_exit(30)
    said = running.log(20000)
    assert code not in (0, -9) and "state.db" in said, said
    fault.outcome(f"ends with {code}: {said.strip().splitlines()[0][:120]}")


# -- failing calls


@pytest.mark.fault("10", "fsync of the log fails once with EIO", promise="stops safely", quick=True)
def test_fsync_fails_once(bank, daemon, fault, tmp_path):
    """The process ends with an error and confirms nothing more; the next one reads what is really there."""
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.run(0.5)
    running.wait_confirmed()
    # The thread that writes the log is the first that comes to so many; the state's are seldom at it.
    log = str(tmp_path / "strace")
    expressions = ("trace=fdatasync,fsync,sendto,sendmsg,write,writev", "inject=fdatasync,fsync:error=EIO:when=40")
    with attached(running, *expressions, log=log):
        bank.start(writers=2)
        code = running.wait_exit(60)
    assert code not in (0, -9), running.log()
    said = running.log(20000)
    assert "STORAGE" in said and ("os error 5" in said or "Input/output" in said), said
    with open(log) as file:
        lines = file.read().splitlines()
    failed = next(index for index, line in enumerate(lines) if "EIO" in line)
    # A call that another thread's stands between is told in two lines; the first has the path.
    thread = lines[failed].split()[0]
    begun = next(line for line in reversed(lines[: failed + 1]) if line.startswith(thread) and "sync(" in line)
    assert segments(running)[-1] in begun, begun
    confirmations = [index for index, line in enumerate(lines) if is_status_update(line)]
    assert confirmations and confirmations[0] < failed, "the trace sees what is confirmed"
    # What an earlier fsync covered may be confirmed by another thread a moment later.
    most = max(confirmed(lines[index]) for index in confirmations)
    with fault.recovering():
        running.start()
        arrival(running, bank)
    kept = position(re.search(r"the log is open .*position=(\S+)", running.log(10**6))[1])
    assert most <= kept, f"{most:X} was confirmed, and the log holds what is before {kept:X}"
    rows = check(running, bank)
    fault.outcome(
        f"ended with {code} and STORAGE, {len(confirmations)} confirmations, none of more than was kept, "
        f"{rows} rows identical after the restart"
    )


def is_status_update(line):
    """Whether a traced call sends a Standby status update: CopyData with the kind `r`
    (https://www.postgresql.org/docs/15/protocol-replication.html)."""
    return re.search(r'(?:sendto|sendmsg|write|writev)\(.*"d\\0\\0\\0&r', line) is not None


def confirmed(line):
    """The position up to which a traced Standby status update says that everything is flushed: Int64 at byte 14."""
    text = re.search(r'"((?:[^"\\]|\\.)*)"', line)[1]
    return int.from_bytes(text.encode("latin1").decode("unicode_escape").encode("latin1")[14:22], "big")


@pytest.mark.fault("11", "interrupted calls", promise="continues", quick=True)
def test_interrupted_calls(bank, daemon, fault, tmp_path):
    """Every few writes of files answer EINTR without having done anything."""
    log = tmp_path / "strace"
    under = traced("trace=pwrite64,pwritev", "inject=pwrite64,pwritev:error=EINTR:when=2+3", log=str(log))
    running = daemon(verify.PATTERNS, buffer=QUICK)
    bank.start(writers=2)
    running.start(under=under)
    running.wait_states(seconds=90)
    time.sleep(3)
    rows = check(running, bank)
    interrupted = sum("EINTR" in line for line in log.read_text().splitlines())
    assert interrupted >= 10
    fault.outcome(f"{interrupted} EINTR answered by another try, {rows} rows identical")


# -- full and read-only volumes


def full_and_free_again(running, bank, disk, fault, letters):
    """Fills the volume under load, waits, gives the space back; gives (whether the process ended, unconfirmed bytes)."""
    disk.fill()
    bank.start(writers=2, pause=0.005)
    bank.add_letters(letters, 2000)
    time.sleep(12)
    confirmed = running.confirmed_lsn()
    head = int(bank.server.execute(bank.database, "select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0])
    ended = running.ended()
    if not ended:
        assert running.http("/healthz")[0] == 200
    said = running.log(20000)
    assert "No space left" in said or "DISK-FULL" in said, said
    disk.empty()
    with fault.recovering():
        if running.ended():
            running.start()
        arrival(running, bank, seconds=120)
    return ended, head - confirmed


@pytest.mark.fault("12", "the volume of the stream is full, then has room again", promise="continues")
def test_the_streams_volume_is_full(bank, daemon, fault, volume):
    """Nothing is confirmed that is not on disk; the source keeps its log; it goes on by itself when there is room. The
    state's reserve lets it write what it must."""
    running = daemon(verify.PATTERNS, buffer=QUICK)
    disk = volume(running.state, 700)
    running.start_and_load()
    assert os.path.exists(f"{running.state}/reserve")
    bank.run(1)
    running.wait_confirmed()
    ended, waiting = full_and_free_again(running, bank, disk, fault, 60_000)
    # A transaction of 120 MB took more than there was before; what was needed once may stay, within its bound.
    running.before = None
    rows = check(running, bank)
    assert not ended, running.log()
    assert waiting > 1 << 20, "what has no room is not confirmed"
    assert running.peak_rss() < LARGE_TRANSACTION_RSS
    fault.outcome(f"waited with {waiting >> 20} MiB unconfirmed, {rows} rows identical")


@pytest.mark.fault("13", "the volume of the state is full, and there is no reserve", promise="stops safely")
def test_the_states_volume_is_full(bank, daemon, fault, volume):
    running = daemon(verify.PATTERNS, buffer=QUICK)
    disk = volume(running.state, 160)
    running.start_and_load()
    bank.run(1)
    running.wait_confirmed()
    ended, waiting = full_and_free_again(running, bank, disk, fault, 5_000)
    rows = check(running, bank)
    fault.outcome(f"{'ended' if ended else 'waited'} with {waiting >> 20} MiB unconfirmed, {rows} rows identical")


@pytest.mark.fault("12", "the volume of the lake is full, then has room again", promise="continues")
def test_the_lakes_volume_is_full(bank, daemon, fault, volume):
    """Capture goes on into the stream, the source's log is let go, delivery waits."""
    running = daemon(verify.PATTERNS, buffer=QUICK)
    disk = volume(running.lake_folder, 64)
    running.start_and_load()
    bank.run(1)
    disk.fill()
    bank.start(writers=2)
    bank.add_letters(3000)
    running.wait_confirmed()
    time.sleep(2)
    assert not running.ended(), running.log()
    disk.empty()
    with fault.recovering():
        arrival(running, bank, seconds=120)
    rows = check(running, bank)
    fault.outcome(f"captured on, delivered afterwards, {rows} rows identical")


@pytest.mark.fault("14", "the state's volume is remounted read-only", promise="stops safely")
def test_a_read_only_state(bank, daemon, fault, volume):
    running = daemon(verify.PATTERNS, buffer=QUICK)
    disk = volume(running.state, 160)
    running.start_and_load()
    bank.run(1)
    assert running.terminate() == 0
    if not disk.remount("ro"):
        pytest.skip("the volume is not remounted read-only here")
    running.start(ready=False)
    code = running.wait_exit(30)
    said = running.log(20000)
    assert code not in (0, -9) and running.state in said, said
    disk.remount("rw")
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"ends with {code}: {said.strip().splitlines()[0][:110]}; {rows} rows identical afterwards")


@pytest.mark.fault("14", "writing into the lake and the stream is not permitted (chattr +i)", promise="stops safely")
@pytest.mark.parametrize("what", ["lake", "stream"])
def test_writing_is_not_permitted(bank, daemon, fault, what):
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.run(1)
    running.wait_confirmed()
    if what == "lake":
        places = [f"{running.lake_folder}/bank/ledger", f"{running.lake_folder}/bank/account"]
    else:
        assert running.terminate() == 0
        places = segments(running)[-1:]
    with frozen(places):
        if running.ended():
            running.start(ready=False)
        bank.start(writers=2)
        wait_for(lambda: running.ended() or "not permitted" in running.log(20000), 30, "a word about it")
        said = running.log(20000)
        assert "not permitted" in said and any(os.path.basename(path) in said for path in places), said
        ended = running.ended()
    with fault.recovering():
        if running.ended():
            running.start()
        arrival(running, bank, seconds=120)
    rows = check(running, bank)
    fault.outcome(f"{what}: {'stopped' if ended else 'waited'} and named the place, {rows} rows identical afterwards")


def flip_in_state(path, key, part, place):
    """Turns the lowest bit of the last character of what the pattern finds in the value (or key) of a row, in SQLite's file.
    The pages are as whole afterwards as they were. Gives the row's key, and what turns the bit back."""
    with sqlite3.connect(path) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        row = connection.execute(f"select key, value, {part} from state where key like ?", (key,)).fetchone()
    connection.close()
    was = row[2].encode()
    begin = re.search(place, was).end() - 1
    with open(path, "rb") as file:
        content = file.read()
    # A row that was changed may have left a copy in the free part of its page, which nobody reads.
    for found in re.finditer(re.escape(row[0].encode() + row[1].encode()), content):
        at = found.start() + (len(row[0].encode()) if part == "value" else 0) + begin
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes([content[at] ^ 1]))
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",), "SQLite sees nothing of it"
        now = was[:begin] + bytes([was[begin] ^ 1]) + was[begin + 1 :]
        found = connection.execute(f"select key from state where {part} = ?", (now.decode(),)).fetchall()
        assert found, f"{now} is not in the state"
    connection.close()

    def turn_back():
        with open(path, "wb") as file:
            file.write(content)

    return found[0][0], turn_back


@pytest.mark.fault("9", "a bit flips in a value or a key of the state", promise="stops safely", quick=True)
def test_a_flipped_bit_in_the_state(bank, daemon, fault):
    """The changes behind a checkpoint that moved forward by it would never be delivered."""
    running = daemon(verify.PATTERNS, buffer=QUICK).start_and_load()
    bank.run(1)
    assert running.terminate() == 0
    bank.run(1)
    state = f"{running.state}/state.db"
    checkpoint = "checkpoint/%.ledger"
    places = [
        (checkpoint, "value", rb'"through":\d'),
        (checkpoint, "value", rb'"start":"\d'),
        (checkpoint, "key", rb"\.ledge"),
        ("delivery/%/scanned", "value", rb'"at":\d'),
    ]
    named = set()
    for key, part, place in places:
        name, turn_back = flip_in_state(state, key, part, place)
        running.start(ready=False)
        assert running.wait_exit(30) == 3
        said = running.log(20000)
        assert "error[STORAGE]" in said and f"key {name} is damaged" in said and "fix:" in said, said
        named.add(name)
        turn_back()
    with fault.recovering():
        running.start()
        arrival(running, bank)
    check(running, bank)
    fault.outcome(f"STORAGE names the key, {len(places)} bits of {len(named)} keys, right when they are turned back")

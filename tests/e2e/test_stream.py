"""The durable stream in the middle: shards, retention, its bound."""

import glob
import os
import struct
import time
from signal import Signals

import pytest
from conftest import SEED
from servers import Proxy, wait_for
from test_s3 import ENVIRONMENT, target
from workload import PATTERNS, TABLES, Shop

# Rows of about a kilobyte that does not compress.
BURST = (
    "insert into t select i, (select string_agg(md5(random()::text || i || j), '') from generate_series(1, 30) j) "
    "from generate_series({}, {}) i"
)


def stream_bytes(running):
    """Bytes of the streams on disk."""
    return sum(
        os.path.getsize(path)
        for path in glob.glob(f"{running.state}/streams/**", recursive=True)
        if os.path.isfile(path)
    )


@pytest.mark.parametrize("shards,compress", [(1, False), (4, True)])
def test_shards_and_compression(server, database, daemon, shards, compress):
    shop = Shop(server, database, SEED, scale=100)
    shop.create()
    running = daemon(PATTERNS, options={"stream": {"shards": shards, "compress": compress}}).start_and_load()
    shop.sensor_open.set()
    shop.run(3, writers=2, pause=0.005)
    running.kill()
    running.start()
    shop.run(1, writers=2, pause=0.005)
    running.compare(TABLES)


@pytest.mark.trap("46")
def test_retention_lets_delivered_segments_go_and_no_others(daemon, sql, s3):
    """Retention of a second: what is delivered goes; what the target does not take stays, for as long as it takes."""
    sql("create table t (id bigint primary key, v text)")
    with Proxy(s3.port) as proxy:
        running = daemon(
            ["public.t"],
            target=target(s3, "retention/", proxy.port),
            s3=s3,
            environment=ENVIRONMENT,
            options={"stream": {"retention": "1s"}},
        ).start_and_load()
        proxy.cut()
        for number in range(3):
            sql(BURST.format(number * 40000, number * 40000 + 39999))
        running.wait_confirmed()
        held = stream_bytes(running)
        assert held > 50 << 20, "several segments wait"
        import time

        time.sleep(4)
        assert stream_bytes(running) >= held * 0.9, "retention took what was not delivered"
        proxy.heal()
        running.compare([("public", "t")], seconds=120)
        sql("insert into t values (-1, 'after')")
        wait_for(lambda: stream_bytes(running) < held * 0.7, 90, "retention taking delivered segments")
        running.compare([("public", "t")])


@pytest.mark.trap("7", "46")
@pytest.mark.fault("12", "the stream is at its own bound while the target is away", promise="continues")
def test_at_the_disk_bound_the_reader_waits(daemon, sql, s3):
    """The stream's bound is real: the reader slows down, the source keeps its log, nothing is lost."""
    sql("create table t (id bigint primary key, v text)")
    with Proxy(s3.port) as proxy:
        running = daemon(
            ["public.t"],
            target=target(s3, "bound/", proxy.port),
            s3=s3,
            environment=ENVIRONMENT,
            options={"stream": {"retention": "1s", "disk-bound": "40MiB", "compress": False}},
        ).start_and_load()
        proxy.cut()
        for number in range(8):
            sql(BURST.format(number * 10000, number * 10000 + 9999))
        time.sleep(6)
        assert stream_bytes(running) < 140 << 20, "the bound and one segment at most"
        proxy.heal()
        running.compare([("public", "t")], seconds=120)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGHUP"])
def test_at_the_disk_bound_the_daemon_still_obeys(daemon, sql, s3, signal):
    """A reader that waits for room must not keep the daemon from ending, nor from reading its config anew."""
    sql("create table t (id bigint primary key, v text)")
    with Proxy(s3.port) as proxy:
        running = daemon(
            ["public.t"],
            target=target(s3, f"obeys-{signal.lower()}/", proxy.port),
            s3=s3,
            environment=ENVIRONMENT,
            options={"stream": {"disk-bound": "40MiB", "compress": False}},
        ).start_and_load()
        proxy.cut()
        for number in range(5):
            sql(BURST.format(number * 10000, number * 10000 + 9999))
        wait_for(lambda: stream_bytes(running) > 30 << 20, 60, "the stream filling")
        time.sleep(2)
        if signal == "SIGHUP":
            running.process.send_signal(Signals.SIGHUP)
            time.sleep(1)
        else:
            assert running.terminate(patience=45) == 0
            running.start()
        assert running.task_record()["state"] in ("ready", "running", "starting"), running.log()
        proxy.heal()
        running.compare([("public", "t")], seconds=120)


@pytest.mark.trap("45")
@pytest.mark.fault("50", "yesterday's state folder is put back", promise="stops safely")
def test_a_state_folder_from_yesterday_is_refused(daemon, sql):
    """A restored backup is behind what was confirmed: what lies between is gone, and that is said, not skipped."""
    import shutil

    sql("create table t (id int primary key)", "insert into t values (1)")
    running = daemon(["public.t"]).start_and_load()
    running.compare([("public", "t")])
    running.terminate()
    shutil.copytree(running.state, running.state + ".yesterday", ignore=shutil.ignore_patterns("*.sock"))
    running.start()
    sql("insert into t select generate_series(10, 1000)")
    running.wait_confirmed()
    running.compare([("public", "t")])
    running.terminate()
    shutil.rmtree(running.state)
    os.rename(running.state + ".yesterday", running.state)
    running.start(ready=False)
    wait_for(lambda: running.ended() or "LOG-LOST" in running.log() or "LOST" in running.log(), 30, "a refusal")
    assert "LOST" in running.log(20000)
    if not running.ended():
        assert running.task_record()["state"] in ("failed", "stopped")
        assert running.http("/readyz")[0] == 503


@pytest.mark.trap("9", crash=True)
@pytest.mark.fault("27", "the slot is dropped and made again under its name", promise="stops safely")
def test_a_slot_that_was_made_again_is_refused(daemon, sql, server):
    """Dropped and re-created under the same name: silent loss elsewhere."""
    sql("create table t (id int primary key)")
    running = daemon(["public.t"]).start_and_load()
    sql("insert into t values (1)")
    running.compare([("public", "t")])
    running.kill()
    sql("insert into t values (2)")
    wait_for(
        lambda: server.execute(
            "postgres", "select active from pg_replication_slots where slot_name = 'millrace_shop'", user="postgres"
        )
        == [(False,)],
        20,
        "the slot to be free",
    )
    sql("select pg_drop_replication_slot('millrace_shop')", user="postgres")
    sql(
        "insert into t values (3)",
        "select pg_create_logical_replication_slot('millrace_shop', 'pgoutput')",
        user="postgres",
    )
    running.start(ready=False)
    wait_for(lambda: running.ended() or "LOST" in running.log(), 30, "a refusal")
    assert "LOST" in running.log(20000)


def flip_a_bit(running, share):
    """Of the only segment with rows, at that share of its bytes; gives its name."""
    (path,) = (path for path in glob.glob(f"{running.state}/streams/*/*") if os.path.getsize(path) > 10000)
    with open(path, "r+b") as file:
        at = int(len(file.read().rstrip(b"\0")) * share)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    return os.path.basename(path)


@pytest.mark.trap("45", crash=True)
@pytest.mark.fault("9", "one bit of a segment, whole frames behind it", promise="stops safely")
def test_a_damaged_segment_stops_the_stream_loudly(daemon, sql):
    """One bit in the middle, whole frames behind it: named, never skipped."""
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"], buffer={"interval": "600s"}).start_and_load()
    for number in range(4):
        sql(f"insert into t select i, md5(i::text) from generate_series({number * 5000}, {number * 5000 + 4999}) i")
        # Each with an fsync of its own, which is what proves that the damaged frame had been written whole.
        running.wait_confirmed()
    running.kill()
    name = flip_a_bit(running, 0.4)
    running.start(ready=False)
    wait_for(lambda: running.ended() or name in running.log(), 30, "the file's name in the log")
    assert name in running.log(20000)


@pytest.mark.trap("45", crash=True)
@pytest.mark.fault("9", "one bit of the last frame, with nothing behind it", promise="stops safely")
def test_a_damaged_last_frame_is_missed(daemon, sql):
    """Nothing in the stream tells it from a torn tail, but the source was told that it is durable."""
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"], buffer={"interval": "600s"}).start_and_load()
    sql("insert into t select i, md5(i::text) from generate_series(1, 20000) i")
    running.wait_confirmed()
    running.kill()
    flip_a_bit(running, 0.5)
    running.start(ready=False)
    wait_for(lambda: running.ended() or "LOG-LOST" in running.log(), 30, "a refusal")
    assert "LOG-LOST" in running.log(20000)


def end_of_frames(segment):
    """Where the last whole frame of a segment ends (`src/stream/frame.rs` has the header)."""
    at = segment.index(b"Mf") - 4
    while segment[at + 4 : at + 6] == b"Mf":
        at += sum(struct.unpack_from("<II", segment, at + 12))
    return at


@pytest.mark.trap("45", crash=True)
@pytest.mark.fault("8", "garbage behind the last whole frame", promise="continues")
def test_a_torn_tail_is_cut(daemon, sql):
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"], buffer={"interval": "2s"}).start_and_load()
    sql("insert into t select i, md5(i::text) from generate_series(1, 2000) i")
    running.wait_confirmed()
    running.kill()
    newest = max(glob.glob(f"{running.state}/streams/*/*"), key=os.path.getmtime)
    with open(newest, "r+b") as file:
        file.seek(end_of_frames(file.read()))
        file.write(b"torn garbage that was never acknowledged" * 10)
    running.start()
    sql("insert into t values (100000, 'after')")
    running.compare([("public", "t")])

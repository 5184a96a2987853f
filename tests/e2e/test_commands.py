"""What an operator types, and what it does."""

import json
import signal
import subprocess
import time

import duckdb
import pytest
from daemon import binary
from servers import wait_for


@pytest.fixture
def running(daemon, sql):
    sql(
        "create table a (id int primary key, v text)",
        "create table b (id int primary key, v text)",
        "create table c (v text)",
        "insert into a select i, 'a' from generate_series(1, 500) i",
        "insert into b select i, 'b' from generate_series(1, 500) i",
        "insert into c select 'c' from generate_series(1, 500)",
    )
    return daemon(["public.*"]).start_and_load()


ALL = [("public", "a"), ("public", "b"), ("public", "c")]


def rows_in_lake(running, table):
    """Data rows that the manifest of a table lists."""
    return sum(file["rows"] for file in running.lake.files("public", table) if "dead" not in str(file.get("kind")))


def test_pause_holds_delivery_and_not_capture(running, sql):
    running.compare(ALL)
    running.run("pause", "shop")
    time.sleep(1.5)
    before = [rows_in_lake(running, table) for table in "abc"]
    sql("update a set v = 'paused' where id <= 100", "insert into c values ('paused')")
    running.wait_confirmed()
    time.sleep(2.5)
    assert [rows_in_lake(running, table) for table in "abc"] == before
    # A pause outlives the daemon.
    running.terminate()
    running.start()
    sql("update b set v = 'paused' where id <= 100")
    running.wait_confirmed()
    time.sleep(2)
    assert [rows_in_lake(running, table) for table in "abc"] == before
    assert running.task_record().get("paused") is True
    running.run("resume", "shop")
    running.compare(ALL)


def test_stop_ends_capture_and_says_what_it_costs(running, sql):
    said = running.run("stop", "shop")
    assert "slot" in said.lower() or "keep" in said.lower(), said
    wait_for(lambda: running.task_record()["state"] == "stopped", 20, "the state stopped")
    assert sql("select active from pg_replication_slots where slot_name = 'millrace_shop'") == [(False,)]
    sql("insert into a values (1000, 'while stopped')", "insert into c values ('while stopped')")
    running.terminate()
    running.start()
    time.sleep(1.5)
    assert running.task_record()["state"] == "stopped", "an operator's stop outlives the daemon"
    running.run("resume", "shop")
    running.compare(ALL)


@pytest.mark.trap("41")
def test_reload_of_one_table_while_the_others_go_on(running, sql):
    running.compare(ALL)
    generation = {row["name"]: row.get("generation") for row in running.catalog_tables("public")}
    first = {file["path"] for file in running.lake.files("public", "a")}
    # A row that vanishes behind the daemon's back must not stay as a ghost.
    sql("delete from a where id = 5", "update b set v = 'other' where id = 6")
    running.run("reload", "shop", "public.a")
    sql("insert into a values (2000, 'during')", "insert into b values (2000, 'during')")
    wait_for(lambda: not {file["path"] for file in running.lake.files("public", "a")} & first, 30, "the new generation")
    running.wait_states()
    running.compare(ALL)
    after = {row["name"]: row.get("generation") for row in running.catalog_tables("public")}
    assert after["a"] > generation["a"] and after["b"] == generation["b"]
    for round in range(2):
        running.run("reload", "shop")
    running.wait_states(seconds=60)
    sql("update a set v = 'end' where id < 50", "insert into c values ('end')")
    running.compare(ALL)


@pytest.mark.trap("41")
def test_readers_see_the_old_table_until_the_new_one_is_whole(daemon, sql):
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat(md5(i::text), 30) from generate_series(1, 20000) i",
        "analyze t",
    )
    running = daemon(["public.t"], options={"full-load": {"rate-limit": "4MiB"}}).start_and_load()
    running.compare([("public", "t")])
    running.run("reload", "shop", "public.t")
    counts, reloading = set(), False
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        state = running.states()[("public", "t")]
        reloading |= state == "Table is being reloaded"
        counts.add(duckdb.connect().execute(f"select count(*) from ({running.lake.view('public', 't')})").fetchone()[0])
        if reloading and state == "Table completed":
            break
        time.sleep(0.1)
    assert reloading, "it was never seen being reloaded"
    assert counts == {20000}


def test_delete_leaves_nothing_at_the_source(running, sql):
    running.compare(ALL)
    running.run("delete", "shop")
    assert sql("select count(*) from pg_replication_slots where database = current_database()") == [(0,)]
    assert sql("select count(*) from pg_publication") == [(0,)]
    # The lake and its catalog stay.
    assert rows_in_lake(running, "a") >= 500


@pytest.mark.trap("44")
@pytest.mark.fault("45", "two tasks write to one table", promise="stops safely")
def test_two_tasks_never_write_to_one_table(daemon, sql):
    """Both start at the same moment; the one that comes second says whose the table is and does without, and the first is
    not harmed."""
    sql("create table t (id int primary key, v text)", "insert into t select i, 'x' from generate_series(1, 100) i")
    running = daemon(["public.t"], task="one")
    head, line = running.config_text.split("tasks:\n")
    running.write_config(f"{head}tasks:\n{line}{line.replace('  one:', '  two:')}")
    running.start()

    def told():
        found = {task["task"]: task for task in running.json("status")["tasks"]}
        told = [task for task in found.values() if "belongs to task" in str(task["errors"])]
        return found if [task["state"] for task in found.values()] == ["running"] * 2 and len(told) == 1 else None

    found = wait_for(told, 30, "one task with the table, one without")
    loser = next(task for task in found.values() if task["errors"])
    winner = next(name for name in found if name != loser["task"])
    assert f"belongs to task {winner}" in str(loser["errors"]) and loser["tables"] == {}, loser
    running.task = winner
    running.wait_states()
    sql("insert into t values (101, 'y')")
    running.compare([("public", "t")])


def test_a_task_that_vanished_from_the_config_is_an_error(running):
    running.terminate()
    text = running.config_text
    running.write_config(text.replace("  shop:\n", "  other:\n"))
    done = running.command("run", timeout=30)
    assert done.returncode == 2 and "shop" in done.stdout + done.stderr and "removed" in done.stdout + done.stderr
    running.write_config(text + "    removed: true\n")
    running.start()
    wait_for(
        lambda: running.server.execute(
            running.database, "select count(*) from pg_replication_slots where database " "= current_database()"
        )
        == [(0,)],
        20,
        "the slot's end",
    )
    running.terminate()


def test_looking_works_while_stopped_and_running_alike(running):
    running.compare(ALL)
    looks = [
        ("status",),
        ("tables",),
        ("tables", "shop"),
        ("events",),
        ("catalog", "databases"),
        ("catalog", "tables", "public"),
        ("catalog", "files", "public.a"),
        ("dead-letter", "list"),
        ("plan",),
    ]
    for look in looks:
        assert running.run(*look).strip() or look[0] in ("dead-letter", "events")
        running.json(*look)
    running.json("check")
    assert "public" in json.dumps(running.json("catalog", "databases"))
    files = running.json("catalog", "files", "public.a")
    assert isinstance(files, list) and {"path", "rows", "bytes"} <= set(files[0])
    assert "complete_through" in json.dumps(running.json("catalog", "tables", "public"))
    view = running.run("catalog", "view", "public.a")
    assert running.terminate() == 0
    assert running.http("/healthz") is None
    for look in looks:
        running.run(*look)
        running.json(*look)
    assert running.run("catalog", "view", "public.a") == view
    assert running.json("catalog", "files", "public.a") == files


def test_unknown_names_are_answered(running):
    for arguments in (
        ("pause", "nobody"),
        ("reload", "shop", "public.nothing"),
        ("tables", "nobody"),
        ("catalog", "files", "public.nothing"),
        ("delete", "nobody"),
        ("follow", "nobody"),
    ):
        done = running.command(*arguments)
        assert done.returncode not in (0, 101), f"{arguments}: {done.stdout}{done.stderr}"
        assert arguments[-1].split(".")[-1] in done.stdout + done.stderr


def test_output_is_plain_when_it_is_no_terminal(running):
    for arguments in (("status",), ("tables", "shop"), ("plan",), ("check",)):
        assert "\x1b" not in running.run(*arguments)
    assert "\x1b" not in running.log()


def test_sigterm_drains_and_a_second_one_ends_it_at_once(running, sql):
    sql("insert into a select i, 'drained' from generate_series(5000, 9000) i")
    running.wait_confirmed()
    assert running.terminate() == 0
    running.compare([("public", "a")], seconds=0)
    running.start()
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGTERM)
    running.wait_exit(10)


@pytest.mark.trap("44")
@pytest.mark.fault("46", "two daemons on one state folder", promise="stops safely")
def test_two_daemons_never_share_a_state_folder(running):
    done = running.command("run", timeout=20)
    said = done.stdout + done.stderr
    assert done.returncode == 3 and "DAEMON-RUNS" in said, said
    assert f"lock is locked by process {running.process.pid}" in said and "fix:" in said, said
    assert running.http("/healthz")[0] == 200


def test_http_surface(running):
    assert running.http("/healthz")[0] == 200
    assert running.http("/readyz")[0] == 200
    status, text = running.http("/metrics")
    assert status == 200 and "millrace_unaccounted_rows" in text and text.rstrip().endswith("# EOF")


def test_readyz_names_a_task_that_cannot_work(daemon, sql, server):
    from servers import free_port

    sql("create table a (id int primary key)")
    running = daemon(["public.*"], port=free_port())
    done = running.command("run", timeout=60)
    # A first start without one task that can start.
    assert done.returncode == 3, done.stdout + done.stderr
    running = daemon(["public.*"]).start_and_load()
    server.stop()
    try:
        wait_for(lambda: running.http("/readyz")[0] == 503, 30, "not ready")
        assert "shop" in running.http("/readyz")[1]
        assert running.http("/healthz")[0] == 200
    finally:
        server.start()
    wait_for(lambda: running.http("/readyz")[0] == 200, 60, "ready again")


def test_follow_tells_what_is_durable(running, sql):
    """A line per move of the stream's head, over a restart of the task too; it ends with the daemon."""
    running.compare(ALL)
    follower = subprocess.Popen(
        [binary(), "follow", "shop", "--json", "--config", running.config_file],
        stdout=subprocess.PIPE,
        text=True,
        env=running.environment,
    )
    try:
        base = json.loads(follower.stdout.readline())["captured"]
        sql("update a set v = 'followed' where id <= 3", "insert into c values ('followed')")
        head = next(head for head in map(json.loads, follower.stdout) if head["captured"] >= base + 4)
        assert head["captured"] == base + 4
        assert 0 < head["newest_commit_us"] <= head["arrival_us"]
        running.run("stop", "shop")
        running.run("resume", "shop")
        sql("insert into c values ('followed again')")
        assert any(head["captured"] == base + 5 for head in map(json.loads, follower.stdout))
        running.terminate()
        assert follower.wait(20) == 0
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close()

"""The source is looked after: failovers, restored backups, lost slots, limits, quiet databases."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time

import psycopg
import pytest
from conftest import SEED
from crash import REMAKE_POINTS
from daemon import Daemon
from servers import Postgres, Proxy, client_program, temporary_folder, wait_for
from workload import PATTERNS, TABLES, Shop

SLOT = "millrace_shop"


class Copy(Postgres):
    """A server on a copy of another one's data folder: its standby, or a backup of it that is started later."""

    def __init__(self, of, keep_slots=False, settings=None):
        super().__init__(of.major, {**of.settings, **(settings or {})})
        self.of, self.keep_slots = of, keep_slots

    def __enter__(self):
        self.folder = temporary_folder(f"millrace-pg{self.major}-copy-")
        self.data = f"{self.folder}/data"
        self.environment = {**self.of.environment, "HOME": self.folder}
        # A cold copy is a backup that needs no log of the other server.
        self.of.stop()
        ignored = shutil.ignore_patterns("postmaster.pid", "postmaster.opts", *([] if self.keep_slots else [f"{SLOT}*", "standby1"]))
        shutil.copytree(self.of.data, self.data, ignore=ignored)
        self.of.start()
        user = self._user()
        if user:
            for folder, _, files in os.walk(self.folder):
                for path in (folder, *(os.path.join(folder, file) for file in files)):
                    os.chown(path, user["user"], user["group"])
        os.chmod(self.data, 0o700)
        return self

    def stream(self):
        """Starts it as a standby that follows the server it was copied from."""
        self.settings["hot_standby_feedback"] = "on"
        self.settings["primary_conninfo"] = (
            f"host=127.0.0.1 port={self.of.port} user=postgres dbname=postgres application_name=copy"
        )
        open(f"{self.data}/standby.signal", "w").close()
        self.start()
        return self

    def wait_replayed(self):
        """Waits until it has everything that the other has now."""
        end = self.of.execute("postgres", "select pg_current_wal_flush_lsn()::text", user="postgres")[0][0]
        wait_for(
            lambda: self.execute("postgres", f"select pg_last_wal_replay_lsn() >= '{end}'", user="postgres")[0][0],
            30,
            "the standby",
        )

    def promote(self):
        """Ends the recovery: a new timeline."""
        self.execute("postgres", "select pg_promote(true, 30)", user="postgres")
        wait_for(
            lambda: not self.execute("postgres", "select pg_is_in_recovery()", user="postgres")[0][0], 30, "promotion"
        )

    def __exit__(self, *_):
        if self.process:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def primary():
    """A server of the test's own, with a database `shop`."""
    with Postgres() as server:
        server.create_database("shop")
        yield server


def refused(running, code, containing="", seconds=40):
    """Waits until the task has failed with this code and these words; gives its finding."""

    def found():
        record = running.task_record()
        errors = [error for error in record["errors"] if error["code"] == code and containing in text_of(error)]
        return record["state"] in ("failed", "stopped") and errors

    finding = wait_for(found, seconds, f"{code}: {running.log()}", every=0.3)[0]
    assert running.http("/readyz")[0] == 503
    return finding


def text_of(finding):
    """A finding's words."""
    return " ".join([finding["summary"], *finding["detail"], *finding["fix"]])


def events(running):
    """The messages of all events."""
    return [event["message"] for event in running.json("events")]


def slot_free(server):
    """Waits until nobody reads from our slot."""
    free = f"select active from pg_replication_slots where slot_name = '{SLOT}'"
    wait_for(lambda: server.execute("postgres", free, user="postgres") in ([(False,)], []), 20, "the slot to be free")


def drop_slot(server):
    """Drops our slot."""
    slot_free(server)
    server.execute("postgres", f"select pg_drop_replication_slot('{SLOT}')", user="postgres")


def invalidate(server, database="shop"):
    """Makes the server give our slot up."""
    limit = server.settings["max_slot_wal_keep_size"]
    restart(server, "1MB")
    lost = f"select wal_status from pg_replication_slots where slot_name = '{SLOT}'"

    def gone():
        for statement in ("select pg_logical_emit_message(false, 'x', 'y')", "select pg_switch_wal()", "checkpoint"):
            server.execute(database, statement, user="postgres")
        return server.execute(database, lost, user="postgres") == [("lost",)]

    wait_for(gone, 30, "the slot to be lost")
    restart(server, limit)


def restart(server, limit):
    """Starts it again with another `max_slot_wal_keep_size`."""
    server.stop()
    server.settings["max_slot_wal_keep_size"] = limit
    server.start()


def test_a_shutdown_of_the_server_does_not_wait_for_us(server, sql, daemon):
    """A server that shuts down waits until each reader has confirmed all of its log, also what is of no table of ours."""
    sql("create table t (id int primary key)", "create table other (id int)")
    running = daemon(["public.t"]).start_and_load()
    sql("insert into t values (1)")
    running.wait_confirmed()
    took = []
    for _ in range(3):
        sql("insert into other select generate_series(1, 1000)")
        began = time.monotonic()
        server.stop()
        took.append(time.monotonic() - began)
        server.start()
    # Two of three, because a busy disk makes any of them as slow as it likes.
    assert sorted(took)[1] < 2, took
    sql("insert into t values (2)")
    running.compare([("public", "t")], seconds=90)


def test_reading_unchanged_values_is_cheap_for_the_server(server, sql, daemon):
    """Nothing that is read anew is compiled: the server took half a second each time for a few rows of its catalog."""
    try:
        sql("load 'auto_explain'", user="postgres")
    except psycopg.errors.UndefinedFile:
        pytest.skip("this server has no auto_explain")
    sql("create table t (id int primary key, n int, large text)", "alter table t alter large set storage external")
    sql("insert into t select i, 0, repeat(md5(i::text), 200) from generate_series(1, 50) i")
    settings = {"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": 0}
    settings["auto_explain.log_analyze"] = "on"
    try:
        for key, value in settings.items():
            sql(f"alter role cdc set {key} = '{value}'", user="postgres")
        running = daemon(["public.t"]).start_and_load()
        for n in range(1, 4):
            sql(f"update t set n = {n}")
            running.wait_confirmed()
        running.compare([("public", "t")])
    finally:
        sql("alter role cdc reset all", user="postgres")
    with open(f"{server.folder}/log", errors="replace") as log:
        plans = [plan for plan in log.read().split("LOG:") if "FROM (VALUES" in plan or "pg_catalog.pg_type" in plan]
    assert any("FROM (VALUES" in plan for plan in plans), "no value was read anew"
    assert not any("JIT:" in plan for plan in plans), next(plan for plan in plans if "JIT:" in plan)


@pytest.mark.trap("10", crash=True)
@pytest.mark.fault("24", "failover with the slot on the new primary", promise="continues")
def test_a_failover_is_followed(primary):
    """The slot was carried over with the data: the task goes on by itself on the new timeline, and remembers it."""
    primary.execute("shop", "create table t (id int primary key, v text)", "insert into t values (1, 'loaded')")
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["public.t"], port=proxy.port) as running:
        running.start_and_load()
        with Copy(primary, keep_slots=True) as standby:
            standby.stream()
            primary.execute("shop", "insert into t values (2, 'before')")
            running.wait_confirmed()
            standby.wait_replayed()
            proxy.cut()
            primary.stop()
            standby.promote()
            standby.execute("shop", "insert into t values (3, 'after')")
            proxy.target = standby.port
            proxy.heal()
            running.server = standby
            running.compare([("public", "t")], seconds=60)
            wait_for(lambda: timeline(running) == 2, 10, "the new timeline in the record")
            # Behind the fork only the new timeline is the right one: it must have been remembered.
            running.wait_confirmed()
            running.kill()
            standby.execute("shop", "insert into t values (4, 'restarted')")
            running.start()
            running.compare([("public", "t")], seconds=60)
            running.kill()


@pytest.mark.trap("10")
@pytest.mark.parametrize("remade", [False, True], ids=["missing", "made-again"])
@pytest.mark.fault("24", "failover without the slot", promise="stops safely")
def test_a_failover_without_the_slot_is_refused(primary, remade):
    """The new primary has everything but our slot, or one that somebody made after the promotion: the changes in between
    are in no log that we can read. Nothing is skipped; the reload brings them."""
    primary.execute("shop", "create table t (id int primary key, v text)", "insert into t values (1, 'loaded')")
    with Proxy(primary.port) as proxy, Copy(primary) as standby:
        standby.stream()
        with Daemon(primary, "shop", ["public.t"], port=proxy.port) as running:
            running.start_and_load()
            running.wait_confirmed()
            proxy.cut()
            primary.execute("shop", "insert into t values (2, 'not read')", "delete from t where id = 1")
            standby.wait_replayed()
            primary.stop()
            standby.promote()
            make = f"select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
            standby.execute("shop", *([make] if remade else []), "insert into t values (3, 'after')", user="postgres")
            proxy.target = standby.port
            proxy.heal()
            running.server = standby
            said = text_of(refused(running, "LOG-LOST"))
            assert ("was made again" if remade else "not carried over") in said, said
            running.run("reload", "shop")
            running.wait_states(seconds=60)
            standby.execute("shop", "insert into t values (4, 'goes on')")
            running.compare([("public", "t")], seconds=60)
            running.kill()


@pytest.mark.trap("9", "44")
def test_a_slot_that_somebody_reads_or_owns_is_left_alone(primary):
    """Another reader on our slot: the task waits for it. A slot of our name in another database is somebody else's: never
    read, never dropped, also where a lost slot would be made anew."""
    primary.create_database("other")
    primary.execute("shop", "create table t (id int primary key)", "insert into t values (1)")
    with Daemon(primary, "shop", ["public.t"], options={"on-slot-lost": "reload"}) as running:
        running.start_and_load()
        running.terminate()
        primary.execute("shop", "insert into t values (2)")
        slot_free(primary)
        with subprocess.Popen(
            [client_program("pg_recvlogical"), "-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres", "-d", "shop"]
            + ["--slot", SLOT, "--start", "-o", "proto_version=1", "-o", f"publication_names={SLOT}", "-f", "-"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as reader:
            active = f"select active from pg_replication_slots where slot_name = '{SLOT}'"
            wait_for(lambda: primary.execute("shop", active, user="postgres") == [(True,)], 20, "the other reader")
            running.start()
            said = text_of(refused(running, "LOG-BUSY"))
            assert "in use by server process" in said and "pg_stat_activity" in said, said
            reader.kill()
        running.compare([("public", "t")], seconds=90)
        running.terminate()
        drop_slot(primary)
        make = f"select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
        primary.execute("other", make, user="postgres")
        running.start()
        said = text_of(refused(running, "SOURCE-CHANGED", "in database"))
        assert "somebody else's slot" in said, said
        running.run("reload", "shop")
        said = text_of(refused(running, "SOURCE-SETUP"))
        assert "another name" in said, said
        owner = f"select database from pg_replication_slots where slot_name = '{SLOT}'"
        assert primary.execute("shop", owner, user="postgres") == [("other",)]
        drop_slot(primary)
        running.wait_states(seconds=90)
        primary.execute("shop", "insert into t values (3)")
        running.compare([("public", "t")])


def timeline(running):
    """The timeline in the task's record."""
    import sqlite3

    with sqlite3.connect(f"file:{running.state}/state.db?mode=ro", uri=True) as state:
        for key, value in state.execute("select key, value from state").fetchall():
            if key == f"task/{running.task}":
                return json.loads(value)["identity"]["timeline"]


@pytest.mark.trap("10", crash=True)
@pytest.mark.parametrize("promoted", [False, True], ids=["same-timeline", "new-timeline"])
@pytest.mark.fault("25", "the source comes back from an older backup", promise="stops safely")
def test_a_restored_backup_is_refused_and_reloaded(primary, promoted):
    """The source went back in time, behind what we have: stopped; the reload that it names brings the restored state,
    although the positions of the source begin below those that we have."""
    primary.execute("shop", "create table t (id int primary key, v text)", "insert into t values (1, 'kept')")
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["public.t"], port=proxy.port) as running:
        running.start_and_load()
        running.wait_confirmed()
        with Copy(primary, keep_slots=True) as backup:
            primary.execute(
                "shop",
                "insert into t values (2, 'lost by the restore')",
                "update t set v = 'of a future that never was' where id = 1",
                "create table filler as select md5(i::text) from generate_series(1, 100000) i",
            )
            running.wait_confirmed()
            running.compare([("public", "t")])
            proxy.cut()
            primary.stop()
            if promoted:
                open(f"{backup.data}/standby.signal", "w").close()
            backup.start()
            if promoted:
                backup.promote()
            backup.execute("shop", "insert into t values (3, 'restored')")
            proxy.target = backup.port
            proxy.heal()
            running.server = backup
            said = text_of(refused(running, "SOURCE-CHANGED"))
            assert "went back in time" in said and "millrace reload shop" in said, said
            running.terminate()
            running.start()
            refused(running, "SOURCE-CHANGED")
            running.run("reload", "shop")
            running.wait_states(seconds=60)
            backup.execute("shop", "insert into t values (4, 'goes on')", "delete from t where id = 3")
            running.compare([("public", "t")], seconds=60)
            backup.execute("shop", "update t set v = 'and on' where id = 1")
            running.kill()
            running.start()
            running.compare([("public", "t")], seconds=60)
            wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")
            running.kill()


@pytest.mark.trap("10", crash=True)
@pytest.mark.parametrize("seen", ["never-seen", "seen-before", "nothing-of-ours"])
@pytest.mark.fault("25", "an older state of the source, which has written on beyond our position", promise="stops safely")
def test_an_older_state_that_has_overtaken_us_is_refused(primary, seen):
    """Same server, same timeline, its log longer than what we have: it holds other transactions there."""
    primary.execute("shop", "create table t (id int primary key, v text)", "create table other (id int)")
    primary.execute("shop", "insert into t values (1, 'kept')")
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["public.t"], port=proxy.port) as running:
        running.start_and_load()
        primary.execute("shop", "insert into t values (2, 'kept, and the last')")
        running.wait_confirmed()
        running.terminate()
        with Copy(primary, keep_slots=True) as backup:
            running.start()
            lost = "insert into other values (1)" if seen == "nothing-of-ours" else "insert into t values (3, 'lost')"
            primary.execute("shop", lost, "create table filler as select md5(i::text) from generate_series(1, 20000) i")
            running.wait_confirmed()
            proxy.cut()
            if seen == "never-seen":
                running.kill()
            primary.stop()
            backup.start()
            proxy.target = backup.port
            running.server = backup
            if seen == "seen-before":
                proxy.heal()
                refused(running, "SOURCE-CHANGED")
                running.kill()
            elif seen == "nothing-of-ours":
                running.kill()
            if seen == "nothing-of-ours":
                # Only its time tells it apart, and clocks may differ a little.
                time.sleep(12)
            backup.execute("shop", "insert into t values (4, 'of another life')")
            backup.execute("shop", "create table filler as select md5(i::text) from generate_series(1, 40000) i")
            proxy.heal()
            running.start()
            said = text_of(refused(running, "SOURCE-CHANGED"))
            assert "has another log now" in said and "millrace reload shop" in said, said
            # It is the same at the next look, and after a word of the operator.
            running.run("resume", "shop")
            refused(running, "SOURCE-CHANGED", "has another log now")
            running.kill()
            running.start()
            refused(running, "SOURCE-CHANGED", "has another log now")
            running.run("reload", "shop")
            running.wait_states(seconds=60)
            backup.execute("shop", "insert into t values (5, 'goes on')")
            running.compare([("public", "t")], seconds=60)
            running.kill()
            running.start()
            backup.execute("shop", "delete from t where id = 4")
            running.compare([("public", "t")], seconds=60)


def needs(major, what):
    """Skips the test on older servers."""
    running = int(os.environ.get("MILLRACE_TEST_PG", "15"))
    if running < major:
        pytest.skip(f"{what} needs PostgreSQL {major}: MILLRACE_TEST_PG={major}")


@pytest.mark.trap("10")
@pytest.mark.fault("24", "failover with a failover slot (PostgreSQL 17)", promise="continues")
def test_a_failover_slot_is_there_after_the_failover():
    """The server itself keeps the slot on the standby, and never lets us be ahead of it."""
    needs(17, "a failover slot")
    with Postgres(settings={"synchronized_standby_slots": "standby1"}) as primary:
        primary.create_database("shop")
        primary.execute("shop", "create table t (id int primary key, v text)", "insert into t values (1, 'loaded')")
        primary.execute("postgres", "select pg_create_physical_replication_slot('standby1', true)", user="postgres")
        settings = {"primary_slot_name": "standby1", "sync_replication_slots": "on", "synchronized_standby_slots": ""}
        options = {"failover-slot": True}
        with (
            Copy(primary, settings=settings) as standby,
            Proxy(primary.port) as proxy,
            Daemon(primary, "shop", ["public.t"], port=proxy.port, options=options) as running,
        ):
            standby.stream()
            running.start_and_load()
            slot = f"from pg_replication_slots where slot_name = '{SLOT}' and failover"
            assert primary.execute("shop", f"select active {slot}", user="postgres") == [(True,)]
            synced = f"select count(*) {slot} and synced and not temporary"

            def kept():
                primary.execute("shop", "insert into t select max(id) + 1, 'x' from t")
                return standby.execute("postgres", synced, user="postgres") == [(1,)]

            wait_for(kept, 90, "the slot on the standby", every=1)
            running.compare([("public", "t")])
            standby.wait_replayed()
            proxy.cut()
            primary.stop()
            standby.promote()
            standby.execute("shop", "insert into t values (-1, 'after')", "delete from t where id = 2")
            proxy.target = standby.port
            proxy.heal()
            running.server = standby
            running.compare([("public", "t")], seconds=60)
            assert timeline(running) == 2
            running.kill()


def test_a_slot_becomes_a_failover_slot(primary):
    """The option is set later: the slot that is there gets it."""
    needs(17, "a failover slot")
    primary.execute("shop", "create table t (id int primary key)")
    with Daemon(primary, "shop", ["public.t"]) as running:
        running.start_and_load()
        running.terminate()
        running.write_config(running.config_text + '    failover-slot: true\n')
        running.start_and_load()
        failover = f"select failover from pg_replication_slots where slot_name = '{SLOT}'"
        wait_for(lambda: primary.execute("shop", failover, user="postgres") == [(True,)], 20, "the slot's property")
        codes = [finding["code"] for finding in running.json("check")["findings"]]
        assert "PG-FAILOVER" in codes, codes


@pytest.mark.trap("10", "24", crash=True)
def test_a_standby_is_read_from(primary):
    """Slot, snapshot and log at the standby; the publications come from the primary, by the statements of `check`."""
    needs(16, "reading from a standby")
    primary.execute("shop", "create table t (id int primary key, v text)", "create table n (v text)")
    primary.execute("shop", "insert into t select i, repeat('x', 3000) from generate_series(1, 500) i")
    stop = threading.Event()

    def tell_the_standby():
        while not stop.wait(0.5):
            primary.execute("postgres", "select pg_log_standby_snapshot()", user="postgres")

    with Copy(primary) as standby, Daemon(standby.stream(), "shop", ["public.t", "public.n"]) as running:
        found = {finding["code"]: finding for finding in running.json("check", code=3)["findings"]}
        assert "PG-STANDBY" in found and "at the primary" in text_of(found["PG-PUBLICATION"]), found
        primary.execute("shop", *found["PG-PUBLICATION"]["fix"][1:])
        standby.wait_replayed()
        codes = [finding["code"] for finding in running.json("check")["findings"]]
        assert "PG-STANDBY" in codes and "PG-PUBLICATION" not in codes, codes
        writer = threading.Thread(target=tell_the_standby)
        writer.start()
        try:
            running.start_and_load()
            primary.execute(
                "shop",
                "insert into t values (501, 'after')",
                "update t set id = id + 1000 where id < 100",
                "delete from t where id between 200 and 300",
                "insert into n values ('a'), ('a')",
            )
            running.compare([("public", "t"), ("public", "n")], seconds=60)
            running.kill()
            primary.execute("shop", "update t set v = 'while down' where id = 501")
            running.start()
            running.compare([("public", "t"), ("public", "n")], seconds=60)
            # Promoted, it goes on as the primary that it is now.
            stop.set()
            writer.join()
            standby.wait_replayed()
            standby.promote()
            standby.execute("shop", "insert into t values (502, 'promoted')")
            running.compare([("public", "t")], seconds=60)
            # The session went on over the promotion, so we are behind the fork already.
            running.wait_confirmed()
            running.kill()
            standby.execute("shop", "insert into t values (503, 'restarted')")
            running.start()
            running.compare([("public", "t")], seconds=60)
            wait_for(lambda: timeline(running) == 2, 30, "the new timeline in the record")
        finally:
            stop.set()
            writer.join()
        running.kill()


@pytest.mark.trap("9")
def test_another_server_and_another_database_are_refused(primary):
    """The same name leads somewhere else: system identifier, then database."""
    primary.execute("shop", "create table t (id int primary key)", "insert into t values (1)")
    with Proxy(primary.port) as proxy, Daemon(primary, "shop", ["public.t"], port=proxy.port) as running:
        running.start_and_load()
        with Postgres(primary.major) as other:
            other.create_database("shop")
            other.execute("shop", "create table t (id int primary key)")
            proxy.cut()
            proxy.target = other.port
            proxy.heal()
            said = text_of(refused(running, "SOURCE-CHANGED"))
            assert "system identifier" in said and "millrace resume shop" in said, said
            running.kill()
            proxy.cut()
        proxy.target = primary.port
        proxy.heal()
        primary.create_database("elsewhere")
        primary.execute("elsewhere", "create table t (id int primary key)")
        text = running.config_text
        running.write_config(text.replace('"database": "shop"', '"database": "elsewhere"'))
        running.start(ready=False)
        refused(running, "SOURCE-CHANGED", "the database is")
        # Nothing of it was believed, and nothing was made there.
        assert primary.execute("elsewhere", "select count(*) from pg_publication") == [(0,)]
        running.terminate()
        running.write_config(text)
        primary.execute("shop", "insert into t values (2)")
        running.start()
        running.compare([("public", "t")])


@pytest.mark.trap("9")
@pytest.mark.fault("26", "the server invalidates the slot", promise="stops safely")
def test_a_lost_slot_stops_the_task_and_is_reloaded_on_request(primary):
    """The default: nothing is skipped, and the command that the error names works."""
    primary.execute(
        "shop",
        "create table t (id int primary key, v text)",
        "insert into t select i, 'x' from generate_series(1, 1000) i",
        "create table n (v text)",
        "insert into n values ('a')",
    )
    with Daemon(primary, "shop", ["public.t", "public.n"]) as running:
        running.start_and_load()
        primary.execute("shop", "insert into t values (1001, 'seen')")
        running.compare([("public", "t"), ("public", "n")])
        running.terminate()
        primary.execute("shop", "update t set v = 'unseen' where id < 10", "delete from t where id > 990")
        primary.execute("shop", "insert into n values ('unseen')")
        drop_slot(primary)
        running.start()
        said = text_of(refused(running, "LOG-LOST"))
        assert "does not exist" in said and "millrace reload shop" in said, said
        time.sleep(1)
        assert primary.execute("shop", "select count(*) from pg_replication_slots", user="postgres") == [(0,)]
        running.run("reload", "shop")
        running.wait_states(seconds=60)
        running.compare([("public", "t"), ("public", "n")])
        primary.execute("shop", "insert into t values (2000, 'after')", "insert into n values ('after')")
        running.compare([("public", "t"), ("public", "n")])
        wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")
        assert any("read anew" in message for message in events(running))


@pytest.mark.trap("9", "40", crash=True)
@pytest.mark.parametrize("crash_at", [None, *REMAKE_POINTS])
@pytest.mark.fault("26", "the slot is lost and the config says to load anew", promise="continues")
def test_on_slot_lost_reload(primary, crash_at):
    """A slot that the server gave up, with and without a crash on the way: a new slot, all tables anew, an event."""
    primary.execute("shop", "create table t (id int primary key, v text)", "create table u (id int primary key)")
    primary.execute("shop", "insert into t select i, 'x' from generate_series(1, 1000) i", "insert into u values (1)")
    with Daemon(primary, "shop", ["public.t", "public.u"], options={"on-slot-lost": "reload"}) as running:
        running.start_and_load()
        primary.execute("shop", "insert into t values (1001, 'seen')")
        running.compare([("public", "t"), ("public", "u")])
        running.terminate()
        primary.execute("shop", "update t set v = 'unseen' where id < 10", "delete from t where id > 990")
        primary.execute("shop", "insert into u values (2)")
        invalidate(primary)
        if crash_at:
            running.start(crash_at=crash_at, ready=False)
            assert running.wait_exit(60) == -signal.SIGKILL
        running.start()
        running.wait_states(seconds=60)
        primary.execute("shop", "insert into t values (2000, 'after')")
        running.compare([("public", "t"), ("public", "u")], seconds=60)
        told = events(running)
        assert any("is lost; it is made anew" in message for message in told), told
        assert any("read anew" in message for message in told), told
        assert running.task_record()["errors"] == []


@pytest.mark.trap("9")
def test_a_slot_that_goes_while_the_task_runs_is_made_anew(primary):
    """Terminated and dropped under a reader that was in the middle of a load."""
    primary.execute("shop", "create table t (id int primary key, v text)")
    primary.execute("shop", "insert into t select i, repeat('x', 100) from generate_series(1, 30000) i")
    options = {"on-slot-lost": "reload", "full-load": {"rate-limit": "500KB"}}
    with Daemon(primary, "shop", ["public.t"], options=options) as running:
        running.start()
        wait_for(lambda: "Full load" in running.states_or_none().values(), 30, "the load")
        # The load begins a moment before the log is read.
        gone = (
            f"select pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) "
            f"from pg_replication_slots where slot_name = '{SLOT}' and active"
        )
        wait_for(lambda: primary.execute("shop", gone, user="postgres"), 30, "a slot that is read")
        primary.execute("shop", "update t set v = 'gap' where id % 3 = 0", "delete from t where id % 7 = 0")
        wait_for(lambda: any("read anew" in message for message in events(running)), 60, "a new slot")
        running.wait_states(seconds=90)
        primary.execute("shop", "insert into t values (-1, 'after')")
        running.compare([("public", "t")], seconds=60)


@pytest.mark.trap("46")
def test_the_guardian_warns_then_stops_the_task(daemon, sql, server, database):
    """Over the limit because the daemon's disk is full; it says that stopping does not release the log, and what does."""
    sql("create table t (id int primary key, v text)", "create table elsewhere (v text)")
    guard = {"warn-at": "4MiB", "act-at": "40MiB", "action": "stop"}
    running = daemon(["public.t"], options={"source-guard": guard, "stream": {"disk-bound": "1MiB"}})
    running.start_and_load()
    running.run("pause", "shop")
    sql("insert into t select i, md5(i::text) || md5((-i)::text) from generate_series(1, 60000) i")

    def warned():
        return [error for error in running.task_record()["errors"] if error["code"] == "SOURCE-LOG-GROWS"]

    said = text_of(wait_for(warned, 60, "a warning", every=0.5)[0])
    assert "stopped" in said and "40.0 MiB" in said, said
    assert running.task_record()["state"] == "running"
    for _ in range(4):
        sql("insert into elsewhere select repeat(md5(i::text), 10) from generate_series(1, 40000) i", "truncate elsewhere")
    said = text_of(refused(running, "SOURCE-LOG-LIMIT"))
    assert "does not release the log" in said and f"pg_drop_replication_slot('{SLOT}')" in said, said
    record = running.task_record()
    assert (record["state"], record["stop_reason"]) == ("stopped", "SOURCE_LOG_LIMIT")
    assert "used up in" in running.run("status") or record["source_limit_seconds"] is not None
    # What it names works: the log is released, and everything is loaded anew.
    sql(f"select pg_drop_replication_slot('{SLOT}')", user="postgres")


@pytest.mark.trap("46")
def test_the_guardian_drops_the_slot(daemon, sql, server, database):
    """The source's disk goes first: its log is let go, and a resume loads everything anew."""
    sql("create table t (id int primary key, v text)", "create table elsewhere (v text)")
    guard = {"warn-at": "4MiB", "act-at": "20MiB", "action": "drop-slot"}
    running = daemon(["public.t"], options={"source-guard": guard})
    sql("insert into t values (1, 'a')")
    running.start_and_load()
    running.run("stop", "shop")
    for _ in range(4):
        sql("insert into elsewhere select repeat(md5(i::text), 10) from generate_series(1, 40000) i", "truncate elsewhere")
    sql("insert into t values (2, 'unseen')")
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    wait_for(lambda: sql(slots) == [(0,)], 60, "the slot's end")
    record = running.task_record()
    assert (record["state"], record["stop_reason"]) == ("stopped", "SOURCE_LOG_DROPPED")
    assert "drop" in text_of(record["errors"][0]), record
    running.run("resume", "shop")
    running.wait_states(seconds=60)
    sql("insert into t values (3, 'after')")
    running.compare([("public", "t")])
    assert running.task_record()["errors"] == []


def test_the_guardian_drops_the_slot_of_a_running_task(daemon, sql, server, database):
    """A transaction that nobody ends holds the slot up. With `on-slot-lost: reload` the task goes on by itself."""
    sql("create table t (id int primary key, v text)", "create table elsewhere (v text)", "insert into t values (1, 'a')")
    guard = {"warn-at": "4MiB", "act-at": "20MiB", "action": "drop-slot"}
    running = daemon(["public.t"], options={"source-guard": guard, "on-slot-lost": "reload"}).start_and_load()
    with server.connect(database) as forgotten:
        forgotten.execute("insert into t values (2, 'forgotten')")
        for _ in range(3):
            sql("insert into elsewhere select repeat(md5(i::text), 10) from generate_series(1, 40000) i")
        sql("insert into t values (3, 'meanwhile')")
        wait_for(lambda: any("SOURCE-LOG-LIMIT" == code for code in codes(running)), 60, "the limit")
        # The new slot waits for it.
        forgotten.commit()
    wait_for(lambda: any("read anew" in message for message in events(running)), 60, "a new slot")
    running.wait_states(seconds=60)
    sql("insert into t values (4, 'after')")
    running.compare([("public", "t")])
    assert running.task_record()["state"] == "running"


def codes(running):
    """The codes of all events."""
    return [event.get("code") for event in running.json("events")]


@pytest.mark.trap("7")
@pytest.mark.fault("33", "another database of the server is busy, ours is quiet", promise="continues")
def test_a_quiet_database_in_a_busy_server_lets_the_log_go(daemon, sql, server, database):
    """Only other databases write: without a heartbeat both positions of the slot advance all the same."""
    sql("create table t (id int primary key)")
    running = daemon(["public.t"]).start_and_load()
    server.execute("postgres", "create table if not exists busy (v text)", user="postgres")
    positions = (
        "select (restart_lsn - '0/0')::bigint, (confirmed_flush_lsn - '0/0')::bigint from pg_replication_slots "
        f"where slot_name = '{SLOT}'"
    )
    target = None

    def advanced():
        nonlocal target
        server.execute(
            "postgres",
            "insert into busy select md5(i::text) from generate_series(1, 20000) i",
            "truncate busy",
            "checkpoint",
            user="postgres",
        )
        target = target or int(sql("select (pg_current_wal_flush_lsn() - '0/0')::bigint")[0][0])
        return all(found >= target for found in sql(positions, user="postgres")[0])

    wait_for(advanced, 60, "restart_lsn and confirmed_flush_lsn", every=1)


@pytest.mark.trap("7")
def test_a_heartbeat_moves_the_log(daemon, sql):
    """Nothing writes at all but us, and the confirmed position moves on."""
    sql("create table t (id int primary key)")
    running = daemon(["public.t"], options={"heartbeat": "1s"}).start_and_load()
    time.sleep(2)
    before = running.confirmed_lsn()
    wait_for(lambda: running.confirmed_lsn() > before, 40, "the heartbeat")
    assert "heartbeat" not in running.log(100000)
    assert running.task_record()["errors"] == []
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.parametrize("own", [False, True], ids=["publications-by-the-owner", "publications-of-its-own"])
def test_the_whole_shop_with_the_rights_that_grants_gives(primary, own):
    """A role that got nothing but what `millrace grants` prints: check, load, capture, restart, reload, delete."""
    shop = Shop(primary, "shop", SEED, scale=200)
    shop.create()
    with Daemon(primary, "shop", PATTERNS, user="least") as running:
        printed = running.run("grants", running.task, *(["--own-publications"] if own else []))
        primary.execute("shop", *(line for line in printed.splitlines() if line and line[:2] != "--"), user="postgres")
        primary.execute("shop", f"alter role least password '{Postgres.PASSWORD}'", user="postgres")
        rights = "select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication from pg_roles"
        expected = [(False, False, False, False, True)]
        assert primary.execute("shop", f"{rights} where rolname = 'least'", user="postgres") == expected
        found = {finding["code"]: finding for finding in running.json("check", code=0 if own else 3)["findings"]}
        assert ("PG-PUBLICATION" in found) == (not own), found
        if not own:
            for table, right in (("shop.customer", "UPDATE"), ("audit.sensor", "SELECT")):
                asked = f"select has_table_privilege('least', '{table}', '{right}')"
                assert primary.execute("shop", asked, user="postgres") == [(False,)]
            primary.execute("shop", *found["PG-PUBLICATION"]["fix"][1:])
            running.json("check")
        shop.start(writers=2, pause=0.01)
        running.start_and_load()
        shop.sensor_open.set()
        time.sleep(3)
        running.kill()
        running.start()
        running.run("reload", "shop", "shop.orders")
        time.sleep(2)
        running.wait_states(seconds=60)
        shop.stop()
        shop.mark()
        running.compare(TABLES)
        wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")
        said = running.run("delete", "shop")
        assert ("DROP PUBLICATION" in said) == (not own), said
        assert primary.execute("shop", "select count(*) from pg_replication_slots", user="postgres") == [(0,)]

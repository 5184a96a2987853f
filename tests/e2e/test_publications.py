"""What is published follows the tables: identities that come and go, tables that somebody takes out and puts back, owners."""

import signal
import time

import duckdb
import psycopg
import pytest
from compare import data_files
from servers import Postgres, wait_for

OPTIONS = {"on-change": {"discover": "1s"}}


def capture(running, table):
    """What `tables` says is captured of it."""
    return running.tables()[("public", table)]["capture"]


@pytest.mark.parametrize(
    "gains",
    ["alter table t add primary key (id)", "alter table t replica identity full"],
    ids=["primary key", "replica identity"],
)
def test_a_table_that_gains_an_identity_is_captured_whole(daemon, sql, gains):
    sql("create table t (id int not null, v text)", "insert into t select i, 'first' from generate_series(1, 20) i")
    running = daemon(["public.*"], options=OPTIONS).start_and_load()
    assert capture(running, "t") == "inserts only"
    sql(gains, "update t set v = 'between' where id = 1")
    wait_for(lambda: capture(running, "t") == "all changes", 20, "its updates to be captured")
    running.wait_states(seconds=20)
    sql("update t set v = 'behind' where id = 2", "delete from t where id = 3", "insert into t values (21, 'new')")
    if "key" in gains:
        running.compare([("public", "t")])
    loaded = {(id, "between" if id == 1 else "first", 1) for id in range(1, 21)}
    expected = loaded - {(2, "first", 1), (3, "first", 1)} | {(2, "behind", 1), (21, "new", 1)}
    wait_for(lambda: set(standing(running)) == expected, 20, "every row as it is now")


def standing(running):
    """(id, v, how often) of the rows that no change has taken away, told without a key."""
    duck = duckdb.connect()
    running.lake.relation(duck, data_files(running.lake.files("public", "t")), "t")
    by_key = "select id, v, 1 from t qualify row_number() over (partition by id order by change_order desc) = 1"
    by_row = "select id, v, sum(case when \"Op\" = 'D' then -1 else 1 end)::int n from t group by 1, 2 having n <> 0"
    keyed = running.tables()[("public", "t")]["key"]
    found = duck.execute(f"{by_key} and \"Op\" <> 'D'" if keyed else by_row)
    return found.fetchall()


def goes_through(sql, statement):
    """Whether the application can do that."""
    try:
        sql(statement)
        return True
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False


@pytest.mark.parametrize(
    "loses",
    ["alter table t drop constraint t_pkey", "alter table t replica identity nothing"],
    ids=["primary key", "replica identity"],
)
def test_the_application_goes_on_when_a_table_loses_its_identity(daemon, sql, loses):
    sql("create table t (id int primary key, v text)", "insert into t select i, 'first' from generate_series(1, 20) i")
    running = daemon(["public.*"], options=OPTIONS).start_and_load()
    sql(loses)
    wait_for(lambda: goes_through(sql, "update t set v = 'lost' where id = 1"), 20, "the application's UPDATE to work")
    wait_for(lambda: capture(running, "t") == "inserts only", 20, "the table to be captured as it is now")
    running.wait_states(seconds=20)
    wait_for(lambda: "PG-REPLICA-IDENTITY" in str(running.task_record()["errors"]), 20, "the status to say so")


def test_a_table_that_is_suspended_for_its_key_does_not_stop_the_application(daemon, sql):
    sql("create table t (id int primary key, v text)", "insert into t values (1, 'first')")
    running = daemon(["public.*"], options={"on-change": {"discover": "1s", "schema": "suspend"}}).start_and_load()
    sql("alter table t drop constraint t_pkey", "insert into t values (2, 'second')")
    wait_for(lambda: goes_through(sql, "update t set v = 'lost' where id = 1"), 20, "the application's UPDATE to work")


@pytest.mark.fault("42", "a table is taken out of the publication and put back before anybody looks", promise="continues")
@pytest.mark.parametrize("away", ["running", "stopped"])
def test_a_table_that_was_out_of_the_publication_for_a_moment(daemon, sql, server, database, away):
    sql("create table t (id int primary key, v text)", "insert into t select i, 'first' from generate_series(1, 20) i")
    running = daemon(["public.*"], options={"on-change": {"discover": "2s"}}).start_and_load()
    # So that it is not told by a look that falls in between.
    out = "alter publication millrace_shop drop table only t"
    if away == "stopped":
        running.terminate()
    with server.connect(database, "postgres", autocommit=True) as connection:
        connection.execute(out)
        connection.execute("update t set v = 'unpublished' where id = 7")
        connection.execute("alter publication millrace_shop add table only t")
    if away == "stopped":
        running.start()
    wait_for(lambda: "not published for a while" in running.log(20_000), 20, "a word about it")
    running.wait_states(seconds=20)
    running.compare([("public", "t")])
    # Once is enough.
    time.sleep(5)
    assert running.log(20_000).count("changes of the table were not published") == 1


def test_tables_that_only_their_owner_may_publish_wait_alone(daemon, sql, server, database):
    sql("create table one (id int primary key, v text)", "create table two (id int primary key)")
    with server.connect("postgres", "postgres", autocommit=True) as connection:
        connection.execute(f"create role reader login replication password '{Postgres.PASSWORD}'")
    with server.connect(database, "postgres", autocommit=True) as connection:
        connection.execute("grant select on all tables in schema public to reader")
        connection.execute("alter default privileges for role shop in schema public grant select on tables to reader")
        for name, operations in (("millrace_shop", ""), ("millrace_shop_inserts", "publish = 'insert, truncate', ")):
            tables = "" if operations else "for table only one, only two"
            connection.execute(
                f"create publication {name} {tables} with ({operations}publish_via_partition_root = true)"
            )
    try:
        running = daemon(["public.one", "public.two"], user="reader").start_and_load()
        # One leaves, one comes.
        sql("create table three (id int primary key)", "insert into three values (1)")
        running.write_config(running.config_text.replace('"public.two"', '"public.three"'))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ("public", "three") in running.tables(), 20, "the new table in the task")
        wait_for(lambda: "ALTER PUBLICATION" in str(running.task_record()["errors"]), 20, "what is to be run")
        sql("insert into one values (1, 'meanwhile')")
        running.compare([("public", "one")])
        assert running.task_record()["state"] == "running", running.task_record()
        # Others are loaded meanwhile.
        running.run("reload", "shop", "public.one")
        running.wait_states(seconds=60, tables=[("public", "one")])
        sql("insert into one values (2, 'reloaded')")
        running.compare([("public", "one")])
        assert running.tables()[("public", "three")]["state"] == "Before load"
        with server.connect(database, "postgres", autocommit=True) as connection:
            connection.execute("alter publication millrace_shop set table only one, only three")
        running.wait_states(seconds=60, tables=[("public", "three")])
        sql("insert into three values (2)")
        running.compare([("public", "three"), ("public", "one")])
        wait_for(lambda: not running.task_record()["errors"], 30, "nothing left to say")
    finally:
        server.drop_slots()
        with server.connect(database, "postgres", autocommit=True) as connection:
            connection.execute("drop owned by reader")
        with server.connect("postgres", "postgres", autocommit=True) as connection:
            connection.execute("drop role reader")


def moved(running, name):
    """The config with the target in another folder."""
    return running.config_text.replace(running.lake_folder, f"{running.folder}/{name}")


def test_a_target_that_is_another_place_is_refused(daemon, sql):
    sql("create table t (id int primary key, v text)", "insert into t select i, 'first' from generate_series(1, 20) i")
    running = daemon(["public.*"]).start_and_load()
    good, elsewhere = running.config_text, moved(running, "elsewhere")
    running.write_config(elsewhere)
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "TARGET-MOVED" in running.log(), 10, "the config to be refused")
    sql("insert into t values (21, 'goes on')")
    for command in ("check", "plan"):
        done = running.command(command)
        assert done.returncode == 3 and "delivers to another place" in done.stdout, done
    # A start with it does nothing either.
    running.terminate()
    running.start()
    wait_for(lambda: running.task_record()["state"] == "failed", 20, "the task to be refused")
    assert "TARGET-MOVED" in str(running.task_record()["errors"])
    running.terminate()
    running.write_config(good)
    running.start()
    running.compare([("public", "t")])
    # The way that the finding names: everything anew, in the other place.
    running.run("delete", "shop")
    running.terminate()
    running.write_config(elsewhere)
    running.start(crash_at="load-before-commit")
    running.wait_exit(30)
    # The catalog still lists what the deleted task left in the first place.
    running.start()
    running.wait_states(seconds=30)
    running.compare([("public", "t")])
    listed = running.lake.files("public", "t")
    assert listed and all("/elsewhere/" in file["path"] for file in listed), listed

"""A full load: every row, whole, in files that strangers read."""

import os
import signal

import pyarrow.parquet
import pytest
from conftest import SEED
from servers import wait_for
from workload import PATTERNS, TABLES, Shop


def test_five_line_config_loads_a_whole_shop(server, database, daemon):
    Shop(server, database, SEED).create()
    running = daemon(PATTERNS, minimal=True).start_and_load()
    results = running.compare([(schema, table) for schema, table, _ in TABLES])
    assert sum(result.lake_rows for result in results) > 1000


def test_layout_and_our_columns(daemon, sql):
    sql(
        "create table public.t (id int primary key, v text)",
        "insert into t select i, 'v' || i from generate_series(1, 9) i",
    )
    running = daemon(["public.t"]).start_and_load()
    files = running.lake.files("public", "t")
    assert [os.path.relpath(running.lake.local(file["path"]), running.lake_folder) for file in files] == [
        "public/t/LOAD00000001.parquet"
    ]
    table = pyarrow.parquet.read_table(running.lake.local(files[0]["path"]))
    assert table.column_names == ["Op", "id", "v", "commit_timestamp", "change_order"]
    assert set(table["Op"].to_pylist()) == {"I"}
    assert table["commit_timestamp"].null_count == 9
    assert all(len(order) == 40 and order.endswith("00000000") for order in table["change_order"].to_pylist())
    assert sorted(table["id"].to_pylist()) == list(range(1, 10))
    field = table.schema.field("id")
    assert field.metadata[b"PARQUET:field_id"] == b"1"
    assert b"integer" in b" ".join(field.metadata.values())


@pytest.mark.parametrize("option,codec", [(None, "ZSTD"), ("snappy", "SNAPPY"), ("none", "UNCOMPRESSED")])
def test_compression(daemon, sql, option, codec):
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat('x', 50) from generate_series(1, 99) i",
    )
    running = daemon(["public.t"], compression=option).start_and_load()
    sql("insert into t values (1000, 'change')")
    running.compare([("public", "t")])
    for file in running.lake.files("public", "t"):
        footer = pyarrow.parquet.ParquetFile(running.lake.local(file["path"])).metadata
        # A text that is the same in all rows needs no compression, like `v` of the load and our own columns.
        assert footer.row_group(0).column(1).compression == codec


def test_mode_full_load_ends_and_leaves_nothing_at_the_source(daemon, sql):
    sql("create table t (id int primary key)", "insert into t select generate_series(1, 1000)")
    running = daemon(["public.*"], mode="full-load").start_and_load()
    wait_for(lambda: running.task_record().get("stop_reason") == "FULL_LOAD_ONLY_FINISHED", 20, "the stop reason")
    assert running.task_record()["state"] == "stopped"
    running.compare([("public", "t")])
    assert sql("select count(*) from pg_replication_slots where database = current_database()") == [(0,)]
    assert sql("select count(*) from pg_publication") == [(0,)]
    running.terminate()
    before = running.lake.files("public", "t")
    running.start()
    running.wait_states()
    assert running.lake.files("public", "t") == before, "a finished full load does not load again"


def test_empty_tables_are_tables(daemon, sql):
    sql("create table t (id int primary key, v numeric(9,2))", "create table only_key_less (v text)")
    running = daemon(["public.*"]).start_and_load()
    assert {row["name"] for row in running.catalog_tables("public")} == {"t", "only_key_less"}
    running.compare([("public", "t"), ("public", "only_key_less")])
    sql("insert into t values (1, 2.5)", "insert into only_key_less values ('x')")
    running.compare([("public", "t"), ("public", "only_key_less")])


@pytest.mark.trap("24")
def test_many_segments_in_parallel(daemon, sql):
    """Several ctid ranges, with holes and dead rows in them, on one snapshot."""
    sql(
        "create table wide (id bigint primary key, v text, w text)",
        "insert into wide select i, md5(i::text), repeat(md5(i::text), 20) from generate_series(1, 120000) i",
        "delete from wide where id % 7 = 0 or id between 20000 and 50000",
        "update wide set v = 'new' where id % 11 = 0",
        "analyze wide",
    )
    running = daemon(["public.wide"], options={"full-load": {"parallel": 3}}).start_and_load()
    running.compare([("public", "wide")])


def test_rate_limit_slows_a_load_down(daemon, sql):
    sql(
        "create table t (id bigint primary key, v text)",
        "insert into t select i, repeat(md5(i::text), 10) from generate_series(1, 20000) i",
        "analyze t",
    )
    running = daemon(["public.t"], options={"full-load": {"rate-limit": "2MiB"}})
    running.start()
    import time

    began = time.monotonic()
    running.wait_states()
    # 20,000 rows of 330 bytes are 6.4 MiB: at 2 MiB/s at least two seconds, whatever burst is allowed.
    assert time.monotonic() - began > 1.5
    running.compare([("public", "t")])


def test_unprivileged_role_with_publications_made_by_the_owner(server, database, daemon, sql):
    """A role with LOGIN, REPLICATION and SELECT is told the SQL that it may not run, and works once that has run."""
    sql("create table t (id int primary key, v text)", "create table nokey (v text)", "insert into t values (1, 'x')")
    server.execute(
        database,
        "drop role if exists reader",
        f"create role reader login replication password '{server.PASSWORD}'",
        f'grant connect on database "{database}" to reader',
        "grant usage on schema public to reader",
        "grant select on all tables in schema public to reader",
        user="postgres",
    )
    running = daemon(["public.*"], user="reader")
    done = running.command("check")
    assert done.returncode == 3, done.stdout + done.stderr
    statements = [
        line[line.index("CREATE PUBLICATION") :].rstrip().rstrip(";")
        for line in (done.stdout + done.stderr).splitlines()
        if "CREATE PUBLICATION" in line
    ]
    assert statements, done.stdout + done.stderr
    server.execute(database, *statements, user="postgres")
    running.start_and_load()
    sql("update t set v = 'y'", "insert into nokey values ('z')")
    running.compare([("public", "t"), ("public", "nokey")])
    running.terminate()


def test_a_finished_full_load_goes_on_with_changes_where_the_config_says_so(daemon, sql):
    sql("create table t (id int primary key)", "insert into t select generate_series(1, 10)")
    running = daemon(["public.t"], mode="full-load").start_and_load()
    wait_for(lambda: running.task_record()["state"] == "stopped", 20, "the end of the load")
    # Of these no log tells.
    sql("insert into t values (11)", "delete from t where id = 1")
    text = running.config_text
    changed = text.replace('mode: "full-load"', 'mode: "full-load-and-cdc"')
    assert changed != text, text
    running.write_config(changed)
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: running.task_record()["state"] == "running", 20, "the task to go on")
    sql("insert into t values (12)")
    running.compare([("public", "t")])
    # And back, and forth again, with a slot by now.
    running.write_config(text)
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: running.task_record()["state"] == "stopped", 20, "the end")
    sql("insert into t values (13)")
    running.write_config(changed)
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: running.task_record()["state"] == "running", 20, "the task to go on")
    sql("insert into t values (14)")
    running.compare([("public", "t")])

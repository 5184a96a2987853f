"""The config file: all that is wrong at once, and changes while the daemon runs."""

import os
import signal
import socket
import time

import pytest
from daemon import CHECKOUT
from servers import wait_for


def test_two_unknown_keys_at_once(daemon, sql):
    sql("create table t (id int primary key)")
    running = daemon(["public.*"])
    text = running.config_text.replace("    mode:", "    moode:").replace('"buffer"', '"bufer"')
    running.write_config(text)
    for command in ("check", "run", "plan"):
        done = running.command(command)
        said = done.stdout + done.stderr
        assert done.returncode == 2, said
        for wrong, right in (("moode", "mode"), ("bufer", "buffer")):
            line = next(number for number, line in enumerate(text.splitlines(), 1) if wrong in line)
            assert wrong in said and right in said and f"millrace.yaml:{line}" in said, said


@pytest.mark.parametrize(
    "change,word",
    [
        ((lambda text: text.replace('"full-load-and-cdc"', '"fulload"')), "full-load"),
        ((lambda text: text.replace('"interval": 1s', '"interval": 1')), "interval"),
        ((lambda text: text.replace("source: \"source\"", "source: \"sauce\"")), "sauce"),
        ((lambda text: text.replace("tables: [", "tables: [\"nodot\", ")), "schema.table"),
        ((lambda text: text + "  : {"), "millrace.yaml"),
        ((lambda text: text.replace("listen: 127.0.0.1:", "listen: 0.0.0.0:")), "listen"),
    ],
    ids=["mode", "unit", "endpoint", "table", "syntax", "open listener"],
)
def test_one_thing_wrong(daemon, change, word):
    running = daemon(["public.*"])
    changed = change(running.config_text)
    assert changed != running.config_text
    running.write_config(changed)
    done = running.command("check")
    said = done.stdout + done.stderr
    assert done.returncode == 2 and word in said, said
    assert len(said.strip().splitlines()) <= 12


@pytest.mark.fault("48", "SIGHUP with a broken config", promise="continues")
def test_a_broken_file_changes_nothing_at_sighup(daemon, sql):
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"]).start_and_load()
    running.write_config(running.config_text.replace("    mode:", "    moode:"))
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "moode" in running.log(), 10, "a word about it in the log")
    sql("insert into t values (1, 'still')")
    assert running.http("/healthz")[0] == 200
    running.write_config(running.config_text.replace("    moode:", "    mode:"))
    running.compare([("public", "t")])


@pytest.mark.trap("41")
def test_sighup_takes_a_new_table_and_leaves_other_tasks_alone(daemon, sql):
    sql(
        "create table t (id int primary key, v text)",
        "create table u (id int primary key, v text)",
        "insert into t values (1, 'x')",
        "insert into u values (1, 'x')",
    )
    running = daemon(["public.t"]).start_and_load()
    running.compare([("public", "t")])
    before = running.lake.files("public", "t")
    running.write_config(running.config_text.replace('tables: ["public.t"]', 'tables: ["public.t", "public.u"]'))
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ("public", "u") in running.states_or_none(), 20, "the new table")
    running.wait_states()
    sql("insert into u values (2, 'y')", "update t set v = 'y'")
    running.compare([("public", "t"), ("public", "u")])
    assert running.lake.files("public", "t")[: len(before)] == before, "the first table was loaded again"


def test_sighup_takes_a_table_away(daemon, sql):
    sql("create table t (id int primary key, v text)", "create table u (id int primary key, v text)")
    running = daemon(["public.t", "public.u"]).start_and_load()
    running.write_config(running.config_text.replace('tables: ["public.t", "public.u"]', 'tables: ["public.t"]'))
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: running.states_or_none().get(("public", "u")) in (None, "Table cancelled"), 20, "the table's end")
    sql("insert into u values (1, 'x')", "insert into t values (1, 'x')")
    running.compare([("public", "t")])
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


def test_a_second_task_at_sighup(daemon, sql):
    sql(
        "create table t (id int primary key, v text)",
        "create table u (id int primary key, v text)",
        "insert into u values (1, 'x')",
    )
    running = daemon(["public.t"]).start_and_load()
    second = "  second:\n    source: source\n    target: lake\n    tables: [public.u]\n"
    running.write_config(running.config_text + second)
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: '"second"' in running.run("status", "--json"), 20, "the second task")
    sql("insert into t values (1, 'x')", "insert into u values (2, 'y')")
    running.compare([("public", "t"), ("public", "u")])
    assert sql("select count(*) from pg_replication_slots where database = current_database() and not temporary") == [
        (2,)
    ]
    running.run("delete", "second")
    running.write_config(running.config_text.replace(second, ""))
    running.process.send_signal(signal.SIGHUP)
    time.sleep(1)
    sql("insert into t values (2, 'x')")
    running.compare([("public", "t")])
    assert sql("select count(*) from pg_replication_slots where database = current_database() and not temporary") == [
        (1,)
    ]


def test_the_examples_are_valid(daemon):
    """`config/*.yaml` as they stand: `plan` may miss the world, but finds nothing wrong with the file."""
    running = daemon(["public.*"])
    for name in ("minimal.yaml", "every-option.yaml"):
        path = os.path.join(CHECKOUT, "config", name)
        with open(path) as file:
            running.write_config(file.read())
        done = running.command("check")
        assert done.returncode != 2, f"{name}: {done.stdout}{done.stderr}"
        assert done.returncode in (0, 3)


def test_check_tries_the_state_folder_and_the_address(daemon, sql):
    """What keeps a daemon from starting beside its tasks; a daemon that runs keeps nothing from itself."""
    sql("create table t (id int primary key)")
    running = daemon(["public.t"])
    with socket.create_server(("127.0.0.1", int(running.listen.split(":")[1]))):
        found = running.json("check", code=3)["findings"]
        assert [finding["code"] for finding in found] == ["LISTEN"], found
    with open(os.path.join(running.folder, "file"), "w"):
        pass
    text = running.config_text
    running.write_config(text.replace(f"state-dir: {running.state}", f"state-dir: {running.folder}/file/state"))
    found = running.json("check")["findings"]
    assert [finding["code"] for finding in found] == ["STATE-DIR"], found
    running.write_config(text)
    assert running.json("check")["findings"] == []
    running.start_and_load()
    assert running.json("check")["findings"] == []

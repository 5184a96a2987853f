"""Tables that the task's rules do not fit any more, because columns or tables at the source got other names: each stands still
by itself, with its reason; nothing of it is delivered that a rule leaves out, and the others go on."""

import signal
import time

import pytest
from servers import wait_for

QUICK = {"on-change": {"discover": "1s"}}


def stands_still(running, table, word):
    """Waits until the table is suspended for this reason, and shows that it stays so."""
    wait_for(lambda: running.tables()[table]["state"] == "Table error", 20, f"{table} to stand still")
    assert word in running.tables()[table]["error"], running.tables()[table]
    wait_for(lambda: word in str(running.task_record()["errors"]), 20, "the task to tell of it")


def columns(running, table):
    """All columns that the catalog ever had of it."""
    return {column["name"] for found in running.json("catalog", "tables", "public") if found["name"] == table
            for column in found["columns"]}  # fmt: skip


@pytest.mark.parametrize("pattern", ["public.c", "public.*"])
@pytest.mark.parametrize("downtime", [False, True])
def test_a_column_that_is_left_out_stays_out_under_another_name(daemon, sql, pattern, downtime):
    sql("create table c (id int primary key, email text, v int)", "create table other (id int primary key)")
    sql("insert into c values (1, 'secret', 1)")
    running = daemon([{"from": pattern, "drop": ["email"]}, "public.*"], options=QUICK).start_and_load()
    if downtime:
        running.terminate()
    sql("alter table c rename email to address", "insert into c values (2, 'secret too', 2)")
    if downtime:
        running.start()
    stands_still(running, ("public", "c"), "email")
    assert columns(running, "c") & {"email", "address"} == set()
    # The others go on, new ones too, and over a restart.
    sql("create table newcomer (id int primary key)", "insert into newcomer values (1)", "insert into other values (1)")
    running.compare([("public", "newcomer"), ("public", "other")])
    running.kill()
    running.start()
    sql("insert into other values (2)")
    running.compare([("public", "other")])
    # A reload does not deliver it either; a config that names it does, without.
    running.run("reload", "shop", "public.c")
    wait_for(lambda: running.tables()[("public", "c")]["state"] == "Table error", 20, "the reload to be refused")
    assert columns(running, "c") & {"email", "address"} == set()
    running.write_config(running.config_text.replace("email", "address"))
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: running.tables()[("public", "c")]["state"] == "Table completed", 30, "the table to be loaded")
    assert columns(running, "c") & {"email", "address"} == set()
    assert "email" not in str(running.task_record()["errors"])
    sql("insert into c values (3, 'x', 3)")
    wait_for(lambda: sum(file["rows"] for file in running.lake.files("public", "c")) == 3, 20, "three rows")


def test_a_column_that_is_renamed_by_a_rule_keeps_its_name(daemon, sql):
    sql("create table c (id int primary key, full_name text)", "insert into c values (1, 'x')")
    running = daemon([{"from": "public.c", "rename": {"full_name": "name"}}], options=QUICK).start_and_load()
    sql("alter table c rename full_name to fname", "insert into c values (2, 'y')")
    stands_still(running, ("public", "c"), "full_name")
    # Once it is as it was, the table is loaded anew by itself.
    sql("alter table c rename fname to full_name")
    wait_for(lambda: running.tables()[("public", "c")]["state"] == "Table completed", 30, "the table to be loaded")
    assert columns(running, "c") >= {"id", "name"} and "fname" not in columns(running, "c")


def test_a_newcomer_that_would_be_another_table_of_the_catalog_stays_out(daemon, sql):
    sql("create table a (id int primary key)", "create table p (id int, k int, primary key (id, k)) partition by list (k)")
    sql("create table p1 partition of p for values in (1)", "insert into p values (1, 1)")
    sql("create table rw (id int primary key, v int)", "insert into rw values (1, 1)")
    running = daemon(["public.*"], options=QUICK).start_and_load()
    sql('create table "A" (id int primary key)', 'insert into "A" values (7)', "insert into a values (1)")
    wait_for(lambda: "CATALOG-NAME" in str(running.task_record()["errors"]), 20, "the newcomer to be told of")
    assert "from: public.A, to: public.A_2" in running.run("status")
    # Nothing else is blind meanwhile, nor behind a restart.
    sql("create table newcomer (id int primary key)", "insert into newcomer values (1)")
    sql("create table p2 (id int not null, k int not null)", "insert into p2 values (2, 2)")
    sql("alter table p attach partition p2 for values in (2)", "alter table rw alter v type bigint using v * 10")
    running.compare([("public", name) for name in ("a", "newcomer", "p", "rw")])
    running.kill()
    running.start()
    sql("insert into a values (2)")
    running.compare([("public", name) for name in ("a", "newcomer", "p", "rw")])
    sql('drop table "A"')
    wait_for(lambda: "CATALOG-NAME" not in str(running.task_record()["errors"]), 20, "the finding to go")


def test_a_column_whose_name_another_has_already(daemon, sql):
    sql("create table b (id int primary key, v int)", "create table other (id int primary key)")
    sql("insert into b values (1, 1)")
    running = daemon(["public.*"], options=QUICK).start_and_load()
    sql('alter table b add "V" int', "insert into b values (2, 2, 2)", "insert into other values (1)")
    stands_still(running, ("public", "b"), "two columns would be named")
    running.compare([("public", "other")])
    assert len(running.lake.files("public", "b")) == 1
    sql('alter table b rename "V" to w')
    running.compare([("public", "b"), ("public", "other")])


def test_a_column_that_is_left_out_may_go(daemon, sql):
    sql("create table c (id int primary key, email text, v int)", "insert into c values (1, 'secret', 1)")
    running = daemon([{"from": "public.c", "drop": ["email"]}], options=QUICK).start_and_load()
    sql("alter table c drop column email", "insert into c values (2, 2)")
    running.compare([("public", "c")])
    running.kill()
    running.start()
    sql("insert into c values (3, 3)")
    running.compare([("public", "c")])
    assert running.tables()[("public", "c")]["state"] == "Table completed"


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_target_goes_from_one_table_to_another(daemon, sql, names):
    """Changes that come while the new one is loaded are not those of a table that is suspended."""
    old, new = names
    for name in names:
        sql(f"create table {name} (id int primary key, v text)")
        sql(f"insert into {name} select i, '{name}' || repeat('x', 2000) from generate_series(1, 3000) i")
    slow = {**QUICK, "full-load": {"rate-limit": "1MiB"}}
    running = daemon([{"from": f"public.{old}", "to": "public.t"}], options=slow).start_and_load()
    running.write_config(running.config_text.replace(f"public.{old}", f"public.{new}"))
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: running.tables().get(("public", new), {}).get("state") == "Full load", 30, "the load of the other")
    for number in range(30):
        sql(f"insert into {new} values ({10000 + number}, 'while it is loaded')", f"delete from {new} where id = {number}")
        time.sleep(0.1)
    wait_for(lambda: running.tables()[("public", new)]["state"] == "Table completed", 60, "the end of the load")
    running.compare([{"schema": "public", "table": new, "target": ("public", "t")}])


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_a_column_that_mysql_renames_stays_out(request, database, daemon, kind):
    server = request.getfixturevalue(kind)
    server.create_database(database)
    server.execute(database, "create table c (id int primary key, email varchar(20), v int)")
    server.execute(database, "insert into c values (1, 'secret', 1)")
    running = daemon([{"from": f"{database}.c", "drop": ["email"]}], server=server, options=QUICK).start_and_load()
    server.execute(database, "alter table c rename column email to address", "insert into c values (2, 'secret', 2)")
    table = (database, "c")
    wait_for(lambda: running.tables()[table]["state"] == "Table error", 20, "it to stand still")
    assert "email" in running.tables()[table]["error"]
    running.kill()
    running.start()
    wait_for(lambda: running.tables()[table]["state"] == "Table error", 20, "it to stand still")
    names = {column["name"] for found in running.json("catalog", "tables") for column in found["columns"]}
    assert names & {"email", "address"} == set()

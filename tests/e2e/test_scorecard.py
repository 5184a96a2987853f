"""What AWS DMS by its user guide does not do with a PostgreSQL source: `make scorecard` prints these tests (see traps.py)."""

import duckdb
import pyarrow.parquet
import pytest
from servers import wait_for

T = ("public", "t")


def view(running, table, columns):
    """Rows of a table's current state."""
    sql = f"select {columns} from ({running.lake.view('public', table)}) order by all"
    return duckdb.connect().execute(sql).fetchall()


def unchanged_files(running, before, table="t"):
    """Whether all of these files are in the manifest still: the table was not loaded anew."""
    return set(before) <= {file["path"] for file in running.lake.files("public", table)}


@pytest.mark.scorecard("no PK")
def test_updates_and_deletes_of_a_table_without_a_key(daemon, sql):
    sql(
        "create table t (v text, n int)",
        "alter table t replica identity full",
        "insert into t values ('twin', 1), ('twin', 1), ('single', null)",
    )
    running = daemon(["public.t"]).start_and_load()
    sql("update t set n = 2 where ctid = (select min(ctid) from t)", "delete from t where v = 'single'")
    sql("insert into t values ('late', 3)")
    duck = duckdb.connect()

    def events(select):
        running.lake.relation(duck, running.lake.files("public", "t"))
        return duck.execute(select).fetchall()

    wait_for(lambda: events("select v from lake where v = 'late'"), 20, "the changes")
    told = events('select "Op", v, n from lake where commit_timestamp is not null order by change_order')
    assert told == [("D", "twin", 1), ("I", "twin", 2), ("D", "single", None), ("I", "late", 3)]
    left = """select v, n from lake where "Op" <> 'D' except all select v, n from lake where "Op" = 'D' order by all"""
    assert events(left) == sorted(sql("select v, n from t"))


@pytest.mark.trap("18")
@pytest.mark.scorecard("numeric unconstrained")
def test_a_numeric_without_a_bound_keeps_every_digit(daemon, sql):
    """As text by itself; as a decimal where a rule says so, and there what it cannot hold stands beside it."""
    values = ["0.611111104488373", "1e-30", "123456789012345678901234567890.5", "-0.10", "NaN"]
    rows = ", ".join(f"({{0}} + {number}, '{value}', '{value}')" for number, value in enumerate(values))
    sql("create table t (id int primary key, n numeric, d numeric)", f"insert into t values {rows.format(0)}")
    rule = {"from": "public.t", "values": {"d": {"as": "decimal(38,15)"}}}
    running = daemon([rule]).start_and_load()
    sql(f"insert into t values {rows.format(10)}")
    wait_for(lambda: len(view(running, "t", "id")) == 2 * len(values), 20, "the rows")
    exact = [row[0] for row in sql("select n::text from t order by id")]
    assert [row[1] for row in view(running, "t", "id, n")] == exact
    found = view(running, "t", "id, cast(d as varchar), d__exact")
    assert [row[1] for row in found[:1] + found[3:4]] == ["0.611111104488373", "-0.100000000000000"]
    for id in (1, 2, 4):
        assert [row[1:] for row in found if row[0] in (id, id + 10)] == [(None, exact[id])] * 2, found


@pytest.mark.scorecard("ARRAY without PK")
def test_a_table_with_an_array_and_without_a_key(daemon, sql):
    sql("create table t (a int[], b text[])", "insert into t values ('{1,null}', '{}'), (null, array['x,y', null])")
    running = daemon(["public.t"]).start_and_load()
    sql("insert into t values ('{3}', '{\"q\"}'), ('{3}', '{\"q\"}')")
    running.compare([T])
    assert running.states()[T] == "Table completed"


@pytest.mark.trap("22")
@pytest.mark.scorecard("same name, different case")
def test_tables_whose_names_differ_in_case_only(daemon, sql):
    """Names of the catalog are Glue's, in lower case: where tables or columns meet, that is told with the rule to write."""
    names = ["orders", "Orders", "ORDERS"]
    for number, name in enumerate(names):
        sql(f'create table "{name}" (id int primary key, "Id" int)', f'insert into "{name}" values ({number}, 7)')
    done = daemon(["public.*"]).command("check")
    assert done.returncode == 3 and 'rename: { "Id": "Id_2" }' in done.stdout, done.stdout + done.stderr
    rule = {"from": "public.*", "rename": {"Id": "Id_2"}}
    done = daemon([rule]).command("check")
    assert done.returncode == 3 and all(f"public.{name}" in done.stdout for name in names[:2]), done.stdout
    rules = [{**rule, "from": f"public.{name}", "to": f"public.orders_{n}"} for n, name in enumerate(names)]
    running = daemon(rules).start_and_load()
    for number, name in enumerate(names):
        sql(f'insert into "{name}" values ({number + 10}, 8)', f'update "{name}" set "Id" = 9 where id = {number}')
    for number in range(len(names)):
        expected = [(number, 9), (number + 10, 8)]
        found = lambda number=number: view(running, f"orders_{number}", "id, Id_2")  # noqa: E731
        wait_for(lambda found=found, expected=expected: found() == expected, 20, f"orders_{number}")


@pytest.mark.trap("17")
@pytest.mark.scorecard("SET DEFAULT, NOT NULL")
def test_defaults_and_nullability_change(daemon, sql):
    """Neither needs a reload; a default is in the row that has it, a null is a null."""
    sql("create table t (id int primary key, v text not null default 'old', n int)")
    sql("insert into t values (1, 'x', 1), (2, 'y', 2)")
    running = daemon(["public.t"]).start_and_load()
    before = [file["path"] for file in running.lake.files("public", "t")]
    sql(
        "alter table t alter v set default 'new'",
        "insert into t (id) values (3)",
        "alter table t alter v drop not null, alter v drop default",
        "insert into t (id) values (4)",
        "update t set n = 0 where n is null",
        "alter table t alter n set not null, alter n set default 5",
        "insert into t (id) values (5)",
    )
    running.compare([T])
    assert view(running, "t", "id, v, n")[2:] == [(3, "new", 0), (4, None, 0), (5, None, 5)]
    assert unchanged_files(running, before)


@pytest.mark.trap("17")
@pytest.mark.scorecard("DDL in functions")
def test_a_function_changes_a_table_and_makes_another(daemon, sql):
    """By a trigger's function, a DO block and dynamic SQL, in one transaction with rows."""
    sql(
        "create table t (id int primary key, v text)",
        "insert into t select i, 'v' from generate_series(1, 20) i",
        "create function widen() returns void language plpgsql as $$ begin "
        "execute 'alter table t add column w int default 4'; insert into t values (100, 'within', 5); "
        "create table made (id int primary key, v text); insert into made values (1, 'within'); end $$",
    )
    running = daemon(["public.*"], options={"on-change": {"discover": "1s"}}).start_and_load()
    sql(
        "select widen()",
        "update t set w = 6 where id = 3",
        "do $$ begin alter table t drop column v; update t set w = 7 where id = 4; end $$",
        "insert into made values (2, 'after')",
    )
    wait_for(lambda: running.states().get(("public", "made")) == "Table completed", 30, "the new table")
    sql("delete from t where id = 5", "update made set v = 'last' where id = 1")
    running.compare([T, ("public", "made")])


@pytest.mark.trap("20")
@pytest.mark.scorecard("boolean")
def test_booleans_are_booleans(daemon, sql):
    """In a load, in changes, as an item of an array, as a key; true, false and null stay apart."""
    sql(
        "create table t (k boolean, id int, b boolean, a boolean[], primary key (k, id))",
        "insert into t values (true, 1, true, '{t,f,null}'), (false, 1, false, '{}'), (true, 2, null, null)",
    )
    running = daemon(["public.t"]).start_and_load()
    sql("delete from t where k and id = 1", "update t set b = not b", "insert into t values (false, 2, true, '{f}')")
    sql("update t set k = not k where id = 1 and not k", "update t set id = 3 where k and id = 2")
    running.compare([T])
    for file in running.lake.files("public", "t"):
        schema = pyarrow.parquet.read_schema(running.lake.local(file["path"]))
        assert [str(schema.field(name).type) for name in "kb"] == ["bool", "bool"]
    assert sorted(view(running, "t", "k, id, b, a"), key=str) == sorted(sql("select k, id, b, a from t"), key=str)

"""Table rules: which tables, what they and their columns are called, what is left out."""

import pyarrow.parquet
import pytest


def test_rename_of_schema_table_and_column_and_dropped_columns(daemon, sql):
    sql(
        "create schema s",
        "create table s.orders (id int primary key, \"Full Name\" text, secret text, n int)",
        "create table s.customers (id int primary key, v text)",
        "create table s.skipped (id int primary key)",
        "insert into s.orders select i, 'name ' || i, 'secret ' || i, i from generate_series(1, 100) i",
        "insert into s.customers values (1, 'x')",
    )
    running = daemon(
        [
            {"from": "s.orders", "to": "sales.bookings", "rename": {"Full Name": "name"}, "drop": ["secret"]},
            {"from": "s.*", "to": "lake.*"},
        ],
        options={"exclude": ["s.skip*"]},
    ).start_and_load()
    sql(
        "update s.orders set \"Full Name\" = 'new', secret = 'newer' where id < 10",
        "delete from s.orders where id = 20",
        "insert into s.orders values (500, 'a', 'b', 1)",
        "insert into s.customers values (2, 'y')",
    )
    running.compare(
        [
            {
                "schema": "s",
                "table": "orders",
                "target": ("sales", "bookings"),
                "rename": {"Full Name": "name"},
                "drop": ["secret"],
            },
            {"schema": "s", "table": "customers", "target": ("lake", "customers")},
        ]
    )
    assert set(running.states()) == {("s", "orders"), ("s", "customers")}
    for file in running.lake.files("sales", "bookings"):
        path = running.lake.local(file["path"])
        assert pyarrow.parquet.ParquetFile(path).schema_arrow.names == [
            "Op",
            "id",
            "name",
            "n",
            "commit_timestamp",
            "change_order",
        ]
        with open(path, "rb") as bytes:
            assert b"secret" not in bytes.read(), "nothing of a dropped column is in the file"


def test_the_first_rule_that_matches_applies(daemon, sql):
    sql(
        "create table a (id int primary key)",
        "create table ab (id int primary key)",
        "create table b (id int primary key)",
    )
    running = daemon([{"from": "public.ab", "to": "one.*"}, {"from": "public.a*", "to": "two.*"}]).start_and_load()
    assert set(running.states()) == {("public", "a"), ("public", "ab")}
    assert [row["name"] for row in running.catalog_tables("one")] == ["ab"]
    assert [row["name"] for row in running.catalog_tables("two")] == ["a"]


@pytest.mark.trap("22")
def test_names_that_meet_in_the_catalog_are_an_error_of_check(daemon, sql):
    sql('create table "Orders" (id int primary key)', "create table orders (id int primary key)")
    done = daemon(["public.*"]).command("check")
    said = done.stdout + done.stderr
    assert done.returncode == 3 and "rders" in said and "to:" in said, said


@pytest.mark.trap("22")
def test_columns_named_like_ours(daemon, sql):
    sql(
        'create table t (id int primary key, "Op" text, "COMMIT_TIMESTAMP" timestamptz, change_order int)',
        "insert into t values (1, 'x', now(), 3)",
    )
    running = daemon(["public.t"]).start_and_load()
    sql("update t set \"Op\" = 'y', change_order = 4")
    running.compare([("public", "t")])
    path = running.lake.local(running.lake.files("public", "t")[0]["path"])
    assert pyarrow.parquet.ParquetFile(path).schema_arrow.names == [
        "_Op",
        "id",
        "Op",
        "COMMIT_TIMESTAMP",
        "change_order",
        "_commit_timestamp",
        "_change_order",
    ]
    table = running.catalog_tables("public")[0]
    assert "_Op" in str(table["parameters"]) and "_change_order" in str(table["parameters"])


@pytest.mark.trap("22")
def test_names_that_would_leave_their_folder(daemon, sql):
    names = [
        "../../escape",
        "a/b",
        "..",
        "space  and.dot",
        "CON",
        "%2e%2e",
        "ünï",
        "line\nbreak",
        "q'uote",
        "tab\tx",
        "*",
    ]
    for name in names:
        sql(f'create table "{name}" (id int primary key, v text)', f'insert into "{name}" values (1, \'x\')')
    running = daemon(["public.*"]).start_and_load()
    for name in names:
        sql(f'insert into "{name}" values (2, \'y\')')
    running.compare([("public", name) for name in names])
    for name in names:
        for file in running.lake.files("public", name.lower()):
            import os

            path = os.path.realpath(running.lake.local(file["path"]))
            assert path.startswith(os.path.realpath(running.lake_folder) + "/public/"), path

"""`millrace catalog verify`, and what `check` says of files that the catalog lists: somebody deletes or cuts some of
them, or the target is another place that goes by the same name."""

import os

from servers import MotoS3
from test_s3 import ENVIRONMENT, target


def verify(running, code=0):
    """What it found, by table, and its findings."""
    found = running.json("catalog", "verify", code=code)
    return {table["table"]["name"]: table for table in found["tables"]}, found["findings"]


def test_files_that_somebody_deleted_or_cut(daemon, sql):
    sql("create table a (id int primary key, v text)")
    sql("create table b (id int primary key, v text)")
    sql("insert into a select i, 'loaded' from generate_series(1, 20) i")
    running = daemon(["public.*"]).start_and_load()
    sql("insert into a values (21, 'captured')")
    running.compare([("public", "a"), ("public", "b")])
    tables, findings = verify(running)
    assert tables["a"]["files"] == len(running.lake.files("public", "a")) == 2 and tables["a"]["rows"] == 21
    assert findings == [] and running.json("check")["findings"] == []
    assert "public.a" in running.run("catalog", "verify", "public.A")

    paths = [file["path"] for file in running.lake.files("public", "a")]
    loaded, captured = sorted(paths, key=lambda path: "LOAD" not in path)
    os.truncate(captured, 100)
    os.remove(loaded)
    tables, findings = verify(running, code=3)
    assert tables["a"]["missing"] == [loaded] and tables["a"]["changed"] == [captured]
    assert tables["b"]["missing"] == tables["b"]["changed"] == []
    assert [finding["code"] for finding in findings] == ["FILES-MISSING"]
    # One file of a table tells, and the task goes on all the same.
    assert [finding["code"] for finding in running.json("check")["findings"]] == ["FILES-MISSING"]
    # What the finding says mends it.
    remedy = findings[0]["fix"][0].split("millrace ")[1].split()
    assert remedy == ["reload", "shop", "public.a"]
    running.run(*remedy)
    running.wait_states(seconds=30)
    running.compare([("public", "a"), ("public", "b")])
    assert verify(running)[1] == []


def test_another_s3_by_the_same_name(daemon, sql, s3):
    sql("create table t (id int primary key)")
    sql("insert into t values (1)")
    running = daemon(["public.t"], target=target(s3, "verified/"), s3=s3, environment=ENVIRONMENT).start_and_load()
    assert verify(running)[1] == []
    assert running.json("check")["findings"] == []
    with MotoS3() as other:
        text = running.config_text
        running.write_config(text.replace(s3.endpoint, other.endpoint))
        tables, findings = verify(running, code=3)
        assert len(tables["t"]["missing"]) == 1 and "s3://lake/verified/" in tables["t"]["missing"][0]
        assert [finding["code"] for finding in running.json("check")["findings"]] == ["FILES-MISSING"]
        running.write_config(text)
    running.compare([("public", "t")])

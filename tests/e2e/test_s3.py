"""The same over S3: moto, path style, conditional PUTs."""

import time

import pytest
from compare import position
from conftest import SEED
from servers import CarelessS3, MotoS3, Proxy
from workload import PATTERNS, TABLES, Shop


def target(s3, prefix, port=None):
    """A target endpoint in the bucket, perhaps through a proxy."""
    return {
        "type": "s3",
        "bucket": s3.bucket,
        "prefix": prefix,
        "endpoint": f"http://127.0.0.1:{port or s3.port}",
        "region": "us-east-1",
        "access-key-id": s3.KEY,
        "secret-access-key": {"env": "MILLRACE_S3_SECRET"},
    }


ENVIRONMENT = {"MILLRACE_S3_SECRET": MotoS3.SECRET}


def test_a_busy_shop_in_s3(server, database, daemon, s3):
    shop = Shop(server, database, SEED, scale=100)
    shop.create()
    running = daemon(PATTERNS, target=target(s3, "one/"), s3=s3, environment=ENVIRONMENT).start_and_load()
    shop.sensor_open.set()
    shop.run(3, writers=2, pause=0.01)
    running.kill()
    shop.run(1, writers=1, pause=0.01)
    running.start()
    running.compare(TABLES)
    listed = {file["path"] for schema, table, _ in TABLES for file in running.lake.files(schema.lower(), table.lower())}
    assert all(path.startswith("s3://lake/one/") for path in listed)
    stored = {
        f"s3://lake/{item['Key']}"
        for page in s3.client().get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix="one/")
        for item in page.get("Contents", [])
    }
    assert listed <= stored


@pytest.mark.trap("42", "46")
@pytest.mark.fault("21, 40", "S3 resets every connection, then hangs", promise="continues")
def test_an_outage_of_the_target(sql, daemon, s3):
    sql("create table t (id int primary key, v text)")
    with Proxy(s3.port) as proxy:
        running = daemon(
            ["public.t"], target=target(s3, "two/", proxy.port), s3=s3, environment=ENVIRONMENT
        ).start_and_load()
        sql("insert into t values (1, 'x')")
        running.compare([("public", "t")])
        proxy.cut()
        sql("insert into t select i, 'during' from generate_series(2, 5000) i")
        running.wait_confirmed()
        proxy.heal()
        running.compare([("public", "t")])
        proxy.hang()
        sql("update t set v = 'hanging' where id < 100")
        running.wait_confirmed()
        proxy.heal()
        running.compare([("public", "t")], seconds=90)


def test_an_endpoint_that_ignores_conditions_is_refused(sql, daemon):
    sql("create table t (id int primary key)")
    with CarelessS3() as careless:
        place = {
            "type": "s3",
            "bucket": "lake",
            "endpoint": careless.endpoint,
            "access-key-id": "a",
            "secret-access-key": {"env": "MILLRACE_S3_SECRET"},
        }
        done = daemon(["public.t"], target=place, environment=ENVIRONMENT).command("check")
        assert done.returncode == 3 and "If-None-Match" in done.stdout + done.stderr


def test_wrong_credentials_and_bucket(sql, daemon, s3):
    sql("create table t (id int primary key)")
    place = {**target(s3, "x/"), "bucket": "no-such-bucket"}
    done = daemon(["public.t"], target=place, environment=ENVIRONMENT).command("check")
    assert done.returncode == 3 and "no-such-bucket" in done.stdout + done.stderr


def test_sigterm_under_load_delivers_what_was_captured(server, database, daemon, s3):
    """Over a slow target, and within the 30 s that a supervisor grants."""
    shop = Shop(server, database, SEED, scale=60)
    shop.create()
    with Proxy(s3.port) as proxy:
        place = target(s3, "three/", proxy.port)
        running = daemon(PATTERNS, target=place, s3=s3, environment=ENVIRONMENT, buffer={"interval": "5m"})
        running.start_and_load()
        shop.sensor_open.set()
        shop.start(writers=2, pause=0.01)
        time.sleep(3)
        proxy.round_trip = 0.1
        began = time.monotonic()
        assert running.terminate() == 0
        assert time.monotonic() - began < 30
        shop.stop()
        confirmed = running.confirmed_lsn()
        through = [table["complete_through"] for table in running.catalog_tables("shop")]
        assert all(position(text) >= confirmed for text in through), (through, hex(confirmed))
        # What was written meanwhile is delivered by the next end alone: the buffers wait for minutes.
        proxy.heal()
        running.start()
        running.wait_confirmed()
        assert running.terminate() == 0
        running.compare(TABLES, seconds=5)


def test_sigterm_while_the_target_hangs(sql, daemon, s3):
    """What cannot be delivered waits in the stream."""
    sql("create table t (id int primary key, v text)", "insert into t values (1, 'x')")
    with Proxy(s3.port) as proxy:
        running = daemon(["public.t"], target=target(s3, "four/", proxy.port), s3=s3, environment=ENVIRONMENT)
        running.start_and_load()
        proxy.hang()
        sql("insert into t select i, 'hanging' from generate_series(2, 5000) i")
        running.wait_confirmed()
        began = time.monotonic()
        assert running.terminate() == 0
        assert time.monotonic() - began < 30
        assert "draining took too long" in running.log()
        proxy.heal()
        running.start()
        running.compare([("public", "t")])

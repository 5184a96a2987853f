"""Faults of S3, by a proxy in front of moto."""

import random
import threading
import time

import pytest
import verify
from servers import MotoS3, wait_for
from test_s3 import ENVIRONMENT, target
from verify import arrival, check

QUICK = {"interval": "500ms"}


def stored(s3, prefix):
    """Keys below a prefix, probes of `check` left out."""
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=prefix)
    return {item["Key"] for page in pages for item in page.get("Contents", []) if "_millrace_probe" not in item["Key"]}


def nothing_but_the_catalogs(running, s3, prefix):
    """Every object is one that the catalog lists, and no upload is half done."""
    listed = set()
    for table in running.catalog_tables("bank"):
        listed |= {file["path"].split("/", 3)[3] for file in running.lake.files("bank", table["name"])}
    assert stored(s3, prefix) == listed
    assert not s3.client().list_multipart_uploads(Bucket=s3.bucket).get("Uploads")


@pytest.mark.fault("40", "S3 answers every third request with 500, 503 or slow-down", promise="continues", quick=True)
def test_errors_of_s3(bank, daemon, fault, s3, faulty):
    rng, lock = random.Random(fault.seed), threading.Lock()

    def sometimes(*_):
        with lock:
            return rng.choice(["500", "503", "slow-down", "cut"]) if rng.random() < 0.35 else None

    running = daemon(
        verify.PATTERNS, target=target(s3, "errors/", faulty.port), s3=s3, environment=ENVIRONMENT, buffer=QUICK
    )
    # The very first start asks whether the endpoint is fit, and says no while it answers so.
    running.start_and_load()
    faulty.fault = sometimes
    bank.start(writers=2)
    time.sleep(5)
    faulty.heal()
    with fault.recovering():
        arrival(running, bank)
    rows = check(running, bank)
    nothing_but_the_catalogs(running, s3, "errors/")
    bad = sum(count for name, count in faulty.seen.items() if name)
    assert bad > 5
    fault.outcome(f"{bad} of {sum(faulty.seen.values())} requests failed, {rows} rows identical, no other object")


@pytest.mark.fault("40", "S3 takes requests and does not answer for 40 s", promise="continues")
def test_s3_hangs(bank, daemon, fault, s3, faulty):
    """The source's log is let go meanwhile."""
    running = daemon(
        verify.PATTERNS, target=target(s3, "hangs/", faulty.port), s3=s3, environment=ENVIRONMENT, buffer=QUICK
    ).start_and_load()
    bank.start(writers=1)
    faulty.fault = lambda *_: "hang"
    time.sleep(5)
    before = running.confirmed_lsn()
    time.sleep(35)
    assert running.confirmed_lsn() > before, "the source's log is let go while the target hangs"
    faulty.heal()
    with fault.recovering():
        arrival(running, bank, seconds=90)
    rows = check(running, bank)
    nothing_but_the_catalogs(running, s3, "hangs/")
    fault.outcome(f"captured on, {rows} rows identical")


@pytest.mark.fault("42, 21", "S3 stores the object and the answer is lost", promise="continues", quick=True)
@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed meanwhile"])
def test_a_lost_answer(bank, daemon, fault, s3, faulty, killed):
    """The same object is found and taken; there is one of it."""
    prefix = f"lost-{killed}/"
    running = daemon(
        verify.PATTERNS, target=target(s3, prefix, faulty.port), s3=s3, environment=ENVIRONMENT, buffer=QUICK
    ).start_and_load()
    bank.run(1)
    faulty.fault = lambda method, *_: "lose" if method == "PUT" else None
    bank.start(writers=2)
    wait_for(lambda: faulty.seen.get("lose", 0) >= 3, 40, "answers that are lost")
    if killed:
        running.kill()
    faulty.heal()
    with fault.recovering():
        if killed:
            running.start()
        arrival(running, bank)
    rows = check(running, bank)
    nothing_but_the_catalogs(running, s3, prefix)
    fault.outcome(f"{faulty.seen['lose']} answers lost, one object each, {rows} rows identical")


@pytest.mark.fault("41", "an upload dies half-way (objects are one PUT each)", promise="continues")
def test_an_upload_dies_half_way(bank, daemon, fault, s3, faulty):
    """There are no multipart uploads: an object is there whole or not at all."""
    running = daemon(
        verify.PATTERNS, target=target(s3, "half/", faulty.port), s3=s3, environment=ENVIRONMENT, buffer=QUICK
    ).start_and_load()
    before = stored(s3, "half/")
    faulty.fault = lambda method, *_: "cut" if method == "PUT" else None
    bank.start(writers=2)
    wait_for(lambda: faulty.seen.get("cut", 0) >= 4, 40, "uploads that died")
    assert stored(s3, "half/") == before
    running.kill()
    faulty.heal()
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    nothing_but_the_catalogs(running, s3, "half/")
    fault.outcome(f"{faulty.seen['cut']} uploads died, no part of one left, {rows} rows identical")


@pytest.mark.fault("43", "S3 credentials are changed while the daemon runs", promise="continues")
def test_credentials_are_changed(bank, daemon, fault, s3, faulty, tmp_path):
    """The old key is refused from one moment on; the new one is in the file, and nobody starts anything anew."""
    secret = tmp_path / "secret"
    secret.write_text(MotoS3.SECRET + "\n")
    key = tmp_path / "key"
    key.write_text("OLDKEY\n")
    place = {
        **target(s3, "rotated/", faulty.port),
        "access-key-id": {"file": str(key)},
        "secret-access-key": {"file": str(secret)},
    }
    running = daemon(verify.PATTERNS, target=place, s3=s3, buffer=QUICK).start_and_load()
    bank.run(1)
    process = running.process.pid
    faulty.fault = lambda _, __, headers: "denied" if "OLDKEY" in headers.get("Authorization", "") else None
    bank.start(writers=2)
    wait_for(lambda: faulty.seen.get("denied", 0) >= 2, 40, "refused requests")
    key.write_text("NEWKEY\n")
    with fault.recovering():
        arrival(running, bank, seconds=90)
    rows = check(running, bank)
    assert running.process.pid == process and not running.ended()
    fault.outcome(f"taken from the file within the seconds shown, without a restart, {rows} rows identical")

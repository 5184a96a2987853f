"""Faults of the process and of those who operate it."""

import signal
import time

import pytest
import verify
from servers import wait_for
from test_s3 import ENVIRONMENT, target
from verify import arrival, check


@pytest.mark.fault("47", "SIGTERM while transactions flow", promise="continues", quick=True)
def test_sigterm_under_load_drains(bank, daemon, fault):
    """The process ends by itself with 0 in less than 30 s, and the next one reads nothing twice."""
    running = daemon(verify.PATTERNS, buffer={"interval": "1s"}).start_and_load()
    bank.start(writers=3, pause=0.002)
    time.sleep(3)
    began = time.monotonic()
    assert running.terminate(patience=30) == 0, running.log()
    drained = time.monotonic() - began
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"drained in {drained:.1f} s under load, {rows} rows identical")


@pytest.mark.fault("47", "a second SIGTERM while the first one drains", promise="continues")
def test_a_second_sigterm_ends_it_at_once(bank, daemon, fault, s3, faulty):
    """The target hangs, so that it cannot be done before the second one comes."""
    running = daemon(
        verify.PATTERNS, target=target(s3, "sigterm/", faulty.port), s3=s3, environment=ENVIRONMENT
    ).start_and_load()
    bank.start(writers=3, pause=0.002)
    faulty.fault = lambda *_: "hang"
    wait_for(lambda: faulty.seen.get("hang"), 30, "a request that hangs")
    running.process.send_signal(signal.SIGTERM)
    time.sleep(2)
    assert not running.ended(), "it drains, and the target hangs"
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    code = running.wait_exit(5)
    ended = time.monotonic() - began
    assert code == 0 and ended < 1, (code, ended)
    assert "daemon stops at once" in running.log(20000)
    faulty.heal()
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"ended with {code} in {ended:.2f} s, {rows} rows identical")

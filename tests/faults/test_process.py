"""Faults of the process and of those who operate it."""

import signal
import time

import pytest
import verify
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
def test_a_second_sigterm_ends_it_at_once(bank, daemon, fault):
    running = daemon(verify.PATTERNS, buffer={"interval": "1s"}).start_and_load()
    bank.start(writers=3, pause=0.002)
    time.sleep(2)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    code = running.wait_exit(5)
    ended = time.monotonic() - began
    with fault.recovering():
        running.start()
        arrival(running, bank)
    rows = check(running, bank)
    fault.outcome(f"ended with {code} in {ended:.2f} s, {rows} rows identical")

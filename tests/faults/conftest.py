"""The frame of the faults: what the end-to-end tests share (servers, databases, daemons), and the fixture `fault`, in
which a test notes what it saw for the table of docs/reliability.md (see faults.py)."""

import contextlib
import importlib.util
import os
import sys
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
E2E = os.path.join(os.path.dirname(HERE), "e2e")
sys.path[:0] = [path for path in (HERE, E2E) if path not in sys.path]

# By its path, because this file has the same name.
_spec = importlib.util.spec_from_file_location("e2e_conftest", os.path.join(E2E, "conftest.py"))
shared = sys.modules["e2e_conftest"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shared)

from faulty_s3 import FaultyS3  # noqa: E402
from verify import Bank, Watched  # noqa: E402

# Daemons remember what they were before the fault.
shared.Daemon = Watched
SEED = shared.SEED
server, database, sql, daemon, s3 = shared.server, shared.database, shared.sql, shared.daemon, shared.s3
pytest_report_header, pytest_configure = shared.pytest_report_header, shared.pytest_configure
pytest_runtest_makereport = shared.pytest_runtest_makereport


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`-m quick` is the part that belongs to `make test`."""
    for item in items:
        if any(mark.kwargs.get("quick") for mark in item.iter_markers("fault")):
            item.add_marker("quick")


class Fault:
    """What a test notes about its fault. `seed` is MILLRACE_TEST_SEED, drawn where it is not given."""

    def __init__(self, note):
        self.seed, self._note = SEED, note

    def outcome(self, text):
        """What was seen, in a few words: an error's code, what was waited for, how much was cut off."""
        self._note("outcome", text)

    def recovered(self, seconds):
        """Seconds from the end of the fault until the first row that was changed afterwards was in the catalog."""
        self._note("seconds", f"{seconds:.1f}")

    @contextlib.contextmanager
    def recovering(self):
        """Entered when the fault ends, left when the first row that was changed afterwards is there."""
        began = time.monotonic()
        yield
        self.recovered(time.monotonic() - began)


@pytest.fixture
def fault(record_property):
    """Notes for the table."""
    print(f"MILLRACE_TEST_SEED={SEED}")
    return Fault(record_property)


@pytest.fixture
def bank(server, database, fault):
    """A bank in the test's database; its writers are ended."""
    made = Bank(server, database, fault.seed)
    yield made
    made.stopping.set()


@pytest.fixture
def faulty(s3):
    """A proxy in front of S3 that answers badly where it is told to."""
    with FaultyS3(s3.port) as running:
        yield running

"""What the tests share: one private server per worker, a fresh database per test, daemons that are always ended."""

import os
import random
import re
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from daemon import Daemon  # noqa: E402
from servers import MariaDB, MotoS3, MySQL, Postgres  # noqa: E402

SEED = int(os.environ.get("MILLRACE_TEST_SEED") or random.SystemRandom().randrange(10**9))


def pytest_report_header():
    return f"MILLRACE_TEST_SEED={SEED} MILLRACE_TEST_PG={os.environ.get('MILLRACE_TEST_PG', '15')}"


def pytest_configure(config):
    # Workers of pytest-xdist inherit the seed that the first process drew.
    os.environ["MILLRACE_TEST_SEED"] = str(SEED)
    # Read by traps.py, which writes docs/traps.md and the scorecard from them.
    config.addinivalue_line("markers", "trap(*numbers, crash=False): the test springs these traps of docs/traps.md")
    # Read by ../faults/faults.py, which writes the table of docs/reliability.md.
    config.addinivalue_line("markers", "fault(numbers, what, promise=…, quick=False): the test springs these faults")
    config.addinivalue_line("markers", "quick: a test of tests/faults that belongs to `make test`")
    config.addinivalue_line("markers", "scorecard(item): the test shows this item of `make scorecard`")


@pytest.fixture(scope="session")
def server():
    """A private PostgreSQL of the version in MILLRACE_TEST_PG."""
    with Postgres() as running:
        yield running


@pytest.fixture(scope="session")
def mariadb():
    """A private MariaDB."""
    with MariaDB() as running:
        yield running


@pytest.fixture(scope="session")
def mysql():
    """A private MySQL 9."""
    if MySQL.missing():
        pytest.skip(MySQL.missing())
    with MySQL() as running:
        yield running


@pytest.fixture
def database(server, request):
    """A fresh database."""
    name = re.sub(r"\W", "_", request.node.name)[:50]
    server.create_database(name)
    yield name
    server.drop_database(name)


@pytest.fixture
def sql(server, database):
    """Runs statements as the tables' owner."""
    return lambda *statements, user="shop": server.execute(database, *statements, user=user)


@pytest.fixture
def daemon(server, database, request):
    """Makes daemons on the test's database; ends them, and keeps their folders if the test failed."""
    made = []

    def make(tables, **options):
        made.append(Daemon(options.pop("server", server), database, tables, **options))
        return made[-1]

    yield make
    failed = getattr(request.node, "failed", False)
    for one in made:
        one.close(keep=failed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        item.failed = True


@pytest.fixture(scope="session")
def s3():
    """An S3 that keeps the conditions of a PUT."""
    with MotoS3() as running:
        yield running

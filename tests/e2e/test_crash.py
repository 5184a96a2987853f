"""A few kills for `make test`; `make crash` does all of it (see crash.py)."""

import pytest
from conftest import SEED
from crash import FEW, FLOW_POINTS, Session, crash_in_flow, crash_in_load, kill_at_random


@pytest.mark.trap("40", crash=True)
@pytest.mark.parametrize("point", [point for point in FEW if point not in FLOW_POINTS])
@pytest.mark.fault("1, 6", "SIGKILL at the failpoints of a load and its commit", promise="continues")
def test_killed_at_a_failpoint_of_the_load(server, point):
    assert crash_in_load(server, point, SEED) > 0


@pytest.mark.trap("3", "6", "40", crash=True)
@pytest.mark.fault("2, 4, 5", "SIGKILL at the failpoints of the flow, and at random moments", promise="continues")
def test_killed_while_changes_flow(server):
    with Session(server, "crash_flow_few", SEED) as session:
        session.work()
        session.daemon.start()
        session.loaded()
        session.daemon.kill()
        for point in [point for point in FEW if point in FLOW_POINTS]:
            assert crash_in_flow(session, point) > 0
            session.daemon.kill()
        assert kill_at_random(session, 3, SEED, compare_every=3) > 0

"""The network between source, daemon and target: resets, hangs of which nobody is told, half-open connections, links that
flap, crawl and cut everything into pieces."""

import random
import time

import pytest
import verify
from machine import Names
from servers import MotoS3, Proxy, wait_for
from test_s3 import ENVIRONMENT, target

# From the hang to the moment at which the daemon knows of it; connector/postgres, wire/silence.rs: two looks.
FOUND_SECONDS = 60


@pytest.fixture
def link(server):
    """The proxy between daemon and source."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def loaded(daemon, bank, link):
    """The daemon behind the proxy, loaded, with writers at work."""
    running = daemon(verify.PATTERNS, port=link.port).start_and_load()
    bank.start(writers=2, pause=0.02)
    verify.arrival(running, bank)
    return running


def unreachable(running):
    """What the task says of the connection, if something is wrong with it."""
    return [error for error in running.task_record()["errors"] if error["code"] == "CONNECTION"]


def connections(link):
    """How many connections there were so far."""
    return link.seen()["connections"]


@pytest.mark.fault("19", "the source resets the connection", promise="continues", quick=True)
def test_the_source_resets_its_connections(loaded, bank, link, fault):
    """Every connection at once, while changes flow: on again within seconds."""
    before = connections(link)
    assert link.reset() >= 1
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=10)
    assert connections(link) > before
    fault.outcome(f"{connections(link) - before} new connections")
    verify.check(loaded, bank)


@pytest.mark.fault("19", "the source resets the connection in the middle of a message, ten times", promise="continues")
def test_resets_in_the_middle_of_messages(loaded, bank, link, fault):
    rng = random.Random(f"{fault.seed}/resets")
    for _ in range(10):
        link.reset_after(rng.randint(1, 40_000))
        before = connections(link)
        wait_for(lambda: connections(link) > before, 30, "the next connection")
        time.sleep(rng.random())
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=10)
    verify.check(loaded, bank)


@pytest.mark.fault("20", "the source hangs without a reset", promise="continues")
@pytest.mark.parametrize("direction", ["both", "down", "up"])
def test_the_source_hangs_while_changes_flow(loaded, bank, link, fault, direction):
    """Nothing comes, and nobody says why. It is found out within a minute; then everything goes on."""
    link.hang(direction)
    hung = time.monotonic()
    wait_for(lambda: unreachable(loaded), FOUND_SECONDS, "the hang to be found", every=0.2)
    found = time.monotonic() - hung
    link.heal()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=15)
    fault.outcome(f"found after {found:.0f} s")
    assert not unreachable(loaded)
    verify.check(loaded, bank)


@pytest.mark.fault("20", "the source hangs for less than a minute", promise="continues")
def test_a_short_hang_is_waited_out(loaded, bank, link, fault):
    """Ten seconds are no reason to begin anew."""
    before = connections(link)
    link.hang()
    time.sleep(10)
    link.heal()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=10)
    assert not unreachable(loaded) and "opening the log" not in loaded.log()
    fault.outcome(f"{connections(link) - before} new connections")
    verify.check(loaded, bank)


@pytest.mark.fault("20", "the source hangs in the middle of a full load", promise="continues")
def test_the_source_hangs_while_it_is_loaded(daemon, bank, link, fault):
    """The COPY stands still. Its table begins again where its finished segments end."""
    bank.add_letters(40_000)
    options = {"full-load": {"rate-limit": "4MB"}}
    running = daemon(verify.PATTERNS, port=link.port, options=options).start()
    bank.start(writers=1, pause=0.05)
    wait_for(lambda: link.seen()["down"] > 8 << 20, 60, "the load")
    link.hang()
    hung = time.monotonic()
    wait_for(lambda: "nothing came for" in running.log(100_000), FOUND_SECONDS, "the hang to be found", every=0.2)
    fault.outcome(f"found after {time.monotonic() - hung:.0f} s")
    link.heal()
    with fault.recovering():
        running.wait_states(seconds=60)
    verify.check(running, bank)


@pytest.mark.fault("20", "the source hangs while the daemon connects", promise="continues")
def test_the_source_hangs_while_the_daemon_connects(daemon, bank, link, fault):
    """The kernel takes the connection, and no byte comes back."""
    running = daemon(verify.PATTERNS, port=link.port, source={"connect-timeout": "3s"}).start_and_load()
    running.terminate()
    bank.run(1)
    link.hang()
    running.start()
    (error,) = wait_for(lambda: unreachable(running), 20, "the hang to be found", every=0.2)
    assert "no answer within 3" in " ".join([error["summary"], *error["detail"]]), error
    link.heal()
    with fault.recovering():
        verify.arrival(running, bank, seconds=20)
    fault.outcome("found after the connect-timeout")
    verify.check(running, bank)


@pytest.mark.fault("20", "the source hangs while the load waits for a lock", promise="continues")
def test_the_source_hangs_while_a_lock_is_waited_for(daemon, bank, link, server, database, fault):
    """To wait for a lock is no hang, however long; a hang meanwhile is found all the same."""
    running = daemon(verify.PATTERNS, port=link.port).start_and_load()
    with server.connect(database) as holder:
        holder.execute("lock table bank.letter in access exclusive mode")
        running.run("reload", "shop", "bank.letter")
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and usename = 'cdc'"
        wait_for(lambda: server.execute("postgres", waits, user="postgres")[0][0], 60, "the lock to be waited for")
        time.sleep(50)
        assert server.execute("postgres", waits, user="postgres")[0][0], running.log()
        assert "nothing came for" not in running.log(100_000)
        link.hang()
        hung = time.monotonic()
        found = lambda: "nothing came for" in running.log(100_000)  # noqa: E731
        wait_for(found, FOUND_SECONDS, "the hang to be found", every=0.2)
        fault.outcome(f"a lock was waited for 50 s; the hang was found after {time.monotonic() - hung:.0f} s")
        link.heal()
    with fault.recovering():
        running.wait_states(seconds=60)
    # The shared check without its look at the folder: files that a reload replaced stay there for a while.
    bank.mark()
    running.compare(verify.TABLES)
    assert not bank.problems(running)


@pytest.mark.fault("20", "the connection to the source is half open", promise="continues")
@pytest.mark.parametrize("side", ["server", "client"])
def test_one_side_of_the_source_is_not_told(loaded, bank, link, server, fault, side):
    """Where the server is not told, its process still holds the slot: it is our own, and is ended. Where we are not told,
    it is found as a hang is."""
    link.desert(side)
    began = time.monotonic()
    verify.arrival(loaded, bank, seconds=15 if side == "server" else FOUND_SECONDS + 15)
    fault.recovered(time.monotonic() - began)
    verify.check(loaded, bank)
    left = "select count(*) from pg_stat_activity where application_name = 'millrace log'"
    assert server.execute("postgres", left, user="postgres") == [(1,)]


@pytest.mark.fault("22", "the network flaps", promise="continues")
def test_the_network_flaps(loaded, bank, link, fault):
    """Up and down for random parts of a second, for half a minute; a hang now and then."""
    rng = random.Random(f"{fault.seed}/flaps")
    until = time.monotonic() + 30
    flaps = 0
    while time.monotonic() < until:
        rng.choice([link.cut, link.cut, link.reset, link.hang])()
        time.sleep(rng.uniform(0.05, 0.6))
        link.heal()
        time.sleep(rng.uniform(0.05, 1.5))
        flaps += 1
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=15)
    fault.outcome(f"{flaps} flaps")
    verify.check(loaded, bank)


@pytest.mark.fault("22", "the link carries 100 kbit/s", promise="continues")
def test_a_link_that_crawls(loaded, bank, link, fault):
    """Slow is not broken: the connection stays, and what gathered arrives when the link is wide again."""
    link.bandwidth = 100_000 / 8
    time.sleep(70)
    assert loaded.log(10**6).count("the log is open") == 1 and not unreachable(loaded), loaded.log()
    link.heal()
    with fault.recovering():
        verify.arrival(loaded, bank, seconds=30)
    verify.check(loaded, bank)


@pytest.mark.fault("22", "the source is 200 ms away, and everything comes in small pieces", promise="continues")
def test_a_link_that_is_long_and_slices(daemon, bank, link, fault):
    """Load, changes and a reset."""
    link.round_trip, link.piece = 0.2, 97
    running = daemon(verify.PATTERNS, port=link.port).start()
    running.wait_states(seconds=90)
    bank.start(writers=1, pause=0.05)
    verify.arrival(running, bank, seconds=30)
    link.reset()
    with fault.recovering():
        verify.arrival(running, bank, seconds=20)
    verify.check(running, bank)


@pytest.fixture
def away(s3):
    """The proxy between daemon and S3."""
    with Proxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
def in_s3(daemon, bank, s3, away, request):
    """The daemon with its lake in S3 behind the proxy, loaded, with writers at work."""
    target = {
        "type": "s3",
        "bucket": s3.bucket,
        "prefix": f"{request.node.name}/",
        "endpoint": f"http://127.0.0.1:{away.port}",
        "access-key-id": MotoS3.KEY,
        "secret-access-key": {"env": "MILLRACE_S3_SECRET"},
    }
    environment = {"MILLRACE_S3_SECRET": MotoS3.SECRET}
    running = daemon(verify.PATTERNS, target=target, s3=s3, environment=environment).start_and_load()
    bank.start(writers=2, pause=0.02)
    verify.arrival(running, bank)
    return running


@pytest.mark.fault("21", "the connection to the target is half open while it commits", promise="continues")
@pytest.mark.parametrize("how", ["desert-client", "desert-server", "hang-down", "hang-both"])
def test_the_target_does_not_answer_while_it_commits(in_s3, bank, away, fault, how):
    """The request arrives or does not; its answer does not. Found within a minute, and nothing is there twice."""
    what, _, side = how.partition("-")
    getattr(away, what)(side)
    began = time.monotonic()
    if what == "hang":
        wait_for(lambda: unreachable(in_s3), FOUND_SECONDS, "the hang to be found", every=0.2)
        fault.outcome(f"found after {time.monotonic() - began:.0f} s")
        away.heal()
        began = time.monotonic()
    verify.arrival(in_s3, bank, seconds=FOUND_SECONDS + 15)
    fault.recovered(time.monotonic() - began)
    verify.check(in_s3, bank)


@pytest.mark.fault("21", "the connection to the target is reset in the middle of requests", promise="continues", quick=True)
def test_the_target_resets_its_connections(in_s3, bank, away, fault):
    rng = random.Random(f"{fault.seed}/resets")
    for _ in range(8):
        away.reset_after(rng.randint(0, 1500))
        time.sleep(rng.uniform(0.3, 1.5))
    away.reset()
    with fault.recovering():
        verify.arrival(in_s3, bank, seconds=30)
    verify.check(in_s3, bank)


@pytest.mark.fault("22", "the names of source and target do not resolve for a while", promise="continues")
@pytest.mark.parametrize("who", ["source", "target"])
def test_a_name_does_not_resolve(daemon, bank, link, s3, tmp_path, fault, who):
    """Connections are cut at the same time, so that the name is asked for. The other side goes on meanwhile."""
    names = Names(tmp_path)
    names.know("source-host", "target-host")
    with Proxy(s3.port) as store:
        running = daemon(
            verify.PATTERNS,
            port=link.port,
            source={"host": "source-host", "tls": {"mode": "disable"}},
            target={**target(s3, f"names-{who}/", store.port), "endpoint": f"http://target-host:{store.port}"},
            s3=s3,
            environment=ENVIRONMENT,
            buffer={"interval": "500ms"},
        )
        running.start_and_load(under=names.under)
        bank.start(writers=2, pause=0.02)
        verify.arrival(running, bank)
        names.know("target-host" if who == "source" else "source-host")
        (link if who == "source" else store).reset()

        def told():
            said = str(running.task_record()["errors"])
            return f"{who}-host" in said and "name resolution" in said

        wait_for(told, 60, "the name to be told", every=0.2)
        time.sleep(10)
        assert not running.ended(), running.log()
        names.know("source-host", "target-host")
        with fault.recovering():
            verify.arrival(running, bank, seconds=40)
        rows = verify.check(running, bank)
    fault.outcome(f"{who}: told by its name, {rows} rows identical")

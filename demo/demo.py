"""`make demo`: a private PostgreSQL, a shop in it, the daemon with a five-line config, live changes, one `kill -9`, and at
the end every row of the source compared with the lake by DuckDB, which is not ours."""

import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "tests", "e2e"))

from daemon import Daemon, Failed  # noqa: E402
from servers import Postgres  # noqa: E402
from workload import PATTERNS, TABLES, Shop  # noqa: E402

SECONDS = float(os.environ.get("MILLRACE_DEMO_SECONDS", "12"))
SEED = int(os.environ.get("MILLRACE_TEST_SEED") or time.time_ns() % 10**9)
LIVE = sys.stdout.isatty()
STEPS = 7


def step(number, text):
    """A headline."""
    print(f"\n[{number}/{STEPS}] {text}", flush=True)


def progress(text, end=False):
    """One line that changes on a terminal; elsewhere only its last state is printed."""
    if LIVE:
        print(f"\r      {text:<100}", end="\n" if end else "", flush=True)
    elif end:
        print(f"      {text}", flush=True)


def fill(server, database, shop):
    """A shop of about 300,000 rows."""
    shop.create()
    shop.add_orders(80_000)
    server.execute(
        database,
        "insert into shop.order_line select o, l, gen_random_uuid(), l, (o % 5000) / 3.0, 0.5 "
        "from generate_series(100000000, 100079999) o, generate_series(1, 2) l",
        "insert into shop.page_view select now() - i * interval '1 second', '/p/' || i % 500, i % 1000, i / 7.0 "
        "from generate_series(1, 60000) i",
        "analyze",
    )


def show_counts(server, database):
    """Rows per table at the source."""
    for schema, table, _ in TABLES:
        quoted = '"%s"."%s"' % (schema, table.replace('"', '""'))
        print(
            f"      {schema + '.' + table:<32}{server.execute(database, f'select count(*) from {quoted}')[0][0]:>10,}"
        )


def load(daemon):
    """Starts the daemon and watches the full load."""
    began = time.monotonic()
    daemon.start()
    while True:
        states = list(daemon.states_or_none().values())
        done = states.count("Table completed")
        elapsed = time.monotonic() - began
        if states and done == len(states):
            progress(f"{done} tables loaded in {elapsed:.1f} s", end=True)
            return
        if daemon.ended():
            raise Failed(f"the daemon ended:\n{daemon.log()}")
        if elapsed > 120:
            raise Failed(f"the load takes too long: {states}\n{daemon.log()}")
        progress(f"{done} of {len(states) or len(TABLES)} tables loaded, {elapsed:.1f} s")
        time.sleep(0.2)


def watch(daemon, shop, seconds, end=True):
    """Shows for some seconds how capture follows the writers."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        metrics = daemon.metrics()
        captured = metrics.get(("millrace_rows_total", "captured"), 0)
        lag = metrics.get(("millrace_source_lag_seconds",), 0)
        progress(
            f"{sum(shop.done.values()):>6,} transactions at the source, {captured:>8,.0f} row changes captured, "
            f"{lag * 1000:4.0f} ms behind",
            end=False,
        )
        time.sleep(min(0.5, left))
    progress(
        f"{sum(shop.done.values()):,} transactions at the source, {captured:,.0f} row changes captured by this process",
        end=end,
    )


def show_results(results):
    """The table at the end."""
    width = max(len(result.table) for result in results)
    print(f"\n      {'table':<{width}}{'source':>12}{'lake':>12}{'files':>8}")
    for result in results:
        print(f"      {result.table:<{width}}{result.source_rows:>12,}{result.lake_rows:>12,}{result.files:>8}")
    print(f"      {'':<{width}}{sum(r.source_rows for r in results):>12,}{sum(r.lake_rows for r in results):>12,}")


def run():
    """The demo; raises where something is not as it should be."""
    step(1, "a private PostgreSQL")
    with Postgres() as server:
        database = server.create_database("shop")
        print(f"      PostgreSQL {server.major} on port {server.port}, data in {server.data}")
        step(2, f"a shop in it (seed {SEED})")
        shop = Shop(server, database, SEED, scale=500)
        fill(server, database, shop)
        show_counts(server, database)
        with Daemon(server, database, PATTERNS, minimal=True) as daemon:
            step(3, "the whole config")
            print("".join(f"      {line}\n" for line in daemon.config_text.splitlines()), end="")
            step(4, "full load")
            load(daemon)
            step(
                5, "live inserts, updates (large texts that do not change among them), deletes, key changes, rollbacks"
            )
            shop.sensor_open.set()
            shop.start(writers=3, pause=0.005)
            watch(daemon, shop, SECONDS / 2, end=False)
            server.execute(
                database,
                "alter table shop.customer add column loyalty int",
                "update shop.customer set loyalty = id % 5 where id % 3 = 0",
            )
            progress("alter table shop.customer add column loyalty int", end=True)
            watch(daemon, shop, SECONDS / 4)
            step(6, "kill -9, in the middle of it, and start again")
            daemon.kill()
            print("      killed; the writers go on")
            time.sleep(1)
            daemon.start()
            watch(daemon, shop, SECONDS / 4)
            shop.stop()
            shop.mark()
            daemon.wait_confirmed()
            step(7, "stop it (SIGTERM delivers what is in the stream), and compare every row with DuckDB")
            code = daemon.terminate(120)
            if code != 0:
                raise Failed(f"the daemon ended with {code}:\n{daemon.log()}")
            results = daemon.compare(TABLES, seconds=0)
            show_results(results)


def main():
    try:
        run()
    except Exception as error:  # noqa: BLE001: whatever it is, the demo failed, and says so
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    print("\ndemo: source and lake are identical")
    return 0


if __name__ == "__main__":
    sys.exit(main())

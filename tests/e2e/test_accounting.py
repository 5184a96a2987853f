"""captured = delivered + filtered + dead-lettered + in flight, at every moment, over kills and reloads."""

import threading
import time

import pytest
from conftest import SEED
from servers import wait_for
from workload import PATTERNS, TABLES, Shop


@pytest.mark.trap("41", crash=True)
def test_unaccounted_rows_are_zero_all_the_time(server, database, daemon):
    shop = Shop(server, database, SEED, scale=100)
    shop.create()
    running = daemon(PATTERNS).start_and_load()
    shop.sensor_open.set()
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            value = running.metrics().get(("millrace_unaccounted_rows",))
            if value is not None:
                seen.append(value)
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    shop.start(writers=2, pause=0.01)
    time.sleep(2)
    running.run("reload", "shop", "shop.document")
    time.sleep(1)
    running.kill()
    running.start()
    time.sleep(1)
    running.run("pause", "shop")
    time.sleep(1)
    running.run("resume", "shop")
    shop.stop()
    running.wait_states()
    running.compare(TABLES)
    done.set()
    thread.join()
    assert seen and set(seen) == {0.0}, sorted(set(seen))
    rows = {
        key[1]: value for key, value in running.metrics().items() if key[0] == "millrace_rows_total" and len(key) > 1
    }
    assert rows, "rows by stage"
    wait_for(lambda: running.metrics().get(("millrace_buffer_bytes",)) == 0, 20, "nothing in flight")


def test_tables_counts_agree_with_what_was_done(daemon, sql):
    sql("create table t (id int primary key, v text)", "insert into t select i, 'x' from generate_series(1, 100) i")
    running = daemon(["public.t"]).start_and_load()
    sql(
        "insert into t select i, 'y' from generate_series(101, 150) i",
        "update t set v = 'z' where id <= 20",
        "delete from t where id > 140",
    )
    running.compare([("public", "t")])
    record = running.tables()[("public", "t")]
    found = {name: record.get(name) for name in ("inserts", "updates", "deletes")}
    assert found == {"inserts": 50, "updates": 20, "deletes": 10}, record
    assert record["loaded"] == 100

"""`make outage`: the target is unreachable for a minute and the stream's retention is shorter than that. The slot's
`confirmed_flush_lsn` goes on advancing, memory stays flat, and everything arrives afterwards.

    outage.py [--seconds 60] [--retention 10s] [--seed S]
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))

from daemon import Daemon  # noqa: E402
from servers import MotoS3, Postgres, Proxy, wait_for  # noqa: E402
from workload import PATTERNS, TABLES, Shop  # noqa: E402

# Growth of resident memory over the outage that is still flat: allocator noise and the buffers' own bound.
GROWTH_MAX = 64 << 20


def say(text):
    print(f"outage: {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--retention", default="10s")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MILLRACE_TEST_SEED") or time.time_ns() % 10**9))
    arguments = parser.parse_args()
    say(f"seed {arguments.seed}")
    with Postgres() as server, MotoS3() as s3, Proxy(s3.port) as proxy:
        server.create_database("shop")
        shop = Shop(server, "shop", arguments.seed)
        shop.create()
        target = {
            "type": "s3",
            "bucket": s3.bucket,
            "prefix": "shop/",
            "endpoint": f"http://127.0.0.1:{proxy.port}",
            "access-key-id": s3.KEY,
            "secret-access-key": {"env": "MILLRACE_S3_SECRET"},
        }
        with Daemon(
            server,
            "shop",
            PATTERNS,
            target=target,
            s3=s3,
            options={"stream": {"retention": arguments.retention}},
            buffer={"interval": "1s"},
            environment={"MILLRACE_S3_SECRET": s3.SECRET},
        ) as daemon:
            daemon.start_and_load()
            shop.sensor_open.set()
            shop.start(writers=2, pause=0.01)
            time.sleep(8)
            proxy.cut()
            say(f"the target is unreachable for {arguments.seconds:.0f} s")
            positions, memory = [], []
            began = time.monotonic()
            while (elapsed := time.monotonic() - began) < arguments.seconds:
                positions.append(daemon.confirmed_lsn())
                memory.append(daemon.rss())
                if len(positions) % 5 == 1:
                    head = int(server.execute("shop", "select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0])
                    say(
                        f"{elapsed:4.0f} s: confirmed {positions[-1]:>12} ({(head - positions[-1]) / 1e6:6.1f} MB behind), "
                        f"{memory[-1] / 2**20:5.0f} MiB resident, {sum(shop.done.values())} commits"
                    )
                time.sleep(1)
            proxy.heal()
            say("the target is back")
            shop.stop()
            shop.mark()
            problems = []
            window = max(2, int(len(positions) / 6))
            for start in range(0, len(positions) - window, window):
                if positions[start + window] <= positions[start]:
                    problems.append(f"confirmed_flush_lsn stood still from second {start} to {start + window}")
            early = max(memory[: len(memory) // 3])
            if max(memory) > early + GROWTH_MAX:
                problems.append(f"memory grew from {early >> 20} to {max(memory) >> 20} MiB")
            results = daemon.compare(TABLES, seconds=180)
            wait_for(lambda: daemon.metrics().get(("millrace_unaccounted_rows",)) == 0, 20, "unaccounted = 0")
            for problem in problems:
                say(f"FAILED: {problem}")
            say(
                f"{sum(result.lake_rows for result in results)} rows identical, {sum(shop.done.values())} commits, "
                f"memory {min(memory) >> 20} to {max(memory) >> 20} MiB"
            )
            return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

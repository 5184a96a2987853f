"""`make bench`: what Millrace reaches beside the source's own programs, in pairs in the same run. Never a timed test:
it prints ratios and what they are measured against, and writes bench/results.json, bench/results.md and
docs/performance.svg.

    bench.py [--only load,stream,drain,freshness,mariadb] [--pairs 5] [--rows 6001215] [--changes 2000000]
             [--over tcp,unix,1ms,30ms] [--no-peers] [--no-catalog] [--folder bench]
    bench.py --report          writes the table and the plot anew from bench/results.json

`MILLRACE_TEST_PG` chooses the server's version. What was not measured in this run stays as it was in results.json.
"""

import argparse
import os
import signal
import sys

import drain
import freshness
import load
import mariadb
import report
import stream
from measure import HERE

JOBS = {"load": load, "stream": stream, "freshness": freshness, "drain": drain, "mariadb": mariadb}


def words(known):
    """An argument that is a list of known words."""

    def parse(text):
        chosen = text.split(",")
        unknown = set(chosen) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return chosen

    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=words(JOBS), default=list(JOBS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6_001_215)
    parser.add_argument("--changes", type=int, default=2_000_000)
    parser.add_argument("--over", type=words(drain.WAYS), default=["tcp", "unix"])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-catalog", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--folder", default=HERE)
    options = parser.parse_args()
    # Servers, daemons and networks of ours end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not options.report:
        for job in options.only:
            report.store(options.folder, JOBS[job].bench(options))
    print(report.write(options.folder))


if __name__ == "__main__":
    main()

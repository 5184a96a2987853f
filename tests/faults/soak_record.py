"""What a soak leaves behind: the record as JSON, and the judgement of it. soak_page.py makes the page of it."""

import json
import os
import statistics

# Growth of resident memory from the first to the last quarter of the long life that is still flat.
GROWTH_MAX, GROWTH_SHARE = 16 << 20, 0.10
STREAM_MAX, RETAINED_MAX = 512 << 20, 512 << 20
# Of the long life, for caches to fill.
WARM_UP = 0.10
# What a minute of soak brings at least, about a third of what it does; less, and it was blind.
PER_MINUTE = {"commits": 400, "looks": 4, "sums": 4, "counts of unaccounted rows": 10, "samples": 2}
# Minutes in which each kind of fault comes once at least; those that end the daemon come in the first half only.
MINUTES_PER_FAULT = 30
# Where the first row behind a fault is looked for; not every source tells what is durable in the stream.
PLACES = ("stream", "catalog")


def quantiles(values):
    """Median, 95th percentile and maximum."""
    values = sorted(values)
    at = lambda share: values[min(len(values) - 1, int(share * len(values)))]  # noqa: E731
    return {"n": len(values), "p50": at(0.5), "p95": at(0.95), "max": values[-1]}


def long_life(samples):
    """The samples of the run that lasted longest, without its warm-up."""
    runs = {}
    for sample in samples:
        runs.setdefault(sample["run"], []).append(sample)
    longest = max(runs.values(), key=lambda found: found[-1]["minute"] - found[0]["minute"], default=[])
    return longest[int(len(longest) * WARM_UP) :]


def quarters(samples, what):
    """Medians of the first and the last quarter of the long life."""
    found = [sample[what] for sample in long_life(samples) if sample.get(what) is not None]
    size = max(1, len(found) // 4)
    return (statistics.median(found[:size]), statistics.median(found[-size:])) if found else (0, 0)


def judge(samples):
    """What is wrong with the samples, as sentences."""
    wrong = []
    first, last = quarters(samples, "rss")
    if last - first > max(GROWTH_MAX, GROWTH_SHARE * first):
        wrong.append(f"memory grew from {first / 2**20:.0f} to {last / 2**20:.0f} MiB (medians of quarters)")
    for what in ("threads", "files"):
        first, last = quarters(samples, what)
        if last > first + 8:
            wrong.append(f"{what}: {first:.0f} in the first quarter, {last:.0f} in the last")
    for what, most in (("stream", STREAM_MAX), ("retained", RETAINED_MAX)):
        peak = max((sample.get(what) or 0 for sample in samples), default=0)
        if peak > most:
            wrong.append(f"{what}: up to {peak / 2**20:.0f} MiB")
    return wrong


def blind(record, kinds, restarts):
    """What there was too little of for the soak to mean anything, as sentences."""
    minutes = record["minutes"]
    found = {
        "commits": record["commits"],
        "looks": record["reader"]["looks"],
        "sums": record["reader"]["sums"],
        "counts of unaccounted rows": record["unaccounted"]["looks"],
        "samples": record["samples"],
    }
    wrong = [
        f"{found[what]} {what} in {minutes} minutes, less than {int(least * minutes)}"
        for what, least in PER_MINUTE.items()
        if found[what] < int(least * minutes)
    ]
    for kind in kinds:
        count = record["faults"].get(kind, {"count": 0})["count"]
        least = int(minutes / (MINUTES_PER_FAULT * (2 if kind in restarts else 1)))
        if count < least:
            wrong.append(f"{count} times {kind!r} in {minutes} minutes, less than {least}")
    return wrong


def write(soak, path):
    """The record so far, replaced at once; gives it."""
    samples, by_kind = list(soak.samples), {}
    for fault in list(soak.faults):
        by_kind.setdefault(fault["kind"], []).append(fault)
    life = long_life(samples)
    record = {
        "build": soak.build,
        "source": soak.database.NAME,
        "seed": soak.seed,
        "minutes": round(getattr(soak, "lasted", soak.minutes()), 1),
        "finished": hasattr(soak, "compared"),
        "commits": soak.bank.commits(),
        "commits_by_kind": dict(soak.bank.done),
        "faults": {
            kind: {"count": len(found)}
            | {where: quantiles([fault[where] for fault in found]) for where in PLACES if where in found[0]}
            for kind, found in sorted(by_kind.items())
        },
        "reader": {key: getattr(soak.reader, key) for key in ("looks", "sums", "files", "rows")}
        | {"wrong": soak.wrong_looks},
        "samples": len(samples),
        "unaccounted": soak.unaccounted,
        "sigterm_seconds": soak.drains,
        "runs": soak.daemon.runs,
        "long_life_minutes": round(life[-1]["minute"] - life[0]["minute"], 1) if life else 0,
        "quarters": {what: quarters(samples, what) for what in ("rss", "threads", "files", "stream", "retained")},
        "peaks": {
            what: max((sample.get(what) or 0 for sample in samples), default=0)
            for what in ("rss", "peak", "stream", "retained", "state", "threads", "files", "slots")
        },
        "tables": [
            {"table": r.table, "rows": r.source_rows, "lake": r.lake_rows} for r in getattr(soak, "compared", [])
        ],
        "problems": list(soak.problems),
    }
    with open(path + ".new", "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    os.replace(path + ".new", path)
    return record


def summary(path):
    """The record in a few lines."""
    with open(path) as file:
        record = json.load(file)
    count = sum(kind["count"] for kind in record["faults"].values())
    first, last = record["quarters"]["rss"]
    yield f"{record['minutes']} minutes, {record['commits']} commits, {count} faults, {record['runs']} processes"
    yield f"the reader saw the sum {record['reader']['sums']} times over {record['reader']['rows']} rows"
    yield f"unaccounted: {record['unaccounted']}"
    yield f"resident memory {first / 2**20:.0f} to {last / 2**20:.0f} MiB over {record['long_life_minutes']} minutes"
    yield f"{sum(table['rows'] for table in record['tables'])} rows in {len(record['tables'])} tables identical"
    yield f"{len(record['problems'])} problems" if record["problems"] else "nothing lost, nothing twice"

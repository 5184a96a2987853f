"""What a soak leaves behind: the record as JSON, the judgement of its samples, docs/soak.md with a plot.

soak_record.py RECORD SAMPLES DOCS
"""

import json
import os
import statistics
import sys

# Growth of resident memory from the first to the last quarter of the long life that is still flat.
GROWTH_MAX, GROWTH_SHARE = 16 << 20, 0.10
STREAM_MAX, RETAINED_MAX = 512 << 20, 512 << 20
# Of the long life, for caches to fill.
WARM_UP = 0.10


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


def write(soak, path):
    """The record so far, replaced at once."""
    samples, by_kind = list(soak.samples), {}
    for fault in list(soak.faults):
        by_kind.setdefault(fault["kind"], []).append(fault)
    life = long_life(samples)
    record = {
        "seed": soak.seed,
        "minutes": round(getattr(soak, "lasted", soak.minutes()), 1),
        "finished": hasattr(soak, "compared"),
        "commits": sum(soak.bank.done.values()),
        "commits_by_kind": dict(soak.bank.done),
        "faults": {
            kind: {
                "count": len(found),
                "stream": quantiles([fault["stream"] for fault in found]),
                "catalog": quantiles([fault["catalog"] for fault in found]),
            }
            for kind, found in sorted(by_kind.items())
        },
        "reader": {key: getattr(soak.reader, key) for key in ("looks", "sums", "files", "rows")},
        "unaccounted": soak.unaccounted,
        "sigterm_seconds": soak.drains,
        "runs": soak.daemon.runs,
        "long_life_minutes": round(life[-1]["minute"] - life[0]["minute"], 1) if life else 0,
        "quarters": {what: quarters(samples, what) for what in ("rss", "threads", "files", "stream", "retained")},
        "peaks": {
            what: max((sample.get(what) or 0 for sample in samples), default=0)
            for what in ("rss", "peak", "stream", "retained", "state", "threads", "files")
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


def publish(record, samples, folder):
    """docs/soak.json, docs/soak.svg, docs/soak.md."""
    with open(record) as file:
        found = json.load(file)
    with open(samples) as file:
        series = [json.loads(line) for line in file]
    with open(f"{folder}/soak.json", "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")
    with open(f"{folder}/soak.svg", "w") as file:
        file.write(plot(series))
    with open(f"{folder}/soak.md", "w") as file:
        file.write(page(found) + kills(folder) + idle(folder))


def compared(record):
    """What the comparison at the end found."""
    if not record["finished"]:
        return "It is under way, or was stopped before its end: the rows of source and lake were not compared yet."
    rows, tables = sum(table["rows"] for table in record["tables"]), len(record["tables"])
    found = "see the problems below" if record["problems"] else "identical; nothing lost, nothing twice"
    return f"At the end {rows} rows in {tables} tables were compared: {found}."


def page(record):
    """docs/soak.md."""
    mib = lambda value: f"{value / 2**20:.0f} MiB"  # noqa: E731
    count = sum(kind["count"] for kind in record["faults"].values())
    quarter, peak = record["quarters"], record["peaks"]
    lines = [
        "# The soak on record",
        "",
        "Written by `make soak` (tests/faults/soak.py); the figures are in [soak.json](soak.json).",
        "",
        f"- {record['minutes']} minutes, seed {record['seed']}, {record['commits']} commits, {count} faults, "
        f"{record['runs']} processes of the daemon; the last one lived for {record['long_life_minutes']} minutes "
        "(after its warm-up) through every fault that does not end it.",
        "- The sum of the accounts in two tables, cut at the smallest `complete_through`, was seen "
        f"{record['reader']['sums']} times over {record['reader']['rows']} rows of {record['reader']['files']} files "
        "and was always the same.",
        f"- `millrace_unaccounted_rows` was read {record['unaccounted']['looks']} times and was "
        + (
            "0 each time."
            if not record["unaccounted"]["not zero"]
            else f"not 0 {record['unaccounted']['not zero']} times."
        ),
        f"- Resident memory, median of the first and of the last quarter: {mib(quarter['rss'][0])} and "
        f"{mib(quarter['rss'][1])}, at most {mib(peak['peak'])}; threads {quarter['threads'][0]:.0f} and "
        f"{quarter['threads'][1]:.0f}, open files {quarter['files'][0]:.0f} and {quarter['files'][1]:.0f}.",
        f"- The stream on disk was at most {mib(peak['stream'])} (retention 60 to 90 s), the log that the source kept "
        f"at most {mib(peak['retained'])}; there was one slot at every look.",
        f"- SIGTERM under load, {len(record['sigterm_seconds'])} times, some of them while the target hung: at most "
        f"{max(record['sigterm_seconds'], default=0):.1f} s.",
        "- " + compared(record),
        "",
        "![memory, stream and retained log over time](soak.svg)",
        "",
        "Recovery: seconds from the end of the fault (for kills: from the kill) to the next row durable in the stream,",
        "and to the catalog (delivery each 5 s).",
        "",
        "| fault | times | stream p50 | p95 | max | catalog p50 | p95 | max |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, found in record["faults"].items():
        cells = [f"{found[where][what]:.2f}" for where in ("stream", "catalog") for what in ("p50", "p95", "max")]
        lines.append(f"| {kind} | {found['count']} | {' | '.join(cells)} |")
    if record["problems"]:
        lines += ["", "## Problems", ""]
        lines += [f"- minute {problem['minute']}: {problem['what'].splitlines()[0]}" for problem in record["problems"]]
    return "\n".join(lines) + "\n"


def stored(path):
    """A record as JSON, None where there is none."""
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def kills(folder):
    """The part of the page about docs/kills.json."""
    record = stored(f"{folder}/kills.json")
    if not record:
        return ""
    lines = [
        "",
        "## Kills",
        "",
        f"Written from [kills.json](kills.json), which `make kills RECORD=1` writes: {record['kills']} times SIGKILL",
        f"at random under load, {record['in_loads']} of them inside the load of a table, seed {record['seed']};",
        f"{record['rows']} rows identical at the end, nothing lost, nothing twice. Seconds from the kill, the start of",
        "the new process included:",
        "",
        "| to the next row | p50 | p95 | max |",
        "|---|---:|---:|---:|",
    ]
    for where, title in (("stream", "durable in the stream"), ("catalog", "in the catalog, at `interval: 1s`")):
        lines.append(f"| {title} | {' | '.join(f'{record[where][what]:.2f}' for what in ('p50', 'p95', 'max'))} |")
    if maria := stored(f"{folder}/kills-mariadb.json"):
        times = ", ".join(f"{what} {maria['catalog'][what]:.2f} s" for what in ("p50", "p95", "max"))
        lines += [
            "",
            f"The same with a MariaDB as the source ([kills-mariadb.json](kills-mariadb.json)): {maria['kills']}",
            f"kills, {maria['in_loads']} of them inside a load, seed {maria['seed']}; {maria['rows']} rows identical",
            f"at the end. To the next row in the catalog: {times}.",
        ]
    return "\n".join(lines) + "\n"


def idle(folder):
    """The part of the page about docs/idle.json."""
    record = stored(f"{folder}/idle.json")
    if not record:
        return ""
    mib = lambda value: f"{value / 2**20:.1f} MiB"  # noqa: E731
    starts = record["start_to_streaming"]
    return "\n".join(
        [
            "",
            "## The idle daemon",
            "",
            "Written from [idle.json](idle.json), which `make idle RECORD=1` writes: one task with one table, a minute",
            "in which nothing happens.",
            "",
            "| | |",
            "|---|---|",
            f"| resident memory, after a load | {mib(record['resident'])} ({mib(record['anonymous'])} anonymous) |",
            f"| resident memory, after a restart | {mib(record['resident_after_restart'])} "
            f"({mib(record['anonymous_after_restart'])} anonymous) |",
            f"| share of a core | {record['core_share'] * 100:.2f} % |",
            f"| from start to streaming, {len(starts)} starts | median {statistics.median(starts):.2f} s, "
            f"at most {max(starts):.2f} s |",
            "",
        ]
    )


def plot(series, width=900, height=300):
    """Resident memory, stream and retained log in MiB over minutes, as SVG; memory falls where the process was new."""
    left, bottom = 50, 30
    end = max(sample["minute"] for sample in series) or 1
    shown = [
        ("rss", "#1f77b4", "resident memory"),
        ("stream", "#2ca02c", "stream"),
        ("retained", "#d62728", "source log kept"),
    ]
    top = max((sample.get(what) or 0) / 2**20 for sample in series for what, _, _ in shown) * 1.1
    x = lambda minute: left + minute / end * (width - left - 10)  # noqa: E731
    y = lambda mib: height - bottom - mib / top * (height - bottom - 20)  # noqa: E731
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for step in range(6):
        mib, minute = top * step / 5, end * step / 5
        parts.append(f'<path d="M{left} {y(mib):.1f}H{width - 10}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 5}" y="{y(mib) + 4:.1f}" text-anchor="end">{mib:.0f}</text>')
        parts.append(f'<text x="{x(minute):.1f}" y="{height - 10}" text-anchor="middle">{minute:.0f} min</text>')
    for number, (what, colour, title) in enumerate(shown):
        points = " ".join(
            f"{x(sample['minute']):.1f},{y(sample[what] / 2**20):.1f}"
            for sample in series
            if sample.get(what) is not None
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{left + 10 + 150 * number}" y="14" fill="{colour}">{title}, MiB</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    publish(*sys.argv[1:4])

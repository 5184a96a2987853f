"""docs/soak.md: the soak on record with its plot, the kills, the idle daemon, each from its JSON.

soak_page.py RECORD SAMPLES DOCS   takes a soak's record over, and writes the page
soak_page.py DOCS                  writes the page anew from what is there
"""

import json
import os
import statistics
import sys

from soak_record import PLACES


# Sources that a soak may have beside the first, whose record is docs/soak.json.
OTHERS = ("MariaDB", "MySQL")


def name_of(source):
    """Of the files of a source's soak."""
    return f"soak-{source.lower()}" if source in OTHERS else "soak"


def publish(record, samples, folder):
    """The soak's JSON and plot, and docs/soak.md."""
    with open(record) as file:
        found = json.load(file)
    with open(samples) as file:
        series = [json.loads(line) for line in file]
    name = name_of(found["source"])
    with open(f"{folder}/{name}.json", "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")
    with open(f"{folder}/{name}.svg", "w") as file:
        file.write(plot(series))
    write(folder)


def write(folder):
    """docs/soak.md from the records beside it."""
    lines = [
        "# The soaks on record",
        "",
        "Written by `make soak RECORD=1` (tests/faults/soak.py; `SOURCE=mariadb` or `mysql` for those).",
    ]
    for source in ("PostgreSQL", *OTHERS):
        if record := stored(f"{folder}/{name_of(source)}.json"):
            lines += section(source, record)
    text = "\n".join(lines) + "\n" + kills(folder) + idle(folder)
    with open(f"{folder}/soak.md", "w") as file:
        file.write(text)


def compared(record):
    """What the comparison at the end found."""
    if not record["finished"]:
        return "It is under way, or was stopped before its end: the rows of source and lake were not compared yet."
    rows, tables = sum(table["rows"] for table in record["tables"]), len(record["tables"])
    found = "see the problems below" if record["problems"] else "identical; nothing lost, nothing twice"
    return f"At the end {rows} rows in {tables} tables were compared: {found}."


def section(source, record):
    """A soak, as lines."""
    mib = lambda value: f"{value / 2**20:.0f} MiB"  # noqa: E731
    count = sum(kind["count"] for kind in record["faults"].values())
    quarter, peak = record["quarters"], record["peaks"]
    wrong = record["reader"].get("wrong", 0)
    retained = ""
    if peak["retained"]:
        slots = f"; at most {peak['slots']} slot at a look" if "slots" in peak else ""
        retained = f", the log that the source kept at most {mib(peak['retained'])}{slots}"
    hung = record["faults"].get("terminate while the target hangs", {"count": 0})["count"]
    name = name_of(source)
    lines = [
        "",
        f"## {source}",
        "",
        f"The figures are in [{name}.json]({name}.json).",
        "",
        f"- {record['minutes']} minutes, seed {record['seed']}{build(record)}, {record['commits']} commits, {count} faults, "
        f"{record['runs']} processes of the daemon; the last one lived for {record['long_life_minutes']} minutes "
        "(after its warm-up) through every fault that does not end it.",
        "- The sum of the accounts in two tables, cut at the smallest `complete_through`, was seen "
        f"{record['reader']['sums']} times over {record['reader']['rows']} rows of {record['reader']['files']} files "
        + ("and was always the same." if not wrong else f"and was wrong at {wrong} looks."),
        f"- `millrace_unaccounted_rows` was read {record['unaccounted']['looks']} times and was "
        + (
            "0 each time."
            if not record["unaccounted"]["not zero"]
            else f"not 0 {record['unaccounted']['not zero']} times."
        ),
        f"- Resident memory, median of the first and of the last quarter: {mib(quarter['rss'][0])} and "
        f"{mib(quarter['rss'][1])}, at most {mib(peak['peak'])}; threads {quarter['threads'][0]:.0f} and "
        f"{quarter['threads'][1]:.0f}, open files {quarter['files'][0]:.0f} and {quarter['files'][1]:.0f}.",
        f"- The stream on disk was at most {mib(peak['stream'])}{retained}.",
        f"- SIGTERM under load, {len(record['sigterm_seconds'])} times, {hung} of them while the target hung: at most "
        f"{max(record['sigterm_seconds'], default=0):.1f} s.",
        "- " + compared(record),
        "",
        f"![memory and stream over time]({name}.svg)",
        "",
        "Recovery: seconds from the end of the fault (for kills: from the kill) to the next row in the catalog (delivery",
        "each 5 s), and where the source tells it, durable in the stream:",
        "",
    ]
    places = [where for where in PLACES if all(where in found for found in record["faults"].values())]
    heads = [f"{where} p50 | p95 | max" for where in places]
    lines += [f"| fault | times | {' | '.join(heads)} |", "|---|---:|" + "---:|" * 3 * len(places)]
    for kind, found in record["faults"].items():
        cells = [f"{found[where][what]:.2f}" for where in places for what in ("p50", "p95", "max")]
        lines.append(f"| {kind} | {found['count']} | {' | '.join(cells)} |")
    if record["problems"]:
        lines += ["", "Problems:", ""]
        lines += [f"- minute {problem['minute']}: {problem['what'].splitlines()[0]}" for problem in record["problems"]]
    return lines


def stored(path):
    """A record as JSON, None where there is none."""
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def build(record):
    """Which program a record is of, where it says so."""
    found = record.get("build")
    return f", {found['version']} (sha256 {found['sha256']}…) on {found['day']}" if found else ""


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
        f"at random under load, {record['in_loads']} of them inside the load of a table, seed {record['seed']}"
        f"{build(record)};",
        f"{record['rows']} rows identical at the end, nothing lost, nothing twice. Seconds from the kill, the start of",
        "the new process included:",
        "",
        "| to the next row | p50 | p95 | max |",
        "|---|---:|---:|---:|",
    ]
    for where, title in (("stream", "durable in the stream"), ("catalog", "in the catalog, at `interval: 1s`")):
        lines.append(f"| {title} | {' | '.join(f'{record[where][what]:.2f}' for what in ('p50', 'p95', 'max'))} |")
    for name in ("MariaDB", "MySQL"):
        file = f"kills-{name.lower()}.json"
        if other := stored(f"{folder}/{file}"):
            times = ", ".join(f"{what} {other['catalog'][what]:.2f} s" for what in ("p50", "p95", "max"))
            lines += [
                "",
                f"The same with {name} as the source ([{file}]({file})): {other['kills']}",
                f"kills, {other['in_loads']} of them inside a load, seed {other['seed']}{build(other)};",
                f"{other['rows']} rows identical",
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
    publish(*sys.argv[1:4]) if len(sys.argv) == 4 else write(sys.argv[1])

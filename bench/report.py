"""Keeps results.json, and makes the table (results.md) and the plot (docs/performance.svg) from it."""

import html
import json
import os
import time

from measure import HERE, machine

PLOT = os.path.join(os.path.dirname(HERE), "docs", "performance.svg")
ORDER = ["load", "drain", "stream", "freshness"]
# What is shown of a figure: unit behind it and digits.
FORMATS = {
    "wall_s": ("s", 2),
    "yardstick_s": ("s", 2),
    "decode_only_s": ("s", 2),
    "peak_mib": ("MiB", 0),
    "yardstick_peak_mib": ("MiB", 0),
    "mib_per_s": ("MiB/s", 0),
    "p50_ms": ("ms", 2),
    "p99_ms": ("ms", 2),
    "yardstick_p50_ms": ("ms", 2),
    "yardstick_p99_ms": ("ms", 2),
    "core_percent": ("% of a core", 1),
    "commits_per_s": ("/s", 0),
    "records_per_s": ("/s", 0),
    "yardstick_records_per_s": ("/s", 0),
}
BLUE, ORANGE = "#3569a8", "#c8662b"


def store(folder, results):
    """Puts a job's results into results.json, beside those of other jobs."""
    path = os.path.join(folder, "results.json")
    kept = load(folder)
    own = machine()
    results = {name_on(own, name, kept["jobs"]): {**job, "machine": own} for name, job in results.items()}
    kept["written"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kept["jobs"] = {**kept["jobs"], **results}
    with open(path, "w") as file:
        json.dump(rounded(kept), file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def name_on(machine, name, jobs):
    """The job's name in results.json: what another kind of processor reached stays beside it."""
    if jobs.get(name, {"machine": machine})["machine"]["cpu"] == machine["cpu"]:
        return name
    return f"{name} on {machine['cpu']}"


def load(folder):
    """What is there."""
    try:
        with open(os.path.join(folder, "results.json")) as file:
            return json.load(file)
    except FileNotFoundError:
        return {"jobs": {}}


def rounded(value):
    """Numbers with four digits behind the point are enough."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def write(folder):
    """Writes the table and the plot; gives the table."""
    results = load(folder)
    jobs = dict(sorted(results["jobs"].items(), key=lambda job: (ORDER.index(job[0].split("-")[0]), job[0])))
    machines = []
    for job in jobs.values():
        if job["machine"] not in machines:
            machines.append(job["machine"])
    for job in jobs.values():
        job["letter"] = letter(machines.index(job["machine"]))
    text = table(jobs)
    about = "; ".join(
        f"{letter(number)}: {one['cores']} shared cores ({one['cpu']}), {one['memory_gib']} GiB, Linux {one['kernel']}"
        for number, one in enumerate(machines)
    )
    with open(os.path.join(folder, "results.md"), "w") as file:
        file.write(
            f"# What `make bench` measured\n\nOn these machines: {about}. Medians of the pairs; the bar stands in brackets, "
            "with **not reached** where it is not. "
            "Walls of the daemon count from the start of its process. How to read it, what bounds each figure and how "
            "it was measured: [docs/performance.md](../docs/performance.md); every pair: "
            "[results.json](results.json).\n\n"
            f"{text}\n"
        )
    with open(PLOT, "w") as file:
        file.write(plot(jobs))
    return text


def letter(number):
    """The name of a machine in the table."""
    return chr(ord("A") + number)


def figure(job, name):
    """A median with its unit and its bar."""
    value = job["medians"].get(name)
    if value is None:
        return ""
    unit, digits = FORMATS.get(name, ("", 2))
    text = f"{value:.{digits}f}" + (f" {unit}" if unit else "")
    if name in job["bars"]:
        sign, bar = job["bars"][name].split()
        missed = "" if job["reached"][name] else ", **not reached**"
        text += f" ({'≤' if sign == '<=' else '≥'} {bar}{missed})"
    return text


def table(jobs):
    """The table of all jobs."""
    head = ["job", "yardstick", "yardstick's", "Millrace's", "ratio", "CPU s per M", "peak memory", "pairs"]
    head += ["load average", "machine"]
    rows = [head, ["---"] * len(head)]
    for job in jobs.values():
        medians = job["medians"]
        if "p50_ms" in medians:
            there = [name for name in ("p50", "p99") if f"yardstick_{name}_ms" in medians]
            yardstick = ", ".join(f"{name} {figure(job, f'yardstick_{name}_ms')}" for name in there)
            ours = ", ".join(f"{name} {figure(job, f'{name}_ms')}" for name in ("p50", "p99"))
        elif "mib_per_s" in medians:
            yardstick, ours = figure(job, "yardstick_records_per_s"), figure(job, "records_per_s")
        else:
            yardstick, ours = figure(job, "yardstick_s"), figure(job, "wall_s")
        ratio = figure(job, "ratio")
        if "share_of_decode_only" in medians:
            ratio += f"; {medians['share_of_decode_only']:.2f} of decoding alone"
        if "cpu_ratio" in medians:
            ratio += f"; CPU {figure(job, 'cpu_ratio')}"
        cpu, peak = figure(job, "cpu_s_per_million"), figure(job, "peak_mib")
        if "core_percent" in medians:
            cpu = figure(job, "core_percent")
        pairs, busy = str(len(job["pairs"])), str(job["load_average"])
        rows.append([job["title"], job["yardstick"], yardstick, ours, ratio, cpu, peak, pairs, busy, job["letter"]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# -- the plot


def text_at(x, y, text, size=12, anchor="start", weight="normal", colour="#24292f"):
    """A line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{html.escape(text)}</text>'
    )


def panel(title, rows, top, bar_name):
    """Horizontal bars: `rows` are (label, value, bar or None, text); every pair's spread is in results.json."""
    left, width, step = 370, 400, 24
    largest = max(max(value, bar or 0) for _, value, bar, _ in rows) * 1.1
    out = [text_at(10, top, title, 14, weight="bold")]
    for number, (label, value, bar, text) in enumerate(rows):
        y = top + 14 + number * step
        out.append(text_at(left - 8, y + 13, label, anchor="end"))
        long = value / largest * width
        out.append(f'<rect x="{left}" y="{y}" width="{long:.1f}" height="17" fill="{BLUE}"/>')
        end = long
        if bar is not None:
            at = bar / largest * width
            end = max(end, at)
            out.append(
                f'<line x1="{left + at:.1f}" x2="{left + at:.1f}" y1="{y - 3}" y2="{y + 20}" stroke="{ORANGE}" '
                'stroke-width="2"/>'
            )
        out.append(text_at(left + end + 6, y + 13, text))
    bottom = top + 14 + len(rows) * step
    if any(bar is not None for _, _, bar, _ in rows):
        out.append(text_at(left, bottom + 12, bar_name, 11, colour=ORANGE))
    return "\n".join(out), bottom + 40


def rows_of(jobs, prefix, name="ratio", unit="", among=None):
    """The bars of the jobs whose key begins with the prefix."""
    found = []
    for key, job in jobs.items():
        if not key.startswith(prefix) or name not in job["medians"] or (among and key.split(" on ")[0] not in among):
            continue
        value, bar = job["medians"][name], job["bars"].get(name)
        found.append((f"{job['title']} ({job['letter']})", value, float(bar.split()[1]) if bar else None, f"{value:.2f}{unit}"))
    return found


def plot(jobs):
    """All panels."""
    shorter = [
        (title.replace("commit to readable in the stream, ", f"{name[:3]}, "), value, bar, text)
        for name in ("p50_ms", "p99_ms")
        for title, value, bar, text in rows_of(jobs, "freshness-stream", name, " ms")
    ]
    at_most, at_least = "the line: at most so much", "the line: at least so much"
    loads = rows_of(jobs, "load-", among=("load-1", "load-2"))
    panels = [
        ("Full load: wall time by that of COPY binary to nowhere", loads, at_most),
        ("Full load: connectorx's wall time by ours", rows_of(jobs, "load-connectorx"), at_least),
        ("Drain of a backlog: rate by that of pg_recvlogical", rows_of(jobs, "drain-"), at_least),
        ("Stream: records/s by those of pwrite and fdatasync", rows_of(jobs, "stream-"), at_least),
        ("Freshness: commit at the source to readable in the stream", shorter, at_most),
    ]
    parts, top = [], 24
    for title, rows, bar_name in panels:
        if rows:
            part, top = panel(title, rows, top, bar_name)
            parts.append(part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {top}" font-family="sans-serif">\n'
        f'<rect width="860" height="{top}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )

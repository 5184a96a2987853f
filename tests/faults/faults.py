"""`make faults`: breaks everything on purpose, with the real binary and real servers, and prints what became of it: the
fault, the promise, the outcome, the seconds until the first later row was there. docs/reliability.md gets the table.

    faults.py [--only 20[,21]]   runs the tests of these faults; the others keep their last outcome
    faults.py --new              runs the tests that the page does not know yet, and those that failed
    faults.py --check            whether the page names the tests that are marked (nothing is run)

A test says `@pytest.mark.fault("20", "the source hangs without a reset", promise="continues")`, with the numbers of
fault_list.py ("5, 6" for two) and a promise of "continues", "stops safely", "records"; `quick=True` puts it into `make
test`. Tests of tests/e2e carry the same mark. A test in Rust has the line `// fault: 7` above its `#[test]`.
MILLRACE_TEST_SEED repeats the random part of a run.
"""

import argparse
import ast
import collections
import dataclasses
import datetime
import glob
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "e2e")]

from fault_list import NUMBERS, PROMISES, ROWS  # noqa: E402
from traps import Test, run_rust  # noqa: E402

CHECKOUT = os.path.dirname(os.path.dirname(HERE))
PAGE = os.path.join(CHECKOUT, "docs", "reliability.md")
BEGIN, END = "<!-- faults: written by make faults -->\n", "<!-- end of faults -->\n"
KEPT, NOT_RUN = "kept", "not run"


@dataclasses.dataclass(frozen=True)
class Marked:
    """A test and one fault that it springs."""

    number: str
    what: str
    promise: str
    test: Test


@dataclasses.dataclass
class Outcome:
    """What became of a test: all of its cases together."""

    verdict: str
    said: str = ""
    seconds: str = ""
    # When it was run, and the seed: "2026-11-24, 1234".
    run: str = ""

    @property
    def passed(self):
        return self.verdict == KEPT

    @property
    def failed(self):
        return not self.passed and not self.verdict.startswith("skipped")


def read_marks():
    """All marked tests, in the order of the faults."""
    found = []
    for folder in ("e2e", "faults"):
        for path in sorted(glob.glob(os.path.join(CHECKOUT, "tests", folder, "test_*.py"))):
            found += read_python(path)
    for folder in ("src", "connectors", "tests"):
        for path in sorted(glob.glob(os.path.join(CHECKOUT, folder, "**", "*.rs"), recursive=True)):
            found += read_rust(path)
    place = {row.number: index for index, row in enumerate(ROWS)}
    return sorted(found, key=lambda mark: (place.get(mark.number, -1), mark.test.file, mark.test.name, mark.what))


def read_python(path):
    """Decorators of test functions."""
    with open(path) as file:
        tree = ast.parse(file.read(), path)
    found = []
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        test = Test(os.path.relpath(path, CHECKOUT), function.name)
        for decorator in function.decorator_list:
            if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != "pytest.mark.fault":
                continue
            numbers, what = (ast.literal_eval(argument) for argument in decorator.args)
            options = {option.arg: ast.literal_eval(option.value) for option in decorator.keywords}
            found += [Marked(number, what, options["promise"], test) for number in re.split(r",\s*", numbers)]
    return found


def read_rust(path):
    """Comments `// fault: 7` above test functions; what they spring and promise is what the list says."""
    with open(path) as file:
        text = file.read()
    found = []
    for match in re.finditer(r"^ *// fault: ([\d, ]+)\n.*?\bfn (\w+)", text, re.MULTILINE | re.DOTALL):
        numbers, name = match.groups()
        test = Test(os.path.relpath(path, CHECKOUT), name)
        for number in (number.strip() for number in numbers.split(",")):
            row = NUMBERS.get(number)
            found.append(Marked(number, row.what if row else "", row.promise if row else "", test))
    return found


def wrong_marks(marks):
    """What is wrong with the marks themselves."""
    found = [f"{mark.test}: no fault has the number {mark.number!r}" for mark in marks if mark.number not in NUMBERS]
    found += [f"{mark.test}: no such promise: {mark.promise!r}" for mark in marks if mark.promise not in PROMISES]
    tested = {mark.number for mark in marks}
    found += [
        f"fault {row.number} has no test, and fault_list.py does not say why"
        for row in ROWS
        if row.number not in tested and not row.not_tested
    ]
    found += [
        f"fault {row.number} has a test, and fault_list.py says that it has none: {row.not_tested}"
        for row in ROWS
        if row.number in tested and row.not_tested
    ]
    return found


# -- running


def run_python(tests):
    """Runs tests; gives {test: Outcome}."""
    if not tests:
        return {}
    cases = []
    # One run per folder: each has its own conftest.py.
    for folder in sorted({os.path.dirname(test.file) for test in tests}):
        chosen = [f"{test.file}::{test.name}" for test in tests if os.path.dirname(test.file) == folder]
        with tempfile.TemporaryDirectory() as reports:
            report = os.path.join(reports, "report.xml")
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "600", "-rs"]
            command += ["-n", os.environ.get("WORKERS", "2"), "--dist", "worksteal", f"--junitxml={report}", *chosen]
            subprocess.run(command, cwd=CHECKOUT, check=False)
            cases += list(xml.etree.ElementTree.parse(report).getroot().iter("testcase"))
    by_test = collections.defaultdict(list)
    for case in cases:
        file = case.get("classname").replace(".", "/") + ".py"
        by_test[Test(file, case.get("name").split("[")[0])].append(case)
    return {test: judge(found) for test, found in by_test.items()}


def judge(cases):
    """One outcome for the cases of a test: kept where some passed, none failed and the rest was skipped."""
    if any(case.find("failure") is not None or case.find("error") is not None for case in cases):
        return Outcome("BROKEN")
    skipped = [case.find("skipped").get("message") for case in cases if case.find("skipped") is not None]
    if len(skipped) == len(cases):
        return Outcome(f"skipped: {skipped[0]}")
    notes = collections.defaultdict(list)
    for case in cases:
        for note in case.iter("property"):
            notes[note.get("name")].append(note.get("value"))
    seconds = max(map(float, notes["seconds"]), default=None)
    said = list(dict.fromkeys(notes["outcome"]))
    said += [f"a case was skipped: {reason}" for reason in dict.fromkeys(skipped)]
    told = re.sub(r"/\S*?/millrace-e2e-\w+", "…", "; ".join(said)).replace("|", "/")
    return Outcome(KEPT, told, "" if seconds is None else f"{seconds:.1f}")


# -- the page


def page_lines(marks, outcomes):
    """The table in Markdown: a line per fault and test, and one per fault that has none."""
    lines = [
        "| # | fault | promise | outcome | recovered within (s) | run (UTC, seed) | test |\n",
        "|--:|---|---|---|--:|---|---|\n",
    ]
    for row in ROWS:
        mine = [mark for mark in marks if mark.number == row.number]
        for mark in mine:
            outcome = outcomes.get(mark.test, Outcome(NOT_RUN))
            said = f"{outcome.verdict}: {outcome.said}" if outcome.said else outcome.verdict
            cells = [row.number, mark.what, mark.promise, said, outcome.seconds or "-", outcome.run or "-"]
            lines.append(f"| {' | '.join([*cells, str(mark.test)])} |\n")
        for how, why in (("in part", row.left_out), ("not tested", row.not_tested)):
            if why:
                lines.append(f"| {row.number} | {row.what} | {row.promise} | {how}: {why} | - | - | - |\n")
    return lines


def read_page():
    """The text before the table, the table's lines, the text behind it."""
    with open(PAGE) as file:
        text = file.read()
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    return before, table, after


def read_outcomes():
    """What the page knows: {test: Outcome}."""
    found = {}
    for line in read_page()[1].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        named = re.fullmatch(r"`(.+)::(\w+)`", cells[-1])
        if len(cells) == 7 and named:
            verdict, _, said = cells[3].partition(": ")
            if verdict == "skipped":
                verdict, said = cells[3], ""
            found[Test(*named.groups())] = Outcome(verdict, said, *("" if cell == "-" else cell for cell in cells[4:6]))
    return found


def check():
    """What is wrong with marks and page: a list of sentences."""
    marks = read_marks()
    wrong = wrong_marks(marks)
    outcomes = read_outcomes()
    missing = {mark.test for mark in marks} - set(outcomes)
    wrong += [f"docs/reliability.md does not know {test}: faults.py --new" for test in sorted(missing, key=str)]
    written = [line for line in read_page()[1].splitlines(keepends=True) if line.startswith("|")]
    if not wrong and written != page_lines(marks, outcomes):
        wrong.append("docs/reliability.md is stale: faults.py --new")
    return wrong


def write_page(marks, outcomes, head):
    """Puts the table between its markers."""
    before, _, after = read_page()
    with open(PAGE, "w") as file:
        file.write(f"{before}{BEGIN}\n{head}\n\n{''.join(page_lines(marks, outcomes))}\n{END}{after}")


def print_table(marks, outcomes, seed, whole):
    """The table for people who watch, and the count; gives how many are broken. `whole`: all faults were run."""
    print(f"\n{'#':>3}  {'fault':62} {'promise':13} {'outcome':8} {'seconds':>7}")
    for mark in marks:
        outcome = outcomes.get(mark.test, Outcome(NOT_RUN))
        print(
            f"{mark.number:>3}  {mark.what[:62]:62} {mark.promise:13} {outcome.verdict[:8]:8} {outcome.seconds:>7}"
            f"  {outcome.said or outcome.verdict.partition(': ')[2]}"
        )
    for row in ROWS:
        why = "; ".join(filter(None, (row.left_out, row.not_tested)))
        if why and (whole or any(mark.number == row.number for mark in marks)):
            print(f"{row.number:>3}  {row.what[:62]:62} {row.promise:13} {why}")
    verdicts = [outcomes.get(mark.test, Outcome(NOT_RUN)) for mark in marks]
    kept, broken = sum(one.passed for one in verdicts), sum(one.failed for one in verdicts)
    print(
        f"\nseed {seed}: {kept} kept, {broken} broken, {len(verdicts) - kept - broken} skipped, of {len(verdicts)} "
        f"over {len({mark.number for mark in marks})} of {len(ROWS)} faults"
    )
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        wrong = check()
        print("\n".join(wrong) or "docs/reliability.md names the tests that are marked")
        return 1 if wrong else 0
    marks = read_marks()
    wrong = wrong_marks(marks)
    if wrong:
        print("\n".join(wrong))
        return 1
    only = [number.strip() for number in arguments.only.split(",") if number.strip()]
    chosen = [mark for mark in marks if not only or mark.number in only]
    known = read_outcomes()
    todo = sorted({mark.test for mark in chosen}, key=str)
    if arguments.new:
        todo = [test for test in todo if known.get(test, Outcome(NOT_RUN)).failed]
    import conftest  # its seed is this run's

    seed = conftest.SEED
    os.environ["MILLRACE_TEST_SEED"] = str(seed)
    fresh = run_python([test for test in todo if not test.is_rust])
    rust = run_rust([test for test in todo if test.is_rust])
    fresh |= {Test(*text.strip("`").split("::")): judge_rust(said) for text, said in rust.items()}
    outcomes = known | {test: Outcome(NOT_RUN) for test in todo} | fresh
    run = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {seed}"
    for test in todo:
        outcomes[test].run = run
    whole = not only and not arguments.new
    version = os.environ.get("MILLRACE_TEST_PG", "15")
    head = f"Each line has the day and seed of its run, the newest with PostgreSQL {version}; those with - are older."
    write_page(marks, outcomes, head)
    return 1 if print_table(chosen, outcomes, seed, whole) else 0


def judge_rust(said):
    """Of what traps.py says of a Rust test."""
    return Outcome(KEPT if said == "passed" else "BROKEN")


if __name__ == "__main__":
    sys.exit(main())

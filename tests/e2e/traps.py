"""`make traps`: the known traps of replicating PostgreSQL, MySQL and MariaDB into a lake, the tests that spring each of
them, and what came of it, as the page docs/traps.md. `make scorecard`: what AWS DMS by its own user guide does not do with
PostgreSQL or MySQL as a source, what Millrace does, and the test that shows it.

    traps.py                 runs every marked test and writes the page
    traps.py --new           runs only the tests that the page does not know yet, and writes the page
    traps.py --check         whether the page names the tests that are marked (nothing is run)
    traps.py --scorecard     runs the tests of the scorecard and prints it

A test in Python says `@pytest.mark.trap("12", crash=True)` or `@pytest.mark.scorecard("TRUNCATE")`; one in Rust has the
line `// trap: 12, 13 (crash)` above its `#[test]`. `crash` means that a process is killed in it and started again, or,
in Rust, that what a crash leaves behind is taken up again. What the traps are stands in trap_list.py.
"""

import argparse
import ast
import collections
import dataclasses
import glob
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

sys.path.insert(0, os.path.dirname(__file__))

from trap_list import SCORECARD, TRAPS  # noqa: E402

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGE = os.path.join(CHECKOUT, "docs", "traps.md")
HEAD = """\
# The traps, and what becomes of them

Written by `make traps` from the marks of the tests; a test of `make test` fails where this page and the marks disagree.
The numbers are those of the marks. A test with † kills the process, or takes up what a kill left behind. The outcomes are
those of the last run, on PostgreSQL {version}; a test that needs a newer server says so.

| | trap | what Millrace does | tests | outcome |
|--:|---|---|---|---|
"""
# What the last column of the page says of tests.
ALL_PASSED, NO_OUTCOME = "passed", "not run"


@dataclasses.dataclass(frozen=True)
class Test:
    """One test function: its file relative to the checkout, and its name."""

    file: str
    name: str

    @property
    def is_rust(self):
        return self.file.endswith(".rs")

    def __str__(self):
        return f"`{self.file}::{self.name}`"


@dataclasses.dataclass
class Marks:
    """What the tests say about themselves: {number: {test: crash}} and {item: [test]}."""

    traps: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(dict))
    scorecard: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))


def read_marks():
    """The marks of all tests, from their sources."""
    marks = Marks()
    for path in sorted(glob.glob(os.path.join(CHECKOUT, "tests", "e2e", "test_*.py"))):
        read_python(path, marks)
    for folder in ("src", "connectors", "tests"):
        for path in sorted(glob.glob(os.path.join(CHECKOUT, folder, "**", "*.rs"), recursive=True)):
            read_rust(path, marks)
    return marks


def read_python(path, marks):
    """Decorators of test functions."""
    with open(path) as file:
        tree = ast.parse(file.read(), path)
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        test = Test(os.path.relpath(path, CHECKOUT), function.name)
        for decorator in function.decorator_list:
            called = ast.unparse(decorator.func) if isinstance(decorator, ast.Call) else ""
            if called not in ("pytest.mark.trap", "pytest.mark.scorecard"):
                continue
            arguments = [ast.literal_eval(argument) for argument in decorator.args]
            options = {option.arg: ast.literal_eval(option.value) for option in decorator.keywords}
            for argument in arguments:
                if called.endswith("trap"):
                    marks.traps[argument][test] = options.get("crash", False)
                else:
                    marks.scorecard[argument].append(test)


def read_rust(path, marks):
    """Comments `// trap: 12, 13 (crash)` above test functions."""
    with open(path) as file:
        text = file.read()
    for found in re.finditer(r"^ *// trap: ([\d, ]+?)( \(crash\))?\n(.*?\bfn (\w+))", text, re.MULTILINE | re.DOTALL):
        numbers, crash, _, name = found.groups()
        test = Test(os.path.relpath(path, CHECKOUT), name)
        for number in numbers.split(","):
            marks.traps[number.strip()][test] = bool(crash)


def faults(marks):
    """What is wrong with the marks themselves."""
    known = {trap.number: trap for trap in TRAPS}
    found = [f"no trap has the number {number!r}" for number in sorted(set(marks.traps) - set(known))]
    found += [f"no item {item!r} on the scorecard" for item in set(marks.scorecard) - {item.name for item in SCORECARD}]
    for trap in TRAPS:
        tests = marks.traps[trap.number]
        if not tests and not trap.no_test:
            found.append(f"trap {trap.number} has no test, and trap_list.py does not say why")
        if trap.crash and not any(tests.values()) and not trap.no_test:
            found.append(f"trap {trap.number} has no test with a crash")
    for item in SCORECARD:
        if not marks.scorecard[item.name] and not item.why_not:
            found.append(f"item {item.name!r} of the scorecard has no test, and trap_list.py does not say why not")
    return found


def read_page():
    """The outcome of each test as the page has it: {test's text: outcome}."""
    outcomes = {}
    try:
        with open(PAGE) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return outcomes
    for line in lines:
        cells = [cell.strip() for cell in line.split(" | ")]
        if len(cells) != 5 or not cells[0].strip("| ").isdigit():
            continue
        tests = [test.rstrip(" †") for test in cells[3].split("<br>") if test != "-"]
        said = [part.split(": ", 1) for part in cells[4].rstrip("| ").split("<br>")]
        others = {test: what for test, what in (part for part in said if len(part) == 2 and part[0].startswith("`"))}
        for test in tests:
            outcomes[test] = others.get(f"`{test.strip('`').split('::')[-1]}`", ALL_PASSED)
    return outcomes


def page(marks, outcomes, version):
    """The page's text."""
    lines = [HEAD.format(version=version)]
    for trap in TRAPS:
        tests = sorted(marks.traps[trap.number].items(), key=lambda pair: (pair[0].file, pair[0].name))
        named = "<br>".join(f"{test}{' †' if crash else ''}" for test, crash in tests) or "-"
        said = []
        if tests:
            wrong = {test: outcomes.get(str(test), NO_OUTCOME) for test, _ in tests}
            wrong = {test: outcome for test, outcome in wrong.items() if outcome != ALL_PASSED}
            said += [ALL_PASSED] if len(wrong) < len(tests) else []
            said += [f"`{test.name}`: {outcome}" for test, outcome in wrong.items()]
        said += [text for text in (trap.left_out, "" if tests else trap.no_test) if text]
        lines.append(f"| {trap.number} | {trap.what} | {trap.does} | {named} | {'<br>'.join(said)} |\n")
    return "".join(lines)


def check():
    """What is wrong with marks and page: a list of sentences."""
    marks = read_marks()
    wrong = faults(marks)
    try:
        with open(PAGE) as file:
            written = file.read()
    except FileNotFoundError:
        written = ""
    outcomes = read_page()
    version = (re.search(r"PostgreSQL (\d+);", written) or ["", "15"])[1]
    missing = {str(test) for tests in marks.traps.values() for test in tests} - set(outcomes)
    wrong += [f"docs/traps.md does not know {test}: make traps-new" for test in sorted(missing)]
    if not wrong and page(marks, outcomes, version) != written:
        wrong.append("docs/traps.md is stale: make traps-new")
    return wrong


def run_python(tests):
    """Runs tests end to end; gives {test's text: outcome}."""
    if not tests:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.xml")
        workers = os.environ.get("WORKERS", "3")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "300", "-n", workers]
        command += ["--dist", "worksteal", f"--junitxml={report}", *(f"{test.file}::{test.name}" for test in tests)]
        subprocess.run(command, cwd=CHECKOUT, check=False)
        cases = list(xml.etree.ElementTree.parse(report).getroot().iter("testcase"))
    outcomes = collections.defaultdict(list)
    for case in cases:
        name = case.get("name").split("[")[0]
        file = case.get("classname").replace(".", "/") + ".py"
        skipped = case.find("skipped")
        failed = case.find("failure") is not None or case.find("error") is not None
        outcome = "FAILED" if failed else ALL_PASSED if skipped is None else f"skipped: {skipped.get('message')}"
        outcomes[str(Test(file, name))].append(outcome)
    return {test: worst(found) for test, found in outcomes.items()}


def run_rust(tests):
    """Runs Rust's tests; gives {test's text: outcome}. Two of one name count together."""
    if not tests:
        return {}
    names = sorted({test.name for test in tests})
    command = ["cargo", "test", "--locked", "--workspace", "--features", "failpoints", "--no-fail-fast", "--", *names]
    said = subprocess.run(command, cwd=CHECKOUT, check=False, stdout=subprocess.PIPE, text=True).stdout
    found = collections.defaultdict(list)
    for path, outcome in re.findall(r"^test (\S+) \.\.\. (\w+)", said, re.MULTILINE):
        found[path.split("::")[-1]].append(ALL_PASSED if outcome == "ok" else "FAILED")
    return {str(test): worst(found[test.name] or [NO_OUTCOME]) for test in tests}


def worst(outcomes):
    """One word for the outcomes of a test's cases: it passed where some passed, none failed and the rest was skipped."""
    failed = [outcome for outcome in outcomes if outcome in ("FAILED", NO_OUTCOME)]
    skipped = [outcome for outcome in outcomes if outcome.startswith("skipped")]
    return (failed or ([ALL_PASSED] if ALL_PASSED in outcomes else skipped))[0]


def write_page(only_new):
    """Runs what is marked and writes the page; gives the exit code."""
    marks = read_marks()
    wrong = faults(marks)
    if wrong:
        print("\n".join(wrong))
        return 1
    outcomes = read_page() if only_new else {}
    tests = sorted({test for tests in marks.traps.values() for test in tests}, key=str)
    todo = [test for test in tests if outcomes.get(str(test), NO_OUTCOME) in (NO_OUTCOME, "FAILED")]
    outcomes |= run_rust([test for test in todo if test.is_rust])
    outcomes |= run_python([test for test in todo if not test.is_rust])
    with open(PAGE, "w") as file:
        file.write(page(marks, outcomes, os.environ.get("MILLRACE_TEST_PG", "15")))
    failed = [test for test in tests if outcomes.get(str(test), NO_OUTCOME) in (NO_OUTCOME, "FAILED")]
    print(f"traps: {len(tests)} tests, {len(todo)} run, {len(failed)} failed: docs/traps.md")
    return 1 if failed else 0


def print_scorecard():
    """Runs the scorecard's tests and prints it; gives the exit code."""
    marks = read_marks()
    tests = sorted({test for tests in marks.scorecard.values() for test in tests}, key=str)
    outcomes = run_python(tests)
    failed = False
    for item in SCORECARD:
        found = marks.scorecard[item.name]
        print(f"\n{item.name}\n  AWS DMS:  {item.dms} [{item.source}]\n  Millrace: {item.does}")
        for test in found:
            outcome = outcomes.get(str(test), NO_OUTCOME)
            failed |= outcome != ALL_PASSED
            print(f"  {outcome}: {test.file}::{test.name}")
        if item.why_not:
            print(f"  not better: {item.why_not}")

    def is_better(item):
        passed = [outcomes.get(str(test)) == ALL_PASSED for test in marks.scorecard[item.name]]
        return bool(passed) and all(passed) and not item.why_not

    better = sum(is_better(item) for item in SCORECARD)
    print(f"\n{better} of {len(SCORECARD)} better than DMS")
    return 1 if failed or faults(marks) else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--scorecard", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        wrong = check()
        print("\n".join(wrong) or "docs/traps.md names the tests that are marked")
        return 1 if wrong else 0
    return print_scorecard() if arguments.scorecard else write_page(arguments.new)


if __name__ == "__main__":
    sys.exit(main())

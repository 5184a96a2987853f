"""docs/reliability.md is what the marks of the tests say; nothing is run for it."""

import faults
import pytest
import traps

pytestmark = pytest.mark.quick


def test_the_page_of_reliability_names_the_tests_that_are_marked():
    wrong = faults.check()
    assert not wrong, "\n".join(wrong)


def test_the_page_remembers_outcomes(tmp_path, monkeypatch):
    """What is written is what is read, so that one fault can be tried again by itself."""
    marks = faults.read_marks()
    outcomes = {mark.test: faults.Outcome(faults.KEPT) for mark in marks}
    tests = sorted(outcomes, key=str)
    outcomes[tests[0]] = faults.Outcome("BROKEN")
    outcomes[tests[1]] = faults.Outcome("skipped: needs strace: apt-get install strace")
    outcomes[tests[2]] = faults.Outcome(faults.KEPT, "SRC-RESET: two reconnects", "3.1", "2026-11-24, 7")
    monkeypatch.setattr(faults, "PAGE", str(tmp_path / "reliability.md"))
    (tmp_path / "reliability.md").write_text(f"before\n{faults.BEGIN}old\n{faults.END}after\n")
    faults.write_page(marks, outcomes, "seed 1")
    assert faults.read_outcomes() == outcomes
    assert faults.read_page()[0] == "before\n" and faults.read_page()[2] == "after\n"


def test_marks_are_understood(tmp_path):
    python, rust = tmp_path / "test_a.py", tmp_path / "b.rs"
    python.write_text('@pytest.mark.fault("5, 6", "x", promise="continues", quick=True)\ndef test_a():\n    pass\n')
    rust.write_text("    // fault: 7\n    #[test]\n    fn b() {}\n")
    found = faults.read_python(str(python)) + faults.read_rust(str(rust))
    assert [(mark.number, mark.what, mark.test.name) for mark in found] == [
        ("5", "x", "test_a"),
        ("6", "x", "test_a"),
        ("7", faults.NUMBERS["7"].what, "b"),
    ]
    marks = [
        faults.Marked("99", "x", "continues", traps.Test("a", "b")),
        faults.Marked("1", "x", "hopes", traps.Test("a", "c")),
    ]
    said = faults.wrong_marks(marks)
    assert any("'99'" in text for text in said) and any("'hopes'" in text for text in said)
    assert any("fault 2 has no test" in text for text in said)
    marks = [faults.Marked("29", "x", "continues", traps.Test("a", "b"))]
    assert any("fault 29 has a test" in text for text in faults.wrong_marks(marks))

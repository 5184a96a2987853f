"""docs/traps.md is what the marks of the tests say; nothing is run for it."""

import traps


def test_the_page_of_traps_names_the_tests_that_are_marked():
    wrong = traps.check()
    assert not wrong, "\n".join(wrong)


def test_every_item_of_the_scorecard_has_a_test_or_a_reason():
    marks = traps.read_marks()
    for item in traps.SCORECARD:
        assert bool(marks.scorecard[item.name]) != bool(item.why_not), item.name


def test_the_page_remembers_outcomes(tmp_path, monkeypatch):
    """What is written is what is read, so that only new tests need to be run."""
    marks = traps.read_marks()
    tests = sorted({test for tests in marks.traps.values() for test in tests}, key=str)
    outcomes = dict.fromkeys(map(str, tests), "passed")
    outcomes |= {str(tests[0]): "FAILED", str(tests[1]): "skipped: needs PostgreSQL 17: MILLRACE_TEST_PG=17"}
    monkeypatch.setattr(traps, "PAGE", str(tmp_path / "traps.md"))
    (tmp_path / "traps.md").write_text(traps.page(marks, outcomes, "15"))
    assert traps.read_page() == outcomes


def test_marks_are_understood(tmp_path):
    """Both languages, and what the page remembers of an outcome."""
    python, rust = tmp_path / "test_a.py", tmp_path / "b.rs"
    python.write_text('@pytest.mark.trap("1", "2", crash=True)\n@pytest.mark.scorecard("x")\ndef test_a():\n    pass\n')
    rust.write_text("    // trap: 2, 30 (crash)\n    #[tokio::test]\n    async fn b() {}\n// trap: 2\n#[test]\nfn c() {}\n")
    marks = traps.Marks()
    traps.read_python(str(python), marks)
    traps.read_rust(str(rust), marks)
    found = {number: {test.name: crash for test, crash in tests.items()} for number, tests in marks.traps.items()}
    assert found == {"1": {"test_a": True}, "2": {"test_a": True, "b": True, "c": False}, "30": {"b": True}}
    assert [test.name for test in marks.scorecard["x"]] == ["test_a"]

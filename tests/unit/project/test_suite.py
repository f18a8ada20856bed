"""What tests/suite.py decides; running it whole is for CI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import suite

JUNIT = b"""<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="x"/></testcase>
<testcase classname="a" name="broken"><error message="x"/></testcase>
<testcase classname="a" name="left"><skipped type="pytest.skip" message="no\nnode"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted_and_its_skips_keep_their_reasons() -> None:
    verdict = suite.read_report(JUNIT)
    assert (verdict.passed, verdict.failed) == (1, 2)
    assert verdict.skips == [("a::left", "no node")]


def test_a_missing_report_is_a_failure() -> None:
    assert suite.read_report(b"").failed == 1


def test_the_last_line_of_a_summary_counts_the_tests() -> None:
    steps = [suite.Step("mypy", False, 1.5), suite.Step("pytest", True, 2.0)]
    lines = suite.summary(steps, suite.read_report(JUNIT), ["acceptance"])
    assert lines[-1] == "1 passed, 2 failed, 1 skipped in 3.50s"
    assert "skipped: a::left: no node" in lines
    assert "left out: acceptance" in lines
    assert any("mypy" in line and "FAILED" in line for line in lines)


def test_the_gate_reads_branches_and_not_lines() -> None:
    totals = {"covered_branches": 19, "num_branches": 20, "percent_covered": 10.0}
    assert suite.branch_percent(json.dumps({"totals": totals}).encode()) == 95.0
    assert suite.branch_percent(b"") is None
    totals["num_branches"] = 0
    assert suite.branch_percent(json.dumps({"totals": totals}).encode()) is None


def test_the_pure_core_is_named_by_files_that_exist(root: Path) -> None:
    for pattern in suite.PURE_CORE:
        assert list(root.glob(pattern)), pattern


def test_a_few_failures_of_real_processes_run_again_and_unit_tests_do_not() -> None:
    busy = suite.Verdict(10, 1, [], ["tests.chaos.test_links::test_a"])
    assert suite.worth_a_second_run(busy)
    assert not suite.worth_a_second_run(suite.Verdict(10, 0, [], []))
    unit = suite.Verdict(10, 2, [], ["tests.chaos.test_links::test_a", "tests.unit.test_x::b"])
    assert not suite.worth_a_second_run(unit)
    assert not suite.worth_a_second_run(suite.Verdict(1, 13, [], ["tests.chaos::a"] * 13))


def test_what_passes_the_second_time_is_counted_and_named() -> None:
    first = suite.Verdict(10, 2, [], ["a", "b"])
    mended = suite.after_second_run(first, suite.Verdict(1, 1, [], ["b"]))
    assert mended == suite.Verdict(11, 1, [], ["a"])
    other_tests = suite.Verdict(5, 0, [], [])
    assert suite.after_second_run(first, other_tests).failed == 2
    none_read = suite.Verdict(0, 1, [], [])
    assert suite.after_second_run(first, none_read).failed == 2


@pytest.mark.parametrize("given", [[], ["-x"], ["-k", "not this"], ["-k", "a[1]"], ["-k", "zzqq"]])
def test_a_target_is_its_whole_folder(
    given: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    # The word of the last case is here alone, in a file that is not looked at.
    assert suite.places("tests/unit/schemas", given) == ["tests/unit/schemas"]


def test_a_place_among_the_arguments_is_looked_in_alone() -> None:
    assert suite.places("tests/unit", ["tests/unit/cli", "-k", "cli"]) == []


def test_a_test_is_sought_in_the_files_that_hold_the_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"test_a.py": "def test_Alpha", "test_b.py": "def test_beta", "test_c.py": "other"}
    for name, text in texts.items():
        (tmp_path / "room").mkdir(exist_ok=True)
        (tmp_path / "room" / name).write_text(text)
    assert suite.places("room", ["-k", "alpha"]) == ["room/test_a.py"]
    assert suite.places("room", ["-x", "-k", "alpha or beta"]) == [
        "room/test_a.py",
        "room/test_b.py",
    ]
    assert suite.places("room", ["-k", "test_c"]) == ["room/test_c.py"]
    assert suite.places("room", ["-k", "alpha", "-k", "beta"]) == ["room"]


def test_one_test_is_run_by_its_name_from_any_folder(root: Path) -> None:
    command = [sys.executable, str(root / "tests" / "suite.py"), "unit", "-k"]
    name = "test_a_missing_report_is_a_failure"
    done = subprocess.run([*command, name], capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr

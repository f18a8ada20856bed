"""The parts of bootstrap.py that decide; running it whole is for tests/acceptance."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest


@pytest.fixture(scope="module")
def bootstrap(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", root / "bootstrap.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\n'


@pytest.mark.parametrize(
    ("os_release", "is_root", "command"),
    [
        (DEBIAN, True, "apt-get update && apt-get install -y python3.11-venv"),
        (DEBIAN, False, "sudo apt-get update && sudo apt-get install -y python3.11-venv"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', True, "apt-get update && apt-get install -y"),
        ("ID=fedora\n", False, "sudo dnf install -y python3 python3-pip"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', True, "dnf install"),
        ("ID=alpine\n", True, "apk add"),
        ("ID=manjaro\nID_LIKE=arch\n", True, "pacman -S"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', True, "zypper install"),
        ("", True, "install Python 3.10 or newer"),
    ],
)
def test_each_system_gets_its_own_command(
    bootstrap: ModuleType, os_release: str, is_root: bool, command: str
) -> None:
    told = bootstrap.package_command({}, os_release, (3, 11, 2), is_root)
    assert told.startswith(command)


def test_a_phone_gets_pkg(bootstrap: ModuleType) -> None:
    environ = {"PREFIX": "/data/data/com.termux/files/usr"}
    assert bootstrap.package_command(environ, DEBIAN, (3, 11), False).startswith("pkg install")


def test_an_old_python_is_told_which_one_to_run(bootstrap: ModuleType) -> None:
    told = bootstrap.old_python_message((3, 8, 1), "python3.12", ["up", "--port", "0"])
    assert told.endswith("this is 3.8. Run: python3.12 bootstrap.py up --port 0")
    assert "python.org" in bootstrap.old_python_message((3, 8, 1), "", ["up"])


def test_the_syntax_is_that_of_an_old_python(root: Path) -> None:
    ast.parse((root / "bootstrap.py").read_text("utf-8"), feature_version=(3, 6))


def test_only_the_standard_library_is_imported(root: Path) -> None:
    tree = ast.parse((root / "bootstrap.py").read_text("utf-8"))
    for item in ast.walk(tree):
        names = [alias.name for alias in item.names] if isinstance(item, ast.Import) else []
        names += [item.module or ""] if isinstance(item, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names


def test_an_installation_depends_on_packages_place_and_python(bootstrap: ModuleType) -> None:
    stamp = bootstrap.make_stamp([b"a", b"b"], "/here", (3, 11, 1))
    assert stamp == bootstrap.make_stamp([b"a", b"b"], "/here", (3, 11, 9))
    others = [
        bootstrap.make_stamp([b"ab", b""], "/here", (3, 11)),
        bootstrap.make_stamp([b"a", b"b"], "/there", (3, 11)),
        bootstrap.make_stamp([b"a", b"b"], "/here", (3, 12)),
    ]
    assert all(stamp != other for other in others)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"place": "x"}'])
def test_a_damaged_stamp_is_no_stamp(bootstrap: ModuleType, text: bytes) -> None:
    assert bootstrap.read_stamp(text) == {"place": "", "packages": "", "extras": []}


def test_a_stamp_is_read_as_it_was_written(bootstrap: ModuleType) -> None:
    stamp = {"place": "p", "packages": "q", "extras": ["api"]}
    assert bootstrap.read_stamp(json.dumps(stamp).encode()) == stamp


JUNIT = b"""<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="x"/></testcase>
<testcase classname="a" name="broken"><error message="x"/></testcase>
<testcase classname="a" name="left"><skipped type="pytest.skip" message="no\nnode"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted_and_its_skips_keep_their_reasons(bootstrap: ModuleType) -> None:
    verdict = bootstrap.read_report(JUNIT)
    assert (verdict.passed, verdict.failed) == (1, 2)
    assert verdict.skips == [("a::left", "no node")]


def test_a_missing_report_is_a_failure(bootstrap: ModuleType) -> None:
    assert bootstrap.read_report(b"").failed == 1


def test_the_last_line_of_a_summary_counts_the_tests(bootstrap: ModuleType) -> None:
    steps = [bootstrap.Step("mypy", False, 1.5), bootstrap.Step("pytest", True, 2.0)]
    lines = bootstrap.summary(steps, bootstrap.read_report(JUNIT), ["acceptance"])
    assert lines[-1] == "1 passed, 2 failed, 1 skipped in 3.50s"
    assert "skipped: a::left: no node" in lines
    assert "left out: acceptance" in lines
    assert any("mypy" in line and "FAILED" in line for line in lines)


def test_the_gate_reads_branches_and_not_lines(bootstrap: ModuleType) -> None:
    totals = {"covered_branches": 19, "num_branches": 20, "percent_covered": 10.0}
    assert bootstrap.branch_percent(json.dumps({"totals": totals}).encode()) == 95.0
    assert bootstrap.branch_percent(b"") is None
    totals["num_branches"] = 0
    assert bootstrap.branch_percent(json.dumps({"totals": totals}).encode()) is None


def test_the_pure_core_is_named_by_files_that_exist(bootstrap: ModuleType, root: Path) -> None:
    for pattern in bootstrap.PURE_CORE:
        assert list(root.glob(pattern)), pattern


def test_the_typing_tree_is_made_mended_and_pruned(bootstrap: ModuleType, tmp_path: Path) -> None:
    for folder in bootstrap.TYPING_LINKS.values():
        (tmp_path / folder).mkdir()
    bootstrap.make_typing_tree(str(tmp_path))
    tree = tmp_path / ".typing" / "retire_cluster"
    assert (tree / "api").samefile(tmp_path / "http")
    os.unlink(tree / "api")
    os.symlink(tmp_path / "nowhere", tree / "api", target_is_directory=True)
    os.symlink(tmp_path / "http", tree / "gone", target_is_directory=True)
    bootstrap.make_typing_tree(str(tmp_path))
    assert sorted(os.listdir(tree)) == sorted(bootstrap.TYPING_LINKS)
    assert (tree / "api").samefile(tmp_path / "http")


def test_a_lock_is_held_by_one_at_a_time(bootstrap: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = (
        "import sys, importlib.util as u\n"
        "s = u.spec_from_file_location('b', sys.argv[1]); b = u.module_from_spec(s)\n"
        "s.loader.exec_module(b)\n"
        "with open(sys.argv[2], 'a+b') as f: print(b._try_lock(f.fileno()))\n"
    )
    command = [sys.executable, "-c", code, str(bootstrap.__file__), path]
    with bootstrap.locked(path):
        held = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    freed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (held.strip(), freed.strip()) == ("False", "True")


def test_a_command_that_hangs_is_ended_with_all_it_started(
    bootstrap: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    result = bootstrap.run([sys.executable, "-c", code, str(pid)], most_seconds=3.0)
    assert result == (124, "")
    assert "not done after 3 s" in capfd.readouterr().err
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("args", "code"), [([], 2), (["fly"], 2), (["help"], 0)])
def test_usage_is_shown_to_who_asks_and_who_mistypes(
    root: Path, args: list[str], code: int
) -> None:
    command = [sys.executable, str(root / "bootstrap.py"), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "bootstrap.py up" in done.stdout + done.stderr


def test_a_few_failures_of_real_processes_run_again_and_unit_tests_do_not(
    bootstrap: ModuleType,
) -> None:
    busy = bootstrap.Verdict(10, 1, [], ["tests.chaos.test_links::test_a"])
    assert bootstrap.worth_a_second_run(busy)
    assert not bootstrap.worth_a_second_run(bootstrap.Verdict(10, 0, [], []))
    unit = bootstrap.Verdict(10, 2, [], ["tests.chaos.test_links::test_a", "tests.unit.test_x::b"])
    assert not bootstrap.worth_a_second_run(unit)
    assert not bootstrap.worth_a_second_run(bootstrap.Verdict(1, 13, [], ["tests.chaos::a"] * 13))


def test_what_passes_the_second_time_is_counted_and_named(bootstrap: ModuleType) -> None:
    first = bootstrap.Verdict(10, 2, [], ["a", "b"])
    mended = bootstrap.after_second_run(first, bootstrap.Verdict(1, 1, [], ["b"]))
    assert mended == bootstrap.Verdict(11, 1, [], ["a"])
    other_tests = bootstrap.Verdict(5, 0, [], [])
    assert bootstrap.after_second_run(first, other_tests).failed == 2
    none_read = bootstrap.Verdict(0, 1, [], [])
    assert bootstrap.after_second_run(first, none_read).failed == 2

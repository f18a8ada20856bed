"""Which Pythons of a machine are found and chosen; running on them is for `bootstrap.py test`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import interpreters
from tests.interpreters import EXPECTED, Python


def python(
    minor: int, patch: int = 0, free_threaded: bool = False, complete: bool = True, path: str = ""
) -> Python:
    return Python((3, minor, patch), free_threaded, complete, path)


def test_one_of_each_version_is_chosen_oldest_first() -> None:
    found = [python(13), python(10, 1), python(10, 13), python(13, 1, free_threaded=True)]
    chosen = interpreters.choose(found)
    assert [(one.name, one.version[2]) for one in chosen] == [
        ("3.10", 13),
        ("3.13", 0),
        ("3.13t", 1),
    ]


def test_one_without_venv_is_chosen_only_where_there_is_no_other() -> None:
    bare, whole = python(11, 9, complete=False), python(11, 2)
    assert interpreters.choose([bare, whole]) == [whole]
    assert interpreters.choose([bare]) == [bare]


def test_versions_that_are_not_there_are_named() -> None:
    found = [python(10), python(11, complete=False), python(12, free_threaded=True), python(13)]
    assert interpreters.absent(found) == ["3.11", "3.12", "3.14"]
    assert interpreters.absent(python(minor) for _, minor in EXPECTED) == []


def test_words_choose_interpreters_and_an_absent_one_is_told_with_those_there_are() -> None:
    found = [python(10), python(12), python(13), python(14, free_threaded=True)]
    names = [one.name for one in interpreters.wanted(["oldest", "newest", "3.13", "3.12"], found)]
    assert names == ["3.10", "3.13", "3.12"]
    with pytest.raises(LookupError, match=r"no Python 3\.14 .* 3\.10, 3\.12, 3\.13, 3\.14t"):
        interpreters.wanted(["3.14"], found)


def test_the_list_of_the_launcher_of_windows_is_read() -> None:
    text = " -V:3.13 *        C:\\Program Files\\Python313\\python.exe\r\n"
    text += " -3.10-64         D:\\py\\python.exe\r\nNo more Pythons\r\n"
    assert interpreters.launcher_paths(text) == [
        "C:\\Program Files\\Python313\\python.exe",
        "D:\\py\\python.exe",
    ]


def test_a_program_is_asked_what_it_is(tmp_path: Path) -> None:
    found = interpreters.probe(sys.executable)
    assert found is not None
    assert found.version == sys.version_info[:3]
    assert os.path.exists(found.path)
    assert interpreters.probe(str(tmp_path / "nothing")) is None


@pytest.mark.skipif(os.name == "nt", reason="scripts with #!")
@pytest.mark.parametrize(
    "answer",
    ["", "Python 3.13.0", '["PyPy", [3, 11, 9], false, true, "/x"]', '["CPython", [3, 9, 1]]',
     '["CPython", [3, 9, 18], false, true, "/x"]', '["CPython", 3, false, true, "/x"]'],
)  # fmt: skip
def test_a_program_that_is_no_fitting_python_is_none(answer: str, tmp_path: Path) -> None:
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    assert interpreters.probe(str(program)) is None


@pytest.mark.skipif(os.name == "nt", reason="makes links")
def test_path_and_pyenv_are_searched(tmp_path: Path) -> None:
    places = [
        tmp_path / "on path" / "python3.12",
        tmp_path / ".pyenv" / "versions" / "3.10.13" / "bin" / "python3",
        tmp_path / ".local/share/uv/python/cpython-3.13.1-linux-x86_64-gnu/bin/python3",
    ]
    for place in places:
        place.parent.mkdir(parents=True)
        place.symlink_to(sys.executable)
    environ = {"PATH": str(tmp_path / "on path"), "HOME": str(tmp_path)}
    assert interpreters.candidates(environ) == [sys.executable, *map(str, places)]


@pytest.mark.skipif(os.name == "nt", reason="scripts with #!")
def test_a_smoke_that_fails_makes_the_run_fail_and_absent_versions_are_told(
    tmp_path: Path, root: Path
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "tests").mkdir(parents=True)
    shutil.copy(root / "tests" / "interpreters.py", checkout / "tests")
    (checkout / "bootstrap.py").write_text(
        "import sys\nprint('asked', *sys.argv[1:], flush=True)\n"
        "sys.exit('0' not in open('bad').read() and sys.version_info >= (3, 10))\n"
    )
    command = [sys.executable, str(checkout / "tests" / "interpreters.py"), "smoke"]
    environ = {"PATH": "/nowhere", "HOME": str(tmp_path)}
    name = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for bad, code, told in (("1", 1, "FAILED"), ("0", 0, "asked")):
        (checkout / "bad").write_text(bad)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert told in done.stdout
        assert f"build/python-{name} smoke" in done.stdout
        absent = [f"3.{minor}" for _, minor in EXPECTED if f"3.{minor}" != name]
        assert all(f"Python {one}: not on this machine" in done.stdout for one in absent)

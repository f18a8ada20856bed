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

"""What tasks are shown of a device's files, and what of it they may change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retire_cluster.node.walls import landlock, reach
from retire_cluster.node.walls.confinement import BWRAP, Confinement
from retire_cluster.node.walls.paths import is_below
from retire_cluster.node.walls.reach import Reach

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are Linux's")
Finder = Callable[..., Reach]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    found = Path(os.path.realpath(tmp_path)) / "home"
    found.mkdir()
    (found / "letters").write_text("mine")
    return found


@pytest.fixture
def find(home: Path) -> Finder:
    def found(
        owners: tuple[str, ...] = (), path: tuple[str, ...] = (), modules: tuple[str, ...] = ()
    ) -> Reach:
        environ = {"HOME": str(home), "PATH": os.pathsep.join(path)}
        return reach.of_this_device(home / ".w", owners, (), modules, environ)

    return found


def opens(paths: tuple[str, ...], path: Path) -> bool:
    return any(is_below(str(path), each) for each in paths)


def made(*folders: Path) -> str:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return str(folders[0])


def test_a_folder_of_path_in_an_owners_folder_is_no_rule_of_its_own(
    find: Finder, home: Path
) -> None:
    programs = made(home / "data" / "proj" / "bin")
    found = find((str(home / "data"),), (programs,))
    assert programs not in found.read
    assert opens(found.write, Path(programs))


def test_a_link_that_an_earlier_workers_task_left_opens_nothing(find: Finder, home: Path) -> None:
    made(home / "data", home / "secret")
    (home / "data" / "bin").symlink_to(home / "secret")
    (home / "far").symlink_to(home / "data" / "bin")
    found = find((str(home / "data"),), (str(home / "data" / "bin"), str(home / "far")))
    assert not opens(found.read, home / "secret")


@pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")
@pytest.mark.parametrize("opener", ["openat2", "walk"])
def test_a_link_in_the_place_of_an_open_folder_opens_nothing(
    home: Path, opener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = made(home / "way" / "bin")
    assert landlock_sees(way, opener, home) == "shut"
    (home / "way" / "bin").rmdir()
    (home / "way" / "bin").symlink_to(home)
    assert landlock_sees(way, opener, home) == "shut"
    (home / "way").rename(home / "away")
    (home / "way").symlink_to(home)
    made(home / "bin")
    assert landlock_sees(way, opener, home, read=home / "bin") == "shut"
    assert landlock_sees(str(home), opener, home) == "open"


SEER = """
import os, sys
from retire_cluster.node.walls import landlock
path, opener, wanted = sys.argv[1:]
if opener == "walk":
    landlock.open_straight = landlock._walk
try:
    landlock.restrict([landlock.Rule(path, landlock.READ)])
    open(wanted) if os.path.isfile(wanted) else os.listdir(wanted)
    print("open")
except PermissionError:
    print("shut")
"""


def landlock_sees(path: str, opener: str, home: Path, read: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SEER, path, opener, str(read or home / "letters")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_bubblewrap_binds_nothing_that_has_become_a_link(home: Path) -> None:
    read, write = made(home / "read"), made(home / "write")
    confinement = Confinement(sandbox=BWRAP, reach=Reach(read=(read,), write=(write,)))
    assert {read, write} <= set(confinement.command(["true"], ()))
    for path in (read, write):
        os.rmdir(path)
        os.symlink(home, path)
    assert not {read, write} & set(confinement.command(["true"], ()))


def test_what_the_worker_runs_is_in_no_folder_that_tasks_may_change(
    find: Finder, home: Path
) -> None:
    modules = made(home / "src" / "types")
    made(home / "src" / "data")
    (home / "src" / "linked").symlink_to(home / "elsewhere")
    found = find((str(home / "src"), "/"), (), (modules, str(home / "src" / "linked" / "more")))
    assert not opens(found.write, Path(modules) / "own.py")
    assert not opens(found.write, home / "src")
    assert not opens(found.write, home / "src" / "linked")
    assert opens(found.write, home / "src" / "data")
    assert opens(found.read, Path(modules) / "own.py")
    package = Path(reach.__file__).resolve()
    for path in (package, Path(sys.prefix, "bin"), Path(os.__file__), Path(pytest.__file__)):
        real = Path(os.path.realpath(path))
        assert not opens(found.write, real)
        assert opens(found.read, real)
    assert str(home / "src") in found.parted


def test_a_home_folder_and_all_above_it_are_never_open_for_what_is_in_them(
    find: Finder, home: Path
) -> None:
    (home.parent / "link").symlink_to(home)
    inside = made(home / "modules")
    for path in (home, home.parent, home.parent / "link", Path(f"{home}/x/..")):
        for found in (find((), (), (str(path), inside)), find((), (str(path),), (inside,))):
            assert not opens(found.read, home / "letters")
            assert opens(found.read, home / "modules" / "one.py")
    data = made(home / "data")
    assert opens(find((data,), (), (str(home),)).write, home / "data")
    assert not opens(find((str(home),), (), (str(home),)).write, home / "data")


def test_shims_environments_and_programs_find_what_they_need(find: Finder, home: Path) -> None:
    pyenv, venv, tool = home / ".pyenv", home / "venv", home / "tool"
    made(pyenv / "shims", pyenv / "versions", venv / "bin", venv / "lib")
    made(home / "python" / "bin", home / "python" / "lib")
    made(tool / "bin", tool / "share", tool / "keys")
    (venv / "pyvenv.cfg").write_text(f"home = {home / 'python' / 'bin'}\n")
    made(home / "bin", home / "lib")
    made(home / ".local" / "bin", home / ".local" / "lib", home / ".local" / "share" / "keyrings")
    names = (".pyenv/shims", "venv/bin", "tool/bin", "bin", ".local/bin")
    found = find((), tuple(str(home / name) for name in names))
    needed = (pyenv / "versions", venv / "lib", venv / "pyvenv.cfg", home / "python" / "lib",
              tool / "share", home / ".local" / "lib")  # fmt: skip
    for path in needed:
        assert opens(found.read, path)
    for path in (home / "letters", tool / "keys", home / "lib", home / ".local" / "share"):
        assert not opens(found.read, path)
    assert found.write == ()


def test_an_environment_that_tasks_may_change_does_not_say_what_is_open(
    find: Finder, home: Path
) -> None:
    made(home / "data" / "venv" / "bin", home / "secret" / "bin")
    (home / "data" / "venv" / "pyvenv.cfg").write_text(f"home = {home / 'secret' / 'bin'}\n")
    found = find((str(home / "data"),), (str(home / "data" / "venv" / "bin"),))
    assert not opens(found.read, home / "secret")

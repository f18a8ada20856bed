"""The home folder behind the walls: whose it is, and what of the owner's is to be had in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retire_cluster.node.walls import confinement, landlock
from tests.integration.node.walls.walls_kit import KINDS, NOBODY, Box
from tests.integration.node_kit import Bus, linux_only

pytestmark = [linux_only, pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")]
KIND = KINDS[0] if os.geteuid() == 0 else KINDS[2]
#: As `git config --global` does: the old file is read, a new one takes its place.
SETTLES = """
import os
path = os.path.expanduser("~/.progrc")
old = open(path).read() if os.path.exists(path) else ""
with open(path + ".lock", "x") as file:
    file.write(old + "line")
os.replace(path + ".lock", path)
print(open(path).read(), os.path.expanduser("~"))
"""


@contextmanager
def at_home(bus: Bus, *opened: str) -> Iterator[Box]:
    """A worker whose owner opens folders of his home; `~/.progrc` and a package are in it."""
    folders = ",".join(f"~/{name}".rstrip("/") for name in opened)
    box = Box(bus, KIND, "auto", **({"FOLDERS": folders} if folders else {}))
    try:
        yield box
    finally:
        box.close()


@pytest.mark.parametrize(
    "opened", [(), ("films",), ("",)], ids=["no folders", "one in it", "it but for the worker's"]
)
def test_a_program_that_keeps_its_settings_at_home_runs_whatever_is_opened_in_it(
    bus: Bus, opened: tuple[str, ...]
) -> None:
    with at_home(bus, *opened) as box:
        (box.home / ".progrc").write_text("the owner's")
        bus.welcome()
        done = bus.run("command", {"command": [box.python, "-c", SETTLES]})
        assert done.item.outcome == "success", done.data
        text, home = done.data["stdout"].split()
        assert text == "line"
        assert home != str(box.home)
        assert (box.home / ".progrc").read_text() == "the owner's"


def test_an_owner_who_opens_his_home_folder_has_tasks_at_home(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What belongs to workers is elsewhere.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with at_home(bus, "") as box:
        (box.home / ".progrc").write_text("mine+")
        bus.welcome()
        done = bus.run("command", {"command": [box.python, "-c", SETTLES]})
        assert done.item.outcome == "success", done.data
        assert done.data["stdout"].split() == ["mine+line", str(box.home)]


def test_packages_that_a_user_installed_for_himself_are_found_and_not_changed(bus: Bus) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    with at_home(bus) as box:
        site = box.home / ".local" / "lib" / version / "site-packages"
        site.mkdir(parents=True)
        (site / "of_the_user.py").write_text("print('found', __file__)\n")
        bus.welcome()
        base = getattr(sys, "_base_executable", sys.executable)
        done = bus.run("command", {"command": [base, "-c", "import of_the_user"]})
        assert done.item.outcome == "success", done.data
        assert done.data["stdout"].split() == ["found", str(site / "of_the_user.py")]
        planted = bus.run("command", {"command": ["touch", str(site / "usercustomize.py")]})
        assert planted.item.outcome == "failed"
        assert not (site / "usercustomize.py").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")
def test_a_user_that_cannot_run_this_python_is_named_and_no_other_setting(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    python = closed / "python"
    python.symlink_to(sys.executable)
    found = confinement.find_confinement(NOBODY, confinement.AUTO, tmp_path / "data")
    with pytest.raises(confinement.Unconfined) as caught:
        found.try_out(str(python), tmp_path, dict(os.environ))
    text = str(caught.value)
    assert f"policy.user = {NOBODY}" in text
    assert str(python) in text
    assert "bwrap" not in text
    assert "policy.sandbox" not in text


def test_a_task_that_met_the_bound_on_memory_is_told_the_setting(bus: Bus) -> None:
    box = Box(bus, KIND, "auto", MEMORY_LIMIT_MB="200", FOLDERS="/nowhere at-all")
    try:
        bus.welcome()
        done = bus.run("command", {"command": [box.python, "-c", "bytearray(1 << 30)"]})
        assert "200 MiB of memory on this device (policy.memory_limit_mb)" in (
            done.item.error_message or ""
        )
        box.process.kill()
        assert box.process.stderr is not None
        assert "there is no folder '/nowhere at-all'" in box.process.stderr.read()
    finally:
        box.close()


def test_only_what_a_wall_closed_is_said_to_be_opened_by_a_setting(
    bus: Bus, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    with at_home(bus, "films") as box:
        films = box.home / "films"
        films.mkdir(mode=0o777)
        bus.welcome()

        def told(*says: str) -> str:
            script = "".join(f'echo "{line}" >&2; ' for line in says) + "exit 1"
            done = bus.run("command", {"command": ["sh", "-c", script], "cwd": str(films)})
            return done.item.error_message or ""

        (films / "closed").write_text("")
        for line in (
            f"cat: {films}/closed: Permission denied",
            "cat: closed: Permission denied",
            f"PermissionError: [Errno 13] Permission denied: '{films}/closed'",
        ):
            assert "policy.folders" not in told(line), line
        for line in (
            f"cat: {box.home}/letters: Permission denied",
            f"cp: cannot create regular file '{box.home}/new': Permission denied",
            f"/bin/sh: 1: cannot create {box.home}/new: Permission denied",
            f"cat: {box.up}/keys/admin.key and more: Permission denied\n{box.home}/letters: "
            "Permission denied",
            "something: Operation not permitted",
        ):
            assert "policy.folders" in told(line), line
        own = told(f"cat: {box.data}/device_id: Permission denied")
        assert "policy.folders" not in own
        assert "worker's own files" in own

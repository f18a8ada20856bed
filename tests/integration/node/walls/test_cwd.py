"""`policy.folders` is judged where the command runs, on the folder that it runs in (S25)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from retire_cluster.node.tasks import working_folder
from retire_cluster.node.tasks.base import Denied, TaskFailed
from tests.integration.node_kit import COMMAND, Bus, Start, posix_only

pytestmark = posix_only


def test_a_relative_cwd_is_judged_in_the_tasks_folder_and_not_in_the_workers(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    # The worker is started in tmp_path, where `music` is the owner's.
    (tmp_path / "music" / "inner").mkdir(parents=True)
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "music" / "out").symlink_to("/etc")
    folders = str(tmp_path / "music")
    start(*COMMAND, environ={"RETIRE_CLUSTER_POLICY_FOLDERS": folders})
    bus.welcome()
    inside = bus.run("command", {"command": ["pwd"], "cwd": f"{folders}/inner"})
    assert inside.data["stdout"].strip() == os.path.realpath(f"{folders}/inner")
    own = bus.run("command", {"command": ["pwd"], "cwd": "."}).data["stdout"]
    assert own.strip() not in (str(tmp_path), folders)
    missing = bus.run("command", {"command": ["pwd"], "cwd": "music"}).item
    assert (missing.cause, "no folder" in (missing.error_message or "")) == ("error", True)
    for outside in ("..", "/", "/etc", f"{folders}/..", f"{folders}/out", str(tmp_path / "out")):
        item = bus.run("command", {"command": ["pwd"], "cwd": outside}).item
        assert (item.outcome, item.cause) == ("failed", "policy_denied"), outside
        assert "policy.folders" in (item.error_message or "")


def test_what_is_entered_is_what_was_judged_however_a_link_moves(tmp_path: Path) -> None:
    """The name leads elsewhere as fast as it can; no entered folder is one that is not allowed."""
    good, bad, name = tmp_path / "good", tmp_path / "bad", tmp_path / "name"
    good.mkdir()
    bad.mkdir()
    name.symlink_to(good)
    over = threading.Event()

    def move() -> None:
        while not over.is_set():
            for target in (bad, good):
                (tmp_path / "new").symlink_to(target)
                os.replace(tmp_path / "new", name)

    mover = threading.Thread(target=move)
    mover.start()
    entered, refused = 0, 0
    try:
        for _ in range(3000):
            try:
                with working_folder.judged(str(name), [str(good)]) as folder:
                    assert folder is not None
                    assert os.path.samefile(folder, good)
                    entered += 1
            except Denied:
                refused += 1
            if entered > 50 and refused > 50:
                break
    finally:
        over.set()
        mover.join()
    assert entered
    assert refused


def test_a_folder_that_is_none_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "nothing"):
        with (
            pytest.raises(TaskFailed, match=r"payload\.cwd"),
            working_folder.judged(str(tmp_path / name), ()),
        ):
            pass
    with working_folder.judged(None, ["/nowhere"]) as folder:
        assert folder is None

"""Folders of tasks, whatever a task has put in their place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retire_cluster.node.system import task_folders
from tests.integration.node_kit import posix_only


@posix_only
@pytest.mark.parametrize("what", ["link", "loop", "dangling", "file", "nothing"])
def test_a_folder_is_made_in_its_own_place_whatever_a_task_put_there(
    tmp_path: Path, what: str
) -> None:
    scratch, elsewhere = tmp_path / "task-work", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if what == "link":
        scratch.symlink_to(elsewhere)
    elif what == "loop":
        scratch.symlink_to(scratch)
    elif what == "dangling":
        scratch.symlink_to(tmp_path / "nowhere")
    elif what == "file":
        scratch.write_text("")
    made = task_folders.make(str(scratch), "task-1")
    assert os.path.isdir(made)
    assert not scratch.is_symlink()
    assert not list(elsewhere.iterdir())
    assert task_folders.remove(made)


@posix_only
@pytest.mark.parametrize("what", ["link", "loop", "file", "pipe"])
def test_what_a_task_put_in_place_of_its_folder_goes_and_nothing_else(
    tmp_path: Path, what: str
) -> None:
    precious = tmp_path / "elsewhere" / "precious"
    precious.parent.mkdir()
    precious.write_text("kept")
    folder = tmp_path / "task-1"
    if what == "link":
        folder.symlink_to(precious.parent)
    elif what == "loop":
        folder.symlink_to(folder)
    elif what == "pipe":
        os.mkfifo(folder)
    else:
        folder.write_text("")
    assert task_folders.remove(folder)
    assert not os.path.lexists(folder)
    assert precious.read_text() == "kept"

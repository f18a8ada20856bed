"""Folders for task processes stay to be had, and go, whatever a task did to them (S22)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retire_cluster.node.running.leftovers import Leftovers
from retire_cluster.node.running.workplace import PREFIX, Workplace, root_in
from retire_cluster.node.system import task_folders

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")

AS_NOBODY = 65_534


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def replace_by_link(root: Path) -> None:
    shutil.rmtree(root)
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    root.symlink_to(elsewhere)


def replace_by_file(root: Path) -> None:
    shutil.rmtree(root.parent)
    root.parent.write_text("no folder")


def replace_above_by_link(root: Path) -> None:
    os.rename(root.parent, root.parent.with_name("moved"))
    root.parent.symlink_to("moved")


@pytest.mark.parametrize(
    "sabotage",
    [
        lambda root: shutil.rmtree(root),
        lambda root: shutil.rmtree(root.parent),
        replace_by_link,
        replace_by_file,
        replace_above_by_link,
    ],
)
def test_there_is_a_folder_whatever_became_of_those_above(
    tmp_path: Path, sabotage: Callable[[Path], object]
) -> None:
    workplace = Workplace(tmp_path / "w" / "task-work")
    sabotage(tmp_path / "w" / "task-work")
    for _ in range(2):
        folder = workplace.take()
        assert os.listdir(folder) == []
        assert os.path.realpath(folder) == folder
        assert "elsewhere" not in folder
        assert "moved" not in folder
        workplace.give_back(folder)
        assert not os.path.lexists(folder)
    workplace.close()


def close_everything(top: Path) -> None:
    workplace = Workplace(top / "a" / "w" / "task-work")
    first = workplace.take()
    for folder in (Path(first), workplace.root, top / "a" / "w", top / "a"):
        folder.chmod(0)
    second = workplace.take()
    assert Path(second).is_relative_to(top), second
    os.mkdir(second + "/x")
    workplace.give_back(first)
    workplace.give_back(second)
    assert not os.path.lexists(first)
    assert not os.path.lexists(second)


def test_folders_that_a_task_of_the_same_user_closed_are_opened_again() -> None:
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    top.chmod(0o777)
    try:
        pid = os.fork()
        if pid == 0:  # modes do not count for root
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(AS_NOBODY)
                    os.setuid(AS_NOBODY)
                close_everything(top)
                code = 0
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        shutil.rmtree(top)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to others")
def test_another_users_tasks_may_pass_through_the_root_and_no_more() -> None:
    workplace = Workplace(None, (AS_NOBODY, AS_NOBODY))
    folder = workplace.take()
    assert os.stat(workplace.root).st_mode & 0o777 == 0o711
    assert os.stat(workplace.root).st_uid == 0
    assert os.stat(folder).st_uid == AS_NOBODY
    workplace.close()
    assert not workplace.root.exists()


def test_what_cannot_be_removed_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = Workplace(tmp_path / "task-work")
    told: list[str] = []
    workplace.tell = told.append
    folder = workplace.take()
    remove = task_folders.remove
    monkeypatch.setattr(task_folders, "remove", lambda path: path != folder and remove(path))
    workplace.give_back(folder)
    assert "1 folder(s) of tasks cannot be removed" in told[0]
    assert folder in told[0]
    monkeypatch.undo()
    workplace.give_back(workplace.take())
    assert not os.path.lexists(folder)
    assert len(told) == 1


def test_many_that_cannot_be_removed_are_tried_again_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = Workplace(tmp_path / "task-work")
    stuck = [workplace.take() for _ in range(30)]
    remove, tried = task_folders.remove, list[str]()

    def refuse(path: str) -> bool:
        tried.append(path)
        return False

    monkeypatch.setattr(task_folders, "remove", refuse)
    for folder in stuck:
        workplace.give_back(folder)
    assert len(tried) < 6 * len(stuck)
    monkeypatch.setattr(task_folders, "remove", remove)
    for _ in stuck:
        workplace.give_back(workplace.take())
    assert not any(map(os.path.lexists, stuck))


def test_what_keeps_even_root_from_removing_a_file_is_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("x")
    for fixed in (folder / "inner" / "file", folder / "inner"):
        done = subprocess.run(["chattr", "+i", str(fixed)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no such attributes here: {done.stderr.decode()}")
    assert task_folders.remove(folder)


def test_a_later_worker_removes_what_an_earlier_one_had_among_temporary_files(
    tmp_path: Path, temporary: Path
) -> None:
    record = tmp_path / "task-processes.json"
    workplace = Workplace(None, None, Leftovers(record).note_roots)
    (Path(workplace.take()) / "left").write_text("x" * 1000)
    others = temporary / "others"
    others.mkdir()
    text = record.read_text()
    record.write_text(text.replace('"roots": [', f'"roots": ["{others}", 7, '))
    Leftovers(record).end_earlier()
    assert not workplace.root.exists()
    assert others.exists()
    assert workplace.root.name.startswith(PREFIX)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such sockets")
def test_a_task_of_a_usual_worker_has_room_for_the_sockets_of_its_programs(tmp_path: Path) -> None:
    usual = Path("/home/somebody/.local/share/retire-cluster/workers/1")
    root = root_in(usual)
    assert root is not None
    task = os.path.join(root, task_folders.new_name(), task_folders.new_name())
    assert len(task + "/pymp-xxxxxxxx/listener-xxxxxxxx") <= 107
    assert root_in(tmp_path / ("long" * 40)) is None

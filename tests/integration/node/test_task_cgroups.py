"""Control groups of tasks (S27): what leaves session, parent and environment ends all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retire_cluster.node.system.resource_limits import Bounds
from retire_cluster.node.walls import task_cgroups
from tests.integration.node_kit import (
    COMMAND,
    Bus,
    Start,
    alive_with,
    linux_only,
    python,
    wait_until,
)

pytestmark = [linux_only, pytest.mark.usefixtures("without_walls")]


@pytest.fixture
def groups() -> task_cgroups.Groups:
    found = task_cgroups.find()
    if found is None:
        pytest.skip("no control group of version 2 is handed over here")
    return found


#: Two forks, a session of its own, an empty environment, and nobody above it that knows it.
ESCAPES = (
    "import os, sys",
    "if os.fork(): os._exit(0)",
    "os.setsid()",
    "if os.fork(): os._exit(0)",
    "os.execve('/bin/sleep', ['sleep', MARK], {})",
)


def test_a_group_ends_all_that_is_in_it_and_goes(groups: task_cgroups.Groups) -> None:
    group = groups.make(Bounds())
    assert group is not None
    mark = f"71{os.getpid()}"
    code = "\n".join(("import sys", "sys.stdin.read(1)", f"MARK = {mark!r}", *ESCAPES))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert group.add(process.pid)
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    wait_until(lambda: alive_with(mark))
    assert not group.is_empty()
    assert group.close()
    assert alive_with(mark) == []
    assert not group.folder.exists()


def test_groups_of_a_worker_that_is_gone_are_ended_by_the_next(groups: task_cgroups.Groups) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = groups.folder / f"retire-cluster.task.{gone.pid}.0"
    folder.mkdir()
    left = subprocess.Popen(["sleep", "600"])
    assert task_cgroups.Group(folder).add(left.pid)
    assert task_cgroups.find() is not None
    assert left.wait(5) == -9
    assert not folder.exists()


def test_what_a_task_hid_from_its_keeper_ends_with_its_process(
    bus: Bus, start: Start, groups: task_cgroups.Groups
) -> None:
    worker = start(*COMMAND)
    assert "processes: cgroup" in bus.welcome().walls[-1]
    mark = f"72{os.getpid()}"
    kill_keeper = (
        "stat = open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()",
        "import signal",
        "pid = os.fork()",
        "if pid:",
        "    import time; time.sleep(0.3)",
        "    os.kill(int(stat[1]), signal.SIGKILL); os.kill(os.getppid(), signal.SIGKILL)",
        "    os._exit(0)",
    )
    bus.run("command", {"command": python("import os", *kill_keeper, f"MARK = '{mark}'", *ESCAPES)})
    wait_until(lambda: not alive_with(mark))
    assert bus.run("command", {"command": ["true"]}).item.outcome == "success"
    mine = list(groups.folder.glob(f"retire-cluster.task.{worker.pid}.*"))
    assert 1 <= len(mine) <= 2


def test_bounds_are_written_where_the_group_has_the_controllers(tmp_path: Path) -> None:
    """On a tree of files: this machine's controllers may all be of version 1."""
    every = frozenset(("memory", "pids", "cpu"))
    group = task_cgroups.Groups(tmp_path, every).make(Bounds(memory_bytes=4096, cpu_percent=50))
    assert group is not None
    # In a real group the files are there; here none is made, so that nothing is written elsewhere.
    assert list(group.folder.iterdir()) == []
    for name in ("memory.max", "pids.max", "cpu.max"):
        (group.folder / name).touch()
    task_cgroups.bound(group, every, Bounds(memory_bytes=4096, new_processes=10, cpu_percent=50))
    texts = {path.name: path.read_text() for path in group.folder.iterdir()}
    assert texts == {"memory.max": "4096", "pids.max": "26", "cpu.max": "50000 100000"}


def test_a_group_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    assert task_cgroups.find(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root's question")
@pytest.mark.parametrize("at", ["/", "/retire-cluster.own"])
def test_the_next_worker_of_a_container_has_its_groups_too(tmp_path: Path, at: str) -> None:
    """The first one moves whoever is there into a group of their own, its supervisor too."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"0::{at}\n")
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).touch()
    assert task_cgroups._is_ours(tmp_path, tmp_path)
    (tmp_path / "proc/self/cgroup").write_text(f"0::/system.slice{at}\n")
    assert not task_cgroups._is_ours(tmp_path, tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Linux only")
def test_a_terminals_shell_is_not_moved_out_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that somebody started by hand is in the group of the shell, or of the desktop."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("RETIRE_CLUSTER_LIFELINE", raising=False)
    procs = tmp_path / "cgroup.procs"
    procs.write_text(f"{os.getpid()}\n")
    assert task_cgroups._may_be_moved(tmp_path)
    procs.write_text(f"{os.getpid()}\n{os.getppid()}\n")
    assert not task_cgroups._may_be_moved(tmp_path)
    monkeypatch.setenv("RETIRE_CLUSTER_LIFELINE", "1")  # that one is `up`
    assert task_cgroups._may_be_moved(tmp_path)

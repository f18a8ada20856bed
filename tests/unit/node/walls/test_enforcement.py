"""The walls of a task on their way from the worker to a task process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from retire_cluster.node.walls import enforcement
from retire_cluster.node.walls.enforcement import Walls
from retire_cluster.node.walls.landlock import Rule

TELL = (
    "import os\n"
    "from retire_cluster.node.walls import enforcement\n"
    "enforcement.learn('/scratch')\n"
    "print(len(enforcement.current.rules), enforcement.current.rules[-1].path)\n"
    "print([name for name in os.environ if name.startswith(enforcement.VARIABLE)])\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of Linux' execve")
@pytest.mark.parametrize("count", [1, 4_000, 12_000])
def test_rules_for_thousands_of_folders_reach_a_task_process_and_no_task_sees_them(
    count: int,
) -> None:
    walls = Walls(tuple(Rule(f"/home/who/folder number {n}", 3) for n in range(count)), files="L")
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        env={**os.environ, **walls.variables()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{count} /home/who/folder number {count - 1}", "[]"]


def test_walls_are_read_as_they_were_written() -> None:
    walls = Walls((Rule("/a", 1), Rule("/b\udc80", 7)), False, "Landlock", ("/ours",))
    assert Walls.read(walls.write()) == walls
    assert "".join(walls.variables().values()) == walls.write()
    assert Walls.read("") == Walls()
    assert enforcement.VARIABLE in walls.variables()

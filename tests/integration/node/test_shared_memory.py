"""No name of a task's shared memory stays, whatever the task did to those who would remove it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from retire_cluster.node.system import shared_memory
from tests.integration.node_kit import Bus, Start, linux_only, wait_until

pytestmark = [linux_only, pytest.mark.usefixtures("without_walls")]

TYPES = r"""
import os, signal, sys, time

def does(payload, context):
    exec(payload["code"], {"context": context})
    return "done"
"""
MAKES = """
import os, signal, sys, time
from multiprocessing import resource_tracker, shared_memory
block = shared_memory.SharedMemory(create=True, size=100_000)
open(PATH, "w").write(block.name)
"""
KEEPER = "int(open(f'/proc/{os.getppid()}/stat').read().split()[3])"
TRACKER = "resource_tracker._resource_tracker._pid"
#: How it is given up, and what the attempt's outcome is.
ENDS = {
    "closed": ("block.close()", "success"),
    "kept": ("globals()['kept'] = block", "success"),
    "its group killed": ("os.killpg(0, signal.SIGKILL)", "failed"),
    "closed, its group killed": ("block.close(); os.killpg(0, signal.SIGKILL)", "failed"),
    "closed, the tracker killed": (f"block.close(); os.kill({TRACKER}, 9)", "success"),
    "closed, the tracker stopped": (
        f"block.close(); os.kill({TRACKER}, signal.SIGSTOP)",
        "success",
    ),
    "closed, every descriptor closed": ("block.close(); os.closerange(0, 4096)", "failed"),
    "closed, told to forget": (
        "block.close(); resource_tracker.unregister(block._name, 'shared_memory')",
        "success",
    ),
    "closed, all modules gone": ("block.close(); sys.path.clear(); sys.modules.clear()", ""),
    "closed, the keeper killed": (f"block.close(); os.kill({KEEPER}, 9); time.sleep(60)", "failed"),
    "kept, the keeper killed": (f"os.kill({KEEPER}, 9); time.sleep(60)", "failed"),
    "closed, too slow": ("block.close(); time.sleep(60)", "timeout"),
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    site = tmp_path / "site"
    info = site / "shared_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "shared_of_test.py").write_text(TYPES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shared-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[retire_cluster.task_types]\ndoes = shared_of_test:does\n"
    )
    return {"PYTHONPATH": str(site)}


def worker(start: Start, environ: dict[str, str]) -> subprocess.Popen[str]:
    return start("--allow-root", "--slots", "1", environ=environ)


def test_no_name_stays_however_the_task_gave_its_segment_up(
    bus: Bus, start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    worker(start, environ)
    bus.welcome()
    left = []
    for number, (what, (code, outcome)) in enumerate(ENDS.items()):
        path = tmp_path / f"name-{number}"
        made = MAKES.replace("PATH", repr(str(path)))
        ended = bus.result(bus.assign("does", {"code": made + code}, 2))
        assert not outcome or ended.item.outcome == outcome, (what, ended)
        name = path.read_text()
        if name in shared_memory.names():
            left.append(what)
            Path(shared_memory.FOLDER, name).unlink()
    assert not left


def test_no_name_stays_when_the_worker_and_the_keeper_are_killed_at_once(
    bus: Bus, start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    first = worker(start, environ)
    bus.welcome()
    path = tmp_path / "name"
    made = MAKES.replace("PATH", repr(str(path))) + f"block.close(); os.kill({TRACKER}, 9)\n"
    made += f"open({str(tmp_path / 'keeper')!r}, 'w').write(str({KEEPER})); time.sleep(60)"
    bus.assign("does", {"code": made})
    bus.until(lambda: (tmp_path / "keeper").exists(), "the segment")
    bus.until(lambda: (tmp_path / "keeper").read_text(), "its keeper")
    keeper = int((tmp_path / "keeper").read_text())
    first.send_signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    first.kill()
    first.wait()
    name = path.read_text()
    try:
        assert name in shared_memory.names()
        worker(start, environ)
        wait_until(lambda: name not in shared_memory.names())
    finally:
        Path(shared_memory.FOLDER, name).unlink(missing_ok=True)

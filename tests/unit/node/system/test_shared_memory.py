"""Shared memory of a task: its names bear a mark, and a tracker's work is done if it cannot."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from retire_cluster.node.system import process_tree, resource_trackers, shared_memory

linux_only = pytest.mark.skipif(not process_tree.IS_LINUX, reason="Linux only")


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@linux_only
@pytest.mark.parametrize("first", ["", "from multiprocessing import shared_memory"])
def test_a_segment_bears_the_mark_of_its_task_process_whenever_the_module_is_imported(
    first: str,
) -> None:
    mark = secrets.token_hex(8)
    name = run(
        f"import sys\n{first}\n"
        "from retire_cluster.node.system import shared_memory\n"
        "shared_memory.mark = sys.argv[1]\n"
        "shared_memory.name_segments()\n"
        "from multiprocessing import resource_tracker, shared_memory\n"
        "block = shared_memory.SharedMemory(create=True, size=10)\n"
        "resource_tracker.unregister(block._name, 'shared_memory')\n"
        "print(block.name)",
        mark,
    )
    try:
        assert name.startswith(shared_memory.prefix_of(mark))
        assert shared_memory.remove_marked("") == 0
        assert shared_memory.remove_marked(secrets.token_hex(8)) == 0
        assert name in shared_memory.names()
        assert shared_memory.remove_marked(mark) == 1
        assert name not in shared_memory.names()
    finally:
        Path(shared_memory.FOLDER, name).unlink(missing_ok=True)


def test_without_a_mark_names_are_as_python_makes_them() -> None:
    assert not run(
        "from retire_cluster.node.system import shared_memory\n"
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "shared_memory.name_segments()\n"
        "print('changed' if sys.meta_path != before else '')"
    )


def told(command: str, name: str) -> bytes:
    """As Python 3.15 writes it."""
    text = b64encode(name.encode()).decode()
    row = {"cmd": command, "rtype": "shared_memory", "base64_name": text}
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"REGISTER:/a:shared_memory\nREGISTER:/b:shared_memory\n", {"a", "b"}),
        (b"REGISTER:/a:shared_memory\nUNREGISTER:/a:shared_memory\n", set()),
        (b"PROBE:0:noop\nREGISTER:/a:semaphore\n", set()),
        (told("REGISTER", "/a") + told("REGISTER", "/b") + told("UNREGISTER", "/b"), {"a"}),
        (b"REGISTER:/../etc/passwd:shared_memory\nREGISTER:..:shared_memory\n", set()),
        (b"REGISTER:/:shared_memory\nREGISTER:a\0b:shared_memory\n", set()),
        (b"REGISTER:/" + b"x" * 300 + b":shared_memory\n", set()),
        (b"\xff\xfe\n{\n{}\n[1]\n:::::\n" + b"[" * 9_000 + b"\nREGISTER:/a:shared_memory", {"a"}),
        (b'{"cmd": 1, "rtype": "shared_memory", "base64_name": 5}\n', set()),
    ],
)
def test_what_a_program_told_its_tracker_is_read_as_a_strangers(
    text: bytes, names: set[str]
) -> None:
    assert resource_trackers.names_told(text) == names


#: Ends a program's processes as they are at the end of a task, and says what that took.
ENDS = """
import os, sys, time
from pathlib import Path
from multiprocessing import shared_memory
from retire_cluster.node.system import process_tree
process_tree.become_subreaper()
"""


@linux_only
def test_a_tracker_that_is_only_being_loaded_does_its_duty() -> None:
    """As the task has ended, its tracker has not even a command line: both are slow."""
    left = run(
        ENDS + "left = []\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "for number in range(25):\n"
        "    name = f'{sys.argv[1]}-{number}'\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
        "        os.setsid()\n"
        "        os.nice(19)\n"
        "        shared_memory.SharedMemory(name, create=True, size=10).close()\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    assert process_tree.kill_descendants(os.getpid(), reap=True)\n"
        "    path = Path('/dev/shm', name)\n"
        "    if path.exists():\n"
        "        path.unlink()\n"
        "        left.append(number)\n"
        "print(left)",
        f"loaded-{os.getpid()}",
    )
    assert left == "[]"


LATE = "'from multiprocessing.resource_tracker import main;main(FD)'; import time; time.sleep(600)"
REAL = "from multiprocessing.resource_tracker import main;main(FD)"


@linux_only
@pytest.mark.parametrize(
    ("tracker", "act"), [(LATE, ""), (REAL, "os.kill(tracker.pid, signal.SIGSTOP)")]
)
def test_a_tracker_that_does_not_read_what_it_was_told_is_stood_in_for(
    tracker: str, act: str
) -> None:
    """One sleeps instead of reading, as on a machine that is too busy; one has been stopped."""
    name, other = f"late-{os.getpid()}", f"other-{os.getpid()}"
    Path(shared_memory.FOLDER, other).touch()
    try:
        took = run(
            ENDS + "import signal, subprocess\n"
            "name, code = sys.argv[1:3]\n"
            "reading, writing = os.pipe()\n"
            "tracker = subprocess.Popen(\n"
            "    [sys.executable, '-c', code.replace('FD', str(reading))], pass_fds=(reading,),\n"
            "    stderr=subprocess.DEVNULL)\n"
            "Path('/dev/shm', name).touch()\n"
            "os.write(writing, f'REGISTER:/{name}:shared_memory\\n'.encode())\n"
            f"{act}\n"
            "os.close(writing); os.close(reading)\n"
            "began = time.monotonic()\n"
            "assert process_tree.kill_descendants(os.getpid(), reap=True)\n"
            "print(time.monotonic() - began)",
            name,
            tracker,
        )
        assert float(took) < 5.0
        assert name not in shared_memory.names()
        assert other in shared_memory.names()
    finally:
        for left in (name, other):
            Path(shared_memory.FOLDER, left).unlink(missing_ok=True)

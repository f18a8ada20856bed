"""Processes on Windows: a whole cluster, its stopping, and that nothing is left behind.

They run on Windows, and under Wine by `python tests/windows/run.py`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.endpoints import pid_alive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "win32",
        reason="for Windows; python tests/windows/run.py runs it under Wine",
    ),
]

COMMAND = [sys.executable, "-m", "retire_cluster.cli.main"]
ANY_PORTS = ["--port", "0", "--cluster-port", "0", "--worker-port", "0", "--event-port", "0"]


def environment() -> dict[str, str]:
    """This environment without the caller's settings, listening on this machine only."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
    return {**kept, "RETIRE_CLUSTER_SERVER_WORKER_HOST": "127.0.0.1"}


def until(condition: Callable[[], Any], what: str, seconds: float = 40.0) -> Any:
    """The first true value of a condition; fails the test when it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return found


class Up:
    """A running `up` in a process group of its own, so that Ctrl-Break reaches it alone."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder
        self.text = b""
        ours, theirs = os.pipe()
        self.popen = subprocess.Popen(
            [*COMMAND, "up", "--data-dir", str(folder), *ANY_PORTS, "--allow", "command"],
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment(),
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )  # fmt: skip
        os.close(theirs)
        # Wine's own helpers may keep the other end open: nobody waits for this thread.
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()
        until(lambda: self.has_said("ready ") or self.over(), "ready")
        assert not self.over(), self.said

    def _read(self, pipe: int) -> None:
        while part := os.read(pipe, 65_536):
            self.text += part
        os.close(pipe)

    @property
    def said(self) -> list[str]:
        """The lines it has printed, to either stream."""
        return self.text.decode("utf-8", "replace").splitlines()

    def has_said(self, start: str) -> bool:
        """Whether a line began so."""
        return any(line.startswith(start) for line in self.said)

    def over(self) -> bool:
        """Whether it has ended."""
        return self.popen.poll() is not None

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A verb of the command line."""
        return subprocess.run(
            [*COMMAND, *words, "--data-dir", str(self.data_dir)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(),
            timeout=60, check=False,
        )  # fmt: skip

    def result(self, *words: str) -> Any:
        """What a task gives back."""
        done = self.cli("submit", *words, "--wait")
        assert done.returncode == 0, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def processes(self) -> list[int]:
        """The numbers of its children, as endpoints.json has them."""
        text = (self.data_dir / "endpoints.json").read_text("utf-8")
        return [int(number) for number in re.findall(r'"pid": ?(\d+)', text)]

    def close(self) -> None:
        """End it, however it is."""
        if not self.over():
            self.popen.kill()
        self.popen.wait(20)
        until(lambda: not any(map(alive, self.processes())), "the end of its children")


def alive(pid: int) -> bool:
    """Whether this process runs."""
    return pid_alive(pid)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    found = Up(tmp_path / "data")
    try:
        yield found
    finally:
        found.close()


def test_tasks_of_every_kind_run(up: Up) -> None:
    assert up.result("echo", "message=Grüße")["echo"] == {"message": "Grüße"}
    assert up.result("python_eval", "expression=2 ** 10")["result"] == 1024
    facts = up.result("system_info")
    assert facts["cpu_count"] >= 1
    assert facts["memory_total_gb"] > 0
    words = json.dumps([sys.executable, "-c", "import os; print(os.environ['RC_ATTEMPT'])"])
    assert up.result("command", f"command={words}")["stdout"].strip() == "1"
    listed = json.loads(up.cli("devices", "ls", "--json").stdout)["data"]
    assert [device["platform"] for device in listed] == ["windows"]


def test_the_smoke_of_every_python_runs_here_too(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-B", str(root / "tests" / "smoke.py")], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "works" in done.stdout.splitlines()[-1]


def test_ctrl_break_ends_all_of_it(up: Up) -> None:
    if hasattr(getattr(ctypes, "windll").ntdll, "wine_get_version"):  # noqa: B009
        pytest.skip("Wine without a screen has no console to send Ctrl-Break by")
    children = up.processes()
    assert len(children) == 3
    os.kill(up.popen.pid, getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
    assert up.popen.wait(20) == 0, up.said
    assert [pid for pid in children if alive(pid)] == []


def test_a_cancelled_command_ends_with_all_that_it_started(up: Up, tmp_path: Path) -> None:
    note = tmp_path / "note"
    inner = "import time, pathlib, os, sys; "
    inner += "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    outer = "import subprocess, sys, time; "
    outer += "subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]]); time.sleep(600)"
    words = json.dumps([sys.executable, "-c", outer, inner, str(note)])
    task_id = up.cli("submit", "command", f"command={words}").stdout.strip()
    pid = int(until(lambda: note.exists() and note.read_text(), "the program's program"))
    assert alive(pid)
    assert up.cli("tasks", "cancel", task_id).returncode == 0
    until(lambda: not alive(pid), "its end")


def test_children_of_a_killed_up_end_by_themselves(up: Up) -> None:
    children = up.processes()
    assert all(map(alive, children))
    up.popen.kill()
    until(lambda: not any(map(alive, children)), "their end")


def test_a_second_up_on_the_same_folder_is_refused_in_one_line(up: Up) -> None:
    done = up.cli("up", *ANY_PORTS)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "already runs with this data folder" in done.stderr


def test_what_up_prints_can_be_pasted_into_cmd(tmp_path: Path) -> None:
    found = Up(tmp_path / "two words")
    try:
        until(lambda: found.has_said("Stop everything"), "the text")
        (line,) = (line for line in found.said if " submit echo message=Hello" in line)
        assert line.endswith(f'--data-dir "{found.data_dir}"')
    finally:
        found.close()

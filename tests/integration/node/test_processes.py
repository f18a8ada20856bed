"""Nothing survives its task, and no task outlives its worker."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time

import pytest

from retire_cluster.schemas.protocol import messages
from tests.integration.node_kit import (
    COMMAND,
    Bus,
    Start,
    alive_with,
    children_of,
    is_running,
    linux_only,
    python,
    wait_until,
)


@linux_only
def test_cancel_kills_a_grandchild_that_left_its_session(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    script = python(
        "import os, subprocess, sys, time",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]],",
        "                 start_new_session=True, env={}, stdout=subprocess.DEVNULL)",
        "time.sleep(600)",
    )
    key = bus.assign("command", {"command": [*script, mark]})
    bus.until(lambda: len(alive_with(mark)) >= 2, "the grandchild")
    bus.send(messages.Cancel(bus.session, (key,), "cancelled"))
    assert bus.result(key).item.outcome == "cancelled"
    assert alive_with(mark) == []


@linux_only
def test_what_a_command_leaves_in_the_background_ends_with_it(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    inner = f"import time; time.sleep(600) # {mark}"
    script = f"setsid {sys.executable} -c '{inner}' & echo started"
    ended = bus.run("command", {"command": ["sh", "-c", script]})
    assert ended.item.outcome == "success"
    assert alive_with(mark) == []


@linux_only
def test_many_forked_processes_are_ended_and_heartbeats_go_on(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    script = python(
        "import os, sys, time",
        "for i in range(60):",
        "    if os.fork() == 0:",
        "        if i % 2: os.setsid()",
        "        time.sleep(600)",
        "time.sleep(600)",
    )
    began = time.monotonic()
    key = bus.assign("command", {"command": [*script, mark]}, timeout_seconds=1)
    assert bus.result(key).item.outcome == "timeout"
    assert alive_with(mark) == []
    gaps = [b - a for a, b in zip(bus.beats, bus.beats[1:], strict=False) if b > began]
    assert max(gaps, default=0) < 3.0


@linux_only
@pytest.mark.usefixtures("without_walls")
def test_a_task_that_kills_its_own_process_fails_with_the_reason(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    script = python("import os, signal", "os.kill(os.getppid(), signal.SIGKILL)")
    item = bus.run("command", {"command": script}).item
    assert (item.outcome, item.cause) == ("failed", "error")
    assert "signal 9" in (item.error_message or "")
    assert bus.run("command", {"command": ["echo", "next"]}).item.outcome == "success"


@linux_only
def test_a_killed_worker_leaves_no_process_behind(bus: Bus, start: Start) -> None:
    worker = start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    key = bus.assign(
        "command", {"command": ["sh", "-c", f"setsid sleep 600 & sleep 600; : {mark}"]}
    )
    bus.started(key)
    bus.until(lambda: alive_with(mark), "the command")
    tree = children_of(worker.pid)
    assert len(tree) >= 3
    worker.kill()
    worker.wait()
    wait_until(lambda: not any(is_running(pid) for pid in tree), 2.0)


@linux_only
@pytest.mark.parametrize("stopped", ["keeper", "all"])
def test_a_killed_worker_leaves_no_stopped_process_behind(
    bus: Bus, start: Start, stopped: str
) -> None:
    """A stopped keeper notices nothing: it and its tasks stayed until the worker's next start."""
    worker = start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    key = bus.assign("command", {"command": [*python("import time", "time.sleep(600)"), mark]})
    bus.started(key)
    bus.until(lambda: alive_with(mark), "the command")
    tree = children_of(worker.pid)
    for pid in tree[:1] if stopped == "keeper" else tree:
        os.kill(pid, signal.SIGSTOP)
    worker.kill()
    worker.wait()
    try:
        wait_until(lambda: not any(is_running(pid) for pid in tree), 5.0)
    finally:
        for pid in filter(is_running, tree):
            os.kill(pid, signal.SIGKILL)


@linux_only
def test_a_new_worker_ends_what_was_left_when_all_of_an_earlier_one_was_killed(
    bus: Bus, start: Start
) -> None:
    worker = start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    script = python("import time", "time.sleep(600)")
    key = bus.assign("command", {"command": [*script, mark]})
    bus.started(key)
    bus.until(lambda: alive_with(mark), "the command")
    keeper, executor = children_of(worker.pid)[:2]
    for pid in (worker.pid, keeper, executor):
        os.kill(pid, signal.SIGSTOP)
    for pid in (keeper, worker.pid, executor):
        os.kill(pid, signal.SIGKILL)
    worker.wait()
    assert alive_with(mark)
    start(*COMMAND)
    bus.welcome()
    assert alive_with(mark) == []

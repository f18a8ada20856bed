"""Nothing of a task outlives it and no slot is lost, whatever it kills or holds (S20, S21)."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time

import pytest

from tests.integration.node.test_confinement import ALLOWED, nobody
from tests.integration.node_kit import (
    COMMAND,
    Bus,
    Start,
    alive_with,
    linux_only,
    python,
    wait_until,
)

__all__ = ["nobody"]
pytestmark = [linux_only, pytest.mark.usefixtures("without_walls")]

#: A grandchild in a session of its own, without environment, that does WHAT and stays.
ESCAPE = """
import os, signal, sys, time
def parent_of(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
server = os.getppid()
keeper = parent_of(server)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        code = '''
import os, signal, time
held = []
def hold(pid):
    for name in os.listdir(f"/proc/{pid}/fd"):
        for how in (os.O_RDONLY, os.O_WRONLY):
            try:
                held.append(os.open(f"/proc/{pid}/fd/{name}", how | os.O_NONBLOCK))
            except OSError:
                pass
server, keeper = %d, %d
try:
WHAT
except OSError:
    pass
time.sleep(600)
''' % (server, keeper)
        os.execve(sys.executable, [sys.executable, "-c", code, sys.argv[1]], {})
    os._exit(0)
time.sleep(600)
"""
KILL_BOTH = "os.kill(keeper, 9); os.kill(server, 9)"


def escape(what: str, mark: str) -> list[str]:
    return [*python(ESCAPE.replace("WHAT", f"    {what}")), mark]


@pytest.mark.parametrize(
    "what",
    [
        "os.kill(keeper, 9)",
        KILL_BOTH,
        f"hold(server); {KILL_BOTH}",
        "hold(server); os.kill(server, 9)",
    ],
)
def test_what_kills_its_keeper_and_holds_its_pipes_does_not_outlive_its_task(
    bus: Bus, start: Start, what: str
) -> None:
    start(*COMMAND, "--slots", "1")
    bus.welcome()
    mark = secrets.token_hex(8)
    ended = bus.run("command", {"command": escape(what, mark)})
    assert ended.item.outcome == "failed"
    wait_until(lambda: not alive_with(mark), seconds=2)
    assert bus.run("command", {"command": ["echo", "next"]}).data["stdout"] == "next\n"


def test_what_stops_its_keeper_and_server_ends_with_its_time(bus: Bus, start: Start) -> None:
    start(*COMMAND, "--slots", "1")
    bus.welcome()
    mark = secrets.token_hex(8)
    what = "hold(server); os.kill(keeper, 19); os.kill(server, 19)"
    began = time.monotonic()
    ended = bus.run("command", {"command": escape(what, mark)}, timeout_seconds=1)
    assert ended.item.outcome == "timeout"
    assert not alive_with(mark)
    # A second for the task, one for a command to end itself, and no more than its keeper needs.
    assert time.monotonic() - began < 4.5
    assert bus.run("command", {"command": ["echo", "next"]}).data["stdout"] == "next\n"


def test_another_users_task_does_not_outlive_its_keeper_either(
    bus: Bus, start: Start, nobody: tuple[str, str, dict[str, str]]
) -> None:
    user, program, environ = nobody
    settings = {**ALLOWED, **environ, "RETIRE_CLUSTER_POLICY_USER": user}
    start("--slots", "1", environ=settings, python=program)
    bus.welcome()
    mark = secrets.token_hex(8)
    command = escape(KILL_BOTH, mark)
    command[0] = "/usr/bin/python3"
    bus.run("command", {"command": command})
    wait_until(lambda: not alive_with(mark), seconds=2)
    assert bus.run("command", {"command": ["echo", "next"]}).data["stdout"] == "next\n"


def test_another_slots_task_goes_on_while_strays_are_ended(bus: Bus, start: Start) -> None:
    worker = start(*COMMAND, "--slots", "2")
    bus.welcome()
    other = bus.assign("command", {"command": python("import time; time.sleep(2); print('whole')")})
    bus.started(other)
    mark = secrets.token_hex(8)
    bus.run("command", {"command": escape(KILL_BOTH, mark)})
    wait_until(lambda: not alive_with(mark), seconds=2)
    assert bus.result(other).data["stdout"] == "whole\n"
    assert worker.poll() is None


STRAYS = """
import os, subprocess, sys, time
from retire_cluster.node.system import process_tree
process_tree.become_subreaper()
ours = subprocess.Popen(["sleep", "600"])
known = subprocess.Popen(["sleep", "600"], start_new_session=True)
# A child that goes and leaves one behind in its session, and one that has ended already.
script = "setsid sleep 600 & setsid true & sleep 0.05"
gone = subprocess.Popen(["sh", "-c", script], start_new_session=True)
gone.wait()
before = [p for p in process_tree.descendants(os.getpid()) if p.pid not in (ours.pid, known.pid)]
assert before
process_tree.kill_strays([known.pid])
left = {p.pid for p in process_tree.descendants(os.getpid(), ended=True)}
assert left == {ours.pid, known.pid}, left
ours.kill(); known.kill()
"""


def test_what_a_child_left_behind_is_ended_and_collected_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRAYS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

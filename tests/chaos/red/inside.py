"""S18 to S22: a task against what serves it, the tasks after it, and its own end."""

from __future__ import annotations

import os
import pwd
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retire_cluster.node.system import process_tree
from retire_cluster.node.walls import landlock
from tests.chaos.red import Attack, NotHere, Target, Went
from tests.chaos.red.known_tasks import main_node_gone_bad
from tests.integration.node.test_confinement import python_of
from tests.integration.node.walls.test_outliving import KILL_BOTH, escape
from tests.integration.node.walls.test_planted import PLANT
from tests.integration.node_kit import Bus, alive_with, python

_ROOT = Path(__file__).resolve().parents[3]
#: Opens what its server and keeper have, and answers in their place.
_FORGE = """
import os, struct, sys
def parent_of(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
server = os.getppid()
opened = []
for pid in (server, parent_of(server), parent_of(parent_of(server))):
    for name in ("mem", "environ", *(f"fd/{number}" for number in range(12))):
        for how in (os.O_RDONLY, os.O_WRONLY):
            try:
                fd = os.open(f"/proc/{pid}/{name}", how | os.O_NONBLOCK)
            except OSError:
                continue
            opened.append(f"{pid}/{name}")
            if how == os.O_WRONLY and name.startswith("fd/"):
                header = b'{"outcome":[],"cause":{},"last":true}'
                try:
                    os.write(fd, struct.pack("<cII", b"d", len(header), 0) + header)
                except OSError:
                    pass
print(opened)
"""
#: Signals all that is above it, up to the worker.
_SIGNALS = """
import os
pid, went = os.getppid(), []
for _ in range(3):
    for number in (0, 9):
        try:
            os.kill(pid, number)
            went.append(pid)
        except PermissionError:
            pass
    pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
print(went or "held")
"""


@contextmanager
def _device(
    target: Target, *flags: str, other_user: bool = False, walls: bool = True
) -> Iterator[Bus]:
    """A device with one slot, so that the next task has the place of the one before.

    :param walls: those of the kernel; without them what holds is held by the worker alone
    """
    words, program = [*flags, "--slots", "1"], sys.executable
    settings = f'[policy]\nsandbox = "{"auto" if walls else "none"}"\n'
    # What a task leaves in its user's home reaches that user's other programs.
    environ = {"HOME": str(target.new_folder("home"))}
    if other_user and os.geteuid() == 0:
        try:
            found = python_of(pwd.getpwnam("nobody"), _ROOT)
        except KeyError:
            found = None
        if found is None:
            raise NotHere("tasks of root's are root, and there is no Python for user nobody")
        program = found[0]
        environ.update(found[1])
        settings += 'user = "nobody"\n'
        words += ["--allow", "command"]
    else:
        words += ["--allow", "command", "--allow-root"]
    with main_node_gone_bad(target, *words, settings=settings, python=program, **environ) as (
        bus,
        _,
    ):
        yield bus


def _next_works(bus: Bus, after: str) -> None:
    for _ in range(2):
        try:
            done = bus.run("command", {"command": ["echo", "next"]})
            asked = bus.run("python_eval", {"expression": "6 * 7"})
        except AssertionError:
            raise Went(f"no task runs after {after}") from None
        if done.item.outcome != "success" or done.data["stdout"] != "next\n":
            raise Went(f"after {after} the next task: {done.item.error_message or done.data}")
        if asked.item.outcome != "success" or asked.data["result"] != 42:
            raise Went(f"after {after} an expression: {asked.item.error_message or asked.data}")


def _forged_frames(target: Target) -> str:
    with _device(target, other_user=True) as bus:
        ended = bus.run("command", {"command": ["/usr/bin/python3", "-c", _FORGE]})
        if ended.item.outcome != "success":
            raise Went(f"its own answer was forged: {ended.item.error_message}")
        if ended.data["stdout"].strip() != "[]":
            raise Went(f"it opened {ended.data['stdout']}")
        _next_works(bus, "the attempt to forge")
    return "nothing of server, keeper and worker can be opened"


def _planted_modules(target: Target) -> str:
    for other_user in (True, False):
        with _device(target, other_user=other_user) as bus:
            bus.run("command", {"command": ["/usr/bin/python3", "-c", PLANT]})
            kill = "import os; os.kill(os.getppid(), 9)"
            bus.run("command", {"command": python(kill) if not other_user else
                                ["/usr/bin/python3", "-c", kill]})  # fmt: skip
            _next_works(bus, "modules were planted")
    return "imported by nobody, also as another user"


def _refused(target: Target) -> str:
    """What the walls say to a task that signals its server and its keeper."""
    if landlock.abi() < landlock.SCOPE_ABI:
        return "no wall of this kernel holds signals"
    with _device(target) as bus:
        done = bus.run("command", {"command": python(_SIGNALS)})
        if done.item.outcome != "success" or done.data["stdout"] != "held\n":
            raise Went(f"the walls let signals through: {done.item.error_message or done.data}")
    return "the walls deny the kill"


def _outliving(target: Target) -> str:
    refused = _refused(target)
    for other_user in (False, True):
        with _device(target, other_user=other_user, walls=False) as bus:
            mark = secrets.token_hex(8)
            command = escape(KILL_BOTH, mark)
            if other_user:
                command[0] = "/usr/bin/python3"
            bus.run("command", {"command": command})
            end = time.monotonic() + 2
            while alive := alive_with(mark):
                if time.monotonic() > end:
                    process_tree.kill_all(alive)
                    raise Went("a process without session, parent and environment lives on")
                time.sleep(0.02)
            _next_works(bus, "its keeper was killed")
    return f"{refused}; without walls gone within 2 s, also as another user"


def _held_pipes(target: Target) -> str:
    refused = _refused(target)
    for what in (f"hold(server); {KILL_BOTH}", "hold(server); os.kill(server, 9)"):
        with _device(target, walls=False) as bus:
            mark = secrets.token_hex(8)
            try:
                bus.run("command", {"command": escape(what, mark)})
                _next_works(bus, "its pipes were held")
            except AssertionError:
                raise Went("the slot waits for a pipe that somebody holds") from None
            finally:
                process_tree.kill_all(alive_with(mark))
    return f"{refused}; without walls the slot is free again"


def _sabotaged_folders(target: Target) -> str:
    scripts = (
        "chmod 000 . .. ../.. ../../..", "rm -rf ../../*", "cd /; rm -rf $OLDPWD/..",
        "d=$(dirname $PWD); rm -rf $d; mkdir ${d}x; ln -s ${d}x $d",
        "mkdir -p a/b; chmod 000 a/b a .",
        "cd ../../..; mv work moved; echo x > work",
    )  # fmt: skip
    for script in scripts:
        with _device(target) as bus:
            bus.run("command", {"command": ["sh", "-c", script]})
            _next_works(bus, script)
    return f"tasks run after {len(scripts)} of {len(scripts)}"


ATTACKS = [
    Attack("S18", "frames forged through /proc", _forged_frames),
    Attack("S19", "modules planted for the next task", _planted_modules),
    Attack("S20", "a task outlives its keeper", _outliving),
    Attack("S21", "a task holds the pipes of its server", _held_pipes),
    Attack("S22", "folders closed, removed, replaced", _sabotaged_folders, seconds=120.0),
]

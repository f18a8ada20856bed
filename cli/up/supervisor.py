"""Keeps child processes running, each on its own, and takes every one of them down again.

The rules, proved by tests/unit/cli/up/test_supervisor.py with real children:

* A child that dies starts again after 0.2 s, doubling to 10 s, unless its exit code is final.
* Stopping goes by `stop_rank`, lowest first, each rank asked kindly and given its share of the
  time; whoever is left when the time is over is killed, with everything it started.
* A child holds a lifeline (cli/lifeline.py): it ends also when this process was killed outright.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from retire_cluster.node.system import process_tree
from retire_cluster.node.system.supervision import SUPERVISED

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 10.0
#: A child that ran this long is healthy: its next death is its first.
HEALTHY_AFTER_SECONDS = 20.0
STOP_SECONDS = 9.0


@dataclass
class Backoff:
    """How long to wait before a start again."""

    failures: int = 0

    def after_exit(self, ran_seconds: float) -> float:
        """Return seconds to wait after a run of this length."""
        if ran_seconds >= HEALTHY_AFTER_SECONDS:
            self.failures = 0
        delay = FIRST_DELAY_SECONDS * float(2 ** min(self.failures, 10))
        self.failures += 1
        return min(delay, LONGEST_DELAY_SECONDS)


class State(Enum):
    """What a child is doing."""

    #: Not started yet.
    NEW = "new"
    RUNNING = "running"
    #: Died; it starts again when its delay is over.
    WAITING = "waiting"
    #: Ended for good.
    FINAL = "final"


@dataclass(frozen=True)
class Exit:
    """The end of one run of a child."""

    name: str
    #: Exit code; negative: the signal that ended it.
    code: int
    ran_seconds: float
    #: Seconds until it starts again, or None when it does not.
    restart_in_seconds: float | None


@dataclass
class Child:
    """One process to keep running."""

    name: str
    #: The command line; asked anew at each start, so that it can name ports learned meanwhile.
    command: Callable[[], Sequence[str]]
    #: Added to this process's environment; None takes a variable out.
    environ: Mapping[str, str | None] = field(default_factory=dict)
    #: Children of the lowest rank are stopped first.
    stop_rank: int = 0
    #: Seconds this child's rank may take to end by itself.
    stop_seconds: float = 3.0
    #: Exit codes after which it is not started again.
    final_codes: frozenset[int] = frozenset()
    state: State = State.NEW
    process: subprocess.Popen[bytes] | None = None
    #: How often it was started.
    starts: int = 0
    started_mono: float = 0.0
    restart_mono: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.process.pid if self.process is not None else None


class Supervisor:
    """Starts, restarts and stops children; one thread calls it.

    :param output: file descriptor that takes what children print to standard output; None to
        leave it to them
    :param adopting: this process inherits its children's orphans (`process_tree.become_subreaper`)
        and has no other children; what a child leaves behind is killed
    """

    def __init__(self, *, output: int | None = None, adopting: bool = False) -> None:
        self.children: dict[str, Child] = {}
        self._output = output
        self._adopting = adopting

    def add(self, child: Child) -> None:
        """Take a child under supervision; `start` starts it."""
        self.children[child.name] = child

    def start(self, name: str, now: float) -> None:
        """Start a child now. Raises `OSError` when the system cannot."""
        child = self.children[name]
        child.process = self._spawn(child)
        child.state = State.RUNNING
        child.starts += 1
        child.started_mono = now

    def leave_out(self, name: str) -> None:
        """Never start a child that has not been started yet; one that was is left alone."""
        child = self.children[name]
        if child.state is State.NEW:
            child.state = State.FINAL

    def step(self, now: float) -> list[Exit]:
        """Notice who has died, start again who is due. Returns what ended since the last step."""
        ended = []
        for child in self.children.values():
            if child.state is State.RUNNING and child.process is not None:
                code = child.process.poll()
                if code is not None:
                    ended.append(self._ended(child, code, now))
            if child.state is State.WAITING and now >= child.restart_mono:
                self._start_again(child, now)
        if ended and self._adopting:
            kill_adopted(self._own_pids())
        return ended

    def _own_pids(self) -> list[int]:
        return [child.process.pid for child in self.children.values() if child.process is not None]

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """End every child within `STOP_SECONDS`; nothing they started is left.

        :param hurry: asked while waiting; True skips the rest of the grace
        """
        deadline = time.monotonic() + STOP_SECONDS
        ranks = sorted({child.stop_rank for child in self.children.values()})
        for rank in ranks:
            members = [
                child
                for child in self.children.values()
                if child.stop_rank == rank and child.process is not None
            ]
            for child in members:
                _ask_to_stop(child.process)
            share = max((child.stop_seconds for child in members), default=0.0)
            self._await_ends(members, min(deadline, time.monotonic() + share), hurry)
        for child in self.children.values():
            if child.process is not None:
                _kill(child.process)
            child.state = State.FINAL
        for child in self.children.values():
            if child.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout=1.0)
        if self._adopting:
            kill_adopted(())

    def _await_ends(
        self, members: Sequence[Child], deadline: float, hurry: Callable[[], bool]
    ) -> None:
        while time.monotonic() < deadline and not hurry():
            if all(child.process is None or child.process.poll() is not None for child in members):
                return
            time.sleep(0.02)

    def _ended(self, child: Child, code: int, now: float) -> Exit:
        ran_seconds = now - child.started_mono
        if child.process is not None:
            _close_lifeline(child.process)
            _kill_group(child.process.pid)
        child.process = None
        if code in child.final_codes:
            child.state = State.FINAL
            return Exit(child.name, code, ran_seconds, None)
        delay = child.backoff.after_exit(ran_seconds)
        child.state = State.WAITING
        child.restart_mono = now + delay
        return Exit(child.name, code, ran_seconds, delay)

    def _start_again(self, child: Child, now: float) -> None:
        try:
            self.start(child.name, now)
        except OSError:  # out of processes or memory: that passes
            child.restart_mono = now + child.backoff.after_exit(0.0)

    def _spawn(self, child: Child) -> subprocess.Popen[bytes]:
        environ = dict(os.environ)
        environ[SUPERVISED] = "stdin"
        if sys.flags.optimize > 1:
            # Without docstrings Cerberus refuses to be imported; without asserts it works.
            environ["PYTHONOPTIMIZE"] = "1"
        for name, value in child.environ.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        options: dict[str, Any] = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            # Its own session: Ctrl-C reaches the supervisor alone, which stops in order.
            options["start_new_session"] = True
        return subprocess.Popen(
            list(child.command()),
            stdin=subprocess.PIPE,
            stdout=self._output,
            env=environ,
            close_fds=True,
            **options,
        )


def _ask_to_stop(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    if sys.platform == "win32":
        # Without a console there is no CTRL_BREAK; the closed lifeline says the same.
        with contextlib.suppress(OSError):
            process.send_signal(signal.CTRL_BREAK_EVENT)
        _close_lifeline(process)
    else:
        process.terminate()


def _kill(process: subprocess.Popen[bytes]) -> None:
    _close_lifeline(process)
    if process.poll() is None:
        process.kill()
    _kill_group(process.pid)


def _kill_group(pid: int) -> None:
    """End what is left of a child's process group; its number outlives the child while used."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _close_lifeline(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def kill_adopted(own: Sequence[int]) -> None:
    """Kill and collect every child process of this one but `own`, and theirs in turn."""
    for _ in range(20):  # a killed one's own children are adopted in turn
        table = process_tree.table().values()
        found = [p.pid for p in table if p.parent == os.getpid() and p.pid not in own]
        if not found:
            return
        process_tree.kill_all(found)
        for pid in found:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)

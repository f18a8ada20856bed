"""Process trees: who descends from whom, and how to end all of them.

`killpg` misses a grandchild that called setsid. On Linux a *subreaper* (prctl(2)) inherits every
orphan below it, so that walking /proc from it finds the whole tree whatever it did. Elsewhere `ps`
or Windows' Job Objects (windows_job.py) do what they can.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from retire_cluster.conf.machine.prctl import prctl
from retire_cluster.node.system import resource_trackers

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: sys.platform of Termux is "linux" below Python 3.13 and "android" from there.
IS_LINUX = sys.platform.startswith(("linux", "android"))
#: Android kills apps for system calls that it does not know, instead of refusing them.
IS_ANDROID = IS_LINUX and (hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ)
PATIENCE_SECONDS = 2.0
#: Children of this process that are not a task's: `kill_descendants` leaves them alone.
spared: set[int] = set()


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    #: One letter, as in ps(1).
    state: str
    #: Something that another process with the same number would not have.
    started: str


def become_subreaper() -> bool:
    """Make this process inherit the orphans below it; False where the system cannot."""
    return prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Ask the system to kill this process when the thread that forked it ends."""
    return prctl(_PR_SET_PDEATHSIG, int(getattr(signal, "SIGKILL", 9)))


def go_on_without_parent() -> bool:
    """Ask the system to let this process go on, had it been stopped, when its parent ends."""
    return prctl(_PR_SET_PDEATHSIG, int(getattr(signal, "SIGCONT", 18)))


def table() -> dict[int, Process]:
    """Every process that can be seen, by number."""
    if IS_LINUX:
        return {p.pid: p for p in (_from_proc(pid) for pid in _proc_pids()) if p is not None}
    if os.name == "posix":
        return _from_ps()
    return {}


def find(pid: int) -> Process | None:
    """One process, or None when it is gone."""
    return _from_proc(pid) if IS_LINUX else table().get(pid)


def _proc_pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _from_proc(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name in parentheses may hold anything, also spaces and parentheses.
    fields = text[text.rfind(b")") + 2 :].split()
    try:
        return Process(pid, int(fields[1]), int(fields[2]), fields[0].decode(), fields[19].decode())
    except (IndexError, ValueError):
        return None


def _from_ps() -> dict[int, Process]:
    command = ["ps", "-axo", "pid=,ppid=,pgid=,stat=,lstart="]
    try:
        text = subprocess.run(command, capture_output=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for line in text.decode("utf-8", "replace").splitlines():
        words = line.split(None, 4)
        if len(words) == 5 and all(word.isdigit() for word in words[:3]):
            process = Process(int(words[0]), int(words[1]), int(words[2]), words[3][:1], words[4])
            found[process.pid] = process
    return found


def descendants(
    pid: int,
    processes: dict[int, Process] | None = None,
    spare: Iterable[int] = (),
    *,
    ended: bool = False,
) -> list[Process]:
    """Every living process below `pid`, children before grandchildren.

    :param spare: processes that are left out, with all below them
    :param ended: also those that have ended and wait to be collected
    """
    processes = table() if processes is None else processes
    left_out = set(spare)
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        if process.pid not in left_out:
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    row = children.get(pid, [])
    while row:
        found += row
        row = [child for process in row for child in children.get(process.pid, [])]
    return [process for process in found if ended or process.state not in ("Z", "X")]


def marked(mark: str) -> list[int]:
    """Processes whose environment holds `mark`; Linux only, and only those one may look into."""
    if not IS_LINUX:
        return []
    found = []
    for pid in _proc_pids():
        if pid == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark.encode() in file.read():
                    found.append(pid)
        except OSError:
            continue
    return found


def kill_descendants(
    pid: int, *, reap: bool = False, patience_seconds: float = PATIENCE_SECONDS
) -> bool:
    """Kill everything below `pid` until nothing is left; True when that succeeded.

    Groups are killed as groups: the kernel does that in one step, so a process that forks as fast
    as it can does not get away. `reap` collects orphans that this process has inherited.
    """
    end = time.monotonic() + patience_seconds
    if IS_LINUX and resource_trackers.let_clean(lambda: _left_below(pid, reap), kill_all):
        end += resource_trackers.PATIENCE_SECONDS
    while True:
        found = descendants(pid, spare=spared)
        if not found:
            if reap:
                reap_all()
            return True
        own = {os.getpgrp(), _group_of(pid)} if hasattr(os, "getpgrp") else set()
        for group in {process.group for process in found} - own - {0, 1}:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        kill_all(process.pid for process in found)
        if reap:
            reap_all()
        if time.monotonic() > end:
            return False
        time.sleep(0.005)


def _left_below(pid: int, reap: bool) -> list[int]:
    if reap:
        reap_all()
    return [process.pid for process in descendants(pid, spare=spared)]


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def kill_strays(known: Iterable[int], patience_seconds: float = PATIENCE_SECONDS) -> int:
    """Kill what this process inherited from children that are gone; how many processes.

    For a subreaper that starts each of its `known` children in a session of its own: nothing below
    those can ever come into this process's session, and what is in it was started by its own hand.
    """
    if not IS_LINUX:
        return 0
    me = os.getpid()
    ended: set[tuple[int, str]] = set()
    session = os.getsid(0)
    spare = {*known, *spared}
    end = time.monotonic() + patience_seconds
    while True:
        found = []
        for process in descendants(me, spare=spare, ended=True):
            with contextlib.suppress(OSError):
                if os.getsid(process.pid) != session:
                    found.append(process)
        if not found:
            return len(ended)
        ended.update((process.pid, process.started) for process in found)
        for group in {process.group for process in found} - {os.getpgrp(), 0, 1}:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        kill_all(process.pid for process in found)
        for process in found:
            with contextlib.suppress(OSError):  # those that are children by now
                os.waitpid(process.pid, os.WNOHANG)
        if time.monotonic() > end:
            return len(ended)
        time.sleep(0.005)


def kill_all(pids: Iterable[int]) -> None:
    """Kill these processes; those already gone are fine."""
    number = int(getattr(signal, "SIGKILL", signal.SIGTERM))
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def kill_tree(pid: int) -> bool:
    """Kill `pid` and everything below it; True when nothing is left."""
    if os.name == "nt":
        command = ["taskkill", "/T", "/F", "/PID", str(pid)]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, capture_output=True, timeout=10, check=False)
        return True
    gone = kill_descendants(pid)
    kill_all([pid])
    return gone


def has_others() -> bool:
    """Collect ended children; whether this process has descendants beside those it spares."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False  # an orphan would be a child: this is a subreaper
    except OSError:
        pass
    if not spared:
        return True
    try:
        # What ended stays in the list until it is collected: it is whole.
        with open(f"/proc/self/task/{threading.get_native_id()}/children", "rb") as file:
            return not spared.issuperset(map(int, file.read().split()))
    except (OSError, ValueError):
        return bool(descendants(os.getpid(), spare=spared))


def reap_all() -> None:
    """Collect every ended child of this process."""
    with contextlib.suppress(OSError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def boot_mark() -> str:
    """Text that changes at every boot, where the system has one: pids start again there."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""

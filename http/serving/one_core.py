"""Keep a busy process of many Python threads on one core.

Threads of Python never run at once: each system call of one hands the interpreter to another, and
where that one sleeps on a second core, waking it costs ten times a switch on the spot. Sixteen
threads that serve requests spent more on that than on the requests (docs/performance.md).

So, while there are many requests, all threads are pinned to one core. Which one is the system's
choice: every second they are let go for a moment, it moves them to where there is room, and there
they stay for the next. Systems other than Linux and Android cannot be told so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

#: Requests a second from which pinning pays.
BUSY_PER_SECOND = 300.0
STAY_SECONDS = 1.0
#: Seconds that the system has to place the threads anew.
FREE_SECONDS = 0.05
#: Seconds within which a burst is noticed.
WATCH_SECONDS = 0.2
_TASKS = Path("/proc/self/task")
_CORE_FIELD = 36  # of /proc/…/stat, counted behind the command's name: field 39 in proc(5)


class OneCore:
    """Pin this process to one core while it is busy. Used by one thread only."""

    def __init__(self) -> None:
        self.is_pinned = False
        self._allowed: Collection[int] = ()
        self._next_mono = 0.0 if _is_possible() else float("inf")
        self._seen_mono = float("-inf")
        self._seen_requests = 0

    def look(self, now_mono: float, requests: int) -> None:
        """Pin the threads, keep them or let them go, if it is time.

        :param now_mono: monotonic seconds
        :param requests: how many there were since the start
        """
        if now_mono < self._next_mono:
            return
        busy = requests - self._seen_requests > BUSY_PER_SECOND * (now_mono - self._seen_mono)
        self._seen_mono, self._seen_requests = now_mono, requests
        self._next_mono = now_mono + WATCH_SECONDS
        try:
            if self.is_pinned:
                self.let_go()
                if busy:
                    self._next_mono = now_mono + FREE_SECONDS
            elif busy:
                self._pin()
                self._next_mono = now_mono + STAY_SECONDS
        except OSError:  # not permitted, or the allowed cores have changed: it goes without
            self._next_mono = float("inf")
            with contextlib.suppress(OSError):
                self.let_go()

    def let_go(self) -> None:
        """Allow every core again. Raises `OSError`."""
        if self.is_pinned:
            self.is_pinned = False
            _move_threads(self._allowed)

    def _pin(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        if len(self._allowed) > 1:
            self.is_pinned = True
            _move_threads([_current_core()])


def _is_possible() -> bool:
    return hasattr(os, "sched_setaffinity") and _TASKS.is_dir()


def _current_core() -> int:
    stat = Path("/proc/thread-self/stat").read_text("ascii", "replace")
    return int(stat.rpartition(")")[2].split()[_CORE_FIELD])


def _move_threads(cores: Collection[int]) -> None:
    for task in _TASKS.iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:
            continue  # it has just ended

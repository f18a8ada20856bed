"""What a task process or an earlier worker may have left running, and how it is ended.

While the worker lives it inherits what a task process that was killed had below it (Linux), and
ends that. Task processes end with their worker; the record is for the case that both were killed at
the same moment. A file names the processes by number and start time, so that a number that now
belongs to someone else is left alone, and a mark in their environment finds what had left the tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from retire_cluster.node.running import workplace
from retire_cluster.node.system import process_tree, shared_memory


class Leftovers:
    """The record of this worker's task processes."""

    def __init__(self, path: Path, *, adopting: bool = False) -> None:
        """Begin a record, still empty.

        :param adopting: this process inherits its children's orphans (`become_subreaper`), and
            starts in a session of their own only task processes
        """
        self._path = path
        self._adopting = adopting
        #: Held while a task process begins: until it is in the record it could be a stray.
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._started: dict[int, str] = {}
        self._roots: list[str] = []
        #: Random text in the environment of every task process of this worker.
        self.mark = secrets.token_hex(16)

    @property
    def shared(self) -> str:
        """What the marks of this worker's segments of shared memory begin with."""
        return self.mark[:8]

    def end_earlier(self) -> int:
        """End what the record of an earlier worker names; how many processes that were."""
        try:
            record = json.loads(self._path.read_bytes())
            boot, mark, rows = record["boot"], record["mark"], record["processes"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        ended = 0
        if boot == process_tree.boot_mark() and isinstance(rows, list):
            for row in rows:
                pid, started = int(row[0]), str(row[1])
                process = process_tree.find(pid)
                if process is not None and process.started == started:
                    process_tree.kill_tree(pid)
                    ended += 1
        workplace.remove_earlier(record.get("roots"))
        if isinstance(mark, str) and len(mark) == len(self.mark):
            strays = process_tree.marked(f"RC_WORKER={mark}")
            process_tree.kill_all(strays)
            ended += len(strays)
            shared_memory.remove_marked(mark[: len(self.shared)])
        with contextlib.suppress(OSError):
            self._path.unlink()
        return ended

    @contextlib.contextmanager
    def starting(self) -> Iterator[Callable[[int], None]]:
        """Keep sweeps off while a task process is started; what it gives records the number."""
        with self._starting:
            yield self._add

    def _add(self, pid: int) -> None:
        process = None if sys.platform == "win32" else process_tree.find(pid)
        with self._lock:
            self._started[pid] = "" if process is None else process.started
            self._write()

    def note_roots(self, roots: list[str]) -> None:
        """Record the roots, among temporary files, in which tasks have their folders."""
        with self._lock:
            self._roots = roots
            self._write()

    def remove(self, pid: int) -> None:
        """Take a task process out of the record: it and all below it are gone."""
        with self._lock:
            self._started.pop(pid, None)
            self._write()

    def sweep(self, pid: int, *, killed: bool) -> None:
        """End what is left of a task process that has ended.

        :param killed: it came to its end before it could see to that itself
        """
        if sys.platform == "win32":
            return
        if killed:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        if self._adopting:
            with self._starting:
                process_tree.kill_strays(self._others(pid))
        elif killed:
            processes = process_tree.table()
            spared = set(self._others(pid))
            for other in tuple(spared):
                spared.update(p.pid for p in process_tree.descendants(other, processes))
            strays = process_tree.marked(f"RC_WORKER={self.mark}")
            process_tree.kill_all(stray for stray in strays if stray not in spared)

    def _others(self, pid: int) -> list[int]:
        with self._lock:
            return [other for other in self._started if other != pid]

    def _write(self) -> None:
        record = {
            "boot": process_tree.boot_mark(),
            "mark": self.mark,
            "processes": list(self._started.items()),
            "roots": self._roots,
        }
        temporary = self._path.with_suffix(".new")
        # Without it a worker still ends its tasks; only the second line of defence is gone.
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(record), encoding="utf-8")
            os.replace(temporary, self._path)

"""The server of task processes on systems with fork: our code only, one thread, a task at a time.

The built-in types run in it: no task's code does. A task of an own type, which may do anything to
its process, gets one for itself (nursery.py).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from typing import Any

from retire_cluster.node.process import inherited_state, perform
from retire_cluster.node.process.frames import Frame, FrameError, read_frame, write_frame
from retire_cluster.node.process.nursery import Nursery
from retire_cluster.node.process.perform import MAX_TASKS
from retire_cluster.node.system import process_tree, shared_memory, task_folders
from retire_cluster.node.tasks import own_type
from retire_cluster.node.walls import enforcement
from retire_cluster.schemas.vocabulary import Cause, Outcome

#: The process is replaced once it used so much of the processor time it may have.
_SHARE_OF_CPU_LIMIT = 0.25


class ForkingServer:
    """Runs what comes in, one task at a time.

    :param requests_fd: the worker's requests come from here
    :param answers_fd: replies go here
    :param scratch: the folder in which each task gets its own
    :param cpu_seconds: processor time that this process may use; 0: as much as it wants
    """

    def __init__(self, requests_fd: int, answers_fd: int, scratch: str, cpu_seconds: int) -> None:
        self._requests_fd = requests_fd
        self._answers_fd = answers_fd
        self._scratch = scratch
        self._cpu_seconds = cpu_seconds
        self._tasks = 0
        self._nursery = Nursery(requests_fd, self._write)
        # An interrupt sent by a task must not end its server; a program started here gets none.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        self._state = inherited_state.snapshot()
        gc.freeze()

    def serve(self) -> int:
        """Run until the requests are closed, or the process is to be replaced; the exit code."""
        try:
            while (frame := read_frame(self._requests_fd)) is not None:
                kind = frame.header.get("kind")
                if kind == "describe":
                    self._describe(frame.header)
                    return 0
                if kind == "run" and not self._run(frame):
                    return 0
        except (OSError, FrameError):
            pass
        finally:
            self._nursery.close()
        return 0

    def _write(self, header: dict[str, Any], blob: bytes = b"") -> None:
        write_frame(self._answers_fd, header, blob)

    def _describe(self, header: dict[str, Any]) -> None:
        """Import an own type: what that does to this process is its end."""
        shared_memory.name_segments()
        enforcement.enter()
        row = own_type.describe(str(header["name"]), str(header["entry_point"]))
        self._write({"kind": "described", "types": [row]})

    def _run(self, frame: Frame) -> bool:
        """Run one task; whether this process may run another."""
        if inherited_state.snapshot() != self._state:
            # An earlier task has changed it from outside: untold, so that another takes this one.
            return False
        folder, last = "", False
        try:
            if frame.header["task_type"] not in ("python_eval", "http_request"):
                folder = task_folders.make(self._scratch, str(frame.header["folder"]))
        except OSError as error:
            # A task has spoilt the place: untold, so that one with another place takes this one.
            sys.stderr.write(f"this device has no folder for the task: {error}\n")
            return False
        try:
            if frame.header.get("entry_point"):
                child = self._nursery.start(frame, folder)
                if child is None:
                    task_folders.remove(folder)
                    return False
                self._write({"kind": "started"})
                reply, data = self._nursery.finish(frame, child)
            else:
                self._write({"kind": "started"})
                reply, data, last = self._run_builtin(frame, folder)
        except OSError as error:
            message = f"this device has no process for the task: {error}"
            reply, data = perform.reply(Outcome.FAILED, Cause.ERROR, message, {}), b""
            last = True
        if folder and not task_folders.remove(folder):
            last = True  # the worker may be able to
        reply["last"] = last
        self._write(reply, data)
        return not last

    def _run_builtin(self, frame: Frame, folder: str) -> tuple[dict[str, Any], bytes, bool]:
        if folder:
            os.chdir(folder)
        reply, data = perform.perform(
            frame.header, frame.blob, tell=_no_progress, write_log=_no_log, is_cancelled=_never
        )
        last = threading.active_count() > 1
        if folder:
            if process_tree.has_others():
                process_tree.kill_descendants(os.getpid(), reap=True)
                last = True
            os.chdir(task_folders.START)
        self._tasks += 1
        last = last or self._tasks >= MAX_TASKS
        if self._cpu_seconds:
            last = last or time.process_time() > _SHARE_OF_CPU_LIMIT * self._cpu_seconds
        return reply, data, last


def _no_progress(percent: float | None, message: str) -> None:
    """Built-in types tell of none."""


def _no_log(line: str) -> None:
    """Built-in types write none."""


def _never() -> bool:
    """Built-in types are not asked to stop: they are killed."""
    return False

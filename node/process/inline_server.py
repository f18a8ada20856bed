"""Tasks in the process that reads the requests: for systems on which a process cannot be forked.

A task of an own type is the last one of its process, so that what it did to it ends with it; the
slot starts the next process before there is a task for it.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import Any

from retire_cluster.node.process import streams
from retire_cluster.node.process.capture import Capture
from retire_cluster.node.process.frames import Frame, FrameError, read_frame, write_frame
from retire_cluster.node.process.perform import MAX_TASKS, MIN_PROGRESS_SECONDS, add_logs, perform
from retire_cluster.node.system import process_tree, task_folders
from retire_cluster.node.tasks import own_type


class InlineServer:
    """Runs what comes in, one task at a time.

    :param requests_fd: the worker's requests come from here
    :param answers_fd: replies go here
    :param scratch: the folder in which each task gets its own
    """

    def __init__(self, requests_fd: int, answers_fd: int, scratch: str) -> None:
        self._requests_fd = requests_fd
        self._answers_fd = answers_fd
        self._scratch = scratch
        self._capture = Capture()
        self._requests: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._write_lock = threading.Lock()
        self._told_at = 0.0
        self._tasks = 0

    def serve(self) -> int:
        """Run until the requests are closed, or the process is to be replaced; the exit code."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        baseline = threading.active_count()
        while (frame := self._requests.get()) is not None:
            self._cancelled.clear()
            if frame.header.get("kind") == "describe":
                self._describe(frame.header)
                return 0
            if not self._run(frame, baseline):
                return 0
        return 0

    def _read(self) -> None:
        try:
            while (frame := read_frame(self._requests_fd)) is not None:
                if frame.header.get("kind") == "cancel":
                    self._cancelled.set()
                else:
                    self._requests.put(frame)
        except (OSError, FrameError):
            pass
        self._requests.put(None)

    def _write(self, header: dict[str, Any], blob: bytes = b"") -> None:
        with self._write_lock:
            write_frame(self._answers_fd, header, blob)

    def _describe(self, header: dict[str, Any]) -> None:
        row = own_type.describe(str(header["name"]), str(header["entry_point"]))
        self._write({"kind": "described", "types": [row]})

    def _run(self, frame: Frame, baseline_threads: int) -> bool:
        """Run one task; whether this process may run another."""
        header = frame.header
        if header.get("entry_point") and self._tasks:
            # Untold, so that one without other tasks' payloads in its memory takes it.
            return False
        self._write({"kind": "started"})
        os.environ["RC_TASK_ID"] = str(header["task_id"])
        os.environ["RC_ATTEMPT"] = str(header["attempt"])
        folder = ""
        if header["task_type"] not in ("python_eval", "http_request"):
            folder = task_folders.make(self._scratch, str(header["folder"]))
            os.chdir(folder)
        reply, data = perform(
            header,
            frame.blob,
            tell=self._tell,
            write_log=streams.write_line,
            is_cancelled=self._cancelled.is_set,
        )
        logs = self._capture.take()
        last = bool(header.get("entry_point")) or _end_leftovers()
        self._tasks += 1
        last = last or threading.active_count() > baseline_threads or self._tasks >= MAX_TASKS
        if folder:
            os.chdir(task_folders.START)
            last = not task_folders.remove(folder) or last
        add_logs(reply["details"], logs)
        reply["last"] = last
        self._write(reply, data)
        return not last

    def _tell(self, percent: float | None, message: str) -> None:
        now = time.monotonic()
        if now - self._told_at >= MIN_PROGRESS_SECONDS or percent == 100:
            self._told_at = now
            self._write({"kind": "progress", "percent": percent, "message": message})


def _end_leftovers() -> bool:
    """End what the task started and did not end; True when there was something."""
    if sys.platform == "win32":
        return False
    if not process_tree.descendants(os.getpid()):
        process_tree.reap_all()
        return False
    process_tree.kill_descendants(os.getpid(), reap=True)
    return True

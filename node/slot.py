"""A slot: one thread that owns one task process at a time and feeds it attempts.

The thread blocks where the loop must not: while a process starts, while it works, while its tree
dies. Only `submit`, `kill`, `ask_to_stop` and `close` are for other threads.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from retire_cluster.node.frames import Frame, FrameError
from retire_cluster.node.taskprocess import TaskProcess
from retire_cluster.schemas.messages import Key

#: A process is replaced after this many tasks: own types may leak.
MAX_TASKS = 200
#: An idle process gives its memory back after this long.
IDLE_SECONDS = 60.0


class Job(NamedTuple):
    """What a task process is asked to do."""

    key: Key
    header: dict[str, Any]
    payload: bytes


class News(NamedTuple):
    """What a slot tells the runner."""

    #: `started`, `progress`, `done` or `died`.
    kind: str
    slot: Slot
    key: Key
    header: dict[str, Any]
    blob: bytes = b""


class Slot(threading.Thread):
    """Runs one attempt at a time in a task process."""

    def __init__(
        self, number: int, start_process: Callable[[], TaskProcess], post: Callable[[News], None]
    ) -> None:
        super().__init__(name=f"slot-{number}", daemon=True)
        self._start_process = start_process
        self._post = post
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._process: TaskProcess | None = None
        self._current: Key | None = None
        self._doomed = False
        self._closing = False

    # --- for other threads --------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Begins an attempt; there must be none running."""
        with self._lock:
            self._current = job.key
            self._doomed = False
        self._jobs.put(job)

    def kill(self, key: Key) -> None:
        """Ends the attempt and everything it started; `died` is told when all of it is gone."""
        with self._lock:
            if self._current != key:
                return
            self._doomed = True
            process = self._process
        if process is not None:
            process.kill()

    def ask_to_stop(self, key: Key) -> None:
        """Tells the attempt that it is cancelled, without any force yet."""
        with self._lock:
            process = self._process if self._current == key else None
        if process is not None:
            with contextlib.suppress(OSError, ValueError):
                process.send({"kind": "cancel"})

    def close(self) -> None:
        """Ends the process, whatever it does, and then the thread."""
        with self._lock:
            self._closing = self._doomed = True
            process = self._process
        if process is not None:
            process.kill()
        self._jobs.put(None)

    # --- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        """Until closed."""
        while True:
            try:
                job = self._jobs.get(timeout=None if self._process is None else IDLE_SECONDS)
            except queue.Empty:
                self._end_process()
                continue
            if job is None or self._closing:
                self._end_process()
                return
            self._work(job)

    def _work(self, job: Job) -> None:
        problem = "the task's process could not be started"
        for _ in range(2):
            try:
                process = self._ready_process()
            except OSError as error:
                problem = f"{problem}: {error}"
                break
            if self._doomed:
                break
            try:
                process.send(job.header, job.payload)
                first = process.receive()
            except (OSError, FrameError):
                first = None
            if first is not None:
                self._listen(job, process, first)
                return
            # It ended before it saw the task, so another one may have it.
            code, words = self._end_process()
            if self._doomed:
                break
            problem = f"the task's process ended at once with code {code}: {words or 'no words'}"
        self._end_process()
        self._tell("died", job.key, {"code": None, "words": problem})

    def _ready_process(self) -> TaskProcess:
        process = self._process
        if process is not None and not process.alive():
            self._end_process()
            process = None
        if process is None:
            process = self._start_process()
            with self._lock:
                self._process = process
                doomed = self._doomed
            if doomed:
                process.kill()
        return process

    def _listen(self, job: Job, process: TaskProcess, frame: Frame | None) -> None:
        while frame is not None:
            kind = frame.header.get("kind")
            if kind == "done":
                process.tasks_done += 1
                last = frame.header.get("last") is True or process.tasks_done >= MAX_TASKS
                if last:
                    self._end_process()
                self._tell("done", job.key, frame.header, frame.blob)
                return
            if kind in ("started", "progress"):
                self._post(News(kind, self, job.key, frame.header))
            try:
                frame = process.receive()
            except (OSError, FrameError):
                process.kill()
                frame = None
        code, words = self._end_process()
        self._tell("died", job.key, {"code": code, "words": words})

    def _tell(self, kind: str, key: Key, header: dict[str, Any], blob: bytes = b"") -> None:
        with self._lock:
            self._current = None
        self._post(News(kind, self, key, header, blob))

    def _end_process(self) -> tuple[int, str]:
        with self._lock:
            process, self._process = self._process, None
        return (0, "") if process is None else process.wait()

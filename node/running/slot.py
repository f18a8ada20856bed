"""A slot: one thread that owns one task process at a time and feeds it attempts.

The thread blocks where the loop must not: while a process starts, while it works, while its tree
dies. `submit`, `kill`, `outdate`, `ask_to_stop` and `close` are for other
threads, and nothing else is.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from retire_cluster.node.process import replies
from retire_cluster.node.process.frames import FrameError
from retire_cluster.node.process.replies import BadReply, Begun, Done, Progress, Reply
from retire_cluster.node.running.task_process import TaskProcess
from retire_cluster.node.tasks import exception_text
from retire_cluster.schemas.protocol.messages import AttemptKey

log = logging.getLogger("retire_cluster.node")

#: An idle process gives its memory back after this long.
IDLE_SECONDS = 60.0
#: Progress that follows sooner is left out: telling of it must not keep the worker busy.
MIN_PROGRESS_SECONDS = 0.02


class Job(NamedTuple):
    """What a task process is asked to do."""

    key: AttemptKey
    header: dict[str, Any]
    payload: bytes


class Died(NamedTuple):
    """The process ended, or could not be had, without an answer."""

    #: Its exit code; None when none was started.
    code: int | None
    #: Its last words, or why there is none.
    words: str


class News(NamedTuple):
    """What a slot tells the runner of an attempt; `Done` and `Died` are the last of it."""

    slot: Slot
    key: AttemptKey
    what: Begun | Progress | Done | Died


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
        #: The attempt that runs; None while idle.
        self._current: AttemptKey | None = None
        #: What runs is to be killed, as soon as it has a process.
        self._doomed = False
        self._closing = False
        #: The process began before what it may have imported was replaced.
        self._outdated = False

    def __repr__(self) -> str:
        process, current = self._process, self._current
        where = "without a process" if process is None else f"with process {process.pid}"
        what = "idle" if current is None else f"runs attempt {current[1]} of task {current[0]}"
        return f"<{self.name} {where}: {what}{', doomed' if self._doomed else ''}>"

    # --- for other threads --------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Begin an attempt; there must be none running."""
        with self._lock:
            self._current = job.key
            self._doomed = False
        self._jobs.put(job)

    def kill(self, key: AttemptKey) -> None:
        """End the attempt and everything it started; `Died` is posted once all of it is gone."""
        with self._lock:
            if self._current != key:
                return
            self._doomed = True
            process = self._process
        if process is not None:
            process.kill()

    def outdate(self) -> None:
        """Replace the process before the next attempt; one that runs may end in the old one."""
        with self._lock:
            self._outdated = True

    def ask_to_stop(self, key: AttemptKey) -> None:
        """Tell the attempt that it is cancelled, without any force yet."""
        with self._lock:
            process = self._process if self._current == key else None
        if process is not None:
            process.ask_to_stop()

    def close(self) -> None:
        """End the process, whatever it does, and then the thread."""
        with self._lock:
            self._closing = self._doomed = True
            process = self._process
        if process is not None:
            process.kill()
        self._jobs.put(None)

    # --- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        """Run attempts until closed."""
        while True:
            try:
                job = self._jobs.get(timeout=None if self._process is None else IDLE_SECONDS)
            except queue.Empty:
                self._end_process()
                continue
            if job is None or self._closing:
                self._end_process()
                return
            try:
                self._work(job)
            except Exception as error:
                # Whatever it was, it costs this attempt and not the slot.
                log.exception("a task process could not be looked after")
                self._end_process()
                self._tell(job.key, Died(None, exception_text.of(error)))

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
                process.run(job.header, job.payload)
                first = process.receive()
            except (FrameError, BadReply) as error:
                self._refuse(job, process, error)
                return
            except OSError:
                first = None
            if first is not None:
                self._listen(job, process, first)
                return
            # It ended before it saw the task, so another one may have it.
            code, last_words = self._end_process()
            if self._doomed:
                break
            last_words = last_words or "no words"
            problem = f"the task's process ended at once with code {code}: {last_words}"
        self._end_process()
        self._tell(job.key, Died(None, problem))

    def _ready_process(self) -> TaskProcess:
        with self._lock:
            process, outdated = self._process, self._outdated
            self._outdated = False
        if process is not None and (outdated or not process.alive()):
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

    def _start_ahead(self) -> None:
        """Start the next process now where each task needs its own, so that none waits for it."""
        if not self._closing:
            with contextlib.suppress(OSError):
                self._ready_process()

    def _listen(self, job: Job, process: TaskProcess, answer: Reply | None) -> None:
        began, told_at = False, 0.0
        while answer is not None:
            if isinstance(answer, Done):
                if answer.last:
                    self._end_process()
                self._tell(job.key, answer)
                if answer.last and job.header.get("entry_point"):
                    self._start_ahead()
                return
            if isinstance(answer, Begun):
                if not began:
                    self._post(News(self, job.key, answer))
                began = True
            elif isinstance(answer, Progress):
                now = time.monotonic()
                if now - told_at >= MIN_PROGRESS_SECONDS:
                    told_at = now
                    self._post(News(self, job.key, answer))
            try:
                answer = process.receive()
            except (FrameError, BadReply) as error:
                self._refuse(job, process, error)
                return
            except OSError:
                process.kill()
                answer = None
        code, last_words = self._end_process()
        self._tell(job.key, Died(code, last_words))

    def _refuse(self, job: Job, process: TaskProcess, error: ValueError) -> None:
        """Fail the attempt and end its process, whose word cannot be relied on any more."""
        process.kill()
        self._end_process()
        self._tell(job.key, replies.failed(str(error)))

    def _tell(self, key: AttemptKey, what: Done | Died) -> None:
        with self._lock:
            self._current = None
        self._post(News(self, key, what))

    def _end_process(self) -> tuple[int, str]:
        with self._lock:
            process, self._process = self._process, None
        return (0, "") if process is None else process.wait()

"""The half of a task process that runs tasks: requests in, progress and results out.

One task at a time, many after another. What a task left behind (threads, processes) ends the
executor after it, so that nothing reaches the next one.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from retire_cluster.node import limits, proctree
from retire_cluster.node.capture import Capture
from retire_cluster.node.frames import Frame, FrameError, read_frame, write_frame
from retire_cluster.node.tasks import words
from retire_cluster.node.tasks.base import Answer, Context, Hopeless, Limits, TaskFailed
from retire_cluster.node.tasks.custom import Traced
from retire_cluster.node.tasks.jsonresult import NotJson, fit_texts, to_json
from retire_cluster.schemas.cleantext import clean, shorten
from retire_cluster.schemas.vocabulary import Cause, Outcome
from retire_cluster.schemas.wire import MAX_DETAILS_BYTES

MIN_PROGRESS_SECONDS = 0.05
MAX_MESSAGE = 4_000
#: Results with long texts: which fields may be cut to fit.
_LONG_TEXTS = {"command": ("stdout", "stderr"), "http_request": ("content",)}


def serve() -> int:
    """Runs what comes in on stdin until it is closed; the exit code."""
    requests_fd, answers_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    limits.apply(limits.Bounds(**json.loads(os.environ.pop("RC_BOUNDS", "{}"))))
    capture = Capture()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return _Executor(requests_fd, answers_fd, capture).serve()


class _Executor:
    def __init__(self, requests_fd: int, answers_fd: int, capture: Capture) -> None:
        self._requests_fd = requests_fd
        self._answers_fd = answers_fd
        self._capture = capture
        self._requests: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._write_lock = threading.Lock()
        self._environment = dict(os.environ)
        self._told_at = 0.0
        #: Where tasks get a folder of their own each; never the one modules are loaded from.
        self._scratch = os.environ.get("RC_SCRATCH") or tempfile.gettempdir()

    def serve(self) -> int:
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        baseline = threading.active_count()
        while (frame := self._requests.get()) is not None:
            self._cancelled.clear()
            if frame.header.get("kind") == "describe":
                self._describe(frame.header)
                continue
            clean = self._run(frame, baseline)
            if not clean:
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

    def _describe(self, header: Mapping[str, Any]) -> None:
        from retire_cluster.node.tasks import custom

        row = custom.describe(str(header["name"]), str(header["entry_point"]))
        self._write({"kind": "described", "types": [row]})

    def _run(self, frame: Frame, baseline_threads: int) -> bool:
        """Runs one task; whether this process may run another."""
        header = frame.header
        self._write({"kind": "started"})
        os.environ["RC_TASK_ID"] = str(header["task_id"])
        os.environ["RC_ATTEMPT"] = str(header["attempt"])
        folder = self._own_folder(str(header["task_type"]))
        reply, data = self._attempt(header, frame.blob)
        logs, cut = self._capture.take()
        left_behind = _end_leftovers() or threading.active_count() > baseline_threads
        if folder:
            os.chdir(self._scratch)
            shutil.rmtree(folder, ignore_errors=True)
        details: dict[str, Any] = reply.pop("details")
        if logs:
            details["logs"] = logs
        if cut:
            details["truncated"] = True
        reply["details"] = _fit_details(details)
        reply["last"] = left_behind
        self._write(reply, data)
        os.environ.clear()
        os.environ.update(self._environment)
        return not left_behind

    def _own_folder(self, task_type: str) -> str:
        """An empty folder to work in, for types that may write; gone after the task."""
        if task_type in ("python_eval", "http_request"):
            return ""
        folder = tempfile.mkdtemp(prefix="task-", dir=self._scratch)
        os.chdir(folder)
        return folder

    def _attempt(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        task_type = str(header["task_type"])
        details: dict[str, Any] = {}
        try:
            answer = self._call(task_type, header, payload)
            data, cut = _result_text(task_type, answer.result)
            if answer.truncated or cut:
                details["truncated"] = True
            return _reply(Outcome.SUCCESS, None, None, details), data
        except Traced as error:
            failure = error.failure
            details["error_traceback"] = error.trace
        except TaskFailed as error:
            failure = error
        except NotJson as error:
            failure = Hopeless(str(error))
        except MemoryError:
            failure = TaskFailed("the task needed more memory than this device grants")
        except BaseException as error:  # a task must never end the executor by raising
            failure = TaskFailed(words.of(error))
            details["error_traceback"] = words.trace(error)
        data = b""
        cut = failure.truncated
        if failure.result is not None:
            try:
                data, shortened = _result_text(task_type, failure.result)
                cut = cut or shortened
            except Exception:  # what a type's author gave may be anything
                data = b""
        if cut:
            details["truncated"] = True
        return _reply(failure.outcome, failure.cause, failure.message, details), data

    def _call(self, task_type: str, header: dict[str, Any], payload: bytes) -> Answer:
        content = json.loads(payload or b"{}")
        if not isinstance(content, dict):
            raise Hopeless("payload: must be an object")
        context = Context(
            task_id=str(header["task_id"]),
            attempt=int(header["attempt"]),
            timeout_seconds=float(header["timeout_seconds"]),
            limits=Limits(**header["limits"]),
            tell=self._tell,
            write_log=self._capture.write,
            is_cancelled=self._cancelled.is_set,
        )
        if task_type == "python_eval":
            from retire_cluster.node.tasks import python_eval

            return python_eval.run(content, context)
        if task_type == "http_request":
            from retire_cluster.node.tasks import http_request

            return http_request.run(content, context)
        if task_type == "command":
            from retire_cluster.node.tasks import command

            return command.run(content, context)
        from retire_cluster.node.tasks import custom

        return custom.run(str(header["entry_point"]), content, context)

    def _tell(self, percent: float | None, message: str) -> None:
        now = time.monotonic()
        # A task that tells of every step must not keep the worker busy with it.
        if now - self._told_at >= MIN_PROGRESS_SECONDS or percent == 100:
            self._told_at = now
            self._write({"kind": "progress", "percent": percent, "message": message})


def _reply(
    outcome: Outcome, cause: Cause | None, message: str | None, details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "kind": "done",
        "outcome": outcome.value,
        "cause": None if cause is None else cause.value,
        "error_message": None if message is None else shorten(clean(str(message)), MAX_MESSAGE),
        "details": details,
    }


def _result_text(task_type: str, result: Any) -> tuple[bytes, bool]:
    names = _LONG_TEXTS.get(task_type)
    return (to_json(result), False) if names is None else fit_texts(result, names)


def _fit_details(details: dict[str, Any]) -> dict[str, Any]:
    """Logs and trace, cut to the protocol's limit: escapes can make them six times longer."""
    for name in ("logs", "error_traceback"):
        while (
            name in details
            and len(json.dumps(details, ensure_ascii=False).encode("utf-8", "replace"))
            > MAX_DETAILS_BYTES
        ):
            details[name] = details[name][len(details[name]) // 2 :]
            details["truncated"] = True
    return details


def _end_leftovers() -> bool:
    """Ends what the task started and did not end; True when there was something."""
    if sys.platform == "win32":
        return False
    if not proctree.descendants(os.getpid()):
        proctree.reap_all()
        return False
    proctree.kill_descendants(os.getpid(), reap=True)
    return True

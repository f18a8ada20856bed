"""`TaskFuture`: the future of one submitted task."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable, from_wire
from retire_cluster.sdk.api import RetireClusterAPI

#: Seconds after which a wait checks that the watcher still runs. On Windows, where locks cannot be
#: interrupted, Ctrl-C takes as long.
_SLICE_SECONDS: Final = 1.0


class TaskFailed(ClusterError):
    """A task ended without success."""

    code = "TASK_FAILED"

    def __init__(self, result: Mapping[str, Any]) -> None:
        status = str(result.get("status"))
        super().__init__(str(result.get("error_message") or f"the task ended as {status}"))
        #: `failed`, `timeout` or `cancelled`.
        self.task_status = status
        #: The whole result: `result_data`, `logs`, `error_traceback`, `truncated` and more.
        self.result = dict(result)


class TaskFuture(Future[Any]):
    """A submitted task; `result()` is its `result_data`.

    `result()` raises `TaskFailed` when the task did not succeed, `CancelledError` when it was
    cancelled, by whomever. The future works after its `Cluster` was closed. In a forked child there
    is no watcher: `result`, `exception`, `done` and `cancel` ask the cluster, and
    `concurrent.futures.wait` is of no use.
    """

    def __init__(
        self, task_id: str, api: RetireClusterAPI, listen: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.task_id = task_id
        #: Whether a device is known to have begun the task.
        self.begun = False
        self._api = api
        self._listen = listen
        self._home = os.getpid()
        self._end: Mapping[str, Any] | ClusterError | None = None

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and return `result_data`. Raises `TimeoutError` after `timeout` seconds."""
        self._wait(timeout)
        return _outcome(self._end) if self._is_foreign else super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait and return the task's error, or None.

        Raises `CancelledError` for a cancelled task, `TimeoutError` after `timeout` seconds.
        """
        self._wait(timeout)
        if not self._is_foreign:
            return super().exception(0)
        try:
            _outcome(self._end)
        except ClusterError as error:
            return error
        return None

    @property
    def truncated(self) -> Mapping[str, Mapping[str, Any]] | None:
        """Return which parts of the result are cut, once it is here; None when none are.

        As `{"stdout": {"total_bytes": 1000000, "kept_bytes": 262144, "missing": "middle"}}`.
        """
        return self._end.get("truncated") if isinstance(self._end, Mapping) else None

    def done(self) -> bool:
        """Tell whether the task has ended and its result is here; in a forked child ask for it."""
        if not self._is_foreign:
            return super().done()
        if self._end is None:
            self._look(0.0)
        return self._end is not None

    def cancel(self) -> bool:
        """Cancel the task in the cluster, also while it runs; False when it has ended already.

        The future is done once the watcher has seen the end. Raises the answer's `ClusterError`.
        """
        if self.done():
            return isinstance(self._end, Mapping) and self._end["status"] == "cancelled"
        answer = self._api.cancel_task(self.task_id)
        if answer.get("status") != "success" and answer.get("error_code") != "CANNOT_CANCEL_TASK":
            raise error_of(answer)
        return answer.get("status") == "success"

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn` at the end. Raises `RuntimeError` in a forked child, which has no watcher."""
        if self._is_foreign:
            raise RuntimeError(
                f"task {self.task_id} was submitted by process {self._home}: in a forked child ask"
                " for its result(), or submit by a Cluster of the child's own"
            )
        super().add_done_callback(fn)

    def settle(self, end: Mapping[str, Any] | ClusterError) -> None:
        """Take the task's result, or why there will be none; the watcher calls it, once."""
        self._end = end
        if isinstance(end, ClusterError):
            self.set_exception(end)
        elif end["status"] == "success":
            self.set_result(end["result_data"])
        elif end["status"] == "cancelled":
            super().cancel()
            # Waiters of `concurrent.futures.wait` hear of a cancel only by this.
            self.set_running_or_notify_cancel()
        else:
            self.set_exception(TaskFailed(end))

    @property
    def _is_foreign(self) -> bool:
        """Tell whether this is a copy in a forked child, whose locks nobody may ever release."""
        return os.getpid() != self._home

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end. Raises `TimeoutError` after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._end is None if self._is_foreign else not super().done():
            left = _SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            if self._is_foreign:
                self._look(min(max(left, 0.0), 25.0) if deadline is not None else 25.0)
            else:
                self._listen()
                try:
                    super().exception(max(0.0, min(_SLICE_SECONDS, left)))
                except CancelledError:
                    return
                except FutureTimeoutError:
                    pass
            if deadline is not None and time.monotonic() >= deadline:
                if self._end is not None:
                    return
                raise FutureTimeoutError(f"task {self.task_id} has not ended in time")

    def _look(self, wait_seconds: float) -> None:
        """Ask for the end and keep it. Raises `ClusterUnavailable`, `RateLimitExceeded`."""
        asked_at = time.monotonic()
        answer = self._api.get_task_results([self.task_id], wait_seconds=wait_seconds)
        if answer.get("status") == "success":
            for end in answer["data"]["results"]:
                self._end = end
        else:
            error = error_of(answer)
            if error.status >= 429:
                raise error
            self._end = error
        if self._end is None and wait_seconds:
            time.sleep(max(0.0, min(1.0, wait_seconds) - (time.monotonic() - asked_at)))


def _outcome(end: Mapping[str, Any] | ClusterError | None) -> Any:
    if isinstance(end, ClusterError):
        raise end
    assert end is not None
    if end["status"] == "cancelled":
        raise CancelledError
    if end["status"] != "success":
        raise TaskFailed(end)
    return end["result_data"]


def data_of(envelope: Mapping[str, Any]) -> Any:
    """Return the data of an answer. Raises the `ClusterError` that an error's envelope holds."""
    if envelope.get("status") != "success":
        raise error_of(envelope)
    return envelope["data"]


def error_of(envelope: Mapping[str, Any]) -> ClusterError:
    """Return the error that an envelope holds."""
    if "error_code" not in envelope:
        return ClusterUnavailable("the answer is no envelope of the REST interface")
    return from_wire(
        {
            "code": envelope["error_code"],
            "message": envelope.get("message") or "",
            "details": envelope.get("error_details"),
        }
    )

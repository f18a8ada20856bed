"""`Cluster`: the cluster in the shape of `concurrent.futures.Executor`.

One watcher thread a cluster follows the events (they cost no rate limit) and completes futures; no
future polls. Results are fetched, many with one request, when their tasks have ended.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from types import TracebackType
from typing import Any, Final

from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable, from_wire
from retire_cluster.schemas.vocabulary import TERMINAL
from retire_cluster.sdk.api import RetireClusterAPI

_POLL_SECONDS: Final = 25.0
_AWAY_SECONDS: Final = 1.0
_BATCH: Final = 500
#: Ends seen before their submission was answered, kept for when it is.
_EARLY_ENDS: Final = 20_000
_ENDED: Final = frozenset(f"task.{status.value}" for status in TERMINAL)


class TaskFailed(ClusterError):
    """A task ended without success."""

    code = "TASK_FAILED"

    def __init__(self, result: Mapping[str, Any]) -> None:
        status = str(result.get("status"))
        super().__init__(str(result.get("error_message") or f"the task ended as {status}"))
        #: `failed`, `timeout` or `cancelled`.
        self.task_status = status
        #: The whole result, with `logs`, `error_traceback` and what the task gave back.
        self.result = dict(result)


class TaskFuture(Future[Any]):
    """A submitted task; `result()` is its `result_data`.

    `result()` raises `TaskFailed` when the task did not succeed, `CancelledError` when it was
    cancelled, by whomever.
    """

    def __init__(self, task_id: str, api: RetireClusterAPI) -> None:
        super().__init__()
        self.task_id = task_id
        self._api = api

    def cancel(self) -> bool:
        """Cancel the task in the cluster, also while it runs; False when it has ended already.

        The future is done as soon as the watcher hears of it.
        """
        if self.done():
            return self.cancelled()
        answer = self._api.cancel_task(self.task_id)
        if answer.get("status") != "success" and answer.get("error_code") != "CANNOT_CANCEL_TASK":
            raise _error(answer)
        return answer.get("status") == "success"

    def settle(self, result: Mapping[str, Any]) -> None:
        """Take the task's result; the watcher calls it, once."""
        if result["status"] == "success":
            self.set_result(result["result_data"])
        elif result["status"] == "cancelled":
            super().cancel()
            # Waiters of `concurrent.futures.wait` hear of a cancel only by this.
            self.set_running_or_notify_cancel()
        else:
            self.set_exception(TaskFailed(result))


class Cluster:
    """Runs tasks in a cluster; use as a context manager, or `close` it.

    :param base_url: as `http://localhost:8081/api/v1`
    :param api_key: sent as `X-API-Key`
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.api = RetireClusterAPI(base_url, api_key)
        self._lock = threading.Lock()
        self._pending: dict[str, TaskFuture] = {}
        self._early: dict[str, None] = {}
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None

    def submit(
        self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any
    ) -> TaskFuture:
        """Submit a task: `priority`, `requirements`, `metadata` as keywords.

        Raises the `ClusterError` that the cluster answers.
        """
        self._watch()
        data = _data(self.api.submit_task(task_type, payload or {}, **options))
        return self._register([data["task_id"]])[0]

    def map(
        self,
        task_type: str,
        payloads: Iterable[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Submit a task a payload, at once and in batches; their `result_data` in order.

        Iterating raises `TaskFailed` at a task that did not succeed and `TimeoutError` when
        `timeout` seconds from this call are over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return _results(self.submit_many(task_type, payloads, **options), deadline)

    def submit_many(
        self, task_type: str, payloads: Iterable[Mapping[str, Any]], **options: Any
    ) -> list[TaskFuture]:
        """Submit a task a payload, in batches; the futures in order."""
        self._watch()
        futures: list[TaskFuture] = []
        source = iter(payloads)
        while batch := list(itertools.islice(source, _BATCH)):
            tasks = [{"task_type": task_type, "payload": dict(p), **options} for p in batch]
            task_ids = _data(self.api.submit_tasks(tasks))["task_ids"]
            futures += self._register(task_ids)
        return futures

    def close(self) -> None:
        """Stop watching; tasks go on, futures that are not done stay so."""
        self._closed.set()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _register(self, task_ids: list[str]) -> list[TaskFuture]:
        futures = [TaskFuture(task_id, self.api) for task_id in task_ids]
        with self._lock:
            self._pending.update(zip(task_ids, futures, strict=True))
            ended = [task_id for task_id in task_ids if task_id in self._early]
        if ended:
            self._complete(ended)
        return futures

    def _watch(self) -> None:
        """Begin to follow the events before the first task can end."""
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("this Cluster is closed")
            if self._watcher is not None:
                return
            cursor = _data(self.api.get_events())["next"]
            self._watcher = threading.Thread(
                target=self._follow, args=(cursor,), name="cluster-watcher", daemon=True
            )
            self._watcher.start()

    def _follow(self, cursor: int) -> None:
        while not self._closed.is_set():
            asked = time.monotonic()
            try:
                data = _data(self.api.get_events(cursor, wait_seconds=_POLL_SECONDS))
            except ClusterError:
                self._closed.wait(_AWAY_SECONDS)
                continue
            cursor = data["next"]
            ended = [e["task_id"] for e in data["events"] if e["type"] in _ENDED]
            if data.get("gap"):
                ended += self._ended_unseen()
            self._complete(ended)
            if not data["events"] and time.monotonic() - asked < _AWAY_SECONDS:
                self._closed.wait(_AWAY_SECONDS)

    def _ended_unseen(self) -> list[str]:
        """Pending tasks; those that have ended are found by asking for their results."""
        with self._lock:
            return list(self._pending)

    def _complete(self, ended: list[str]) -> None:
        """Settle the futures of tasks that have ended; what has not stays pending."""
        with self._lock:
            ours = []
            for task_id in dict.fromkeys(ended):
                if task_id in self._pending:
                    ours.append(task_id)
                else:
                    self._early[task_id] = None
            while len(self._early) > _EARLY_ENDS:
                del self._early[next(iter(self._early))]
        for start in range(0, len(ours), _BATCH):
            self._fetch(ours[start : start + _BATCH])

    def _fetch(self, task_ids: list[str]) -> None:
        while task_ids and not self._closed.is_set():
            try:
                data = _data(self.api.get_task_results(task_ids))
            except ClusterError as error:
                if error.status >= 429:
                    self._closed.wait(_AWAY_SECONDS)  # they have ended; the results will be there
                elif len(task_ids) > 1:
                    # One of them is gone: it is found by halves, and takes no other along.
                    middle = len(task_ids) // 2
                    self._fetch(task_ids[:middle])
                    self._fetch(task_ids[middle:])
                    return
                else:
                    self._take(task_ids[0], error)
                    return
            else:
                for result in data["results"]:
                    self._take(result["task_id"], result)
                task_ids = data["omitted"]

    def _take(self, task_id: str, ended: Mapping[str, Any] | ClusterError) -> None:
        with self._lock:
            future = self._pending.pop(task_id, None)
            self._early.pop(task_id, None)
        if future is None:
            return
        if isinstance(ended, ClusterError):
            future.set_exception(ended)
        else:
            future.settle(ended)


def _results(futures: list[TaskFuture], deadline: float | None) -> Iterator[Any]:
    for future in futures:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            yield future.result(left)
        except FutureTimeoutError:  # on Python 3.10 not yet the built-in one
            raise TimeoutError(f"task {future.task_id} has not ended in time") from None


def _data(envelope: Mapping[str, Any]) -> Any:
    if envelope.get("status") != "success":
        raise _error(envelope)
    return envelope["data"]


def _error(envelope: Mapping[str, Any]) -> ClusterError:
    if "error_code" not in envelope:
        return ClusterUnavailable("the answer is no envelope of the REST interface")
    return from_wire(
        {
            "code": envelope["error_code"],
            "message": envelope.get("message") or "",
            "details": envelope.get("error_details"),
        }
    )

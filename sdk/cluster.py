"""`Cluster`: submit tasks as to a `concurrent.futures.Executor`.

One watcher thread a cluster follows the tasks' ends and completes futures; no future polls. Waiting
and fetching results cost no rate limit; a thousand tasks are submitted with one request.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.sdk.api import RetireClusterAPI
from retire_cluster.sdk.futures import TaskFuture, data_of
from retire_cluster.sdk.pipeline import BATCH, Batches, Pipeline
from retire_cluster.sdk.watcher import TaskWatcher

#: Tasks of a `map` that are submitted and whose results were not taken yet.
BUFFERSIZE: Final = 5_000
#: Long enough to wait for the end of the hour's rate limit.
_LIMIT_SECONDS: Final = 3_700.0
#: Patience with an interrupted submission: whoever interrupts wants to go on.
_ASK_SECONDS: Final = 5.0


class Cluster:
    """Run tasks in a cluster; use as a context manager, or `close` it.

    :param base_url: as `http://localhost:8081/api/v1`
    :param api_key: sent as `X-API-Key`

    It may be shared between threads, and used in a forked child, where it has futures of its own.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.api = RetireClusterAPI(base_url, api_key, limit_seconds=_LIMIT_SECONDS)
        self._watcher = TaskWatcher(self.api)

    def submit(
        self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any
    ) -> TaskFuture:
        """Submit a task: `priority`, `requirements`, `metadata` as keywords.

        Raises the `ClusterError` that the cluster answers.
        """
        self.begin()
        data = data_of(self.api.submit_task(task_type, payload or {}, **options))
        return self._watcher.register([data["task_id"]])[0]

    def map(
        self,
        task_type: str,
        payloads: Iterable[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        buffersize: int = BUFFERSIZE,
        **options: Any,
    ) -> Iterator[Any]:
        """Submit a task a payload, in batches; iterate over their `result_data` in order.

        The input is read as results are taken, `buffersize` ahead of them; the first are submitted
        at once. Iterating raises `TaskFailed` at a task that did not succeed, `TimeoutError` when
        `timeout` seconds from this call are over, and what the input raises after the results of
        what came before. Ending early, also by `break` or Ctrl-C, cancels what is left.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pipeline = self.pipeline(task_type, payloads, buffersize, options)
        pipeline.begin()
        results = pipeline.results(deadline)
        next(results)
        return results

    def submit_many(
        self, task_type: str, payloads: Iterable[Mapping[str, Any]], **options: Any
    ) -> list[TaskFuture]:
        """Submit a task a payload, in batches; return the futures in order.

        An error that ends this early (of the input, the cluster, Ctrl-C) carries the futures of the
        tasks submitted before, which go on, as its attribute `submitted`.
        """
        self.begin()
        batches = Batches(payloads)
        futures: list[TaskFuture] = []
        try:
            while batch := batches.take(BATCH):
                key = str(uuid.uuid4())
                try:
                    futures += self.submit_batch(task_type, batch, options, key)
                except KeyboardInterrupt:
                    # Which of them there are is told to who asks again with the same key.
                    with contextlib.suppress(ClusterError):
                        futures += self.submit_batch(task_type, batch, options, key, _ASK_SECONDS)
                    raise
            if batches.error is not None:
                raise batches.error
        except BaseException as error:
            keep_handles(error, futures)
            raise
        return futures

    def submit_batch(
        self,
        task_type: str,
        payloads: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        idempotency_key: str | None = None,
        retry_seconds: float | None = None,
    ) -> list[TaskFuture]:
        """Submit up to 1000 tasks with one request, all or none."""
        tasks = [{"task_type": task_type, "payload": payload, **options} for payload in payloads]
        return self.submit_tasks(tasks, idempotency_key, retry_seconds)

    def submit_tasks(
        self,
        tasks: Sequence[Mapping[str, Any]],
        idempotency_key: str | None = None,
        retry_seconds: float | None = None,
    ) -> list[TaskFuture]:
        """Submit up to 1000 tasks, of any types, with one request, all or none; after `begin`."""
        answer = self.api.submit_tasks(
            tasks, idempotency_key=idempotency_key, retry_seconds=retry_seconds
        )
        return self._watcher.register(data_of(answer)["task_ids"])

    def listen(self) -> None:
        """Restart the thread that follows ends, if it has died."""
        self._watcher.listen()

    def pipeline(
        self,
        task_type: str,
        payloads: Iterable[Mapping[str, Any]],
        buffersize: int,
        options: Mapping[str, Any],
    ) -> Pipeline:
        """Make what `map` iterates over; nothing is submitted yet."""
        self.begin()

        def submit(
            batch: Sequence[Mapping[str, Any]], key: str, retry_seconds: float | None
        ) -> list[TaskFuture]:
            return self.submit_batch(task_type, batch, options, key, retry_seconds)

        return Pipeline(self.api, submit, payloads, buffersize)

    def close(self) -> None:
        """Take no more tasks; those submitted go on, and futures still held complete."""
        self._watcher.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def begin(self) -> None:
        """Start to follow ends. Raises `RuntimeError` when closed, or a `ClusterError`."""
        if self._watcher.closed:
            raise RuntimeError("this Cluster is closed")
        self._watcher.begin()


def keep_handles(error: BaseException, futures: Sequence[Any]) -> None:
    """Attach the futures submitted before to the error that ends a submission early."""
    if not futures:
        return
    with contextlib.suppress(AttributeError, TypeError):  # an error with slots
        error.submitted = list(futures)  # type: ignore[attr-defined]
        note = f"{len(futures)} tasks were submitted before and go on: this error's `submitted`"
        getattr(error, "add_note", lambda _: None)(note)  # Python 3.10 has no notes

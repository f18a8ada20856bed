"""`AsyncCluster`: the cluster for asyncio.

It stands on `Cluster`: one watcher thread completes everything that is waited for, however many
tasks that are. Only requests (submit, cancel) are sent from threads of asyncio's pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Final

from retire_cluster.sdk.api import RetireClusterAPI
from retire_cluster.sdk.cluster import Cluster, TaskFailed, TaskFuture

_BATCH: Final = 500


class AsyncTask:
    """A submitted task; awaiting it gives its `result_data`, as often as it is awaited.

    Raises `TaskFailed` when it did not succeed, also when it was cancelled in the cluster, by
    whomever: `asyncio.CancelledError` would cancel who waits. A wait that is itself cancelled, or
    times out, leaves the task running.
    """

    def __init__(self, future: TaskFuture) -> None:
        self._task = future
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(self._hear)

    @property
    def task_id(self) -> str:
        """Its id in the cluster."""
        return self._task.task_id

    def done(self) -> bool:
        """Whether it has ended and its result is here."""
        return self._task.done()

    async def cancel(self) -> bool:
        """Cancel the task in the cluster, also while it runs; False when it has ended already."""
        return await asyncio.to_thread(self._task.cancel)

    async def result(self) -> Any:
        """What awaiting it gives."""
        # Shielded: who gives up waiting must not take the end from others who wait for it too.
        await asyncio.shield(self._ended)
        try:
            return self._task.result(0)
        except CancelledError:
            result = {"status": "cancelled", "error_message": "the task was cancelled"}
            raise TaskFailed({"task_id": self.task_id, **result}) from None

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    def _hear(self, _: object) -> None:
        # Called by the watcher; the loop may be closed by then, and nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._note_end)

    def _note_end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class AsyncCluster:
    """Runs tasks in a cluster, for asyncio; use it with `async with`.

    :param base_url: as `http://localhost:8081/api/v1`
    :param api_key: sent as `X-API-Key`
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._cluster = Cluster(base_url, api_key)

    @property
    def api(self) -> RetireClusterAPI:
        """The plain client, for everything else; its methods block."""
        return self._cluster.api

    async def submit(
        self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncTask:
        """Submit a task: `priority`, `requirements`, `metadata` as keywords.

        Raises the `ClusterError` that the cluster answers.
        """
        future = await asyncio.to_thread(self._cluster.submit, task_type, payload, **options)
        return AsyncTask(future)

    async def submit_many(
        self, task_type: str, payloads: Iterable[Mapping[str, Any]], **options: Any
    ) -> list[AsyncTask]:
        """Submit a task a payload, in batches; the tasks in order."""
        found: list[AsyncTask] = []
        source = iter(payloads)
        while batch := list(itertools.islice(source, _BATCH)):
            futures = await asyncio.to_thread(
                self._cluster.submit_many, task_type, batch, **options
            )
            found += [AsyncTask(future) for future in futures]
        return found

    async def map(
        self, task_type: str, payloads: Iterable[Mapping[str, Any]], **options: Any
    ) -> AsyncIterator[Any]:
        """Submit a task a payload; their `result_data` in order. Raises as the tasks do."""
        for task in await self.submit_many(task_type, payloads, **options):
            yield await task

    async def as_completed(self, tasks: Iterable[AsyncTask]) -> AsyncIterator[AsyncTask]:
        """The tasks in the order in which they end, however they end."""
        waiting = {task._ended: task for task in tasks}
        while waiting:
            ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                yield waiting.pop(each)

    async def close(self) -> None:
        """Stop watching; tasks go on, what has not ended is not heard of any more."""
        self._cluster.close()

    async def __aenter__(self) -> AsyncCluster:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

"""`AsyncCluster`: submit tasks and await their results with asyncio.

It is built on `Cluster`: one watcher thread completes everything that is waited for, however many
tasks that are. Only requests (submit, cancel) are sent from threads of asyncio's pool.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Mapping
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any

from retire_cluster.sdk.api import RetireClusterAPI
from retire_cluster.sdk.cluster import BUFFERSIZE, Cluster, keep_handles
from retire_cluster.sdk.futures import TaskFailed, TaskFuture
from retire_cluster.sdk.pipeline import BATCH, Batches


class AsyncTask:
    """A submitted task; awaiting it, once or often, gives its `result_data`.

    Awaiting raises `TaskFailed` when it did not succeed, also when it was cancelled in the cluster,
    by whomever: `asyncio.CancelledError` would cancel who waits. A wait that is itself cancelled,
    or times out, leaves the task running.
    """

    def __init__(self, future: TaskFuture) -> None:
        self._task = future
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(self._on_done)

    @property
    def task_id(self) -> str:
        """Return the task's id in the cluster."""
        return self._task.task_id

    def done(self) -> bool:
        """Tell whether the task has ended and its result is here."""
        return self._task.done()

    async def cancel(self) -> bool:
        """Cancel the task in the cluster, also while it runs; False when it has ended already."""
        return await asyncio.to_thread(self._task.cancel)

    async def result(self) -> Any:
        """Wait for the task and return its `result_data`. Raises as awaiting it does."""
        # Shielded: who gives up waiting must not take the end from others who wait for it too.
        await asyncio.shield(self._ended)
        try:
            return self._task.result(0)
        except CancelledError:
            result = {"status": "cancelled", "error_message": "the task was cancelled"}
            raise TaskFailed({"task_id": self.task_id, **result}) from None

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    def __repr__(self) -> str:
        return f"<AsyncTask {self.task_id}, {'done' if self.done() else 'under way'}>"

    def _on_done(self, _: object) -> None:
        # Called by the watcher; the loop may be closed by then, and nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._note_end)

    def _note_end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class AsyncCluster:
    """Run tasks in a cluster, for asyncio; use it with `async with`.

    :param base_url: as `http://localhost:8081/api/v1`
    :param api_key: sent as `X-API-Key`
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._cluster = Cluster(base_url, api_key)

    @property
    def api(self) -> RetireClusterAPI:
        """Return the plain client, for everything else; its methods block."""
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
        """Submit a task a payload, in batches; return the tasks in order.

        An error that ends this early carries the tasks submitted before, which go on, as its
        attribute `submitted`.
        """
        await asyncio.to_thread(self._cluster.begin)
        found: list[AsyncTask] = []
        batches = Batches(payloads)
        try:
            while batch := batches.take(BATCH):
                futures = await asyncio.to_thread(
                    self._cluster.submit_batch, task_type, batch, options
                )
                found += [AsyncTask(future) for future in futures]
            if batches.error is not None:
                raise batches.error
        except BaseException as error:
            keep_handles(error, found)
            raise
        return found

    async def map(
        self,
        task_type: str,
        payloads: Iterable[Mapping[str, Any]],
        *,
        buffersize: int = BUFFERSIZE,
        **options: Any,
    ) -> AsyncGenerator[Any, None]:
        """Submit a task a payload; yield their `result_data` in order. Raises as the tasks do.

        The input is read as results are taken, `buffersize` ahead of them. What it raises comes
        after the results of what came before. Whatever ends the iteration early cancels what is
        left; after a `break` that is when the generator is closed (`contextlib.aclosing`).
        """
        pipeline = await asyncio.to_thread(
            self._cluster.pipeline, task_type, payloads, buffersize, options
        )
        try:
            while True:
                if pipeline.hungry:
                    # Read here, where the input belongs; only the request is sent elsewhere.
                    await asyncio.to_thread(pipeline.send, pipeline.read())
                    continue
                future = pipeline.head()
                if future is None:
                    return
                result = await AsyncTask(future)
                pipeline.taken()
                yield result
        finally:
            await asyncio.shield(asyncio.to_thread(pipeline.stop))

    async def as_completed(self, tasks: Iterable[AsyncTask]) -> AsyncIterator[AsyncTask]:
        """Yield the tasks in the order in which they end, however they end."""
        waiting = {task._ended: task for task in tasks}
        while waiting:
            ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                yield waiting.pop(each)

    async def close(self) -> None:
        """Take no more tasks; those submitted go on, and those still held complete."""
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

"""Submit the tasks of a `map` while its input is read, at most a buffer's worth ahead."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.sdk.api import RetireClusterAPI
from retire_cluster.sdk.body import encode
from retire_cluster.sdk.futures import TaskFuture, data_of

#: Tasks of one submission: the most the interface takes, and what fits into its 16 MiB.
BATCH: Final = 1_000
BATCH_BYTES: Final = 12 * 1024 * 1024
#: Seconds that a slow input is waited for before what has come is submitted. They double, so that
#: an input of an hour makes a few hundred submissions.
_FIRST_SECONDS: Final = 0.25
_LONGEST_SECONDS: Final = 6.0
#: Patience when what is left is cancelled: whoever stops wants to be gone.
_CANCEL_SECONDS: Final = 5.0
log = logging.getLogger("retire_cluster.sdk")
Payload = Mapping[str, Any]


class Batches:
    """Cut an input into batches that can be submitted.

    A batch ends when it is full or, for a slow input, when some time is over.
    """

    def __init__(
        self, payloads: Iterable[Payload], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = iter(payloads)
        self._exhausted = False
        #: Read already, but without room in the last batch; with its size in bytes.
        self._held: tuple[Payload, int] | None = None
        self._clock = clock
        self._patience = _FIRST_SECONDS
        #: Whether the input keeps its reader waiting.
        self.slow = False
        #: What the input raised, to be told after the results of what came before.
        self.error: Exception | None = None

    @property
    def over(self) -> bool:
        """Tell whether nothing more comes."""
        return self._exhausted and self._held is None

    def stop(self) -> None:
        """Read nothing more."""
        self._exhausted, self._held, self.error = True, None, None

    def take(self, room: int) -> list[Payload]:
        """Return the next batch, of at most `room` payloads; empty when nothing more comes."""
        found: list[Payload] = []
        size = 0
        until = self._clock() + self._patience
        while len(found) < min(room, BATCH):
            held = self._held or self._next()
            self._held = None
            if held is None:
                break
            payload, length = held
            if found and size + length > BATCH_BYTES:
                self._held = held
                break
            found.append(payload)
            size += length
            self.slow = self._clock() >= until
            if self.slow:
                self._patience = min(_LONGEST_SECONDS, 2 * self._patience)
                break
        return found

    def _next(self) -> tuple[Payload, int] | None:
        if self._exhausted:
            return None
        try:
            payload = dict(next(self._source))
            return payload, len(encode(payload, "payload"))
        except StopIteration:
            self._exhausted = True
        except Exception as error:
            self._exhausted, self.error = True, error
        return None


class Pipeline:
    """Hold the futures of an input, which is read as there is room for them.

    :param submit: submits payloads, once, however often it is called with the same key; its last
        argument is the seconds it may try, None for as long as it takes
    :param buffersize: tasks that are submitted and whose results were not taken yet, at most
    """

    def __init__(
        self,
        api: RetireClusterAPI,
        submit: Callable[[Sequence[Payload], str, float | None], list[TaskFuture]],
        payloads: Iterable[Payload],
        buffersize: int,
    ) -> None:
        if buffersize < 1:
            raise ValueError("buffersize: must be at least 1")
        self._api = api
        self._submit = submit
        self._batches = Batches(payloads)
        self._size = buffersize
        self._under_way: deque[TaskFuture] = deque()
        self._filling = True
        self._lock = threading.Lock()
        #: Payloads and key of a submission that Ctrl-C, or asyncio, may have cut short.
        self._unsure: tuple[Sequence[Payload], str] | None = None
        self._stopped = False
        self._home = os.getpid()

    @property
    def hungry(self) -> bool:
        """Tell whether to read the input before waiting for the next result."""
        under_way = self._under_way
        # Refilled from half on, or each result taken would be a submission of one task.
        if len(under_way) <= self._size // 2:
            self._filling = True
        if len(under_way) >= self._size or self._batches.over:
            self._filling = False
        if not self._filling or not under_way:
            return self._filling
        return not self._batches.slow or not under_way[0].done()

    def read(self) -> list[Payload]:
        """Return the next payloads to `send`; as slow as the input."""
        return self._batches.take(self._size - len(self._under_way))

    def send(self, payloads: Sequence[Payload]) -> None:
        """Submit payloads. Raises the `ClusterError` of the answer."""
        with self._lock:
            if not payloads or self._stopped:
                return
            key = str(uuid.uuid4())
            self._unsure = (payloads, key)
            try:
                self._under_way.extend(self._submit(payloads, key, None))
            except Exception:
                self._unsure = None
                raise
            self._unsure = None

    def begin(self) -> None:
        """Submit what there is room for, as far as the input is quick."""
        try:
            while self.hungry and not self._batches.slow:
                self.send(self.read())
        except BaseException:
            self.stop()
            raise

    def head(self) -> TaskFuture | None:
        """Return the oldest future whose result was not taken; None when there are no more.

        Raises what the input raised.
        """
        if self._under_way:
            return self._under_way[0]
        if self._batches.error is not None:
            raise self._batches.error
        return None

    def taken(self) -> None:
        """Drop the oldest future, whose result was taken."""
        self._under_way.popleft()

    def results(self, deadline: float | None) -> Iterator[Any]:
        """Yield None once, then results in order; ending early cancels what is left.

        Only a generator that has begun can end: the first item makes it one.
        """
        try:
            yield None
            while True:
                if self.hungry:
                    self.send(self.read())
                    continue
                future = self.head()
                if future is None:
                    return
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                result = future.result(left)
                self.taken()
                yield result
        finally:
            self.stop()

    def stop(self) -> None:
        """Cancel the tasks that are left: nobody will take their results.

        A copy in a forked child, which ends when the child does, leaves the tasks to its parent.
        """
        if os.getpid() != self._home:
            return
        with self._lock:
            self._stopped = True
            self._batches.stop()
            left = [future.task_id for future in self._under_way if not future.done()]
            self._under_way.clear()
            unsure, self._unsure = self._unsure, None
        self._cancel(left)
        if unsure is not None:  # interrupted in the middle: its ids are told to who asks again
            payloads, key = unsure
            try:
                again = self._submit(payloads, key, _CANCEL_SECONDS)
            except ClusterError as error:
                log.warning("up to %d tasks may go on, for nobody: %s", len(payloads), error)
            else:
                self._cancel([future.task_id for future in again])

    def _cancel(self, task_ids: list[str]) -> None:
        for start in range(0, len(task_ids), BATCH):
            part = task_ids[start : start + BATCH]
            try:
                data_of(self._api.cancel_tasks(part, retry_seconds=_CANCEL_SECONDS))
            except ClusterError as error:
                rest = len(task_ids) - start
                log.warning("%d tasks that nobody waits for were not cancelled: %s", rest, error)
                return

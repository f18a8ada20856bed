"""`Executor.map`: calls in chunks, a chunk a task, submitted while the input is read.

A chunk is made so large that it takes about a second where it runs: a task costs some milliseconds,
and what a lost device takes along should be little. Nothing is known before the first are back, so
these are of one call. Results come in order, of a failed chunk those before the failure too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

from retire_cluster.sdk.functions.calls import TooLarge
from retire_cluster.sdk.functions.future import CallFuture
from retire_cluster.sdk.functions.results import Part

#: A chunk's work.
_TARGET_SECONDS: Final = 1.0
_LARGEST: Final = 5_000
#: A chunk has so many times the calls of the largest that was measured, at most.
_GROWTH: Final = 8
#: A slow input is not waited for longer, once there is anything to submit.
_INPUT_SECONDS: Final = 0.25
_SLICE_SECONDS: Final = 1.0
Arguments = tuple[Any, ...]


class Chunks:
    """A map under way.

    :param submit: submits a chunk; raises `TooLarge` for one that has to be cut
    :param chunksize: calls of a chunk; 0: as many as take about a second
    :param window: chunks that are submitted and not taken yet, at most
    :param first: chunks at most before they are as large as they should be
    """

    def __init__(
        self,
        submit: Callable[[list[Arguments]], CallFuture],
        items: Iterator[Arguments],
        *,
        chunksize: int,
        window: int,
        first: int,
    ) -> None:
        self._submit = submit
        self._items = items
        self._fixed = chunksize
        self._window = window
        self._first = min(first, window)
        self._under_way: deque[CallFuture] = deque()
        self._held: deque[Arguments] = deque()
        self._exhausted = False
        self._filling = True
        #: What the input, or a call that cannot be sent, raised: told after what came before.
        self._error: BaseException | None = None
        self._news = threading.Event()
        self._seconds: float | None = None
        self._measured = 0
        #: Calls that are submitted.
        self._sent = 0

    def results(self, deadline: float | None) -> Iterator[Any]:
        """Yield None once, then the results in order; ending early cancels what is left."""
        try:
            yield None
            while True:
                self.fill()
                if not self._under_way:
                    if self._error is not None:
                        raise self._error
                    return
                part = self._next(deadline)
                yield from part.values
                if part.error is not None:
                    raise part.error
        finally:
            self.stop()

    def fill(self) -> None:
        """Submit what there is room for, as far as the input is quick."""
        if len(self._under_way) <= self._window // 2:
            self._filling = True
        while self._filling and not self._over:
            room = self._window if self._fixed or self._settled else self._first
            if len(self._under_way) >= room:
                self._filling = room < self._window
                return
            began = time.monotonic()
            chunk = self._read()
            if chunk:
                self._send(chunk)
            if time.monotonic() - began > _INPUT_SECONDS and self._under_way:
                return  # it goes on while results are waited for

    def stop(self) -> None:
        """Cancel what is left."""
        self._exhausted = True
        self._held.clear()
        for future in self._under_way:
            future.cancel()
        self._under_way.clear()

    @property
    def _over(self) -> bool:
        return (self._exhausted and not self._held) or self._error is not None

    def _read(self) -> list[Arguments]:
        size = self._fixed or self._size()
        end = time.monotonic() + _INPUT_SECONDS
        chunk: list[Arguments] = []
        while len(chunk) < size:
            if self._held:
                chunk.append(self._held.popleft())
                continue
            if self._exhausted:
                break
            try:
                chunk.append(next(self._items))
            except StopIteration:
                self._exhausted = True
            except Exception as error:
                self._exhausted, self._error = True, error
            if time.monotonic() > end and not self._fixed:
                break
        return chunk

    @property
    def _wanted(self) -> int:
        """Return how many calls take as long as a chunk should."""
        if self._seconds is None:
            return _LARGEST
        return max(1, min(int(_TARGET_SECONDS / max(self._seconds, 1e-6)), _LARGEST))

    @property
    def _settled(self) -> bool:
        """Tell whether chunks are as large as they should be."""
        return self._wanted <= _GROWTH * self._measured

    def _size(self) -> int:
        return max(1, min(self._wanted, _GROWTH * self._measured))

    def _send(self, chunk: list[Arguments]) -> None:
        before = self._error  # the input's, which comes after this
        try:
            future = self._submit(chunk)
        except TooLarge as error:
            if len(chunk) == 1:
                self._error = TooLarge(f"item {self._sent} of the input (from 0): {error}")
                return
            middle = len(chunk) // 2
            self._error = None
            self._send(chunk[:middle])
            if self._error is None:
                self._error = before
                self._send(chunk[middle:])
            return
        except Exception as error:
            self._error = error
            return
        self._sent += len(chunk)
        self._under_way.append(future)
        future.add_done_callback(self._hear)

    def _hear(self, future: Any) -> None:
        """Learn from the end of a chunk how long calls take; called on another thread."""
        if not future.cancelled() and future.exception() is None:
            part: Part = future.result()
            count = len(part.values)
            if count and part.error is None:
                each = part.seconds / count
                known = self._seconds
                self._seconds = each if known is None else 0.7 * known + 0.3 * each
                self._measured = max(self._measured, count)
        self._news.set()

    def _next(self, deadline: float | None) -> Part:
        head = self._under_way[0]
        while not head.done():
            left = _SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise FutureTimeoutError("the results have not come in time")
            self._news.clear()
            if head.done():
                break
            head.keep_listening()
            self._news.wait(min(_SLICE_SECONDS, left))
            self.fill()
        self._under_way.popleft()
        part: Part = head.result()
        return part

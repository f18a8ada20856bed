"""`CallFuture`: one call of a function, as a future."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final, Protocol

from retire_cluster.sdk.functions.results import Reader
from retire_cluster.sdk.futures import TaskFailed, TaskFuture

#: Who waits looks this often whether somebody still listens.
_SLICE_SECONDS: Final = 1.0


class Sends(Protocol):
    """What a future needs of its sender (sender.py)."""

    def cancel(self, future: CallFuture) -> None:
        """Cancel the task of a cancelled call."""

    def listen(self) -> None:
        """Restart the threads that send calls and follow ends, if they have died."""


class CallFuture(Future[Any]):
    """A call under way; `result()` is what the function returned.

    `result()` raises what the function raised, as a `RemoteError` (where devices are trusted the
    exception itself), `TaskFailed` where it did not come to that: the time limit, a crash, no
    device that could. It works after its executor was shut down. In a forked child it asks by
    itself, once its task was submitted.
    """

    def __init__(
        self,
        sender: Sends,
        read: Callable[[Any], Any],
        fail: Callable[[TaskFailed], Any],
    ) -> None:
        super().__init__()
        #: The task, once it was submitted.
        self.task: TaskFuture | None = None
        self._sender = sender
        self._read = read
        self._fail = fail
        self._home = os.getpid()

    @classmethod
    def of_one(cls, sender: Sends, reader: Reader) -> CallFuture:
        """Make the future of one call."""

        def fail(failure: TaskFailed) -> Any:
            raise reader.error(failure)

        return cls(sender, reader.value, fail)

    @classmethod
    def of_many(cls, sender: Sends, reader: Reader, count: int) -> CallFuture:
        """Make the future of a task of so many calls; its result is a `Part`."""
        return cls(
            sender,
            lambda data: reader.part(data, count),
            lambda failure: reader.failed_part(failure, count),
        )

    def running(self) -> bool:
        """Tell whether a device is known to have begun the call."""
        return self.task is not None and self.task.begun and not self.done()

    def cancel(self) -> bool:
        """Cancel the call, on its device too; False when it has ended already.

        Its future is done at once; the device hears of it a moment later.
        """
        if os.getpid() != self._home:
            return False
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()
        self._sender.cancel(self)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and return the function's result. Raises `TimeoutError` after `timeout` seconds."""
        if os.getpid() != self._home:
            return self._foreign_result(timeout)
        self._wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return the error or None. Raises as `result` when cancelled or out of time."""
        if os.getpid() != self._home:
            try:
                self._foreign_result(timeout)
            except (CancelledError, FutureTimeoutError):
                raise
            except Exception as error:
                return error
            return None
        self._wait(timeout)
        return super().exception(0)

    def keep_listening(self) -> None:
        """Keep the end followed, for callers that wait without `result`."""
        self._sender.listen()

    def attach(self, task: TaskFuture) -> bool:
        """Take the task of this call; tell whether the call was cancelled meanwhile."""
        self.task = task
        task.add_done_callback(self._take_end)
        return self.cancelled()

    def _take_end(self, _: object) -> None:
        if self.done():
            return
        try:
            try:
                value = self._value()
            except CancelledError:
                super().cancel()
                self.set_running_or_notify_cancel()
            except BaseException as error:  # a value that cannot be read, for who asks for it
                self.set_exception(error)
            else:
                self.set_result(value)
        except InvalidStateError:  # cancelled at this very moment
            pass

    def _value(self, timeout: float | None = 0) -> Any:
        assert self.task is not None
        try:
            data = self.task.result(timeout)
        except TaskFailed as failure:
            return self._fail(failure)
        return self._read(data)

    def _foreign_result(self, timeout: float | None) -> Any:
        if self.task is None:
            raise RuntimeError(
                f"this call was made by process {self._home} and not submitted when it forked: ask"
                " there for its result, or call by an Executor of the child's own"
            )
        return self._value(timeout)

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.done():
            self._sender.listen()
            left = _SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            try:
                super().exception(max(0.0, min(_SLICE_SECONDS, left)))
            except CancelledError:
                return
            except FutureTimeoutError:
                if deadline is not None and time.monotonic() >= deadline and not self.done():
                    raise FutureTimeoutError("the call has not ended in time") from None

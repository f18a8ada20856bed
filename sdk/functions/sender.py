"""The thread that submits calls, many with one request, and cancels those that nobody wants.

The first of some calls waits a few milliseconds for those that follow at once. While more keep
coming it waits longer, so that a thousand calls are a few requests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import InvalidStateError
from typing import Any, Final, NamedTuple

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.vocabulary import TaskStatus
from retire_cluster.sdk.cluster import Cluster
from retire_cluster.sdk.functions.future import CallFuture
from retire_cluster.sdk.futures import data_of
from retire_cluster.sdk.pipeline import BATCH, BATCH_BYTES

TASK_TYPE: Final = "python_call"
#: No more calls for so long: what there is goes.
_QUIET_SECONDS: Final = 0.004
_LONGEST_QUIET_SECONDS: Final = 0.25
#: While calls keep coming, the first of them waits so long at most; doubled while they do.
_PATIENCE_SECONDS: Final = 0.25
_LONGEST_PATIENCE_SECONDS: Final = 2.0
#: Patience with a cancellation.
_CANCEL_SECONDS: Final = 5.0
#: Calls that wait so long are asked after, once, so that nobody waits for what cannot be.
_ASK_SECONDS: Final = 3.0
log = logging.getLogger("retire_cluster.sdk")


class _Item(NamedTuple):
    payload: Mapping[str, Any]
    size: int
    options: Mapping[str, Any]
    future: CallFuture


class Sender:
    """Submit the calls of one executor, and keep those that have not ended."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.closed = False
        self._start_anew()
        _SENDERS.add(self)

    def _start_anew(self) -> None:
        """Forget thread, locks and calls: a forked child has none of them."""
        self._changed = threading.Condition()
        self._items: deque[_Item] = deque()
        self._unwanted: list[str] = []
        self._busy = 0
        self._idle = False
        self._sending = False
        self._thread: threading.Thread | None = None
        self._asked = False
        self.pending: dict[CallFuture, float] = {}

    def add(
        self, payload: Mapping[str, Any], size: int, options: Mapping[str, Any], future: CallFuture
    ) -> None:
        """Submit a call soon."""
        with self._changed:
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self.pending[future] = time.monotonic()
            self._items.append(_Item(payload, size, options, future))
            self._wake()
        future.add_done_callback(self._forget)

    def cancel(self, future: CallFuture) -> None:
        """Cancel the task of a cancelled call, soon."""
        with self._changed:
            task = future.task
            if task is not None:
                self._unwanted.append(task.task_id)
                self._wake()

    def listen(self) -> None:
        """Restart the threads that send calls and follow ends, if they have died."""
        self._cluster.listen()
        with self._changed:
            if self._items or self._unwanted:
                self._wake()

    def flush(self, seconds: float) -> None:
        """Wait until all is sent, for at most `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._items or self._unwanted or self._sending:
                left = end - time.monotonic()
                if left <= 0 or self._thread is None or not self._thread.is_alive():
                    return
                self._changed.wait(min(left, 0.1))

    def close(self) -> None:
        """Take no more; what was taken is sent, and its end heard of."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self._let_go()

    def _let_go(self) -> None:
        if self.closed and not self.pending:
            self._cluster.close()
            with self._changed:
                self._changed.notify_all()

    def _forget(self, future: Any) -> None:
        self.pending.pop(future, None)
        self._let_go()

    def _wake(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="calls", daemon=True)
            self._thread.start()
        elif self._idle:
            self._changed.notify_all()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            self._gather()
            batch, unwanted = self._take()
            try:
                if batch:
                    self._submit(batch)
                if unwanted:
                    self._cancel(unwanted)
            except BaseException as error:
                log.exception("calls could not be sent")
                for item in batch:
                    _fail(item.future, error)
            finally:
                with self._changed:
                    self._sending = False
                    self._busy = self._busy + 1 if self._items else 0
                    self._changed.notify_all()

    def _wait(self) -> bool:
        """Until there is something to send; False when there will be nothing any more."""
        while True:
            with self._changed:
                if self._items or self._unwanted:
                    self._sending = True
                    return True
                if self.closed and not self.pending:
                    return False
                self._idle = True
                self._changed.wait(1.0 if self.pending else None)
                self._idle = False
            self._ask()

    def _gather(self) -> None:
        """Let those come along that follow at once."""
        quiet = min(_LONGEST_QUIET_SECONDS, _QUIET_SECONDS * 2**self._busy)
        patience = min(_LONGEST_PATIENCE_SECONDS, _PATIENCE_SECONDS * 2**self._busy)
        end = time.monotonic() + patience
        while len(self._items) < BATCH and time.monotonic() < end:
            before = len(self._items) + len(self._unwanted)
            time.sleep(quiet)
            if len(self._items) + len(self._unwanted) == before:
                return

    def _take(self) -> tuple[list[_Item], list[str]]:
        batch: list[_Item] = []
        size = 0
        with self._changed:
            while self._items and len(batch) < BATCH:
                item = self._items[0]
                if batch and size + item.size > BATCH_BYTES:
                    break
                self._items.popleft()
                if not item.future.done():  # cancelled meanwhile
                    batch.append(item)
                    size += item.size
            unwanted = self._unwanted[:BATCH]
            del self._unwanted[:BATCH]
        return batch, unwanted

    def _submit(self, batch: list[_Item]) -> None:
        tasks = [
            {"task_type": TASK_TYPE, "payload": item.payload, **item.options} for item in batch
        ]
        try:
            self._cluster.begin()
            found = self._cluster.submit_tasks(tasks, str(uuid.uuid4()))
        except (ClusterError, RuntimeError) as error:
            for item in batch:
                _fail(item.future, error)
            return
        for item, task in zip(batch, found, strict=True):
            if item.future.attach(task):
                self._unwanted.append(task.task_id)

    def _cancel(self, task_ids: list[str]) -> None:
        try:
            data_of(self._cluster.api.cancel_tasks(task_ids, retry_seconds=_CANCEL_SECONDS))
        except ClusterError as error:
            log.warning("%d calls that nobody waits for go on: %s", len(task_ids), error)

    def _ask(self) -> None:
        """Tell, once, why calls wait that no device may run."""
        if self._asked:
            return
        with self._changed:
            oldest = next(iter(self.pending.items()), None)
        if oldest is None:
            return
        future, since = oldest
        task = future.task
        if task is None or task.begun or time.monotonic() - since < _ASK_SECONDS:
            return
        self._asked = True
        try:
            data = data_of(self._cluster.api.get_task_status(task.task_id))
        except ClusterError:
            return
        reason = data.get("queued_reason") or {}
        if data.get("status") == TaskStatus.QUEUED and not reason.get("eligible_devices"):
            why = "; ".join(map(str, reason.get("rejected") or ["there is none"]))
            log.warning("calls wait, because no device may run them: %s", why)


def _fail(future: CallFuture, error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        future.set_exception(error)


#: All of this process: for a forked child to forget, and to be sent before the program ends.
_SENDERS: Final[weakref.WeakSet[Sender]] = weakref.WeakSet()
_LAST_SECONDS: Final = 5.0


def _forget_all() -> None:
    for sender in list(_SENDERS):
        sender._start_anew()


def flush_all() -> None:
    """Send what is left before the program ends."""
    for sender in list(_SENDERS):
        sender.flush(_LAST_SECONDS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

"""Complete the futures of tasks that end, on one thread.

It follows the events and fetches results, many with one request; both are long polls, which cost no
rate limit. Whatever goes wrong is logged and tried again: futures wait for this thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus
from retire_cluster.sdk.api import RetireClusterAPI
from retire_cluster.sdk.futures import TaskFuture, data_of

_POLL_SECONDS: Final = 25.0
#: Patience of a request for results of tasks that have ended: a long poll, though it seldom waits.
_RESULT_SECONDS: Final = 1.0
_AWAY_SECONDS: Final = 1.0
_LONGEST_AWAY_SECONDS: Final = 30.0
#: Refusals in a row (a key that was revoked) after which all futures fail.
_REFUSALS: Final = 3
_BATCH: Final = 500
#: Ends seen before their submission was answered, kept for when it is.
_EARLY_ENDS: Final = 20_000
_ENDED: Final = frozenset(f"task.{status.value}" for status in TERMINAL)
_BEGUN: Final = f"task.{TaskStatus.RUNNING.value}"
log = logging.getLogger("retire_cluster.sdk")


class TaskWatcher:
    """Complete the futures of one `Cluster`.

    After `close` it goes on for those futures that somebody still holds, and then ends.
    """

    def __init__(self, api: RetireClusterAPI) -> None:
        self._api = api
        self._closed = False
        self._start_anew()
        _WATCHERS.add(self)

    def _start_anew(self) -> None:
        """Forget thread, locks and futures: a forked child has none of them."""
        self._lock = threading.Lock()
        self._pending: MutableMapping[str, TaskFuture] = {}
        self._early: dict[str, None] = {}
        self._early_starts: dict[str, None] = {}
        self._cursor = 0
        self._refusals = 0
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        """Tell whether `close` was called."""
        return self._closed

    def begin(self) -> None:
        """Follow the events from now on, before the first task can end. Raises `ClusterError`."""
        with self._lock:
            if self._thread is None:
                self._cursor = int(data_of(self._api.get_events())["next"])
                self._start()
        self.listen()

    def listen(self) -> None:
        """Replace the thread if it has died."""
        thread = self._thread
        if thread is None or thread.is_alive():
            return
        with self._lock:
            if self._thread is thread:
                self._start()

    def register(self, task_ids: list[str]) -> list[TaskFuture]:
        """Make the futures of tasks that were submitted after `begin`."""
        futures = [TaskFuture(task_id, self._api, self.listen) for task_id in task_ids]
        with self._lock:
            self._pending.update(zip(task_ids, futures, strict=True))
            for future in futures:
                future.begun = future.task_id in self._early_starts
                self._early_starts.pop(future.task_id, None)
            ended = [task_id for task_id in task_ids if task_id in self._early]
        if ended:
            self._complete(ended)
        return futures

    def close(self) -> None:
        """Let go of futures that nobody else holds; the others are completed still."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._pending = weakref.WeakValueDictionary(self._pending)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="cluster-watcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failures = 0
        while not (self._closed and not self._pending):
            try:
                self._turn()
            except ClusterError as error:
                failures += 1
                self._note(error)
            except BaseException:
                # Also an exit that a callback asked for: others wait for this thread.
                failures += 1
                log.exception("results could not be followed; trying again")
            else:
                failures = 0
                continue
            time.sleep(min(_LONGEST_AWAY_SECONDS, _AWAY_SECONDS * 2 ** min(failures - 1, 6)))

    def _turn(self) -> None:
        asked_at = time.monotonic()
        data = data_of(self._api.get_events(self._cursor, wait_seconds=_POLL_SECONDS))
        ended = [event["task_id"] for event in data["events"] if event["type"] in _ENDED]
        self._note_begun([event["task_id"] for event in data["events"] if event["type"] == _BEGUN])
        if data.get("gap"):
            with self._lock:
                ended += list(self._pending)  # which of them have ended is found by asking
        self._complete(ended)
        # Only now: what could not be completed is heard of again.
        self._cursor = int(data["next"])
        self._refusals = 0
        if not data["events"]:
            # Too many wait at the facade: it answered at once.
            time.sleep(max(0.0, _AWAY_SECONDS - (time.monotonic() - asked_at)))

    def _note_begun(self, task_ids: list[str]) -> None:
        with self._lock:
            for task_id in task_ids:
                future = self._pending.get(task_id)
                if future is not None:
                    future.begun = True
                else:
                    self._early_starts[task_id] = None
            while len(self._early_starts) > _EARLY_ENDS:
                del self._early_starts[next(iter(self._early_starts))]

    def _note(self, error: ClusterError) -> None:
        log.debug("no events: %s", error)
        if not 400 <= error.status < 500 or error.status == 429:
            return
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            log.warning("results are not waited for any longer: %s", error)
            with self._lock:
                pending = list(self._pending)
            for task_id in pending:
                self._take(task_id, error)

    def _complete(self, ended: Iterable[str]) -> None:
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
        while task_ids:
            try:
                data = data_of(self._api.get_task_results(task_ids, wait_seconds=_RESULT_SECONDS))
            except ClusterError as error:
                if error.status >= 429 or error.status in (401, 403):
                    log.debug("no results: %s", error)
                    time.sleep(_AWAY_SECONDS)  # they have ended; the results will be there
                    if error.status < 429:
                        raise
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

    def _take(self, task_id: str, end: Mapping[str, Any] | ClusterError) -> None:
        with self._lock:
            future = self._pending.pop(task_id, None)
            self._early.pop(task_id, None)
        if future is None:
            return
        try:
            future.settle(end)
        except BaseException:  # a callback's; the others' ends are waited for as well
            log.exception("a callback of task %s failed", task_id)


#: All watchers of this process, for a forked child to start anew.
_WATCHERS: Final[weakref.WeakSet[TaskWatcher]] = weakref.WeakSet()


def _forget() -> None:
    for watcher in list(_WATCHERS):
        watcher._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

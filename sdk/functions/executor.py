"""`Executor`: Python functions on the devices, as `concurrent.futures` has it."""

from __future__ import annotations

import atexit
import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType, TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.vocabulary import API
from retire_cluster.sdk.cluster import Cluster
from retire_cluster.sdk.functions.calls import AUTO, Calls, Sent
from retire_cluster.sdk.functions.chunks import Chunks
from retire_cluster.sdk.functions.future import CallFuture
from retire_cluster.sdk.functions.results import Reader
from retire_cluster.sdk.functions.sender import TASK_TYPE, Sender, flush_all
from retire_cluster.sdk.futures import data_of

#: Chunks of a map under way: of a fixed size, and for each device where they are made to fit.
_WINDOW: Final = 1_000
_WINDOW_OF_A_DEVICE: Final = 32
_FIRST_OF_A_DEVICE: Final = 4
#: Slots are counted anew so often, and no more devices looked at.
_COUNT_SECONDS: Final = 60.0
_DEVICES_LOOKED_AT: Final = 20
T = TypeVar("T")


class Executor(concurrent.futures.Executor):
    """Call Python functions on the devices of a cluster; use it with `with`.

    A function goes by name where it is installed, as text where that is all there is to it, and
    otherwise as a pickle of cloudpickle, which devices with this Python's version take. The modules
    of the user's own project go along. Devices have to allow it: `--allow python_call`.

    :param url: of the REST interface, as `http://localhost:8081`
    :param api_key: one with the scope `submit:dangerous`
    :param requirements: what devices must have, as `{"min_memory_gb": 4}`
    :param priority: `low`, `normal`, `high` or `urgent`
    :param timeout_seconds: for one call, or one chunk of a map
    :param retries: how often a call that raised is tried again; one whose device was lost is anyway
    :param modules: installed modules, or their names, that go along too: devices lack them
    :param form: `reference`, `source` or `cloudpickle`; `auto`: the first that fits
    :param trust_devices: results and exceptions may be any objects. Their pickles are opened here:
        whoever controls a device can run code in this program
    :param window: chunks of a map that are submitted and whose results were not taken yet

    It may be shared between threads, and used in a forked child, where it has calls of its own.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        requirements: Mapping[str, Any] | None = None,
        priority: str | None = None,
        timeout_seconds: int | None = None,
        retries: int = 0,
        modules: Iterable[ModuleType | str] = (),
        form: str = AUTO,
        trust_devices: bool = False,
        window: int | None = None,
    ) -> None:
        if window is not None and window < 1:
            raise ValueError("window: must be at least 1")
        self._cluster = Cluster(_whole(url), api_key)
        self._sender = Sender(self._cluster)
        self._calls = Calls(form, modules, pickled=trust_devices, retry_errors=retries > 0)
        self._reader = Reader(trust=trust_devices)
        self._window = window
        self._requirements = dict(requirements or {})
        if timeout_seconds is not None:
            self._requirements["timeout_seconds"] = timeout_seconds
        if retries:
            self._requirements["max_retries"] = retries
        self._priority = {} if priority is None else {"priority": priority}
        self._counted: tuple[float, int] | None = None

    @property
    def cluster(self) -> Cluster:
        """Return the cluster, for tasks of other types."""
        return self._cluster

    def submit(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[T]:
        """Call a function on a device.

        Raises `CannotSend` for what cannot be sent, by name; `RuntimeError` after `shutdown`. What
        the cluster answers to the submission is raised by the future.
        """
        self._check_open()
        future = CallFuture.of_one(self._sender, self._reader)
        self._send(self._calls.one(fn, args, kwargs), future)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 0,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call a function with the items of these, several a task; the results in order.

        The input is read as results are taken, `buffersize` chunks ahead (the executor's `window`).
        Iterating raises what a call raised, after the results before it, and `TimeoutError` when
        `timeout` seconds from this call are over. Whatever ends it early, also `break` and Ctrl-C,
        cancels what is left.

        :param chunksize: calls of a task; 0: as many as take about a second
        """
        if chunksize < 0 or (buffersize is not None and buffersize < 1):
            raise ValueError("chunksize: must be 0 or more, and buffersize 1 or more")
        self._check_open()
        deadline = None if timeout is None else time.monotonic() + timeout
        devices = 0 if chunksize else self._devices()
        window = buffersize or self._window or (devices * _WINDOW_OF_A_DEVICE or _WINDOW)
        chunks = Chunks(
            lambda calls: self._submit_many(fn, calls),
            zip(*iterables, strict=False),
            chunksize=chunksize,
            window=window,
            first=devices * _FIRST_OF_A_DEVICE,
        )
        results = chunks.results(deadline)
        next(results)
        try:
            chunks.fill()
        except BaseException:
            results.close()  # type: ignore[attr-defined]
            raise
        return results

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; `wait` until those there are have ended, or cancel them.

        Without `wait` they go on, and their futures are completed still.
        """
        self._sender.closed = True
        if cancel_futures:
            for future in list(self._sender.pending):
                future.cancel()
        while wait and (pending := list(self._sender.pending)):
            self._sender.listen()
            concurrent.futures.wait(pending, 1.0)
        if wait or cancel_futures:
            self._sender.flush(_FLUSH_SECONDS)
        self._sender.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        # Whoever interrupts does not want to wait for what he interrupts.
        interrupted = error is not None and not isinstance(error, Exception)
        self.shutdown(wait=True, cancel_futures=interrupted)
        return None

    @property
    def _max_workers(self) -> int:
        """Return how many calls run at once, by the devices' slots; dask reads this."""
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] > _COUNT_SECONDS:
            self._counted = (now, self._slots())
        return self._counted[1]

    def _check_open(self) -> None:
        if self._sender.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _submit_many(self, fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> CallFuture:
        future = CallFuture.of_many(self._sender, self._reader, len(calls))
        self._send(self._calls.many(fn, calls), future)
        return future

    def _send(self, sent: Sent, future: CallFuture) -> None:
        requirements = self._requirements
        if sent.python:
            requirements = {"required_python": sent.python.lstrip("py"), **requirements}
        self._sender.add(
            sent.payload, sent.size, {"requirements": requirements, **self._priority}, future
        )

    def _devices(self) -> int:
        """Return about how many devices may run calls."""
        try:
            types = data_of(self._cluster.api.get_task_types())["by_type"]
            return max(1, int(types.get(TASK_TYPE, {}).get("devices", 1)))
        except ClusterError:
            return 1  # the submission says what is wrong

    def _slots(self) -> int:
        api = self._cluster.api
        listed = api.list_devices(status="online", page_size=100)
        slots, looked = 0, 0
        rows = data_of(listed)
        for row in rows[:_DEVICES_LOOKED_AT]:
            found = data_of(api.get_device(row["device_id"]))
            looked += 1
            if TASK_TYPE in found["task_types"]:
                slots += int(found["slots"])
        total = int((listed.get("pagination") or {}).get("total_items", len(rows)))
        return max(1, slots * max(total, 1) // max(looked, 1))


#: For cancellations to be sent when an executor is shut down.
_FLUSH_SECONDS: Final = 10.0


def _whole(url: str) -> str:
    """Return the interface's address, with its path where that is left out."""
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + API


atexit.register(flush_all)

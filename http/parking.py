"""Requests that wait: how many may at once, and until when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import falcon

from retire_cluster.api.drain import Drain

#: A parked request looks this often whether the server was told to stop.
SLICE_SECONDS = 1.0
_A_WAIT_SECONDS = 0.25


class Patience:
    """How much longer one request may wait."""

    def __init__(self, drain: Drain, monotonic: Callable[[], float], seconds: float) -> None:
        self._drain = drain
        self._monotonic = monotonic
        self._began = monotonic()
        self._deadline = self._began + seconds

    @property
    def used(self) -> bool:
        """Whether it has waited for long enough to be called a wait."""
        return self._monotonic() - self._began >= _A_WAIT_SECONDS

    def slice(self) -> float:
        """Seconds to wait next; 0 when the time is over or the server was told to stop."""
        if self._drain.begun:
            return 0.0
        return round(min(SLICE_SECONDS, max(0.0, self._deadline - self._monotonic())), 3)


class Parking:
    """Requests that wait hold at most a quarter of the server's threads.

    Further ones are answered at once, so that who waits can never starve the rest of the API.

    :param drain: tells when the server is to stop
    :param threads: of the server
    :param monotonic: clock in seconds
    """

    def __init__(
        self, drain: Drain, *, threads: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._drain = drain
        self._monotonic = monotonic
        self._places = threading.BoundedSemaphore(max(1, threads // 4))

    @contextmanager
    def park(self, req: falcon.Request, seconds: float) -> Iterator[Patience]:
        """Hold a place while this request waits; without one its patience is over at once."""
        # A server with one thread a process (gunicorn's default) cannot park anything.
        asked = seconds > 0 and bool(req.env.get("wsgi.multithread"))
        got = asked and self._places.acquire(blocking=False)
        try:
            yield Patience(self._drain, self._monotonic, seconds if got else 0.0)
        finally:
            if got:
                self._places.release()

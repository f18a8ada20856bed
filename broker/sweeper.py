"""Post ticks to the loop at intervals (APScheduler); the loop itself judges the deadlines.

Jobs only post a sweep's name over inproc, so no other thread ever touches the state, and a clock
that jumps or a machine that slept can at most delay a tick.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import zmq
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from retire_cluster.broker.core.sweeps import SWEEPS


class Sweeper:
    """Posts ticks to a broker's loop until stopped.

    :param context: the broker's; the ticks travel inside the process
    :param interval_seconds: the shortest sweep's period
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, interval_seconds: float
    ) -> None:
        self._socket: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 100)
        self._socket.connect(endpoint)
        # One executor thread posts every tick; the lock keeps `stop` from crossing it.
        self._lock = threading.Lock()
        self._closed = False
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        for name, sweep in SWEEPS.items():
            seconds: Any = sweep.every * interval_seconds
            self._scheduler.add_job(self._post, "interval", seconds=seconds, args=(name,), id=name)

    def start(self) -> None:
        """Begin to tick."""
        self._scheduler.start()

    def stop(self) -> None:
        """Stop the ticks: none comes after this returns."""
        self._scheduler.shutdown(wait=True)
        with self._lock:
            self._closed = True
            self._socket.close(0)

    def _post(self, name: str) -> None:
        with self._lock:
            if not self._closed:
                # A loop too busy to take it: the next tick does the same work.
                with contextlib.suppress(zmq.Again):
                    self._socket.send(name.encode(), zmq.NOBLOCK)

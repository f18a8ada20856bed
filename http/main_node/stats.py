"""Count the facade's requests and how long they took, and report that to the main node.

Totals go to the main node every two seconds (`facade.report`), which adds up all processes of a
facade; the histograms of `/metrics` are this process's own (docs/monitoring.md).
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram

from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.rest.endpoints import API

REPORT_INTERVAL_SECONDS = 2.0
_FAREWELL_SECONDS = 0.5
_KEYS_A_REPORT = 500
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Routes whose durations are the client's wish, and say nothing of the facade's speed.
_LONG_POLLS = frozenset({f"{API}/events"})
_log = logging.getLogger("api")


@dataclass
class _Totals:
    requests: int = 0
    errors: int = 0
    total_ms: float = 0.0


class HttpStats:
    """Count finished requests. Safe to use from all threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "retire_cluster_http_request_duration_seconds",
            "Time to answer HTTP requests, of this process",
            ["method", "route", "status"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._lock = threading.Lock()
        self._totals = _Totals()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. `route` is the path's template, never the path itself."""
        self._durations.labels(method, route, str(status)).observe(seconds)
        if route in _LONG_POLLS:
            return
        with self._lock:
            self._totals.requests += 1
            self._totals.errors += status >= 500
            self._totals.total_ms += seconds * 1000

    def take(self) -> _Totals:
        """Return the totals since the last call, and begin anew."""
        with self._lock:
            taken, self._totals = self._totals, _Totals()
            return taken

    def give_back(self, totals: _Totals) -> None:
        """Add totals that could not be reported."""
        with self._lock:
            self._totals.requests += totals.requests
            self._totals.errors += totals.errors
            self._totals.total_ms += totals.total_ms


class Reporter:
    """Report to the main node, on one thread a process, what this facade measured.

    Its calls also find out, without any request, that a silent main node is back. The first request
    of a process starts the thread: a server that forks after loading the
    application would otherwise leave its children without one.
    """

    def __init__(
        self,
        link: MainNodeLink,
        stats: HttpStats,
        *,
        interval_seconds: float = REPORT_INTERVAL_SECONDS,
        key_uses: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self._link = link
        self._key_uses = key_uses
        self._unreported: dict[str, int] = {}
        self._stats = stats
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def ensure_running(self) -> None:
        """Start the thread if this process has none yet, or none any more."""
        if self._is_running():
            return
        with self._lock:
            if not self._is_running() and not self._stop.is_set():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
                self._thread.start()

    def _is_running(self) -> bool:
        return self._pid == os.getpid() and self._thread is not None and self._thread.is_alive()

    def stop(self) -> bool:
        """Send a last report and end the thread; False when a silent main node still holds it."""
        self._stop.set()
        thread = self._thread if self._pid == os.getpid() else None
        if thread is not None:
            thread.join(timeout=_FAREWELL_SECONDS)
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        facade = str(uuid.uuid4())
        while not self._stop.wait(self._interval_seconds):
            self._report(facade)
        self._report(facade)

    def _report(self, facade: str) -> None:
        totals = self._stats.take()
        try:
            self._unreported.update(self._key_uses())
            uses = dict(list(self._unreported.items())[:_KEYS_A_REPORT])
            if uses:
                self._link.data("api_key.used", {"keys": uses})
                for key_id in uses:
                    del self._unreported[key_id]
            self._link.data(
                "facade.report",
                {
                    "facade": facade,
                    "requests": totals.requests,
                    "errors": totals.errors,
                    "total_ms": round(totals.total_ms, 3),
                },
            )
        except ClusterError as error:
            self._stats.give_back(totals)
            _log.debug("no report to the main node", extra={"reason": error.message})
        except Exception:
            # Whatever it is, the next report is tried: this thread also finds the main node back.
            self._stats.give_back(totals)
            _log.exception("no report to the main node; trying again")

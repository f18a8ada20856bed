"""Measured figures: completions, execution times, placement latency, slot use, HTTP reports."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from retire_cluster.schemas.vocabulary import TaskStatus

_MINUTE_MS = 60_000
#: Upper bounds, in seconds, of the execution time histogram.
DURATION_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0)
#: Seconds that HTTP figures look back.
HTTP_WINDOW_SECONDS = 300.0
_UTILIZATION_WINDOW_SECONDS = 300.0


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the value below which `share` (0 to 1) of all lie (nearest rank); None without any."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass
class Completions:
    """Tasks that ended in one minute."""

    minute: int
    count: int = 0


class Stats:
    """What has been measured since this broker started (completions: the last hour, kept).

    `age_ms` is the cluster's age (`records/clock.py`): a wall clock that is set moves no figure.
    """

    def __init__(self) -> None:
        self._minutes: deque[Completions] = deque(maxlen=61)
        #: Execution times of the newest 1,000 ended tasks, in seconds.
        self.durations: deque[float] = deque(maxlen=1_000)
        #: Seconds from queued to assigned of the newest 1,000 placements.
        self.waits: deque[float] = deque(maxlen=1_000)
        #: Completion times (ms) of the newest tasks, for tasks per second.
        self._recent: deque[tuple[int, int]] = deque()
        self.duration_buckets: Counter[int] = Counter()
        #: Tasks that ended in this process, by how. The ledger's counts fall with retention.
        self.ended_by_status: Counter[str] = Counter()
        self.duration_sum = 0.0
        self.duration_count = 0
        #: (mono, used units, all units) samples.
        self._slots: deque[tuple[float, int, int]] = deque()
        self.http = HttpReports()
        #: Things that went wrong on the wire, by kind.
        self.dropped: Counter[str] = Counter()
        #: Retries by cause.
        self.retries: Counter[str] = Counter()
        #: By cause: how often a device was passed over for a kind of task.
        self.passed_over: Counter[str] = Counter()

    def ended(self, status: TaskStatus, seconds: Sequence[float | None], age_ms: int) -> None:
        """Count tasks that ended alike; `seconds`: their execution times, where known."""
        self.ended_by_status[status.value] += len(seconds)
        self.recall(status, seconds, age_ms)
        if status is TaskStatus.CANCELLED:
            return
        for took in seconds:
            if took is not None:
                self.duration_sum += took
                self.duration_count += 1
                if took <= DURATION_BOUNDS[-1]:
                    self.duration_buckets[bisect_left(DURATION_BOUNDS, took)] += 1

    def recall(self, status: TaskStatus, seconds: Sequence[float | None], age_ms: int) -> None:
        """Add tasks to the figures that look back in time; counters are of this process only."""
        minute, count = age_ms // _MINUTE_MS, len(seconds)
        if not self._minutes or self._minutes[-1].minute < minute:
            self._minutes.append(Completions(minute))
        self._minutes[-1].count += count
        if self._recent and self._recent[-1][0] == age_ms:
            self._recent[-1] = (age_ms, self._recent[-1][1] + count)
        else:
            self._recent.append((age_ms, count))
            while self._recent[0][0] < age_ms - _MINUTE_MS:
                self._recent.popleft()
        if status is not TaskStatus.CANCELLED:
            self.durations.extend(took for took in seconds if took is not None)

    def placed(self, waited_seconds: Iterable[float]) -> None:
        """Record how long tasks waited for their device, in seconds."""
        self.waits.extend(waited_seconds)

    def sample_slots(self, now_mono: float, used: int, total: int) -> None:
        """Note how much of the online devices' slots is in use."""
        self._slots.append((now_mono, used, total))
        while self._slots[0][0] < now_mono - _UTILIZATION_WINDOW_SECONDS:
            self._slots.popleft()

    def tasks_per_hour(self, age_ms: int) -> int:
        """Return how many tasks ended in the last 60 minutes."""
        first = age_ms // _MINUTE_MS - 59
        return sum(entry.count for entry in self._minutes if entry.minute >= first)

    def tasks_per_second(self, age_ms: int) -> float:
        """Return how many tasks ended a second in the last minute."""
        since = age_ms - _MINUTE_MS
        return round(sum(count for at, count in self._recent if at >= since) / 60.0, 3)

    def slot_utilization(self) -> float:
        """Return the mean used share of the online slots over five minutes, in percent."""
        total = sum(sample[2] for sample in self._slots)
        return round(100.0 * sum(sample[1] for sample in self._slots) / total, 2) if total else 0.0

    def average_duration(self) -> float:
        """Return the mean execution time of the newest ended tasks, in seconds; else 0."""
        return round(sum(self.durations) / len(self.durations), 6) if self.durations else 0.0

    def p95_duration(self) -> float:
        """Return the 95th percentile of the same, in seconds; 0 before the first."""
        return round(percentile(self.durations, 0.95) or 0.0, 6)

    def dispatch_latency_ms(self) -> dict[str, float]:
        """Return queued to assigned in milliseconds, newest placements; zeros before the first."""
        shares: Sequence[tuple[str, float]] = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        waits = list(self.waits)
        return {name: round(1000 * (percentile(waits, share) or 0.0), 3) for name, share in shares}


@dataclass
class HttpReports:
    """What the facade's processes report of the requests they served."""

    #: (mono, requests, errors, total ms)
    _rows: deque[tuple[float, int, int, float]] = field(default_factory=deque)
    _first_mono: float | None = None
    requests: int = 0
    errors: int = 0

    def add(self, now_mono: float, requests: int, errors: int, total_ms: float) -> None:
        """Add a report: figures since that process's last one."""
        if self._first_mono is None:
            self._first_mono = now_mono
        self.requests += requests
        self.errors += errors
        if requests:
            self._rows.append((now_mono, requests, errors, total_ms))

    def figures(self, now_mono: float) -> tuple[float, float, float]:
        """Return `(average response ms, requests a second, error share)` of five minutes."""
        while self._rows and self._rows[0][0] < now_mono - HTTP_WINDOW_SECONDS:
            self._rows.popleft()
        requests = sum(row[1] for row in self._rows)
        if not requests or self._first_mono is None:
            return 0.0, 0.0, 0.0
        span = min(HTTP_WINDOW_SECONDS, max(1.0, now_mono - self._first_mono))
        errors = sum(row[2] for row in self._rows)
        average = sum(row[3] for row in self._rows) / requests
        return round(average, 3), round(requests / span, 3), round(errors / requests, 4)

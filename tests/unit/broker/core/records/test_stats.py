"""Measured figures."""

from __future__ import annotations

import pytest

from retire_cluster.broker.core.records.stats import DURATION_BOUNDS, HttpReports, Stats, percentile
from retire_cluster.schemas.vocabulary import TaskStatus
from tests.unit.broker.kit import WALL_MS

S, F, C = TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.95, 4), (1.0, 4)])
def test_percentiles_are_by_nearest_rank(share: float, value: float) -> None:
    assert percentile([4, 1, 3, 2], share) == value


def test_nothing_has_no_percentile_and_new_figures_are_zero() -> None:
    assert percentile([], 0.5) is None
    stats = Stats()
    assert stats.dispatch_latency_ms() == {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    assert stats.average_duration() == stats.p95_duration() == stats.slot_utilization() == 0.0
    assert stats.tasks_per_hour(WALL_MS) == stats.tasks_per_second(WALL_MS) == 0


def test_execution_times_are_counted_but_for_cancelled_and_unstarted_tasks() -> None:
    stats = Stats()
    for status, seconds in ((S, 0.5), (F, 1.5), (C, 99.0), (F, None)):
        stats.ended(status, (seconds,), WALL_MS)
    assert (stats.average_duration(), stats.p95_duration()) == (1.0, 1.5)
    assert (stats.duration_sum, stats.duration_count) == (2.0, 2)
    assert stats.tasks_per_hour(WALL_MS) == 4


def test_what_an_earlier_process_saw_fills_the_windows_but_not_the_counters() -> None:
    stats = Stats()
    stats.recall(S, (0.5,), WALL_MS)
    stats.ended(F, (1.5,), WALL_MS)
    assert stats.average_duration() == 1.0
    assert stats.tasks_per_hour(WALL_MS) == 2
    assert (stats.duration_sum, stats.duration_count) == (1.5, 1)
    assert stats.ended_by_status == {"failed": 1}


def test_the_histogram_puts_each_time_in_one_bucket_and_beyond_the_last_in_none() -> None:
    stats = Stats()
    for seconds in (0.0005, 0.001, 0.3, 3600.0, 9999.0):
        stats.ended(S, (seconds,), WALL_MS)
    found = {DURATION_BOUNDS[i]: count for i, count in stats.duration_buckets.items()}
    assert found == {0.001: 2, 0.5: 1, 3600.0: 1}
    assert stats.duration_count == 5


def test_completions_leave_the_minute_and_the_hour() -> None:
    stats = Stats()
    for minute in range(100):
        stats.ended(S, (None,), WALL_MS + minute * 60_000)
    now = WALL_MS + 99 * 60_000
    assert stats.tasks_per_hour(now) == 60
    assert stats.tasks_per_second(now) == round(2 / 60, 3)
    assert stats.tasks_per_second(now + 30_000) == round(1 / 60, 3)
    assert stats.tasks_per_hour(now + 7_200_000) == stats.tasks_per_second(now + 70_000) == 0
    assert len(stats._recent) <= 2


def test_many_completions_in_a_millisecond_are_one_entry() -> None:
    stats = Stats()
    for _ in range(600):
        stats.ended(S, (0.1,), WALL_MS)
    assert len(stats._recent) == 1
    assert stats.tasks_per_second(WALL_MS) == 10.0


def test_slot_use_is_the_mean_of_five_minutes() -> None:
    stats = Stats()
    for second in range(600):
        stats.sample_slots(float(second), 5 if second >= 300 else 0, 10)
    assert stats.slot_utilization() == pytest.approx(50.0, abs=0.2)
    stats.sample_slots(2_000.0, 0, 0)
    assert stats.slot_utilization() == 0.0


def test_placement_latency_is_in_milliseconds() -> None:
    stats = Stats()
    for number in range(100):
        stats.placed((number / 1000,))
    assert stats.dispatch_latency_ms() == {"p50": 49.0, "p95": 94.0, "p99": 98.0}


def test_http_figures_look_back_five_minutes() -> None:
    http = HttpReports()
    assert http.figures(0.0) == (0.0, 0.0, 0.0)
    http.add(0.0, 0, 0, 0.0)
    http.add(10.0, 100, 5, 400.0)
    assert http.figures(10.0) == (4.0, 10.0, 0.05)
    http.add(305.0, 60, 0, 60.0)
    assert http.figures(311.0) == (1.0, 0.2, 0.0)
    assert (http.requests, http.errors) == (160, 5)
    assert http.figures(1_000.0) == (0.0, 0.0, 0.0)


def test_the_first_second_is_not_divided_by_nothing() -> None:
    http = HttpReports()
    http.add(5.0, 3, 0, 3.0)
    assert http.figures(5.0) == (1.0, 3.0, 0.0)

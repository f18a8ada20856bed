"""The facade's background threads: whatever goes wrong in them, they go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from retire_cluster.api.main_node.feed import EventFeed, EventFilter, Listener
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.main_node.stats import HttpStats, Reporter
from retire_cluster.broker.client import RawAnswer


class OddCluster:
    """A main node with one event more at each poll, and faults before its answers."""

    timeout_seconds = 1.0

    def __init__(self, *faults: BaseException) -> None:
        self.faults = list(faults)
        self.calls: list[str] = []
        self.ids = 0

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> RawAnswer:
        self.calls.append(op)
        if self.faults:
            raise self.faults.pop(0)
        self.ids += 1
        event = {"id": self.ids, "type": "task.success"}
        return RawAnswer({"events": [event], "next": self.ids, "gap": False}, [])

    def close(self) -> None:
        return


class Sink:
    """Takes events, or fails."""

    pending_bytes = 0

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.texts: list[str] = []

    def end(self) -> None:
        self.ended = True

    def send(self, texts: Sequence[str]) -> None:
        if self.error is not None:
            raise self.error
        self.texts += texts


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended_thread() -> threading.Thread:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return thread


def test_the_feed_outlives_a_fault_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    feed = EventFeed(MainNodeLink(OddCluster(KeyError("next"))))
    sink = Sink()
    feed.add(Listener(sink, EventFilter(), 0))
    until(lambda: sink.texts)
    assert "events could not be handed on" in caplog.text
    assert feed.stop()


def test_a_listener_that_fails_takes_nothing_from_the_others() -> None:
    feed = EventFeed(MainNodeLink(OddCluster()))
    well = Sink()
    feed.add(Listener(Sink(RuntimeError("gone")), EventFilter(), 0))
    feed.add(Listener(well, EventFilter(), 0))
    until(lambda: len(well.texts) >= 3)
    assert feed.stop()


def test_a_feed_whose_thread_has_died_gets_another_with_the_next_listener() -> None:
    feed = EventFeed(MainNodeLink(OddCluster()))
    feed._thread = ended_thread()
    sink = Sink()
    feed.add(Listener(sink, EventFilter(), 0))
    until(lambda: sink.texts)
    assert feed.stop()


def test_the_reporter_outlives_a_fault_and_reports_what_it_could_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, stats = OddCluster(ZeroDivisionError()), HttpStats()
    reporter = Reporter(MainNodeLink(cluster), stats, interval_seconds=0.01)
    stats.observe("GET", "/x", 200, 0.1)
    reporter.ensure_running()
    until(lambda: cluster.calls.count("facade.report") >= 3)
    assert "no report to the main node; trying again" in caplog.text
    reporter._thread, dead = ended_thread(), reporter._thread
    reporter.ensure_running()
    assert reporter._thread is not None
    assert reporter._thread.is_alive()
    assert reporter.stop()
    assert dead is not None
    dead.join(10)

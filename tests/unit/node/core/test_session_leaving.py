"""A session that drains or stops."""

from __future__ import annotations

from retire_cluster.node.core import events, instructions
from retire_cluster.node.core.connection import Phase
from retire_cluster.node.core.pace import Pace
from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol import messages
from tests.unit.node.core.kit import Driver, key, only, sent, success


def test_a_drained_device_gives_new_work_back_and_resumes(ready: Driver) -> None:
    out = ready.receive(messages.Drain("s1", "maintenance"))
    (beat,) = sent(out, messages.Heartbeat)
    assert (beat.accepting, beat.not_accepting_reason) == (False, "maintenance")
    assert not only(ready.assign(1), instructions.Run)
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [(i.outcome, i.error_message) for i in finished.items] == [("released", "maintenance")]
    (beat,) = sent(ready.receive(messages.Resume("s1")), messages.Heartbeat)
    assert beat.accepting
    assert only(ready.assign(2), instructions.Run)


def test_an_idle_worker_stops_at_once_and_says_goodbye(ready: Driver) -> None:
    out = ready(events.StopAsked("SIGTERM"))
    assert sent(out, messages.Drain) == [messages.Drain("s1", "SIGTERM")]
    out = ready.tick()
    assert sent(out, messages.Goodbye) == [messages.Goodbye("s1", "SIGTERM")]
    assert out[-1] == instructions.Exit(0)


def test_a_stopping_worker_finishes_what_runs_and_gives_back_what_waits(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(events.Started([key(1)]))
    out = ready(events.StopAsked("SIGTERM"))
    assert only(out, instructions.Kill) == [instructions.Kill([key(2)], "released")]
    assert ready.phase() is Phase.DRAINING
    ready(events.Ended([Result(key(2), "released", 0, None, "before it started", b"", b"")]))
    ready.tick(3)
    ready(events.Ended([success(1)]))
    (finished,) = sent(ready.tick(), messages.Finished)
    assert not only(ready.tick(1), instructions.Exit)
    ready.receive(messages.FinishedAck("s1", finished.batch))
    assert ready.phase() is Phase.DRAINING
    last = sent(ready.all, messages.Finished)[0].batch
    ready.receive(messages.FinishedAck("s1", last))
    assert ready.tick()[-1] == instructions.Exit(0)


def test_work_that_outlasts_the_grace_is_given_back() -> None:
    driver = Driver(pace=Pace(grace_seconds=10)).join()
    driver.assign(1)
    driver(events.Started([key(1)]))
    driver(events.StopAsked("SIGTERM"))
    assert driver.session.next_due() is not None
    assert not only(driver.tick(9.9), instructions.Kill)
    assert only(driver.tick(0.2), instructions.Kill) == [instructions.Kill([key(1)], "released")]
    assert not only(driver.tick(1), instructions.Exit)
    driver(events.Ended([success(1)]))
    assert not only(driver.tick(1), instructions.Exit)
    out = driver.tick(3)
    assert "not acknowledged" in only(out, instructions.Log)[0].text
    assert out[-1] == instructions.Exit(0)


def test_a_worker_that_cannot_kill_its_tasks_goes_anyway(ready: Driver) -> None:
    ready.assign(1)
    ready(events.Started([key(1)]))
    ready(events.StopAsked("SIGTERM"))
    ready.tick(10)
    assert only(ready.tick(5), instructions.Exit) == [instructions.Exit(0)]


def test_a_second_signal_kills_at_once_and_exits_130(ready: Driver) -> None:
    ready.assign(1)
    ready(events.Started([key(1)]))
    ready(events.StopAsked("SIGINT"))
    out = ready(events.StopAsked("SIGINT"))
    assert only(out, instructions.Kill) == [instructions.Kill([key(1)], "released")]
    ready(events.Ended([Result(key(1), "released", 1, None, "stopped", b"", b"")]))
    ready.tick()
    assert ready.session.next_due() is not None
    assert only(ready.tick(1.0), instructions.Exit) == [instructions.Exit(130)]


def test_a_stopping_worker_without_connection_does_not_wait_for_one() -> None:
    driver = Driver()
    driver(events.Opened())
    driver(events.StopAsked("SIGTERM"))
    out = driver.tick()
    assert not sent(out, messages.Goodbye)
    assert out[-1] == instructions.Exit(0)


def test_a_stopping_worker_that_reconnects_says_it_is_draining(ready: Driver) -> None:
    ready.assign(1)
    ready(events.Started([key(1)]))
    ready(events.LinkDown("the connection broke"))
    ready(events.StopAsked("SIGTERM"))
    (hello,) = sent(ready(events.LinkUp()), messages.Hello)
    assert not hello.accepting
    assert sent(ready.welcome(keep=(key(1),)), messages.Drain)
    assert not only(ready.assign(2), instructions.Run)

"""A session's work: attempts, results, progress, cancelling."""

from __future__ import annotations

import json

import pytest

from retire_cluster.node.core import events, instructions
from retire_cluster.node.core.connection import Phase
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import AssignItem, HeartbeatConfig, ProgressItem
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES
from tests.unit.node.core.kit import Driver, key, only, sent, success


def test_assigned_attempts_are_run_and_told_when_they_start_and_end(ready: Driver) -> None:
    (run,) = only(ready.assign(1, 2), instructions.Run)
    assert [attempt.key for attempt in run.attempts] == [key(1), key(2)]
    ready(events.Started([key(1), key(99)]))
    assert [m.items for m in sent(ready.tick(), messages.Started)] == [(key(1),)]
    ready(events.Ended([success(1, b'{"a":1}')]))
    out = ready.tick()
    (finished,) = sent(out, messages.Finished)
    assert [item.key for item in finished.items] == [key(1)]
    (send,) = [i for i in only(out, instructions.Send) if i.message is finished]
    assert send.blobs == (b'{"a":1}', b"")
    assert key(1) in ready.session.outbox
    ready.receive(messages.FinishedAck("s1", finished.batch))
    assert key(1) not in ready.session.outbox
    assert list(ready.session.held) == [key(2)]


def test_many_results_of_one_turn_go_out_together(ready: Driver) -> None:
    ready.assign(*range(1, 501))
    ready(events.Started([key(1)]))
    ready(events.Ended([success(n) for n in range(1, 501)]))
    out = ready.tick()
    assert not sent(out, messages.Started)
    assert [len(m.items) for m in sent(out, messages.Finished)] == [500]


def test_large_results_are_split_over_messages(ready: Driver) -> None:
    ready.assign(*range(1, 11))
    big = b"x" * MAX_RESULT_BYTES
    ready(events.Ended([success(n, big) for n in range(1, 11)]))
    out = ready.tick()
    assert [len(m.items) for m in sent(out, messages.Finished)] == [3, 3, 3, 1]
    ready.assign(*range(1001, 3502))
    ready(events.Ended([success(n) for n in range(1001, 3502)]))
    assert [len(m.items) for m in sent(ready.tick(), messages.Finished)] == [1000, 1000, 501]


def test_an_attempt_said_twice_is_run_once(ready: Driver) -> None:
    ready.assign(1)
    assert not only(ready.assign(1), instructions.Run)
    ready(events.Ended([success(1)]))
    assert not only(ready.assign(1), instructions.Run)


def test_an_attempt_of_an_earlier_broker_process_is_not_run(ready: Driver) -> None:
    item = AssignItem(key(1, epoch=6), 0, "sleep", 60)
    assert ready.receive(messages.Assign.of("s1", (item,)), b"{}") == []


def test_results_are_sent_again_after_every_welcome_until_acknowledged(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(events.Ended([success(1), success(2)]))
    ready.tick()
    ready(events.LinkDown("the connection broke"))
    (hello,) = sent(ready(events.LinkUp()), messages.Hello)
    assert hello.unsent == (key(1), key(2))
    ready.welcome(keep=(key(1),), abandon=(key(2),))
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [item.key for item in finished.items] == [key(1)]
    ready.receive(messages.FinishedAck("s2", finished.batch))
    assert not ready.session.outbox


def test_results_that_end_while_offline_wait_for_the_welcome(ready: Driver) -> None:
    ready.assign(1)
    ready(events.LinkDown("the connection broke"))
    ready(events.Ended([success(1)]))
    assert not sent(ready.tick(), messages.Finished)
    ready(events.LinkUp())
    ready.welcome()
    assert sent(ready.tick(), messages.Finished)


def test_results_of_tasks_that_may_not_run_twice_are_stored_before_they_are_sent(
    ready: Driver,
) -> None:
    ready.assign(1, task_type="command")
    ready.assign(2)
    out = ready(events.Ended([success(1), success(2)]))
    assert only(out, instructions.StoreResults) == [instructions.StoreResults([success(1)])]
    (finished,) = sent(ready.tick(), messages.Finished)
    out = ready.receive(messages.FinishedAck("s1", finished.batch))
    assert out == [instructions.ForgetResults([key(1)])]


def test_results_stored_by_an_earlier_process_are_announced_and_sent() -> None:
    driver = Driver(stored=[success(1)])
    driver(events.Opened())
    (hello,) = sent(driver(events.LinkUp()), messages.Hello)
    assert hello.unsent == (key(1),)
    driver.welcome(abandon=(key(1),))
    assert instructions.ForgetResults([key(1)]) in driver.all
    assert not sent(driver.tick(), messages.Finished)


def test_progress_is_told_seldom_and_only_the_latest(ready: Driver) -> None:
    ready.assign(1)
    ready(events.Started([key(1)]))
    ready.tick()
    ready(events.Progressed([ProgressItem(key(1), 10, "a"), ProgressItem(key(9), 1, "x")]))
    (first,) = sent(ready.tick(), messages.Progress)
    assert [(item.percent, item.message) for item in first.items] == [(10, "a")]
    ready(events.Progressed([ProgressItem(key(1), 20, "b")]))
    ready(events.Progressed([ProgressItem(key(1), 30, "c")]))
    assert not sent(ready.tick(), messages.Progress)
    due = ready.session.next_due()
    assert due == pytest.approx(ready.now + 0.25)
    (second,) = sent(ready.tick(0.25), messages.Progress)
    assert [item.percent for item in second.items] == [30]


def test_cancel_kills_what_is_held_and_answers_for_what_never_was(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(events.Ended([success(2)]))
    out = ready.receive(messages.Cancel("s1", (key(1), key(2), key(3)), "timeout"))
    assert only(out, instructions.Kill) == [instructions.Kill([key(1)], "timeout")]
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [(item.key, item.outcome, item.cause) for item in finished.items] == [
        (key(2), "success", None),
        (key(3), "timeout", "timeout"),
    ]
    out = ready.receive(messages.Cancel("s1", (key(4),), "cancelled"))
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [(item.outcome, item.cause) for item in finished.items] == [("cancelled", None)]


def test_a_cancel_for_an_unknown_reason_is_no_timeout_and_is_logged(ready: Driver) -> None:
    ready.assign(1)
    out = ready.receive(messages.Cancel("s1", (key(1), key(2)), "a\nwhim"))
    assert only(out, instructions.Kill) == [instructions.Kill([key(1)], "cancelled")]
    words = "a task is cancelled for a reason unknown here: 'a\\nwhim'"
    assert only(out, instructions.Log) == [instructions.Log("warning", words)]
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [(item.outcome, item.cause) for item in finished.items] == [("cancelled", None)]


def test_an_abandoned_attempt_is_killed_and_never_spoken_of_again(ready: Driver) -> None:
    ready.assign(1)
    out = ready.receive(messages.Abandon("s1", (key(1), key(5))))
    assert only(out, instructions.Kill) == [instructions.Kill([key(1)], "abandoned")]
    ready(events.Ended([success(1)]))
    assert not sent(ready.tick(), messages.Finished)


def test_a_ping_is_answered_at_once(ready: Driver) -> None:
    assert sent(ready.receive(messages.Ping("s1", 77)), messages.Pong) == [messages.Pong("s1", 77)]


def test_a_new_configuration_is_acknowledged_applied_and_followed_by_a_heartbeat(
    ready: Driver,
) -> None:
    config = HeartbeatConfig(version=2, interval=1.0, timeout=4.0, max_missed=2)
    out = ready.receive(messages.Config("s1", config))
    assert sent(out, messages.ConfigAck) == [messages.ConfigAck("s1", 2)]
    assert [beat.config_version for beat in sent(out, messages.Heartbeat)] == [2]
    assert sent(ready.tick(1.0), messages.Heartbeat)
    assert only(ready.tick(1.0), instructions.Connect)


def test_a_long_list_of_held_attempts_is_left_out_of_heartbeats(ready: Driver) -> None:
    ready.assign(*range(1, 258))
    assert sent(ready.tick(5), messages.Heartbeat)[0].held is None


def test_heartbeats_tell_the_round_trip_and_the_last_error(ready: Driver) -> None:
    ready.now += 0.02
    ready.ack()
    ready.session.last_error = "disk full"
    (beat,) = sent(ready.tick(5), messages.Heartbeat)
    assert beat.rtt_ms == pytest.approx(20)
    assert beat.last_error == "disk full"
    assert ready.receive(messages.HeartbeatAck("s1", 999, 1)) == []


def test_a_result_message_survives_the_trip_over_the_wire(ready: Driver) -> None:
    ready.assign(1)
    ready(events.Ended([success(1)]))
    (finished,) = sent(ready.tick(), messages.Finished)
    verb, header = finished.write()
    again = messages.read_from_device(verb, json.loads(json.dumps(header)))
    assert again == finished


def test_other_own_types_are_told_by_registering_again_and_cost_no_attempt(ready: Driver) -> None:
    ready.assign(1)
    new = (messages.TypeInfo("resize", distribution="shop", distribution_version="2"),)
    (hello,) = sent(ready(events.OffersChanged(new, ("task type x: no",))), messages.Hello)
    assert (hello.task_types, hello.left_out) == (new, ("task type x: no",))
    assert hello.session != sent(ready.all, messages.Hello)[0].session
    assert [row.key for row in hello.held] == [key(1)]
    out = ready.welcome(keep=(key(1),))
    assert ready.phase() is Phase.READY
    assert not only(out, instructions.Kill)
    # Not joined yet: the next HELLO says it; while it goes, nobody is told.
    ready(events.LinkDown("gone"))
    assert not sent(ready(events.OffersChanged((), ())), messages.Hello)
    (hello,) = sent(ready(events.LinkUp()), messages.Hello)
    assert hello.task_types == ()
    ready.welcome(keep=(key(1),))
    ready(events.StopAsked("SIGTERM"))
    assert not sent(ready(events.OffersChanged(new, ())), messages.Hello)


def test_an_attempt_and_a_session_say_who_they_are_and_how_far(ready: Driver) -> None:
    ready.assign(1)
    attempt = ready.session.held[key(1)]
    assert repr(attempt) == f"<Attempt 1 of {attempt.task_id} (sleep) waits>"
    ready(events.Started([key(1)]))
    assert "runs since" in repr(attempt)
    assert repr(ready.session) == "<Session s1 of d1: ready, holds 1, owes 0>"

"""The device's half of the conversation, without sockets: events in, instructions out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from retire_cluster.node.core import records
from retire_cluster.node.core.records import Result
from retire_cluster.node.core.session import Pace, Phase, Session
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import (
    AssignItem,
    AttemptKey,
    HeartbeatConfig,
    TypeInfo,
)
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES, PROTOCOL

CONFIG = HeartbeatConfig(version=1, interval=5.0, timeout=30.0, max_missed=3)
ME = records.Introduction(
    device_id="d1",
    instance="i1",
    version="1",
    role="worker",
    platform="linux",
    hostname="h",
    tags=("linux",),
    slots=2,
    task_types=(TypeInfo("echo", instant=True),),
)


def key(number: int, epoch: int = 7) -> AttemptKey:
    return (number, 1, 10, epoch)


def success(number: int, data: bytes = b"{}") -> Result:
    return Result(key(number), "success", 0.1, None, None, data, b"")


class Driver:
    """A session, the time, and everything it ever wanted done."""

    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        numbers = count(1)
        self.session = Session(
            ME,
            now=self.now,
            random=lambda: 0.5,
            new_session=lambda: f"s{next(numbers)}",
            repeatable=lambda task_type, payload: task_type != "command",
            **options,
        )
        self.all: list[records.Instruction] = []

    def __call__(self, event: records.Event) -> list[records.Instruction]:
        out = self.session.handle(event, self.now)
        self.all += out
        return out

    def phase(self) -> Phase:
        return self.session.phase

    def receive(self, message: messages.FromBroker, *blobs: bytes) -> list[records.Instruction]:
        return self(records.Received(message, list(blobs)))

    def tick(self, seconds: float = 0.0) -> list[records.Instruction]:
        self.now += seconds
        return self(records.Tick())

    def welcome(
        self,
        keep: tuple[AttemptKey, ...] = (),
        abandon: tuple[AttemptKey, ...] = (),
        epoch: int = 7,
    ) -> list[records.Instruction]:
        session = self.session.session
        return self.receive(messages.Welcome(session, epoch, keep, abandon, CONFIG))

    def join(self) -> Driver:
        self(records.Opened())
        self(records.LinkUp())
        self.welcome()
        self.tick()
        return self

    def assign(self, *numbers: int, task_type: str = "sleep") -> list[records.Instruction]:
        items = tuple(AssignItem(key(n), n, task_type, 60) for n in numbers)
        return self.receive(
            messages.Assign.of(self.session.session, items), *(b"{}" for _ in items)
        )

    def ack(self) -> list[records.Instruction]:
        beat = sent(self.all, messages.Heartbeat)[-1].beat
        return self.receive(messages.HeartbeatAck(self.session.session, beat, 1))


def sent(out: list[records.Instruction], kind: type) -> list[Any]:
    return [i.message for i in out if isinstance(i, records.Send) and isinstance(i.message, kind)]


def only(out: list[records.Instruction], kind: type) -> list[Any]:
    return [i for i in out if isinstance(i, kind)]


@pytest.fixture
def ready() -> Iterator[Driver]:
    driver = Driver().join()
    yield driver
    due = driver.session.next_due()
    assert (due is None) == (driver.phase() is Phase.CLOSED)


# --- joining ----------------------------------------------------------------------------------


def test_it_dials_first_and_says_hello_only_once_the_link_is_up() -> None:
    driver = Driver()
    assert driver(records.Opened()) == [records.Connect()]
    assert driver.phase() is Phase.CONNECTING
    driver(records.Learned({"cpu_count": 4}))
    (hello,) = sent(driver(records.LinkUp()), messages.Hello)
    assert (hello.device_id, hello.session, hello.protocol) == ("d1", "s1", PROTOCOL)
    assert hello.capabilities == {"cpu_count": 4}
    assert hello.accepting
    assert driver.phase() is Phase.GREETING


def test_it_beats_at_once_when_welcomed_and_then_every_interval(ready: Driver) -> None:
    assert [beat.beat for beat in sent(ready.all, messages.Heartbeat)] == [1]
    assert ready.phase() is Phase.READY
    ready.ack()
    assert not sent(ready.tick(4.9), messages.Heartbeat)
    (beat,) = sent(ready.tick(0.2), messages.Heartbeat)
    assert (beat.beat, beat.config_version, beat.held) == (2, 1, ())


def test_a_second_welcome_of_the_same_session_changes_nothing(ready: Driver) -> None:
    assert ready.welcome() == []


def test_messages_of_another_session_are_ignored(ready: Driver) -> None:
    item = AssignItem(key(1), 0, "sleep", 60)
    assert ready.receive(messages.Assign.of("s0", (item,)), b"{}") == []
    assert ready.receive(messages.Reject("s0", "removed", "gone")) == []
    assert not ready.session.held


def test_messages_before_the_welcome_are_ignored() -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    assert driver.receive(messages.Ping("s1", 1)) == []


def test_it_dials_anew_with_growing_waits_when_nothing_answers() -> None:
    driver = Driver(pace=Pace(backoff_seconds=2, backoff_cap_seconds=10))
    driver(records.Opened())
    waits = []
    for _ in range(6):
        due = driver.session.next_due()
        assert due is not None
        waits.append(due - driver.now)
        assert only(driver.tick(due - driver.now), records.Connect)
    assert waits == [1.5, 3.0, 6.0, 7.5, 7.5, 7.5]


def test_one_outage_is_said_once_with_address_and_cure() -> None:
    driver = Driver(address="host:8082")
    driver(records.Opened())
    (said,) = only(driver(records.LinkDown("nothing answers there")), records.Say)
    assert "host:8082" in said.text
    assert "firewall" in said.text
    assert not only(driver(records.LinkDown("nothing answers there")), records.Say)
    assert not only(driver.tick(1000), records.Say)
    driver(records.LinkUp())
    driver.welcome()
    assert only(driver(records.LinkDown("the connection broke")), records.Say)


def test_a_hello_without_answer_leads_to_a_new_socket_but_a_late_welcome_counts() -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    driver.tick(5)
    assert driver.phase() is Phase.GREETING
    driver.welcome()
    assert driver.phase() is Phase.READY

    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    driver.tick(5)
    assert only(driver.tick(30), records.Connect)


def test_silence_of_the_main_node_rebuilds_the_socket(ready: Driver) -> None:
    ready.tick(14)
    assert ready.phase() is Phase.READY
    assert only(ready.tick(1.1), records.Connect)
    (hello,) = sent(ready(records.LinkUp()), messages.Hello)
    assert hello.session == "s2"


def test_any_message_breaks_the_silence(ready: Driver) -> None:
    ready.tick(14)
    ready.receive(messages.Ping("s1", 5))
    assert not only(ready.tick(14), records.Connect)


def test_a_lost_link_is_greeted_again_with_what_is_held(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(records.Started([key(1)]))
    ready.tick()
    ready(records.LinkDown("the connection broke"))
    assert ready.phase() is Phase.CONNECTING
    ready.now += 3
    (hello,) = sent(ready(records.LinkUp()), messages.Hello)
    assert [(row.key, row.started) for row in hello.held] == [(key(1), True), (key(2), False)]
    assert hello.held[0].elapsed_seconds == pytest.approx(3)


def test_a_link_that_comes_up_again_unseen_is_greeted_too(ready: Driver) -> None:
    assert sent(ready(records.LinkUp()), messages.Hello)


# --- refusals ---------------------------------------------------------------------------------


def test_register_is_answered_by_a_hello_at_once_and_old_news_of_it_is_ignored(
    ready: Driver,
) -> None:
    refusal = messages.Reject("s1", "register", "who are you")
    assert sent(ready.receive(refusal), messages.Hello)
    assert ready.receive(refusal) == []


def test_register_in_answer_to_a_hello_is_not_answered_in_a_loop() -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    assert driver.receive(messages.Reject("s1", "register", "")) == []
    assert sent(driver.tick(3.1), messages.Hello)


@pytest.mark.parametrize("code", ["duplicate", "max_connections", "something_new"])
def test_a_passing_refusal_is_tried_again_after_the_given_time(code: str) -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    (said,) = only(driver.receive(messages.Reject("s1", code, "why", 7.0)), records.Say)
    assert code in said.text
    assert not driver.tick(6.9)
    assert sent(driver.tick(0.5), messages.Hello)
    assert not only(driver.receive(messages.Reject("s2", code, "why")), records.Say)
    assert sent(driver.tick(5.3), messages.Hello)


def test_a_link_that_comes_up_while_refused_waits_for_its_time() -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    driver.receive(messages.Reject("s1", "duplicate", "", 20.0))
    driver(records.LinkDown("the connection broke"))
    assert not sent(driver(records.LinkUp()), messages.Hello)
    assert sent(driver.tick(22), messages.Hello)


def test_a_refused_worker_whose_link_is_gone_dials_anew() -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    driver.receive(messages.Reject("s1", "duplicate", "", 1.0))
    driver(records.LinkDown("the connection broke"))
    assert only(driver.tick(1.2), records.Connect)


def test_types_that_the_main_node_does_not_take_are_warned_of_once_in_clean_words() -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.LinkUp())
    reason = "task type x is left out: \ud800 " + "y" * 1_000
    welcome = messages.Welcome(driver.session.session, 7, (), (), CONFIG, (reason,))
    warned = [each for each in driver.receive(welcome) if getattr(each, "level", "") == "warning"]
    (told,) = warned
    assert isinstance(told, records.Say)
    assert told.text.startswith("the main node says: task type x is left out: \ufffd yyy")
    assert len(told.text) < 600
    driver.receive(messages.Reject(driver.session.session, "register", "who are you"))
    again = replace(welcome, session=driver.session.session)
    assert not [e for e in driver.receive(again) if getattr(e, "level", "") == "warning"]


@pytest.mark.parametrize(
    ("code", "exit_code"), [("removed", 4), ("protocol", 2), ("bad_hello", 2), ("wrong_port", 2)]
)
def test_a_final_refusal_ends_the_worker_and_its_tasks(code: str, exit_code: int) -> None:
    driver = Driver().join()
    driver.assign(1)
    session = "" if code == "wrong_port" else "s1"
    out = driver.receive(messages.Reject(session, code, "because"))
    assert only(out, records.Kill) == [records.Kill([key(1)], "abandoned")]
    assert only(out, records.Exit) == [records.Exit(exit_code)]
    assert "because" in only(out, records.Say)[0].text
    assert driver.phase() is Phase.CLOSED
    assert driver.tick(100) == []
    assert driver.session.next_due() is None


# --- work -------------------------------------------------------------------------------------


def test_assigned_attempts_are_run_and_told_when_they_start_and_end(ready: Driver) -> None:
    (run,) = only(ready.assign(1, 2), records.Run)
    assert [attempt.key for attempt in run.attempts] == [key(1), key(2)]
    ready(records.Started([key(1), key(99)]))
    assert [m.items for m in sent(ready.tick(), messages.Started)] == [(key(1),)]
    ready(records.Ended([success(1, b'{"a":1}')]))
    out = ready.tick()
    (finished,) = sent(out, messages.Finished)
    assert [item.key for item in finished.items] == [key(1)]
    (send,) = [i for i in only(out, records.Send) if i.message is finished]
    assert send.blobs == (b'{"a":1}', b"")
    assert key(1) in ready.session.outbox
    ready.receive(messages.FinishedAck("s1", finished.batch))
    assert key(1) not in ready.session.outbox
    assert list(ready.session.held) == [key(2)]


def test_many_results_of_one_turn_go_out_together(ready: Driver) -> None:
    ready.assign(*range(1, 501))
    ready(records.Started([key(1)]))
    ready(records.Ended([success(n) for n in range(1, 501)]))
    out = ready.tick()
    assert not sent(out, messages.Started)
    assert [len(m.items) for m in sent(out, messages.Finished)] == [500]


def test_large_results_are_split_over_messages(ready: Driver) -> None:
    ready.assign(*range(1, 11))
    big = b"x" * MAX_RESULT_BYTES
    ready(records.Ended([success(n, big) for n in range(1, 11)]))
    out = ready.tick()
    assert [len(m.items) for m in sent(out, messages.Finished)] == [3, 3, 3, 1]
    ready.assign(*range(1001, 3502))
    ready(records.Ended([success(n) for n in range(1001, 3502)]))
    assert [len(m.items) for m in sent(ready.tick(), messages.Finished)] == [1000, 1000, 501]


def test_an_attempt_said_twice_is_run_once(ready: Driver) -> None:
    ready.assign(1)
    assert not only(ready.assign(1), records.Run)
    ready(records.Ended([success(1)]))
    assert not only(ready.assign(1), records.Run)


def test_an_attempt_of_an_earlier_broker_process_is_not_run(ready: Driver) -> None:
    item = AssignItem(key(1, epoch=6), 0, "sleep", 60)
    assert ready.receive(messages.Assign.of("s1", (item,)), b"{}") == []


def test_results_are_sent_again_after_every_welcome_until_acknowledged(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(records.Ended([success(1), success(2)]))
    ready.tick()
    ready(records.LinkDown("the connection broke"))
    (hello,) = sent(ready(records.LinkUp()), messages.Hello)
    assert hello.unsent == (key(1), key(2))
    ready.welcome(keep=(key(1),), abandon=(key(2),))
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [item.key for item in finished.items] == [key(1)]
    ready.receive(messages.FinishedAck("s2", finished.batch))
    assert not ready.session.outbox


def test_results_that_end_while_offline_wait_for_the_welcome(ready: Driver) -> None:
    ready.assign(1)
    ready(records.LinkDown("the connection broke"))
    ready(records.Ended([success(1)]))
    assert not sent(ready.tick(), messages.Finished)
    ready(records.LinkUp())
    ready.welcome()
    assert sent(ready.tick(), messages.Finished)


def test_results_of_tasks_that_may_not_run_twice_are_stored_before_they_are_sent(
    ready: Driver,
) -> None:
    ready.assign(1, task_type="command")
    ready.assign(2)
    out = ready(records.Ended([success(1), success(2)]))
    assert only(out, records.Keep) == [records.Keep([success(1)])]
    (finished,) = sent(ready.tick(), messages.Finished)
    out = ready.receive(messages.FinishedAck("s1", finished.batch))
    assert out == [records.Forget([key(1)])]


def test_results_stored_by_an_earlier_process_are_announced_and_sent() -> None:
    driver = Driver(stored=[success(1)])
    driver(records.Opened())
    (hello,) = sent(driver(records.LinkUp()), messages.Hello)
    assert hello.unsent == (key(1),)
    driver.welcome(abandon=(key(1),))
    assert records.Forget([key(1)]) in driver.all
    assert not sent(driver.tick(), messages.Finished)


def test_progress_is_told_seldom_and_only_the_latest(ready: Driver) -> None:
    ready.assign(1)
    ready(records.Started([key(1)]))
    ready.tick()
    ready(records.Progressed([records.Told(key(1), 10, "a"), records.Told(key(9), 1, "x")]))
    (first,) = sent(ready.tick(), messages.Progress)
    assert [(item.percent, item.message) for item in first.items] == [(10, "a")]
    ready(records.Progressed([records.Told(key(1), 20, "b")]))
    ready(records.Progressed([records.Told(key(1), 30, "c")]))
    assert not sent(ready.tick(), messages.Progress)
    due = ready.session.next_due()
    assert due == pytest.approx(ready.now + 0.25)
    (second,) = sent(ready.tick(0.25), messages.Progress)
    assert [item.percent for item in second.items] == [30]


def test_cancel_kills_what_is_held_and_answers_for_what_never_was(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(records.Ended([success(2)]))
    out = ready.receive(messages.Cancel("s1", (key(1), key(2), key(3)), "timeout"))
    assert only(out, records.Kill) == [records.Kill([key(1)], "timeout")]
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [(item.key, item.outcome, item.cause) for item in finished.items] == [
        (key(2), "success", None),
        (key(3), "timeout", "timeout"),
    ]
    out = ready.receive(messages.Cancel("s1", (key(4),), "cancelled"))
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [(item.outcome, item.cause) for item in finished.items] == [("cancelled", None)]


def test_an_abandoned_attempt_is_killed_and_never_spoken_of_again(ready: Driver) -> None:
    ready.assign(1)
    out = ready.receive(messages.Abandon("s1", (key(1), key(5))))
    assert only(out, records.Kill) == [records.Kill([key(1)], "abandoned")]
    ready(records.Ended([success(1)]))
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
    assert only(ready.tick(1.0), records.Connect)


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


# --- the lease --------------------------------------------------------------------------------


def test_it_lets_go_before_the_lease_ends_counted_from_the_last_acknowledged_send() -> None:
    driver = Driver().join()
    assert driver.session.fence_at == pytest.approx(100 + 30 - 3)
    driver.tick(5)
    driver.now += 1
    driver.ack()
    assert driver.session.fence_at == pytest.approx(105 + 27)


def test_a_fenced_device_kills_only_what_may_not_run_twice(ready: Driver) -> None:
    ready.assign(1, task_type="command")
    ready.assign(2)
    ready(records.LinkDown("the connection broke"))
    assert not only(ready.tick(26), records.Kill)
    out = ready.tick(1.1)
    assert only(out, records.Kill) == [records.Kill([key(1)], "fenced")]
    assert not only(ready.tick(100), records.Kill)
    ready(records.LinkUp())
    ready.welcome()
    assert not ready.session.lease.fenced


def test_a_fenced_device_with_finish_kills_nothing() -> None:
    driver = Driver(kill_on_lease_loss=False).join()
    driver.assign(1, task_type="command")
    driver(records.LinkDown("the connection broke"))
    assert not only(driver.tick(60), records.Kill)


def test_an_acknowledged_heartbeat_ends_the_fence(ready: Driver) -> None:
    ready.assign(1)
    for _ in range(6):
        ready.tick(4.6)
        ready.receive(messages.Ping("s1", 1))
    assert ready.session.lease.fenced
    ready.ack()
    assert not ready.session.lease.fenced


def test_a_short_lease_keeps_half_a_second_of_margin() -> None:
    driver = Driver().join()
    config = HeartbeatConfig(version=2, interval=0.5, timeout=2.0, max_missed=2)
    driver.receive(messages.Config("s1", config))
    assert driver.session.fence_at == pytest.approx(100 + 1.5)


# --- draining ---------------------------------------------------------------------------------


def test_a_drained_device_gives_new_work_back_and_resumes(ready: Driver) -> None:
    out = ready.receive(messages.Drain("s1", "maintenance"))
    (beat,) = sent(out, messages.Heartbeat)
    assert (beat.accepting, beat.not_accepting_reason) == (False, "maintenance")
    assert not only(ready.assign(1), records.Run)
    (finished,) = sent(ready.tick(), messages.Finished)
    assert [(i.outcome, i.error_message) for i in finished.items] == [("released", "maintenance")]
    (beat,) = sent(ready.receive(messages.Resume("s1")), messages.Heartbeat)
    assert beat.accepting
    assert only(ready.assign(2), records.Run)


def test_an_idle_worker_stops_at_once_and_says_goodbye(ready: Driver) -> None:
    out = ready(records.Stop("SIGTERM"))
    assert sent(out, messages.Drain) == [messages.Drain("s1", "SIGTERM")]
    out = ready.tick()
    assert sent(out, messages.Goodbye) == [messages.Goodbye("s1", "SIGTERM")]
    assert out[-1] == records.Exit(0)


def test_a_stopping_worker_finishes_what_runs_and_gives_back_what_waits(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(records.Started([key(1)]))
    out = ready(records.Stop("SIGTERM"))
    assert only(out, records.Kill) == [records.Kill([key(2)], "released")]
    assert ready.phase() is Phase.DRAINING
    ready(records.Ended([Result(key(2), "released", 0, None, "before it started", b"", b"")]))
    ready.tick(3)
    ready(records.Ended([success(1)]))
    (finished,) = sent(ready.tick(), messages.Finished)
    assert not only(ready.tick(1), records.Exit)
    ready.receive(messages.FinishedAck("s1", finished.batch))
    assert ready.phase() is Phase.DRAINING
    last = sent(ready.all, messages.Finished)[0].batch
    ready.receive(messages.FinishedAck("s1", last))
    assert ready.tick()[-1] == records.Exit(0)


def test_work_that_outlasts_the_grace_is_given_back() -> None:
    driver = Driver(pace=Pace(grace_seconds=10)).join()
    driver.assign(1)
    driver(records.Started([key(1)]))
    driver(records.Stop("SIGTERM"))
    assert driver.session.next_due() is not None
    assert not only(driver.tick(9.9), records.Kill)
    assert only(driver.tick(0.2), records.Kill) == [records.Kill([key(1)], "released")]
    assert not only(driver.tick(1), records.Exit)
    driver(records.Ended([success(1)]))
    assert not only(driver.tick(1), records.Exit)
    out = driver.tick(3)
    assert "not acknowledged" in only(out, records.Say)[0].text
    assert out[-1] == records.Exit(0)


def test_a_worker_that_cannot_kill_its_tasks_goes_anyway(ready: Driver) -> None:
    ready.assign(1)
    ready(records.Started([key(1)]))
    ready(records.Stop("SIGTERM"))
    ready.tick(10)
    assert only(ready.tick(5), records.Exit) == [records.Exit(0)]


def test_a_second_signal_kills_at_once_and_exits_130(ready: Driver) -> None:
    ready.assign(1)
    ready(records.Started([key(1)]))
    ready(records.Stop("SIGINT"))
    out = ready(records.Stop("SIGINT"))
    assert only(out, records.Kill) == [records.Kill([key(1)], "released")]
    ready(records.Ended([Result(key(1), "released", 1, None, "stopped", b"", b"")]))
    ready.tick()
    assert ready.session.next_due() is not None
    assert only(ready.tick(1.0), records.Exit) == [records.Exit(130)]


def test_a_stopping_worker_without_connection_does_not_wait_for_one() -> None:
    driver = Driver()
    driver(records.Opened())
    driver(records.Stop("SIGTERM"))
    out = driver.tick()
    assert not sent(out, messages.Goodbye)
    assert out[-1] == records.Exit(0)


def test_a_stopping_worker_that_reconnects_says_it_is_draining(ready: Driver) -> None:
    ready.assign(1)
    ready(records.Started([key(1)]))
    ready(records.LinkDown("the connection broke"))
    ready(records.Stop("SIGTERM"))
    (hello,) = sent(ready(records.LinkUp()), messages.Hello)
    assert not hello.accepting
    assert sent(ready.welcome(keep=(key(1),)), messages.Drain)
    assert not only(ready.assign(2), records.Run)


def test_a_result_message_survives_the_trip_over_the_wire(ready: Driver) -> None:
    ready.assign(1)
    ready(records.Ended([success(1)]))
    (finished,) = sent(ready.tick(), messages.Finished)
    verb, header = finished.write()
    again = messages.read_from_device(verb, json.loads(json.dumps(header)))
    assert again == finished


def test_other_own_types_are_told_by_registering_again_and_cost_no_attempt(ready: Driver) -> None:
    ready.assign(1)
    new = (messages.TypeInfo("resize", distribution="shop", distribution_version="2"),)
    (hello,) = sent(ready(records.Offers(new, ("task type x: no",))), messages.Hello)
    assert (hello.task_types, hello.left_out) == (new, ("task type x: no",))
    assert hello.session != sent(ready.all, messages.Hello)[0].session
    assert [row.key for row in hello.held] == [key(1)]
    out = ready.welcome(keep=(key(1),))
    assert ready.phase() is Phase.READY
    assert not only(out, records.Kill)
    # Not joined yet: the next HELLO says it; while it goes, nobody is told.
    ready(records.LinkDown("gone"))
    assert not sent(ready(records.Offers((), ())), messages.Hello)
    (hello,) = sent(ready(records.LinkUp()), messages.Hello)
    assert hello.task_types == ()
    ready.welcome(keep=(key(1),))
    ready(records.Stop("SIGTERM"))
    assert not sent(ready(records.Offers(new, ())), messages.Hello)

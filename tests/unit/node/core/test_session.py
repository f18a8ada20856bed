"""A session: joining, refusals, the lease."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retire_cluster.node.core import events, instructions
from retire_cluster.node.core.connection import Phase
from retire_cluster.node.core.pace import Pace
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import AssignItem, HeartbeatConfig
from retire_cluster.schemas.protocol.wire import PROTOCOL
from tests.unit.node.core.kit import CONFIG, Driver, key, only, sent

# --- joining ----------------------------------------------------------------------------------


def test_it_dials_first_and_says_hello_only_once_the_link_is_up() -> None:
    driver = Driver()
    assert driver(events.Opened()) == [instructions.Connect()]
    assert driver.phase() is Phase.CONNECTING
    driver(events.CapabilitiesChanged({"cpu_count": 4}))
    (hello,) = sent(driver(events.LinkUp()), messages.Hello)
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
    driver(events.Opened())
    driver(events.LinkUp())
    assert driver.receive(messages.Ping("s1", 1)) == []


def test_it_dials_anew_with_growing_waits_when_nothing_answers() -> None:
    driver = Driver(pace=Pace(backoff_seconds=2, backoff_cap_seconds=10))
    driver(events.Opened())
    waits = []
    for _ in range(6):
        due = driver.session.next_due()
        assert due is not None
        waits.append(due - driver.now)
        assert only(driver.tick(due - driver.now), instructions.Connect)
    assert waits == [1.5, 3.0, 6.0, 7.5, 7.5, 7.5]


def test_one_outage_is_said_once_with_address_and_cure() -> None:
    driver = Driver(address="host:8082")
    driver(events.Opened())
    (said,) = only(driver(events.LinkDown("nothing answers there")), instructions.Log)
    assert "host:8082" in said.text
    assert "firewall" in said.text
    assert not only(driver(events.LinkDown("nothing answers there")), instructions.Log)
    assert not only(driver.tick(1000), instructions.Log)
    driver(events.LinkUp())
    driver.welcome()
    assert only(driver(events.LinkDown("the connection broke")), instructions.Log)


def test_a_hello_without_answer_leads_to_a_new_socket_but_a_late_welcome_counts() -> None:
    driver = Driver()
    driver(events.Opened())
    driver(events.LinkUp())
    driver.tick(5)
    assert driver.phase() is Phase.GREETING
    driver.welcome()
    assert driver.phase() is Phase.READY

    driver = Driver()
    driver(events.Opened())
    driver(events.LinkUp())
    driver.tick(5)
    assert only(driver.tick(30), instructions.Connect)


def test_silence_of_the_main_node_rebuilds_the_socket(ready: Driver) -> None:
    ready.tick(14)
    assert ready.phase() is Phase.READY
    assert only(ready.tick(1.1), instructions.Connect)
    (hello,) = sent(ready(events.LinkUp()), messages.Hello)
    assert hello.session == "s2"


def test_any_message_breaks_the_silence(ready: Driver) -> None:
    ready.tick(14)
    ready.receive(messages.Ping("s1", 5))
    assert not only(ready.tick(14), instructions.Connect)


def test_a_lost_link_is_greeted_again_with_what_is_held(ready: Driver) -> None:
    ready.assign(1, 2)
    ready(events.Started([key(1)]))
    ready.tick()
    ready(events.LinkDown("the connection broke"))
    assert ready.phase() is Phase.CONNECTING
    ready.now += 3
    (hello,) = sent(ready(events.LinkUp()), messages.Hello)
    assert [(row.key, row.started) for row in hello.held] == [(key(1), True), (key(2), False)]
    assert hello.held[0].elapsed_seconds == pytest.approx(3)


def test_a_link_that_comes_up_again_unseen_is_greeted_too(ready: Driver) -> None:
    assert sent(ready(events.LinkUp()), messages.Hello)


# --- refusals ---------------------------------------------------------------------------------


def test_register_is_answered_by_a_hello_at_once_and_old_news_of_it_is_ignored(
    ready: Driver,
) -> None:
    refusal = messages.Reject("s1", "register", "who are you")
    assert sent(ready.receive(refusal), messages.Hello)
    assert ready.receive(refusal) == []


def test_register_in_answer_to_a_hello_is_not_answered_in_a_loop() -> None:
    driver = Driver()
    driver(events.Opened())
    driver(events.LinkUp())
    assert driver.receive(messages.Reject("s1", "register", "")) == []
    assert sent(driver.tick(3.1), messages.Hello)


@pytest.mark.parametrize("code", ["duplicate", "max_connections", "something_new"])
def test_a_passing_refusal_is_tried_again_after_the_given_time(code: str) -> None:
    driver = Driver()
    driver(events.Opened())
    driver(events.LinkUp())
    (said,) = only(driver.receive(messages.Reject("s1", code, "why", 7.0)), instructions.Log)
    assert code in said.text
    assert not driver.tick(6.9)
    assert sent(driver.tick(0.5), messages.Hello)
    assert not only(driver.receive(messages.Reject("s2", code, "why")), instructions.Log)
    assert sent(driver.tick(5.3), messages.Hello)


def test_a_link_that_comes_up_while_refused_waits_for_its_time() -> None:
    driver = Driver()
    driver(events.Opened())
    driver(events.LinkUp())
    driver.receive(messages.Reject("s1", "duplicate", "", 20.0))
    driver(events.LinkDown("the connection broke"))
    assert not sent(driver(events.LinkUp()), messages.Hello)
    assert sent(driver.tick(22), messages.Hello)


def test_a_refused_worker_whose_link_is_gone_dials_anew() -> None:
    driver = Driver()
    driver(events.Opened())
    driver(events.LinkUp())
    driver.receive(messages.Reject("s1", "duplicate", "", 1.0))
    driver(events.LinkDown("the connection broke"))
    assert only(driver.tick(1.2), instructions.Connect)


def test_types_that_the_main_node_does_not_take_are_warned_of_once_in_clean_words() -> None:
    driver = Driver()
    driver(events.Opened())
    driver(events.LinkUp())
    reason = "task type x is left out: \ud800 " + "y" * 1_000
    welcome = messages.Welcome(driver.session.session, 7, (), (), CONFIG, (reason,))
    warned = [each for each in driver.receive(welcome) if getattr(each, "level", "") == "warning"]
    (told,) = warned
    assert isinstance(told, instructions.Log)
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
    assert only(out, instructions.Kill) == [instructions.Kill([key(1)], "abandoned")]
    assert only(out, instructions.Exit) == [instructions.Exit(exit_code)]
    assert "because" in only(out, instructions.Log)[0].text
    assert driver.phase() is Phase.CLOSED
    assert driver.tick(100) == []
    assert driver.session.next_due() is None


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
    ready(events.LinkDown("the connection broke"))
    assert not only(ready.tick(26), instructions.Kill)
    out = ready.tick(1.1)
    assert only(out, instructions.Kill) == [instructions.Kill([key(1)], "fenced")]
    assert not only(ready.tick(100), instructions.Kill)
    ready(events.LinkUp())
    ready.welcome()
    assert not ready.session.lease.fenced


def test_a_fenced_device_with_finish_kills_nothing() -> None:
    driver = Driver(kill_on_lease_loss=False).join()
    driver.assign(1, task_type="command")
    driver(events.LinkDown("the connection broke"))
    assert not only(driver.tick(60), instructions.Kill)


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

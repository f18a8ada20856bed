"""What a device can do by saying much: budgets, events at a pace, audit events that stay."""

from __future__ import annotations

import sys

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices import event_throttle
from retire_cluster.broker.core.devices.access import Token
from retire_cluster.broker.core.records import audit
from retire_cluster.broker.core.records import event_log as feed
from retire_cluster.broker.core.records.event_log import EventLog
from retire_cluster.broker.net.budgets import LIMITS, Budgets
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from tests.unit.broker.kit import Cluster, settings_with


def test_progress_without_end_is_a_few_events_and_the_newest_is_told(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.start()
    for number in range(5_000):
        item = msg.ProgressItem(key, number % 100, "x" * 1_000)
        member.say(msg.Progress(member.session, (item,)))
    assert len(cluster.events("task.progress")) == 100
    member.say(msg.Progress(member.session, (msg.ProgressItem(key, 77.0, "the last"),)))
    cluster.pass_time(1.0)
    cluster.tick("upkeep")
    told = cluster.events("task.progress")
    assert told[-1][1]["message"] == "the last"
    assert len(told[0][1]["message"]) == event_throttle.MAX_MESSAGE
    assert len(told) == 101


def test_progress_of_a_task_that_is_over_is_told_no_more(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.start()
    for number in range(200):
        member.say(msg.Progress(member.session, (msg.ProgressItem(key, number / 2, ""),)))
    member.finish()
    cluster.pass_time(1.0)
    cluster.tick("upkeep")
    assert len(cluster.events("task.progress")) == 100
    assert not cluster.state.withheld_progress


def test_a_device_that_changes_its_mind_all_the_time_is_told_at_a_pace(cluster: Cluster) -> None:
    member = cluster.device()
    for number in range(1_000):
        member.beat(accepting=bool(number % 2), not_accepting_reason="r" * 400)
    assert len(cluster.events("device.changed")) == 100
    member.beat(accepting=False, not_accepting_reason="the last")
    cluster.pass_time(1.0)
    cluster.tick("upkeep")
    assert cluster.events("device.changed")[-1][1] == {"accepting": False, "reason": "the last"}


def test_nothing_that_a_device_does_pushes_out_what_an_administrator_did() -> None:
    small = Cluster(settings_with(retention={"event_rows": 100}))
    small.do(ev.TokenMade(Token("guests", "k" * 40, 0, 3_600_000, 1)))
    small.device("gone")
    small.call("device.remove", {"device_id": "gone"})
    small.call("device.readmit", {"device_id": "gone"})
    member = small.device("flooder")
    for _ in range(300):
        small.give(member=member)
        member.finish()
    kinds = [kind for kind, _ in small.events()]
    acts = [kind for kind in kinds if kind in audit.ACTS]
    assert acts == ["token.created", "device.removed", "device.readmitted"]
    assert len(kinds) == 103
    data = small.call("events.poll", {"since": 0, "type": "device.removed"}).data
    assert [event["device_id"] for event in data["events"]] == ["gone"]
    (first, *_) = small.call("events.poll", {"since": 0, "limit": 2}).data["events"]
    assert first["type"] == "token.created"


def test_denials_are_told_once_a_minute_with_how_many_there_were(cluster: Cluster) -> None:
    member = cluster.device()
    access = cluster.state.access
    access.enrol("box", "k" * 40, 0)
    access.enrol("other", "o" * 40, 0)
    beat = msg.Heartbeat(member.session, 1)
    for _ in range(500):
        cluster.do(ev.FromDevice(member.routing, beat, "192.0.2.1", "o" * 40))
    (told,) = cluster.events("device.impersonated")
    assert told[1]["times"] == 1
    cluster.pass_time(61.0)
    cluster.do(ev.FromDevice(member.routing, beat, "192.0.2.1", "o" * 40))
    assert cluster.events("device.impersonated")[-1][1]["times"] == 500
    assert cluster.state.stats.dropped["wrong_key"] == 501


def test_sources_of_denials_are_bounded() -> None:
    denials = audit.Denials()
    for number in range(5_000):
        assert denials.times("device.refused", str(number), 0.0) == 1
    assert len(denials._known) == 1_000


def test_texts_of_devices_have_a_bound_of_bytes_too() -> None:
    log = EventLog(1 << 40, 100_000, text_bytes=1_000_000)
    for number in range(5_000):
        data = {"cause": "error", "message": "\U0001f600" * 1_000 + str(number)}
        log.add_burst("task.pending", number, [number], [0], "box", data)
    kept = list(log.after(0))
    assert sum(sys.getsizeof(entry.data["message"]) for entry in kept) <= 1_000_000
    assert len(kept) > 200
    assert kept[-1].task == 4_999
    assert log.gap(kept[0].id - 2)
    assert not log.gap(kept[0].id - 1)
    assert log._text == sum(feed._text(entry.data) for entry in log._kept)


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(LIMITS))
def test_a_kind_of_message_has_a_budget_that_fills_again(verb: bytes) -> None:
    some, limit = Budgets(), LIMITS[verb]
    read = sum(some.allows("key", verb, 100, 5.0) for _ in range(20_000))
    assert limit.burst * 0.95 <= read <= limit.burst + 1
    assert some.allows("another key", verb, 100, 5.0)
    assert some.allows("key", verb, 100, 5.0 + 2 / limit.per_second)
    dropped = some.take_over()
    assert dropped == {"key": {verb.decode(): 20_000 - read}}
    assert some.take_over() == {}


def test_large_messages_cost_more() -> None:
    some = Budgets()
    read = sum(some.allows("key", b"HEARTBEAT", 1_600_000, 5.0) for _ in range(100))
    assert read == 3


def test_who_tells_of_attempts_that_it_does_not_have_is_not_heard_for_a_while() -> None:
    some = Budgets()
    assert some.allows("key", b"FINISHED", 1_000_000, 5.0)
    some.blame("key", 70_000, 5.0)
    assert not some.allows("key", b"FINISHED", 10, 5.0)
    assert some.allows("key", b"HEARTBEAT", 10, 5.0)
    assert some.allows("another", b"FINISHED", 10, 5.0)
    assert not some.allows("key", b"FINISHED", 10, 8.0)
    assert some.allows("key", b"FINISHED", 10, 9.1)


def test_results_of_a_device_that_works_have_no_budget() -> None:
    some = Budgets()
    assert all(some.allows("key", b"FINISHED", 1_000_000, 5.0) for _ in range(10_000))
    assert not some._left


def test_what_is_no_message_has_a_small_budget_of_all_names() -> None:
    some = Budgets()
    read = sum(some.allows("key", b"V%d" % number, 10, 5.0) for number in range(1_000))
    assert read <= 51
    assert some.take_over() == {"key": {"unknown": 1_000 - read}}


def test_what_is_remembered_of_connections_is_bounded() -> None:
    some = Budgets()
    for number in range(50_000):
        some.allows(b"%d" % number, b"HELLO", 10, 5.0)
    assert len(some._left) == 20_000


@pytest.mark.parametrize("fold", [False, True])
def test_the_verb_is_known_before_a_message_is_read(fold: bool) -> None:
    frames = wire.encode(wire.BUS, b"HELLO", {"a": 1}, [b"x"])
    assert wire.verb_of(wire.fold(frames) if fold else frames) == b"HELLO"


@pytest.mark.parametrize("frames", [[], [b""], [b"RCW1"], [b"RCW1\xff"], [b"RCW1\x02\x01"]])
def test_what_has_no_verb_has_an_empty_one(frames: list[bytes]) -> None:
    assert wire.verb_of(frames) == b""

"""Hand-over of attempts, liveness, draining, removing, ping, configuration."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.admin import views
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.model import Task
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import HeartbeatConfig, Held
from retire_cluster.schemas.vocabulary import TaskStatus
from tests.unit.broker.kit import (
    WALL_MS,
    Cluster,
    MakeCluster,
    challenge,
    only,
    rejected,
    sent,
    settings_with,
)

TICKET = (b"client", 1)
CONFIG = HeartbeatConfig(1, 5, 30, 3)


# --- hand-over of attempts -----------------------------------------------------------------------


def test_what_a_device_still_has_is_kept_and_the_rest_settled(cluster: Cluster) -> None:
    member, _ = cluster.give(4)
    held, unsent, gone, running = member.keys
    member.start(running)
    cluster.pass_time(3)
    stale = (held[0], 7, 7, 7)
    found = member.join(
        held=(Held(held, True, 2.0), Held(running, True, 3.0), Held(stale, False, 0.0)),
        unsent=(unsent, (99, 1, 1, 1)),
    )
    welcome = next(message for message in sent(found) if isinstance(message, msg.Welcome))
    assert set(welcome.keep) == {held, unsent, running}
    assert set(welcome.abandon) == {stale, (99, 1, 1, 1)}
    assert cluster.status(held[0]) == "running"
    assert cluster.task(held[0]).started_ms == cluster.wall_ms - 2_000
    assert cluster.status(unsent[0]) == "assigned"
    # Lost before it had started: free of charge, queued again at once.
    assert cluster.status(gone[0]) == "queued"
    assert cluster.task(gone[0]).retries == 0
    member.finish(unsent)
    assert cluster.status(unsent[0]) == "success"


def test_held_attempts_of_a_heartbeat_confirm_what_the_broker_thinks(cluster: Cluster) -> None:
    member, key = cluster.give()
    cluster.pass_time(5)
    found = member.beat(held=[Held(key, True, 2.0)])
    assert sent(found) == [msg.HeartbeatAck(member.session, 1, 1)]
    assert cluster.status(key[0]) == "running"
    assert cluster.task(key[0]).started_mono == cluster.mono - 2.0


def test_what_a_device_should_not_have_it_is_told_to_abandon(cluster: Cluster) -> None:
    member, key = cluster.give()
    strange = [(key[0], 2, key[2], key[3]), (50, 1, 1, 1)]
    found = member.beat(held=[Held(key, False, 0.0), *(Held(k, True, 1.0) for k in strange)])
    assert sent(found)[1:] == [msg.Abandon(member.session, tuple(strange))]


def test_what_a_device_does_not_have_is_lost_after_the_lease_only(cluster: Cluster) -> None:
    member, key = cluster.give()
    for _ in range(6):
        cluster.pass_time(5)
        member.beat(held=[])
    assert cluster.status(key[0]) == "assigned"
    cluster.pass_time(1)
    member.beat(held=None)
    assert cluster.status(key[0]) == "assigned"
    member.beat(held=[])
    assert cluster.status(key[0]) == "queued"


# --- heartbeats and liveness ---------------------------------------------------------------------


def test_a_heartbeat_is_acknowledged_and_its_news_taken_over(cluster: Cluster) -> None:
    member = cluster.device()
    cluster.pass_time(2)
    metrics = {
        "cpu_percent": 12.5, "power_plugged": True, "battery_percent": None, "load_average": [1],
        "temperature_c": {"a": 1}, "at_ms": "x", "mine": 5,
    }  # fmt: skip
    found = member.beat(metrics=metrics, rtt_ms=3.5, last_error="disk is slow")
    assert found == [ins.Send(member.routing, msg.HeartbeatAck(member.session, 1, 1))]
    record = member.record
    assert record.metrics == {"cpu_percent": 12.5, "power_plugged": True}
    assert list(record.metrics_history) == [{"at_ms": WALL_MS + 2_000, **record.metrics}]
    assert (record.rtt_ms, record.last_error, record.total_heartbeats) == (3.5, "disk is slow", 1)
    assert record.last_heartbeat_ms == WALL_MS + 2_000
    member.beat()
    assert (record.rtt_ms, record.last_error) == (3.5, "disk is slow")
    assert len(record.metrics_history) == 1


def test_the_last_sixty_metrics_are_kept(cluster: Cluster) -> None:
    member = cluster.device()
    for number in range(70):
        member.beat(metrics={"cpu_percent": number})
    kept = [entry["cpu_percent"] for entry in member.record.metrics_history]
    assert kept == list(range(10, 70))


@pytest.mark.parametrize(
    "make",
    [
        lambda s: msg.Heartbeat(s, 1),
        lambda s: msg.Started(s, ()),
        lambda s: msg.Progress(s, ()),
        lambda s: msg.ConfigAck(s, 1),
        lambda s: msg.Pong(s, 1),
        lambda s: msg.Drain(s),
        lambda s: msg.Goodbye(s),
    ],
)
def test_every_message_outside_a_session_is_answered_register(cluster: Cluster, make: Any) -> None:
    stranger = cluster.stranger()
    message = rejected(stranger.say(make("whatever")))
    assert (message.code, message.session) == ("register", "whatever")


def test_a_device_is_offline_after_the_missed_heartbeats_and_loses_its_work_after_the_lease(
    cluster: Cluster,
) -> None:
    member, key = cluster.give()
    cluster.live_on(15)
    assert member.record.online
    cluster.live_on(1)
    assert not member.record.online
    assert cluster.status(key[0]) == "assigned"
    cluster.live_on(14)
    assert cluster.status(key[0]) == "assigned"
    cluster.live_on(1)
    assert cluster.status(key[0]) == "queued"
    assert [name for name, _ in cluster.events("device")] == ["device.online", "device.offline"]


def test_any_message_shows_that_a_device_lives(cluster: Cluster) -> None:
    member, key = cluster.give()
    cluster.live_on(14)
    member.start()
    cluster.live_on(14)
    member.say(msg.Progress(member.session, ()))
    cluster.live_on(14)
    member.say(msg.Pong(member.session, 5))
    cluster.live_on(14)
    member.finish(key)
    cluster.live_on(14)
    assert member.record.online


def test_a_device_heard_again_in_its_session_is_online_and_keeps_its_work(
    cluster: Cluster,
) -> None:
    member, key = cluster.give()
    cluster.live_on(20)
    assert cluster.place() == []
    found = member.beat(held=[Held(key, True, 20.0)])
    assert sent(found) == [msg.HeartbeatAck(member.session, 1, 1)]
    assert member.record.online
    assert cluster.status(key[0]) == "running"
    member.finish()
    cluster.submit()
    assert cluster.place() != []


def test_a_device_back_after_its_lease_is_told_to_abandon(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.start()
    cluster.live_on(31)
    found = member.beat(held=[Held(key, True, 31.0)])
    assert msg.Abandon(member.session, (key,)) in sent(found)


def test_a_broker_that_slept_blames_nobody(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.start()
    cluster.tick("liveness")
    cluster.pass_time(3_600)
    cluster.tick("liveness")
    assert member.record.online
    assert cluster.status(key[0]) == "running"
    cluster.live_on(16)
    assert not member.record.online


def test_long_sweep_intervals_do_not_look_like_sleep(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(scheduler={"sweep_interval_seconds": 30.0}))
    member = cluster.device()
    for _ in range(2):
        cluster.tick("liveness")
        cluster.pass_time(30)
    cluster.tick("liveness")
    assert not member.record.online


# --- draining and leaving ------------------------------------------------------------------------


def test_a_device_that_drains_finishes_what_it_has(cluster: Cluster) -> None:
    member, key = cluster.give(member=cluster.device(slots=2))
    member.say(msg.Drain(member.session, "on battery"))
    assert cluster.events("device")[-1] == (
        "device.changed",
        {"accepting": False, "reason": "on battery"},
    )
    cluster.submit()
    assert cluster.place() == []
    member.finish(key)
    member.beat(accepting=True)
    assert cluster.events("device")[-1][1]["accepting"] is True
    assert len(cluster.place()) == 2


def test_a_drain_without_a_reason_has_one(cluster: Cluster) -> None:
    member = cluster.device()
    member.say(msg.Drain(member.session))
    assert member.record.not_accepting_reason == "draining"


def test_an_administrators_drain_holds_across_sessions_until_it_is_resumed(
    cluster: Cluster,
) -> None:
    member = cluster.device()
    found = cluster.do(ev.DrainRequested("box", True))
    assert sent(found) == [msg.Drain(member.session, "drained by the administrator")]
    assert only(ins.StoreDevices, found) != []
    found = member.join()
    assert sent(found)[1:] == [msg.Drain(member.session, "drained by the administrator")]
    cluster.submit()
    assert cluster.place() == []
    member.beat(accepting=False)
    assert sent(cluster.do(ev.DrainRequested("box", False))) == [msg.Resume(member.session)]
    assert cluster.place() != []


def test_a_device_that_did_not_hear_of_the_resume_is_told_again(cluster: Cluster) -> None:
    member = cluster.device()
    cluster.do(ev.DrainRequested("box", True))
    cluster.do(ev.DrainRequested("box", False))
    reason = "drained by the administrator"
    found = member.beat(accepting=False, not_accepting_reason=reason)
    assert msg.Resume(member.session) in sent(found)
    assert msg.Resume(member.session) not in sent(member.beat(accepting=True))


def test_an_offline_device_can_be_drained(cluster: Cluster) -> None:
    member = cluster.device()
    member.say(msg.Goodbye(member.session))
    assert sent(cluster.do(ev.DrainRequested("box", True))) == []
    cluster.restart()
    assert cluster.state.devices["box"].drained


def test_goodbye_gives_up_everything_free_of_charge(cluster: Cluster) -> None:
    member, _ = cluster.give(2, max_retries=0)
    first, second = member.keys
    member.start(first)
    member.say(msg.Goodbye(member.session, "shutting down"))
    assert not member.record.online
    for key in (first, second):
        assert cluster.status(key[0]) == "queued"
        assert cluster.task(key[0]).killers == frozenset()
        assert cluster.store.attempts(key[0])[0].error_message == "shutting down"
    assert rejected(member.beat()).code == "register"
    assert cluster.events("device")[-1][0] == "device.offline"


# --- removing ------------------------------------------------------------------------------------


def test_a_removed_device_is_told_its_work_queued_again_and_its_id_barred(
    cluster: Cluster,
) -> None:
    member, key = cluster.give(max_retries=0)
    member.start()
    found = cluster.do(ev.DeviceRemoved("box"))
    assert rejected(found).code == "removed"
    assert (cluster.status(key[0]), cluster.task(key[0]).killers) == ("queued", frozenset())
    assert cluster.state.devices == {}
    assert only(ins.StoreDevices, found)[0].rows[0].removed_ms == WALL_MS
    assert cluster.events("device")[-1] == ("device.removed", {})
    # It keeps talking: refused, per message too.
    assert rejected(member.beat()).code == "register"
    message = rejected(member.join())
    assert message.code == "removed"
    assert "retire-cluster devices readmit box" in message.message
    cluster.restart()
    assert rejected(member.join()).code == "removed"


def test_a_readmitted_device_registers_as_a_new_one(cluster: Cluster) -> None:
    member = cluster.device()
    member.beat()
    cluster.do(ev.DeviceRemoved("box"))
    cluster.pass_time(60)
    forgotten, told = cluster.do(ev.DeviceReadmitted("box"))
    assert forgotten == ins.ForgetDevices(("box",))
    assert isinstance(told, ins.StoreAudit)
    assert isinstance(sent(member.join())[0], msg.Welcome)
    assert member.record.registered_ms == WALL_MS + 60_000
    assert member.record.total_heartbeats == 0
    cluster.do(ev.DeviceRemoved("box"))
    cluster.do(ev.DeviceReadmitted("box"))
    cluster.restart()
    assert cluster.state.tombstones == {}


def test_an_offline_device_and_one_with_a_challenger_can_be_removed(cluster: Cluster) -> None:
    _, new, _ = challenge(cluster)
    cluster.live_on(0.5)
    cluster.do(ev.DeviceRemoved("box"))
    cluster.pass_time(2)
    assert cluster.tick("deadlines") == []
    gone = cluster.device("gone")
    gone.say(msg.Goodbye(gone.session))
    assert sent(cluster.do(ev.DeviceRemoved("gone"))) == []
    assert rejected(new.join()).code == "removed"


# --- ping ----------------------------------------------------------------------------------------


def test_a_ping_is_a_round_trip(cluster: Cluster) -> None:
    member = cluster.device()
    (asked,) = sent(cluster.do(ev.PingRequested(TICKET, "box", 2.0)))
    cluster.pass_time(0.0125)
    (answer,) = member.say(msg.Pong(member.session, asked.nonce))
    assert isinstance(answer, ins.PingOver)
    assert answer.ticket == TICKET
    assert views.ping(answer) == {
        "device_id": "box",
        "ping_successful": True,
        "response_time_ms": 12.5,
        "ping_timestamp": "2023-11-14T22:13:20Z",
        "duration_ms": 12.5,
    }
    assert member.say(msg.Pong(member.session, asked.nonce)) == []


def test_a_ping_without_an_answer_ends_with_its_time(cluster: Cluster) -> None:
    cluster.device()
    other = cluster.device("other")
    (asked,) = sent(cluster.do(ev.PingRequested(TICKET, "box", 2.0)))
    assert other.say(msg.Pong(other.session, asked.nonce)) == []
    assert cluster.state.next_deadline() == cluster.mono + 2
    cluster.pass_time(2.0)
    (answer,) = cluster.tick("deadlines")
    assert isinstance(answer, ins.PingOver)
    assert views.ping(answer)["ping_successful"] is False
    assert views.ping(answer)["response_time_ms"] is None
    assert views.ping(answer)["duration_ms"] == 2000.0


def test_an_offline_device_is_not_pinged(cluster: Cluster) -> None:
    member = cluster.device()
    member.say(msg.Goodbye(member.session))
    (answer,) = cluster.do(ev.PingRequested(TICKET, "box", 2.0))
    assert isinstance(answer, ins.PingOver)
    assert views.ping(answer)["ping_successful"] is False


# --- configuration -------------------------------------------------------------------------------


def reconfigure(cluster: Cluster, **fields: Any) -> list[ins.Instruction]:
    args = {"section": "heartbeat", "values": fields}
    cluster.call("config.update", args)
    return cluster.admin.turn


def test_a_new_configuration_is_stored_pushed_and_holds_from_each_devices_acknowledgement(
    cluster: Cluster,
) -> None:
    member, other = cluster.device(), cluster.device("other")
    found = reconfigure(cluster, interval=60, timeout=300)
    config = HeartbeatConfig(2, 60, 300, 3)
    assert sent(found) == [msg.Config(m.session, config) for m in (member, other)]
    assert only(ins.StoreConfig, found)[0].version == 2
    assert member.record.config == CONFIG
    member.say(msg.ConfigAck(member.session, 1))
    assert member.record.config == CONFIG
    member.say(msg.ConfigAck(member.session, 2))
    cluster.live_on(16)
    assert member.record.online
    assert not other.record.online


def test_a_device_with_an_old_configuration_is_told_again_at_each_heartbeat(
    cluster: Cluster,
) -> None:
    member = cluster.device()
    reconfigure(cluster, interval=4)
    found = member.beat(config_version=1)
    assert [type(message) for message in sent(found)] == [msg.HeartbeatAck, msg.Config]
    assert len(sent(member.beat(config_version=2))) == 1


def test_a_device_that_comes_later_gets_the_configuration_with_its_welcome(
    cluster: Cluster,
) -> None:
    reconfigure(cluster, interval=4)
    member = cluster.stranger()
    (welcome,) = sent(member.join())
    assert welcome.config == HeartbeatConfig(2, 4, 30, 3)
    assert member.record.config.interval == 4


def test_how_many_events_are_kept_can_be_changed(cluster: Cluster) -> None:
    cluster.submit(150)
    args = {"section": "retention", "values": {"event_rows": 100}}
    cluster.call("config.update", args)
    assert len(cluster.events()) == 100


# --- the record of a device ----------------------------------------------------------------------


def test_load_and_room_are_counted_in_units(cluster: Cluster) -> None:
    member = cluster.device(slots=2)
    record = member.record
    assert (record.load, record.free_units) == (0.0, 1024)
    cluster.submit(1)
    cluster.submit(256, task_type="echo")
    cluster.place()
    assert (record.used_units, record.load) == (768, 0.75)
    spec = next(iter(record.attempts.values())).spec
    record.release((Task(999, spec, 0, None, TaskStatus.ASSIGNED, 0.0),))
    assert record.used_units == 768


def test_uptime_counts_from_what_the_node_said(cluster: Cluster) -> None:
    member = cluster.device(uptime_seconds=100.0)
    cluster.pass_time(20)
    assert member.record.uptime_seconds(cluster.mono) == 120.0
    member.say(msg.Goodbye(member.session))
    assert member.record.uptime_seconds(cluster.mono) == 0.0

"""Devices come, beat, change, drain, go and are removed."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.admin import views
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.devices.membership import (
    MAX_CAPABILITIES_BYTES,
    MAX_CAPABILITIES_DEPTH,
)
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import HeartbeatConfig, Held, TypeInfo
from retire_cluster.schemas.protocol.wire import PROTOCOL
from retire_cluster.schemas.rest.endpoints import API, ENDPOINTS
from retire_cluster.schemas.text.jsontext import dumps, loads
from retire_cluster.schemas.vocabulary import RESERVED_DEVICE_IDS, TaskStatus
from tests.unit.broker.kit import WALL_MS, Cluster, MakeCluster, only, sent, settings_with, wrong

TICKET = (b"client", 1)
CONFIG = HeartbeatConfig(1, 5, 30, 3)


def rejected(found: list[ins.Instruction]) -> msg.Reject:
    (message,) = sent(found)
    assert isinstance(message, msg.Reject)
    return message


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth > 1 else {}


# --- HELLO ---------------------------------------------------------------------------------------


def test_a_hello_is_welcomed_and_the_device_stored(cluster: Cluster) -> None:
    member = cluster.stranger()
    found = member.join(tags=("b", "a"))
    welcome = msg.Welcome(member.session, cluster.state.epoch, (), (), CONFIG)
    assert found[0] == ins.Send(member.routing, welcome)
    (stored,) = only(ins.StoreDevices, found)
    (row,) = stored.rows
    assert (row.device_id, row.registered_ms, row.removed_ms) == ("box", WALL_MS, None)
    assert b'"tags":["a","b"]' in row.document
    assert cluster.events() == [("device.online", {})]
    assert member.record.ip_address == "192.0.2.7"
    assert cluster.state.online_count == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device_id", ""),
        ("device_id", "-begins-with-a-dash"),
        ("device_id", "a/b"),
        ("device_id", "x" * 101),
        ("device_id", "line\n"),
        ("device_id", "summary"),
        ("platform", "beos"),
        ("role", "boss"),
        ("tags", ("fine", "not fine")),
        ("tags", ("",)),
        ("capabilities", nested(MAX_CAPABILITIES_DEPTH + 1)),
        ("capabilities", nested(900)),
        ("capabilities", {"note": "x" * MAX_CAPABILITIES_BYTES}),
    ],
)
def test_a_hello_with_a_bad_field_is_refused_naming_it(
    cluster: Cluster, field: str, value: Any
) -> None:
    message = rejected(cluster.stranger().join(**{field: value}))
    assert message.code == "bad_hello"
    assert message.message.startswith(field + ":")
    assert cluster.state.devices == {}
    assert cluster.state.stats.dropped["rejected_bad_hello"] == 1


def test_no_device_may_have_the_name_of_a_resource_beside_it(cluster: Cluster) -> None:
    beside = f"{API}/devices/"
    paths = [row.path for row in ENDPOINTS.values() if row.path.startswith(beside)]
    names = {path[len(beside) :].partition("/")[0] for path in paths}
    assert {name for name in names if not name.startswith("{")} == RESERVED_DEVICE_IDS
    args = {"device_id": "summary", "public_key": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"}
    assert wrong(cluster, "device.authorise", args).field == "device_id"


def _cycle() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["x"] = schema
    return schema


@pytest.mark.parametrize(
    "bad",
    [
        TypeInfo("Echo"),
        TypeInfo("mine", instant=True),
        TypeInfo("x", "", {"a": {"coerce": "int"}}),
        TypeInfo("x", "", {"a": {"type": "strng"}}),
        TypeInfo("x", "", {"a": {"type": 5}}),
        TypeInfo("x", "", {"type": "object", "properties": {"a": {"type": "string"}}}),
        TypeInfo("x", "", {"a": {"regex": "("}}),
        TypeInfo("x", "", nested(200)),
        TypeInfo("x", "", {5: {"type": "string"}}),  # type: ignore[dict-item]
        TypeInfo("x", "", {f"f{n}": {} for n in range(5_000)}),
        TypeInfo("x", "", _cycle()),
    ],
)
def test_a_type_that_cannot_be_taken_is_left_out_and_its_device_welcomed(
    cluster: Cluster, bad: TypeInfo
) -> None:
    member = cluster.stranger()
    found = member.join(task_types=(TypeInfo("fine"), bad, TypeInfo("also.fine")))
    welcome = sent(found)[0]
    assert isinstance(welcome, msg.Welcome)
    device = cluster.state.devices[member.device_id]
    assert set(device.types) == {"fine", "also.fine"}
    # The device is told, and its page shows it.
    assert f"{bad.name} is left out" in welcome.left_out[0].replace("'", "")
    assert device.left_out == welcome.left_out


def test_the_packages_of_own_types_are_shown_and_outlive_a_restart(cluster: Cluster) -> None:
    member = cluster.stranger()
    member.join(
        task_types=(TypeInfo("echo"), TypeInfo("mine", "", None, False, False, {}, "p", "2"))
    )
    shown = [{"name": "mine", "distribution": "p", "version": "2"}]
    assert views.device_detail(cluster.state, member.record, cluster.now)["own_task_types"] == shown
    kept = Device.restored(member.record.row(), member.record.config, 0.0)
    assert views.device_detail(cluster.state, kept, cluster.now)["own_task_types"] == shown


def test_what_a_device_leaves_out_itself_is_shown_and_bounded(cluster: Cluster) -> None:
    member = cluster.stranger()
    bad = TypeInfo("x", "", {"a": {"type": "strng"}})
    own = tuple(f"task type t{n} (m:f): " + "y" * 1_000 for n in range(msg.MAX_LEFT_OUT))
    member.join(task_types=(bad,), left_out=own)
    view = views.device_detail(cluster.state, member.record, cluster.now)
    shown = view["task_types_left_out"]
    assert shown[0].startswith("task type x is left out")
    assert shown[1].startswith("task type t0 (m:f): yyy")
    assert max(map(len, shown)) <= 500
    assert shown[-1] == "and 2 more"
    assert len(shown) == msg.MAX_LEFT_OUT


def test_a_type_that_cannot_be_read_keeps_no_hello_from_being_read() -> None:
    hello = msg.Hello(
        PROTOCOL, "d", "i", "s", "1", "worker", "linux", "h", (), 1, {}, (TypeInfo("fine"),)
    )
    _, header = hello.write()
    header["task_types"] += [5, {"name": 1}, {"name": "x", "payload_schema": []}]
    assert msg.Hello.read(loads(dumps(header))).task_types == (TypeInfo("fine"),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device_id", "A-1_b.c:d"),
        ("device_id", "x" * 100),
        ("tags", ("k=v", "a:b")),
        ("task_types", ()),
        ("task_types", (TypeInfo("echo", instant=True),)),
        ("capabilities", nested(MAX_CAPABILITIES_DEPTH)),
        ("capabilities", {}),
    ],
)
def test_a_hello_at_the_edge_of_what_is_allowed_is_welcomed(
    cluster: Cluster, field: str, value: Any
) -> None:
    found = cluster.stranger().join(**{field: value})
    assert isinstance(sent(found)[0], msg.Welcome)


def test_another_protocol_is_refused(cluster: Cluster) -> None:
    for theirs, whose in ((PROTOCOL - 1, "update the worker"), (PROTOCOL + 1, "update this main")):
        message = rejected(cluster.stranger().join(protocol=theirs))
        assert (message.code, message.protocol) == ("protocol", PROTOCOL)
        assert whose in message.message


def test_a_trial_is_told_what_joining_would_say_and_leaves_nothing(cluster: Cluster) -> None:
    member = cluster.stranger()
    schema = {"path": {"type": "string", "nonsense": True}}
    (welcome,) = sent(member.join(trial=True, task_types=(TypeInfo("own", "", schema),)))
    assert isinstance(welcome, msg.Welcome)
    assert "own" in welcome.left_out[0]
    assert not cluster.state.devices
    assert not cluster.state.connections
    assert (cluster.state.online_count, cluster.events()) == (0, [])
    assert "device_id" in rejected(member.join(trial=True, device_id="a/b")).message


def test_a_trial_changes_nothing_of_a_device_that_is_known(cluster: Cluster) -> None:
    member = cluster.device(slots=3)
    before = (member.record.row(), member.record.online, cluster.events())
    another = cluster.stranger()
    (asked,) = sent(another.join(trial=True, instance="another", slots=9))
    assert isinstance(asked, msg.Ping)
    cluster.pass_time(1)
    (welcome,) = sent(cluster.tick("deadlines"))
    assert isinstance(welcome, msg.Welcome)
    assert (member.record.row(), member.record.online, cluster.events()) == before


def test_no_more_devices_than_allowed_are_online_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(server={"max_connections": 2}))
    first = cluster.device("a")
    cluster.device("b")
    third = cluster.stranger("c")
    message = rejected(third.join())
    assert (message.code, message.retry_after_seconds) == ("max_connections", 10.0)
    assert "2 devices are online" in message.message
    # Who is online already may say HELLO again; who leaves makes room.
    assert isinstance(sent(first.join())[0], msg.Welcome)
    first.say(msg.Goodbye(first.session))
    assert isinstance(sent(third.join())[0], msg.Welcome)
    assert rejected(first.join()).code == "max_connections"


def test_a_new_hello_of_the_same_process_replaces_its_session(cluster: Cluster) -> None:
    member = cluster.device()
    old = member.session
    member.join(role="storage")
    assert cluster.state.online_count == 1
    assert cluster.events()[-1] == ("device.changed", {})
    found = member.say(msg.Heartbeat(old, 1))
    assert rejected(found).code == "register"
    assert cluster.state.stats.dropped["unknown_session"] == 1


def test_a_new_connection_of_the_same_process_takes_over_at_once(cluster: Cluster) -> None:
    member = cluster.device()
    old = member.routing
    member.routing = b"new route"
    assert isinstance(sent(member.join())[0], msg.Welcome)
    assert list(cluster.state.connections) == [b"new route"]
    found = cluster.do(ev.FromDevice(old, msg.Heartbeat(member.session, 1)))
    assert rejected(found).code == "register"


def test_a_connection_may_change_its_device_id_without_harm_to_either(cluster: Cluster) -> None:
    first = cluster.device("a")
    second = cluster.stranger("b")
    second.routing = first.routing
    second.join()
    assert not first.record.online
    assert [name for name, _ in cluster.events()] == [
        "device.online", "device.offline", "device.online",
    ]  # fmt: skip
    first.routing = b"elsewhere"
    first.join()
    assert first.record.online
    assert second.record.online
    assert cluster.state.online_count == 2


def test_advertised_types_stay_known_while_their_device_is_away(cluster: Cluster) -> None:
    member = cluster.device()
    member.say(msg.Goodbye(member.session))
    assert "resize" in cluster.state.own_types.names


# --- duplicates ----------------------------------------------------------------------------------


def challenge(cluster: Cluster) -> tuple[Any, Any, int]:
    """A device that lives, a second process with its id, and the nonce of the question."""
    old = cluster.device()
    new = cluster.stranger()
    found = new.join(instance="a second process")
    (instruction,) = found
    assert isinstance(instruction, ins.Send)
    assert instruction.routing == old.routing
    assert isinstance(instruction.message, msg.Ping)
    return old, new, instruction.message.nonce


def test_a_second_process_with_a_living_devices_id_is_refused(cluster: Cluster) -> None:
    old, new, nonce = challenge(cluster)
    (answer,) = old.say(msg.Pong(old.session, nonce))
    assert isinstance(answer, ins.Send)
    assert answer.routing == new.routing
    assert isinstance(answer.message, msg.Reject)
    assert (answer.message.code, answer.message.session) == ("duplicate", new.session)
    assert answer.message.retry_after_seconds == 10.0
    assert cluster.state.challenges == {}
    assert rejected(new.beat()).code == "register"
    assert old.record.instance == "process of box"


def test_a_second_process_takes_over_when_the_first_does_not_answer(cluster: Cluster) -> None:
    old, new, _ = challenge(cluster)
    assert cluster.state.next_deadline() == cluster.mono + 1
    cluster.pass_time(1)
    (welcome,) = sent(cluster.tick("deadlines"))
    assert isinstance(welcome, msg.Welcome)
    assert new.record.routing == new.routing
    assert cluster.state.online_count == 1
    assert rejected(old.beat()).code == "register"


def test_a_newcomer_that_has_died_does_not_take_over_from_the_next_one(cluster: Cluster) -> None:
    challenge(cluster)
    cluster.pass_time(0.5)
    cluster.state.devices["box"].last_seen_mono -= 60
    third = cluster.stranger()
    (welcome,) = sent(third.join(instance="a third process"))
    assert isinstance(welcome, msg.Welcome)
    cluster.pass_time(0.6)
    cluster.tick("deadlines")
    assert third.record.routing == third.routing
    assert third.record.instance == "a third process"


def test_a_wrong_answer_to_the_question_is_none(cluster: Cluster) -> None:
    old, _, nonce = challenge(cluster)
    assert old.say(msg.Pong(old.session, nonce ^ 1)) == []
    assert len(cluster.state.challenges) == 1


def test_a_newcomer_that_repeats_itself_does_not_put_off_its_turn(cluster: Cluster) -> None:
    _, new, _ = challenge(cluster)
    deadline = cluster.state.next_deadline()
    cluster.pass_time(0.9)
    new.join()
    assert cluster.state.next_deadline() == deadline


def test_a_silent_device_is_not_asked(cluster: Cluster) -> None:
    cluster.device()
    cluster.pass_time(15.5)
    new = cluster.stranger()
    assert isinstance(sent(new.join(instance="a second process"))[0], msg.Welcome)


def test_what_the_first_process_ran_is_lost_when_another_takes_over(cluster: Cluster) -> None:
    old, key = cluster.give()
    old.start()
    new = cluster.stranger()
    new.join(instance="a second process")
    cluster.pass_time(1)
    cluster.tick("deadlines")
    task = cluster.task(key[0])
    assert (cluster.status(key[0]), task.killers) == ("pending", frozenset({"box"}))


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
    found = cluster.do(ev.DrainAsked("box", True))
    assert sent(found) == [msg.Drain(member.session, "drained by the administrator")]
    assert only(ins.StoreDevices, found) != []
    found = member.join()
    assert sent(found)[1:] == [msg.Drain(member.session, "drained by the administrator")]
    cluster.submit()
    assert cluster.place() == []
    member.beat(accepting=False)
    assert sent(cluster.do(ev.DrainAsked("box", False))) == [msg.Resume(member.session)]
    assert cluster.place() != []


def test_a_device_that_did_not_hear_of_the_resume_is_told_again(cluster: Cluster) -> None:
    member = cluster.device()
    cluster.do(ev.DrainAsked("box", True))
    cluster.do(ev.DrainAsked("box", False))
    reason = "drained by the administrator"
    found = member.beat(accepting=False, not_accepting_reason=reason)
    assert msg.Resume(member.session) in sent(found)
    assert msg.Resume(member.session) not in sent(member.beat(accepting=True))


def test_an_offline_device_can_be_drained(cluster: Cluster) -> None:
    member = cluster.device()
    member.say(msg.Goodbye(member.session))
    assert sent(cluster.do(ev.DrainAsked("box", True))) == []
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
    (asked,) = sent(cluster.do(ev.PingAsked(TICKET, "box", 2.0)))
    cluster.pass_time(0.0125)
    (answer,) = member.say(msg.Pong(member.session, asked.nonce))
    assert answer == ins.Answer(
        TICKET,
        {
            "device_id": "box",
            "ping_successful": True,
            "response_time_ms": 12.5,
            "ping_timestamp": "2023-11-14T22:13:20Z",
            "duration_ms": 12.5,
        },
    )
    assert member.say(msg.Pong(member.session, asked.nonce)) == []


def test_a_ping_without_an_answer_ends_with_its_time(cluster: Cluster) -> None:
    cluster.device()
    other = cluster.device("other")
    (asked,) = sent(cluster.do(ev.PingAsked(TICKET, "box", 2.0)))
    assert other.say(msg.Pong(other.session, asked.nonce)) == []
    assert cluster.state.next_deadline() == cluster.mono + 2
    cluster.pass_time(2.0)
    (answer,) = cluster.tick("deadlines")
    assert isinstance(answer, ins.Answer)
    assert answer.data["ping_successful"] is False
    assert answer.data["response_time_ms"] is None
    assert answer.data["duration_ms"] == 2000.0


def test_an_offline_device_is_not_pinged(cluster: Cluster) -> None:
    member = cluster.device()
    member.say(msg.Goodbye(member.session))
    (answer,) = cluster.do(ev.PingAsked(TICKET, "box", 2.0))
    assert isinstance(answer, ins.Answer)
    assert answer.data["ping_successful"] is False


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

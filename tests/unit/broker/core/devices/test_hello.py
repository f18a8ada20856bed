"""A HELLO: what is read, what is refused, whose session it replaces."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.admin import views
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.devices.hello_checks import (
    MAX_CAPABILITIES_BYTES,
    MAX_CAPABILITIES_DEPTH,
)
from retire_cluster.broker.core.model import Device
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import HeartbeatConfig, TypeInfo
from retire_cluster.schemas.protocol.wire import PROTOCOL
from retire_cluster.schemas.rest.endpoints import API, ENDPOINTS
from retire_cluster.schemas.text.json_text import dumps, loads
from retire_cluster.schemas.vocabulary import RESERVED_DEVICE_IDS
from tests.unit.broker.kit import (
    WALL_MS,
    Cluster,
    MakeCluster,
    only,
    rejected,
    sent,
    settings_with,
    wrong,
)

CONFIG = HeartbeatConfig(1, 5, 30, 3)


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth > 1 else {}


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
    kept = Device.from_row(member.record.row(), member.record.config, 0.0)
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

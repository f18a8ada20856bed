"""Own types: bounded, gone with their devices, judged as most of these say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices import type_registry as offers
from retire_cluster.cli.output import Style
from retire_cluster.cli.verbs.explain import explanation_text
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import TypeInfo
from tests.unit.broker.kit import Cluster, Member, submit, wrong

HONEST = {"width": {"type": "strict_int", "required": True}}
LIE = {"width": {"type": "string", "required": True}}
DAY_SECONDS = 86_400


def own(name: str, schema: dict[str, Any] | None = None, description: str = "") -> TypeInfo:
    return TypeInfo(name, description, schema)


def offering(cluster: Cluster, device_id: str, *infos: TypeInfo) -> Member:
    cluster.pass_time(1.0)
    return cluster.device(device_id, task_types=infos)


def test_endless_own_types_leave_no_trace(cluster: Cluster) -> None:
    liar = cluster.device("liar", task_types=())
    for turn in range(200):
        some = tuple(own(f"t{turn}.{number}", LIE, "d" * 900) for number in range(500))
        liar.join(task_types=some)
        cluster.pass_time(1.0)
    assert len(cluster.state.own_types.names) == offers.MAX_OWN_TYPES
    found = cluster.call("task.types").data
    assert len(found["custom_types"]) == offers.MAX_OWN_TYPES
    assert all(name.startswith("t199.") for name in found["custom_types"])
    assert liar.record.left_out[0] == (
        "task type t199.100 is left out: a device offers at most 100 own types"
    )


def test_many_devices_with_many_types_fit_into_one_answer(cluster: Cluster) -> None:
    for device in range(30):
        some = tuple(
            own(f"d{device}.{number}", {f"f{n}": {"type": "string"} for n in range(90)})
            for number in range(100)
        )
        offering(cluster, f"d{device}", own("honest", HONEST), *some)
    offering(cluster, "another", own("honest", HONEST))
    found = cluster.call("task.types").data
    assert "honest" in found["custom_types"]
    assert found["not_shown"] + len(found["custom_types"]) == len(cluster.state.own_types.names)
    assert found["not_shown"] > 0
    assert len(repr(found)) < 4_000_000


@pytest.mark.parametrize(
    ("info", "word"),
    [
        (own("huge", {"f" * 150 + str(n): {"type": "string"} for n in range(300)}), "32768"),
        (own("bad", {"x": {"check_with": "os.system"}}), "not allowed"),
    ],
)
def test_a_type_that_is_too_much_is_left_out_and_the_others_stay(
    cluster: Cluster, info: TypeInfo, word: str
) -> None:
    member = offering(cluster, "box", info, own("fine", HONEST))
    assert list(cluster.state.own_types.names) == ["fine"]
    assert word in member.told(msg.Welcome)[-1].left_out[0]
    assert word in member.record.left_out[0]


def test_all_descriptions_of_a_device_have_a_bound(cluster: Cluster) -> None:
    schema = {f"{n}" + "f" * 190: {"type": "string"} for n in range(100)}
    member = offering(cluster, "box", *(own(f"t{number}", schema) for number in range(50)))
    assert 5 < len(member.record.types) < 15
    assert "262144" in member.record.left_out[0]


def test_a_liar_judges_nobodys_submission_where_others_are_more(cluster: Cluster) -> None:
    offering(cluster, "a-liar", own("resize", LIE))
    offering(cluster, "honest1", own("resize", HONEST))
    offering(cluster, "honest2", own("resize", HONEST))
    submit(cluster, {"task_type": "resize"}, payload=b'{"width": 5}')
    with pytest.raises(ValidationError):
        submit(cluster, {"task_type": "resize"}, payload=b'{"width": "5"}')


def test_devices_that_join_after_a_type_was_judged_count_too(cluster: Cluster) -> None:
    offering(cluster, "a-liar", own("resize", LIE))
    submit(cluster, {"task_type": "resize"}, payload=b'{"width": "5"}')
    offering(cluster, "honest1", own("resize", HONEST))
    offering(cluster, "honest2", own("resize", HONEST))
    submit(cluster, {"task_type": "resize"}, payload=b'{"width": 5}')
    detail = cluster.call("device.get", {"device_id": "a-liar"}).data
    assert detail["task_types_disputed"] == ["resize"]


def test_a_hello_that_is_said_again_has_no_type_judged_anew(cluster: Cluster) -> None:
    """With 5,000 devices each judging took a third of a second."""
    member = offering(cluster, "box", own("resize", HONEST))
    before = cluster.state.own_types.consensus("resize")
    member.join(task_types=(own("resize", dict(HONEST)),))
    assert cluster.state.own_types.consensus("resize") is before
    member.join(task_types=(own("resize", LIE),))
    judged = cluster.state.own_types.consensus("resize")
    assert judged is not None
    assert judged.info.payload_schema == LIE


def test_where_as_many_say_otherwise_the_first_that_joined_counts(cluster: Cluster) -> None:
    offering(cluster, "honest", own("resize", HONEST))
    liar = offering(cluster, "a-liar", own("resize", LIE))
    submit(cluster, {"task_type": "resize"}, payload=b'{"width": 5}')
    cluster.restart()
    submit(cluster, {"task_type": "resize"}, payload=b'{"width": 5}')
    again = cluster.stranger("a-liar")
    again.join(task_types=liar.hello.task_types, instance="another process")
    submit(cluster, {"task_type": "resize"}, payload=b'{"width": 5}')


def test_who_says_otherwise_is_shown(cluster: Cluster) -> None:
    offering(cluster, "honest", own("resize", HONEST), own("mine", HONEST))
    offering(cluster, "liar", own("resize", LIE))
    shown = cluster.call("task.types").data["by_type"]
    assert shown["resize"]["described_otherwise_by"] == ["liar"]
    assert shown["resize"]["payload_schema"]["properties"]["width"]["type"] == "integer"
    (task_id,) = submit(cluster, {"task_type": "resize"}, payload=b'{"width": 5}')["task_ids"]
    created = cluster.task(1)
    told = cluster.call(
        "task.explain", {"task_id": cluster.public(created.number, created.created_ms)}
    ).data
    assert told["task_id"] == task_id
    assert told["described_otherwise_by"] == ["liar"]
    shown = explanation_text(told, Style())
    assert re.search("type described otherwise by +liar", shown)
    detail = cluster.call("device.get", {"device_id": "liar"}).data
    assert detail["task_types_disputed"] == ["resize"]
    assert cluster.call("device.get", {"device_id": "honest"}).data["task_types_disputed"] == []


def test_a_type_goes_with_the_last_device_that_offers_it(cluster: Cluster) -> None:
    first = offering(cluster, "first", own("resize", HONEST))
    offering(cluster, "second", own("resize", HONEST))
    cluster.call("device.remove", {"device_id": "second"})
    submit(cluster, {"task_type": "resize"}, payload=b'{"width": 5}')
    first.join(task_types=())
    error = wrong(cluster, "task.submit", {"tasks": [{"task_type": "resize"}]}, [b'{"width": 5}'])
    assert "no device of this cluster offers the task type 'resize'" in str(error)


def test_a_device_that_is_away_for_a_week_offers_nothing_until_it_is_back(
    cluster: Cluster,
) -> None:
    member = offering(cluster, "laptop", own("resize", HONEST))
    member.say(msg.Goodbye(member.session))
    cluster.pass_time(4 * DAY_SECONDS)
    cluster.tick("devices")
    cluster.restart()
    cluster.tick("retention")
    assert "resize" in cluster.state.own_types.names
    cluster.pass_time(3.1 * DAY_SECONDS)
    cluster.tick("retention")
    assert list(cluster.state.own_types.names) == []
    again = cluster.stranger("laptop")
    again.join(task_types=member.hello.task_types)
    assert "resize" in cluster.state.own_types.names


def test_a_device_that_falls_silent_for_a_week_comes_back_with_its_types(
    cluster: Cluster,
) -> None:
    member = offering(cluster, "phone", own("resize", HONEST))
    cluster.pass_time(200.0)
    cluster.tick("liveness")
    cluster.pass_time(200.0)
    cluster.do(ev.Tick("liveness"))
    cluster.state.last_sweep_mono = cluster.mono
    cluster.tick("liveness")
    assert not member.record.online
    cluster.pass_time(8 * DAY_SECONDS)
    cluster.tick("retention")
    assert list(cluster.state.own_types.names) == []
    member.beat()
    assert list(cluster.state.own_types.names) == ["resize"]

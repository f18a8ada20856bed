"""Requirements against devices: each requirement of the REST document, and the reasons."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.core.model import SLOT_UNITS, Device
from retire_cluster.broker.core.placement.matching import ClassKey, Requirements, TaskClass, why_not
from retire_cluster.schemas import needs
from retire_cluster.schemas.protocol.messages import HeartbeatConfig, TypeInfo
from retire_cluster.schemas.text.json_text import dumps
from tests.unit.broker.kit import Cluster

FACTS: dict[str, Any] = {
    "cpu_count": 4,
    "memory_total_gb": 8.0,
    "storage_total_gb": 100,
    "has_gpu": True,
    "has_internet": True,
    "python_version": "3.11.7",
}


def device(name: str = "box", /, **facts: Any) -> Device:
    found = Device(name, 0, HeartbeatConfig(1, 5, 30, 3))
    found.platform, found.role, found.tags = "linux", "compute", frozenset({"gpu", "attic"})
    found.capabilities = {**FACTS, **facts}
    found.types = {"echo": TypeInfo("echo", instant=True), "sleep": TypeInfo("sleep")}
    found.online = True
    return found


def reasons(given: dict[str, Any], on: Device | None = None, task_type: str = "sleep") -> list[str]:
    return why_not(ClassKey(task_type, Requirements.read(given)), on or device())


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"min_cpu_cores": 4},
        {"min_memory_gb": 8},
        {"min_storage_gb": 100.0},
        {"required_platform": "linux"},
        {"required_python": "3.11"},
        {"required_role": "compute"},
        {"required_tags": ["attic", "gpu"]},
        {"required_tags": []},
        {"gpu_required": True},
        {"internet_required": True},
        {"gpu_required": False, "internet_required": False},
        {"timeout_seconds": 1, "max_retries": 0},
        {"min_cpu_cores": None, "required_tags": None, "required_role": None},
    ],
)
def test_a_device_that_just_meets_a_requirement_is_eligible(given: dict[str, Any]) -> None:
    assert reasons(given) == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"min_cpu_cores": 5}, "fewer than 5 CPU cores"),
        ({"min_memory_gb": 8.5}, "less than 8.5 GB memory"),
        ({"min_storage_gb": 101}, "less than 101 GB storage"),
        ({"required_platform": "android"}, "platform is not android"),
        ({"required_python": "3.1"}, "Python is not 3.1"),
        ({"required_python": "3.12"}, "Python is not 3.12"),
        ({"required_role": "storage"}, "role is not storage"),
        ({"required_tags": ["gpu", "cellar"]}, "missing tag cellar"),
    ],
)
def test_each_requirement_not_met_has_its_reason(given: dict[str, Any], reason: str) -> None:
    assert reasons(given) == [reason]


@pytest.mark.parametrize(
    ("fact", "given", "reason"),
    [
        ("cpu_count", {"min_cpu_cores": 1}, "fewer than 1 CPU cores"),
        ("memory_total_gb", {"min_memory_gb": 0.1}, "less than 0.1 GB memory"),
        ("storage_total_gb", {"min_storage_gb": 0.1}, "less than 0.1 GB storage"),
        ("python_version", {"required_python": "3.11"}, "Python is not 3.11"),
        ("has_gpu", {"gpu_required": True}, "no GPU"),
        ("has_internet", {"internet_required": True}, "no internet access"),
    ],
)
@pytest.mark.parametrize("value", [None, "4", True, False, [], {}])
def test_a_fact_unknown_or_odd_meets_no_requirement(
    fact: str, given: dict[str, Any], reason: str, value: object
) -> None:
    if value is True and fact.startswith("has_"):
        assert reasons(given, device(**{fact: value})) == []
    else:
        assert reasons(given, device(**{fact: value})) == [reason]
    without = device()
    del without.capabilities[fact]
    assert reasons(given, without) == [reason]
    assert reasons({}, without) == []


def test_all_reasons_are_given_together_tags_in_order() -> None:
    found = reasons({"required_tags": ["b", "a"], "min_cpu_cores": 9, "required_role": "mobile"})
    assert found == [
        "role is not mobile",
        "missing tag a",
        "missing tag b",
        "fewer than 9 CPU cores",
    ]


@pytest.mark.parametrize(
    ("task_type", "reason"),
    [
        ("command", "does not run command (its owner allows it with --allow command)"),
        ("python_call", "does not run python_call (its owner allows it with --allow python_call)"),
        ("resize", "does not run resize"),
    ],
)
def test_a_type_that_a_device_does_not_run_is_a_reason(task_type: str, reason: str) -> None:
    assert reasons({}, task_type=task_type) == [reason]


@pytest.mark.parametrize(
    ("task_type", "allows", "need", "reason"),
    [
        ("command", {"shell": False}, needs.SHELL, "its owner allows no shell"),
        ("command", {"shell": True}, needs.SHELL, ""),
        ("command", {"shell": False, "programs": ["ff*"]}, "program ffmpeg", ""),
        ("command", {"programs": ["ff*"]}, "program sh", "does not allow the program sh"),
        ("command", {"programs": []}, "program ffmpeg", "does not allow the program ffmpeg"),
        ("command", {}, "program ffmpeg", ""),
        ("http_request", {"private_addresses": False}, needs.PRIVATE, "no private addresses"),
        ("http_request", {"private_addresses": False}, "host example.org", ""),
        ("http_request", {}, needs.PRIVATE, ""),
    ],
)
def test_what_an_owner_allows_of_a_type_is_matched_before_placing(
    task_type: str, allows: dict[str, Any], need: str, reason: str
) -> None:
    one = device()
    one.types = {task_type: TypeInfo(task_type, allows=allows)}
    found = why_not(ClassKey(task_type, Requirements(needs=need)), one)
    assert len(found) == bool(reason)
    assert reason in "".join(found)


def test_requirements_are_read_from_a_stored_document_and_a_damaged_one_asks_for_nothing() -> None:
    document = dumps({"requirements": {"required_tags": ["x"], "max_retries": 1}, "metadata": {}})
    assert Requirements.of(document) == Requirements(required_tags=frozenset({"x"}))
    assert Requirements.of(b'{"requirements": null}') == Requirements()
    assert Requirements.of(document[:-1]) == Requirements()


def test_the_need_of_a_stored_document_is_part_of_what_is_asked() -> None:
    document = dumps({"requirements": {}, "metadata": {}, "needs": "program x"})
    assert Requirements.of(document) == Requirements(needs="program x")


def test_equal_requirements_make_one_class() -> None:
    one = Requirements.read({"required_tags": ["a", "b"], "min_memory_gb": 1})
    assert one == Requirements.read({"required_tags": ["b", "a"], "min_memory_gb": 1.0})
    assert hash(one) == hash(Requirements(min_memory_gb=1.0, required_tags=frozenset("ab")))


# --- classes -------------------------------------------------------------------------------------


def make_class(task_type: str = "sleep", **given: Any) -> TaskClass:
    return TaskClass(ClassKey(task_type, Requirements.read(given)))


def free(*devices: Device) -> dict[str, Device]:
    return {one.device_id: one for one in devices}


def test_a_class_knows_its_eligible_devices_and_forgets_them() -> None:
    cls = make_class(min_cpu_cores=4)
    big, small = device("big"), device("small", cpu_count=2)
    cls.blocked = True
    cls.judge(small)
    assert (cls.eligible, cls.blocked) == ({}, True)
    cls.judge(big)
    cls.judge(big)
    assert (list(cls.eligible), cls.ring, cls.blocked) == (["big"], [big], False)
    big.capabilities["cpu_count"] = 1
    cls.judge(big)
    assert (cls.eligible, cls.ring) == ({}, [])
    cls.forget(big)


def test_the_least_loaded_device_with_room_is_picked() -> None:
    cls = make_class()
    busy, idle, full, draining = device("a"), device("b"), device("c"), device("d")
    busy.slots = idle.slots = full.slots = 2
    busy.used_units, full.used_units = SLOT_UNITS, 2 * SLOT_UNITS
    draining.accepting = False
    for one in (busy, full, draining, idle):
        cls.judge(one)
    everything = free(busy, full, draining, idle)
    assert cls.pick(everything) is idle
    assert cls.pick(free(full, draining)) is None
    assert cls.pick({}) is None
    assert cls.pick(free(device("stranger"))) is None


def test_a_pick_looks_at_a_sample_only_and_walks_round() -> None:
    cls = make_class()
    many = [device(f"d{number}") for number in range(10)]
    for one in many:
        cls.judge(one)
    firsts = [cls.pick(free(*many), sample=1) for _ in range(12)]
    assert firsts == [*many, *many[:2]]


def test_small_work_fits_where_a_whole_slot_does_not() -> None:
    echo, sleep = make_class("echo"), make_class("sleep")
    part = device("part")
    part.used_units = 1
    fuller = device("fuller")
    fuller.used_units = 9
    for cls in (echo, sleep):
        cls.judge(part)
        cls.judge(fuller)
    assert echo.pick(free(part, fuller)) is part
    assert sleep.pick(free(part, fuller)) is None
    assert sleep.nearly(free(part, fuller)) is part
    assert sleep.nearly(free(device("stranger"))) is None
    part.accepting = False
    assert sleep.nearly(free(part, fuller)) is fuller


def test_devices_that_come_later_are_judged_by_every_class(cluster: Cluster) -> None:
    (number,) = cluster.submit(required_tags=["x"])
    cluster.device("plain")
    assert cluster.place() == []
    tagged = cluster.device("tagged", tags=("x",))
    cluster.place()
    assert tagged.record.attempts == {number: cluster.task(number)}
    tagged.join(tags=())
    (second,) = cluster.submit(required_tags=["x"])
    cluster.place()
    assert cluster.status(second) == "queued"


def test_idle_classes_are_dropped_when_there_are_many(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retire_cluster.broker.core.placement.matching.CLASSES_KEPT", 5)
    kept = cluster.submit(required_tags=["wanted"])[0]
    for number in range(20):
        task = cluster.submit(required_tags=[f"t{number}"])[0]
        cluster.call("task.cancel", {"task_id": cluster.public(task)})
    assert len(cluster.state.classes) <= 8
    member = cluster.device(tags=("wanted", "t19"))
    cluster.place()
    assert list(member.record.attempts) == [kept]

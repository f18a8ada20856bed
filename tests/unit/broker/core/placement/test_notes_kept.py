"""What is known of who lacks what: kept, bounded, forgotten, told in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from retire_cluster.broker.core.instructions import StoreDevices
from retire_cluster.broker.core.placement.passing_over import FIRST_SECONDS, MAX_NOTES
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.json_text import dumps, loads
from tests.unit.broker.core.placement.kit import OWN, explained, lacks, notes, owns, program
from tests.unit.broker.kit import WALL_MS, Cluster


@pytest.mark.parametrize("new_process", [True, False])
def test_a_new_process_of_the_device_clears_it_a_new_connection_does_not(
    cluster: Cluster, new_process: bool
) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    cluster.restart()
    member.join(**({"instance": "after apt install"} if new_process else {}))
    cluster.place()
    assert bool(notes(member)) is not new_process
    assert [key[0] for key in member.keys] == ([task] if new_process else [])


def test_a_restart_keeps_who_lacks_what_and_whom_a_task_has_visited(cluster: Cluster) -> None:
    member = cluster.device("member")
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    lacks(member)
    cluster.restart()
    assert notes(member) == [("command", "program ffmpeg", "not_here")]
    assert cluster.task(task).excluded == {"member": "there is no program 'ffmpeg' on this device"}
    assert cluster.task(task).tried == {"member"}
    member.join()
    cluster.place()
    assert member.keys == []
    assert explained(cluster, task, "member") == [
        "there is no program 'ffmpeg' on this device, seen 0 s ago"
    ]


@pytest.mark.parametrize("rebooted", [True, False])
def test_a_restart_changes_neither_age_nor_length_of_a_note(
    cluster: Cluster, rebooted: bool
) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    cluster.tick("unschedulable")
    cluster.pass_time(200)
    (before,) = cluster.call("device.get", {"device_id": "member"}).data["passed_over"]
    if rebooted:
        cluster.reboot(60)
    else:
        cluster.pass_time(60)
        cluster.restart()
    (after,) = cluster.call("device.get", {"device_id": "member"}).data["passed_over"]
    assert after == before
    (note,) = member.record.notes.values()
    assert note.seconds == FIRST_SECONDS
    cluster.pass_time(39)
    cluster.tick("unschedulable")
    assert notes(member)
    cluster.pass_time(2)
    cluster.tick("unschedulable")
    assert not notes(member)


@pytest.mark.parametrize(
    "stored",
    [
        "no list",
        [["command", "program ffmpeg", "not_here"]],
        [["command", "program ffmpeg", "not_here", "no", 1, 300.0, 1, "more"]],
        [["command", "program ffmpeg", "not_here", "no", 1, float(10**300), 1]],
        [["command", None, "not_here", "no", 1, 300.0, 1], 7],
    ],
)
def test_a_damaged_note_costs_itself_and_neither_its_device_nor_the_start(
    cluster: Cluster, stored: Any
) -> None:
    member = cluster.device("member")
    row = member.record.row()
    document = {**loads(row.document), "notes": stored}
    cluster.store.commit([StoreDevices((row._replace(document=dumps(document)),))])
    cluster.restart()
    assert member.record.slots == 1
    assert not member.record.notes
    assert not cluster.warnings


def test_another_version_of_a_types_package_is_a_new_chance_for_that_type(
    cluster: Cluster,
) -> None:
    types = (replace(OWN, distribution_version="1.0"), BUILTIN["command"])
    poor = cluster.device("poor", task_types=types)
    cluster.device("other", task_types=types)
    cluster.call("device.drain", {"device_id": "other"})
    (task,) = owns(cluster, max_retries=0)
    cluster.place()
    lacks(poor)
    program(cluster, "ffmpeg")
    cluster.place()
    lacks(poor)
    assert notes(poor) == [("command", "program ffmpeg", "not_here")]
    poor.join()
    cluster.place()
    assert not poor.keys
    poor.join(task_types=(replace(OWN, distribution_version="1.1"), BUILTIN["command"]))
    assert not cluster.task(task).excluded
    assert notes(poor) == [("command", "program ffmpeg", "not_here")]
    cluster.place()
    assert [key[0] for key in poor.keys] == [task]


def test_a_retry_by_hand_asks_again(cluster: Cluster) -> None:
    member = cluster.device("member")
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    assert cluster.status(task) == "failed"
    cluster.retry(task)
    cluster.place()
    assert [key[0] for key in member.keys] == [task]


def test_explain_the_device_and_the_events_say_it_in_words(cluster: Cluster) -> None:
    member = cluster.device("pi-kitchen")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    cluster.pass_time(200)
    text = "there is no program 'ffmpeg' on this device"
    data = cluster.call("task.explain", {"task_id": cluster.public(task, WALL_MS)}).data
    row = next(row for row in data["devices"] if row["device_id"] == "pi-kitchen")
    assert row["reasons"] == [f"{text}, seen 3 min ago"]
    assert data["queued_reason"]["rejected"] == {text: 1, "draining": 1}
    (shown,) = cluster.call("device.get", {"device_id": "pi-kitchen"}).data["passed_over"]
    assert shown == {
        "task_type": "command", "needs": "program ffmpeg", "cause": "not_here",
        "message": text, "since": "2023-11-14T22:13:20Z", "until": "2023-11-14T22:18:20Z",
    }  # fmt: skip
    cluster.pass_time(200)
    cluster.tick("unschedulable")
    assert [kind for kind, _ in cluster.events("device.")][-2:] == [
        "device.passed_over", "device.eligible_again",
    ]  # fmt: skip
    assert cluster.call("device.get", {"device_id": "pi-kitchen"}).data["passed_over"] == []


def test_the_memory_of_what_a_device_lacks_is_bounded(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    for index in range(4 * MAX_NOTES):
        program(cluster, f"tool{index}")
        cluster.place()
        assert member.keys, index
        lacks(member)
    assert len(member.record.notes) == MAX_NOTES
    assert cluster.state.note_index.entries() <= 3 * MAX_NOTES, "the ends of those that went, too"
    cluster.tick("unschedulable")
    cluster.restart()
    assert len(member.record.notes) == MAX_NOTES


def test_a_device_that_lacks_many_things_in_a_second_is_stored_once(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    seen = len(cluster.past)
    for index in range(30):
        program(cluster, f"tool{index}")
        cluster.place()
        lacks(member)
    cluster.pass_time(1)
    cluster.tick("unschedulable")
    cluster.tick("unschedulable")
    rows = [one for one in cluster.past[seen:] if isinstance(one, StoreDevices)]
    assert len(rows) == 2, "the first at once, all others together"
    cluster.restart()
    assert len(notes(member)) == 30


def test_all_notes_of_many_devices_are_stored_a_few_devices_a_turn(cluster: Cluster) -> None:
    cluster.is_checked = False
    members = [cluster.device(f"d{index:03}") for index in range(100)]
    for name in ("ffmpeg", "sox"):
        (task,) = program(cluster, name, requirements={"max_retries": 0})
        for _ in range(len(members)):
            cluster.place()
            (busy,) = [member for member in members if member.keys]
            lacks(busy)
        assert cluster.outcome(task).cause == "not_here"
    seen = len(cluster.past)
    for _ in range(3):
        cluster.tick("unschedulable")
    rows = [len(one.rows) for one in cluster.past[seen:] if isinstance(one, StoreDevices)]
    assert rows == [64, 36]
    cluster.restart()
    assert {len(notes(member)) for member in members} == {2}


def test_a_device_that_was_removed_leaves_no_notes(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    assert cluster.state.note_index.kinds
    cluster.call("device.remove", {"device_id": "member"})
    assert not cluster.state.note_index.kinds
    cluster.pass_time(FIRST_SECONDS)
    cluster.tick("unschedulable")


def test_a_program_for_every_task_makes_no_class_for_every_task(cluster: Cluster) -> None:
    cluster.device("member")
    for index in range(100):
        program(cluster, f"./job-{index}.sh")
    assert len(cluster.state.waiting) == 1

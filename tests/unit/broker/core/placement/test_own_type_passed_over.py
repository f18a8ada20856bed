"""A device that lacks what an own type needs is passed over for the type, never the last one."""

from __future__ import annotations

import pytest

from retire_cluster.broker.core.placement.passing_over import FIRST_SECONDS
from tests.unit.broker.core.placement.kit import lacks, let_pass, notes, owns
from tests.unit.broker.kit import Cluster


def test_one_task_of_an_own_type_that_wants_what_is_nowhere_ends_alone(cluster: Cluster) -> None:
    members = [cluster.device(name) for name in ("first", "second")]
    (odd,) = owns(cluster, max_retries=0)
    rest = owns(cluster, 6, max_retries=0)
    for _ in range(9):
        cluster.place()
        for member in members:
            for key in member.keys:
                if key[0] == odd:
                    lacks(member, error="No module named 'typo'")
                else:
                    member.finish(key)
        cluster.tick("unschedulable")
    outcome = cluster.outcome(odd)
    assert (outcome.status, outcome.cause, outcome.retry_count) == ("failed", "not_here", 0)
    assert "first: No module named 'typo'" in str(outcome.error_message)
    assert "second: No module named 'typo'" in str(outcome.error_message)
    assert {cluster.status(task) for task in rest} == {"success"}
    assert [data["seconds"] for _, data in cluster.events("device.passed_over")] == [5]
    let_pass(cluster, 5, *members)
    assert not any(notes(member) for member in members)


@pytest.mark.parametrize(("cause", "asked"), [("not_here", 3), ("policy_denied", 1)])
def test_a_device_that_lacks_what_an_own_type_needs_is_passed_over_for_the_type(
    cluster: Cluster, cause: str, asked: int
) -> None:
    poor, rich = cluster.device("poor"), cluster.device("rich")
    tasks = owns(cluster, 60, max_retries=0)
    rounds = 0
    while any(cluster.status(task) != "success" for task in tasks):
        cluster.place()
        if poor.keys:
            rounds += 1
            lacks(poor, cause, "No module named 'torch'")
            cluster.place()
        elif rich.keys:
            rich.finish()
            let_pass(cluster, 1, poor, rich)
        assert rounds <= asked
    assert notes(poor) == [("resize", "", cause)]
    (note,) = poor.record.notes.values()
    assert note.seconds == FIRST_SECONDS


def test_tasks_that_no_device_can_run_pass_no_device_over_for_their_type(
    cluster: Cluster,
) -> None:
    """Three with an import of their payload once kept the type from all but one for minutes."""
    members = [cluster.device(f"d{index}", slots=2) for index in range(4)]
    odd = owns(cluster, 9, max_retries=0)
    for _ in range(60):
        cluster.place()
        for member in members:
            lacks(member, error=f"No module named 'typo' on {member.device_id}")
        let_pass(cluster, 1, *members)
    for task in odd:
        outcome = cluster.outcome(task)
        assert (outcome.status, outcome.cause, outcome.retry_count) == ("failed", "not_here", 0)
        for member in members:
            name = member.device_id
            assert f"{name}: No module named 'typo' on {name}" in str(outcome.error_message)
    told = [data["seconds"] for _, data in cluster.events("device.passed_over")]
    assert max(told) <= 5
    let_pass(cluster, 6, *members)
    owns(cluster, 8, max_retries=0)
    cluster.place()
    assert [len(member.keys) for member in members] == [2, 2, 2, 2]


def test_each_devices_word_of_a_task_is_told_after_a_restart_too(cluster: Cluster) -> None:
    members = [cluster.device(f"d{index}") for index in range(3)]
    (task,) = owns(cluster, max_retries=0)
    for turn in range(3):
        cluster.place()
        (busy,) = [member for member in members if member.keys]
        lacks(busy, error=f"{busy.device_id} has no torch")
        if turn < 2:
            cluster.restart()
            for member in members:
                member.join()
    message = str(cluster.outcome(task).error_message)
    assert all(f"d{index}: d{index} has no torch" in message for index in range(3))


def test_what_a_device_refused_before_it_did_one_well_does_not_count_against_it(
    cluster: Cluster,
) -> None:
    first, second = cluster.device("first"), cluster.device("second", slots=8)
    cluster.call("device.drain", {"device_id": "second"})
    refused = owns(cluster, 4, max_retries=0)
    fine = owns(cluster, max_retries=0)
    for _ in refused:
        cluster.place()
        lacks(first)
    cluster.place()
    assert [key[0] for key in first.keys] == fine
    first.finish()
    cluster.call("device.resume", {"device_id": "second"})
    cluster.place()
    assert [key[0] for key in second.keys] == refused
    second.finish()
    assert not first.record.notes
    assert not first.record.records


def test_the_last_device_is_never_passed_over_for_a_whole_type(cluster: Cluster) -> None:
    member = cluster.device("member")
    tasks = owns(cluster, 10, max_retries=0)
    fine = owns(cluster, max_retries=0)[0]
    for _ in tasks:
        cluster.place()
        lacks(member)
        cluster.tick("unschedulable")
    assert {cluster.status(task) for task in tasks} == {"failed"}
    assert not notes(member)
    cluster.place()
    member.finish()
    assert cluster.status(fine) == "success"


def test_who_is_left_as_the_last_for_a_type_is_asked_again_and_nobody_fails_unasked(
    cluster: Cluster,
) -> None:
    poor = cluster.device("poor")
    cluster.device("other")
    tasks = owns(cluster, 20, max_retries=0)
    while not notes(poor):
        cluster.place()
        lacks(poor)
    cluster.tick("unschedulable")
    assert notes(poor)
    cluster.call("device.remove", {"device_id": "other"})
    cluster.tick("unschedulable")
    cluster.place()
    assert poor.keys
    assert not notes(poor)
    assert {cluster.status(task) for task in tasks} == {"queued", "assigned"}

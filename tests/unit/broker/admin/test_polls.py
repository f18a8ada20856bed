"""Polling for events; counting requests."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.admin import polls
from retire_cluster.broker.admin.calls import ParkedPoll, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.polls import poll_now
from retire_cluster.schemas import errors
from tests.unit.broker.kit import Cluster, submit

UNKNOWN_ID = "018bcfe5-6800-7555-9555-550000000063"


def poll(cluster: Cluster, **args: Any) -> dict[str, Any]:
    return cluster.call("events.poll", args).data


def test_a_poll_from_the_start_gets_what_is_kept_and_without_a_cursor_begins_now(
    cluster: Cluster,
) -> None:
    cluster.submit(2)
    found = poll(cluster, since=0)
    assert [event["type"] for event in found["events"]] == ["task.queued"] * 2
    assert (found["gap"], found["next"]) == (False, found["events"][-1]["id"])
    assert poll(cluster)["events"] == []
    assert poll(cluster, since=found["next"])["events"] == []
    assert len(poll(cluster, since=0, limit=1)["events"]) == 1


def test_events_are_filtered_by_kind_task_and_device(cluster: Cluster) -> None:
    _, key = cluster.give()
    cluster.submit(1)
    cluster.device("other")

    def types(**args: Any) -> list[str]:
        return [event["type"] for event in poll(cluster, since=0, **args)["events"]]

    assert types(type="device") == ["device.online"] * 2
    assert types(type="task.assigned") == ["task.assigned"]
    assert types(type="task.assig") == []
    assert types(task_id=cluster.public(key[0])) == ["task.queued", "task.assigned"]
    assert types(task_id=UNKNOWN_ID) == []
    assert types(device_id="other") == ["device.online"]


def test_a_poll_with_time_left_is_parked_until_something_comes(cluster: Cluster) -> None:
    args = {"since": cluster.state.log.last, "wait_seconds": 20}
    assert cluster.park("events.poll", args) is None
    (parked,) = cluster.admin.polls
    assert parked.deadline_mono == cluster.mono + 20
    assert poll_now(cluster.admin, parked).data["events"] == []
    cluster.submit()
    assert len(poll_now(cluster.admin, parked).data["events"]) == 1


def test_parked_polls_gather_what_comes_and_share_the_look(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def counted(admin: AdminContext, poll: ParkedPoll) -> Reply:
        looks.append(poll)
        return poll_now(admin, poll)

    args = {"since": cluster.state.log.last, "wait_seconds": 20, "gather_seconds": 0.1}
    for _ in range(8):
        assert cluster.park("events.poll", args) is None
    other = {**args, "type": "device"}
    assert cluster.park("events.poll", other) is None
    monkeypatch.setattr(polls, "poll_now", counted)
    answers: list[Reply | errors.ClusterError] = []

    def look(later_seconds: float) -> int:
        now = cluster.now.mono + later_seconds
        polls.answer_polls(cluster.admin, now, lambda _, reply: answers.append(reply))
        return len(answers)

    assert look(0) == 0
    for number in range(3):
        submit(cluster, {"task_type": "echo", "metadata": {"n": number}})
        assert look(0.01 * number) == 0, "the first event wakes nobody by itself"
    assert {poll.wake_mono for poll in cluster.admin.polls} == {cluster.now.mono + 0.1}
    assert look(0.11) == 8
    assert len(looks) == 2, "one look for the eight that ask for the same, one for the other"
    assert all(isinstance(each, Reply) and len(each.data["events"]) == 3 for each in answers)
    (left,) = cluster.admin.polls
    assert (left.args["type"], left.since) == ("device", cluster.state.log.last)
    assert look(30) == 9, "and at its end it gets nothing"


def test_a_poll_that_missed_events_is_told_at_once(cluster: Cluster) -> None:
    last = cluster.state.log.last
    cluster.restart()
    found = cluster.park("events.poll", {"since": last, "wait_seconds": 20})
    assert isinstance(found, Reply)
    assert (found.data["gap"], found.data["next"]) == (True, cluster.state.log.last)


def test_requests_are_counted_by_client(cluster: Cluster) -> None:
    first = cluster.call("rate.hit", {"client": "key:a"}).data
    assert (first["allowed"], first["limit"], first["remaining"]) == (True, 60, 59)
    tight = {"client": "b", "per_minute": 1, "burst": 0}
    assert cluster.call("rate.hit", tight).data["allowed"] is True
    assert cluster.call("rate.hit", tight).data["allowed"] is False

"""Waiting for tasks to end."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.admin import waits as admin_waits
from retire_cluster.broker.core import instructions as ins
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.rest import validation
from tests.unit.broker.kit import WALL_MS, Cluster, only, submit, wrong

UNKNOWN_ID = "018bcfe5-6800-7555-9555-550000000063"
ECHO = {"task_type": "echo"}


def test_a_wait_is_answered_with_results_and_what_is_unfinished(cluster: Cluster) -> None:
    member, _ = cluster.give(3)
    first, second, third = member.keys
    ids = [cluster.public(key[0]) for key in (first, second, third)]
    member.finish(first, result=b'{"a":1}')
    member.finish(second, result=b"")
    assert cluster.park("task.wait", {"task_ids": ids, "timeout_seconds": 5}) is None
    assert only(ins.WaitOver, cluster.admin.turn) == []
    cluster.pass_time(5)
    (over,) = only(ins.WaitOver, cluster.tick("deadlines"))
    reply = admin_waits.waited(cluster.admin, over)
    assert [one["task_id"] for one in reply.data["results"]] == ids[:2]
    assert reply.data["unfinished"] == ids[2:]
    assert reply.blobs == [("results.0.result_data", b'{"a":1}')]


def test_a_submission_is_waited_for_by_its_first_id(cluster: Cluster) -> None:
    member = cluster.device()
    told = submit(cluster, ECHO, ECHO, ECHO, first_only=True)
    assert {"first_id", "count", "submitted_at", "replayed"} == set(told)
    assert told["count"] == 3
    cluster.place()
    member.finish(member.keys[0], result=b'{"a":1}')
    member.fail(member.keys[0], cause="deterministic")
    args = {"first_id": told["first_id"], "count": 3, "timeout_seconds": 5, "brief": True}
    assert cluster.park("task.wait", args) is None
    cluster.pass_time(5)
    (over,) = only(ins.WaitOver, cluster.tick("deadlines"))
    reply = admin_waits.waited(cluster.admin, over)
    assert reply.data == {
        "statuses": ["success", "failed", None], "result_data": [None] * 3, "omitted": [],
    }  # fmt: skip
    assert reply.blobs == [("result_data.0", b'{"a":1}')]


def test_a_submission_may_be_answered_when_its_tasks_have_ended(cluster: Cluster) -> None:
    member = cluster.device()
    args = {"task": ECHO, "count": 2, "first_only": True, "wait_seconds": 5}
    assert cluster.park("task.submit", args, [b'{"n":1}', b'{"n":2}']) is None
    cluster.place()
    assert only(ins.WaitOver, member.finish(member.keys[0], result=b'{"a":1}')) == []
    (over,) = only(ins.WaitOver, member.fail(member.keys[0], cause="deterministic"))
    reply = admin_waits.waited(cluster.admin, over)
    assert reply.data["statuses"] == ["success", "failed"]
    assert reply.data["first_id"] == cluster.public(1)
    assert (reply.data["count"], reply.data["replayed"]) == (2, False)
    assert reply.blobs == [("result_data.0", b'{"a":1}')]
    assert wrong(cluster, "task.submit", {**args, "wait_seconds": 61}).field == "wait_seconds"
    key = {"owner": "me", "idempotency_key": "k", "fingerprint": "f"}
    assert cluster.park("task.submit", {**args, **key}, [b"{}", b"{}"]) is None
    again = {**args, **key, "wait_seconds": 0}
    assert cluster.call("task.submit", again, [b"{}", b"{}"]).data["replayed"] is True


def test_results_that_do_not_fit_into_one_message_are_named(cluster: Cluster) -> None:
    member, _ = cluster.give(10)
    member.finish(result=b'"' + b"x" * 1_000_000 + b'"')
    numbers = tuple(range(1, 11))
    for brief in (True, False):
        over = ins.WaitOver((b"client", 1), numbers, (WALL_MS,) * len(numbers), brief)
        reply = admin_waits.waited(cluster.admin, over)
        assert len(reply.blobs) == 8
        assert len(reply.data["omitted"]) == 2
    assert reply.data["omitted"] == [cluster.public(number) for number in numbers[8:]]


def test_long_logs_of_many_results_do_not_make_a_header_that_nobody_reads(
    cluster: Cluster,
) -> None:
    member, _ = cluster.give(20)
    member.finish(details=b'{"logs":"' + b"x" * 250_000 + b'"}')
    over = ins.WaitOver((b"client", 1), range(1, 21), (WALL_MS,) * 20)
    told: list[str] = []
    while over.tasks:
        reply = admin_waits.waited(cluster.admin, over)
        frames = wire.encode(wire.ADMIN, b"REPLY", {"id": 1, "data": reply.data, "blobs": []})
        assert wire.decode(wire.ADMIN, frames).header["data"]["results"]
        told += [result["task_id"] for result in reply.data["results"]]
        left = tuple(n for n in over.tasks if cluster.public(n) in reply.data["omitted"])
        over = ins.WaitOver((b"client", 1), left, (WALL_MS,) * len(left))
    assert told == [cluster.public(number) for number in range(1, 21)]


def test_a_wait_by_first_id_goes_no_further_than_the_submission(cluster: Cluster) -> None:
    told = submit(cluster, ECHO, ECHO, first_only=True)
    cluster.pass_time(1)
    submit(cluster, ECHO)
    for op_args, field in (
        ({"count": 0}, "count"),
        ({"count": 1001}, "count"),
        ({"count": True}, "count"),
        ({"first_id": 7}, "first_id"),
        ({"task_ids": ["x"]}, "task_ids"),
        ({"timeout_seconds": 61}, "timeout_seconds"),
        ({"timeout_seconds": True}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"color": 1}, "color"),
    ):
        args: dict[str, Any] = {"first_id": told["first_id"], "count": 2, **op_args}
        assert wrong(cluster, "task.wait", args).field == field
    with pytest.raises(errors.TaskNotFound):
        cluster.park("task.wait", {"first_id": told["first_id"], "count": 3})


def test_a_wait_for_what_has_ended_is_over_in_its_own_turn(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.finish()
    args = {"task_ids": [cluster.public(key[0])]}
    assert cluster.park("task.wait", args) is None
    assert only(ins.WaitOver, cluster.admin.turn) == [ins.WaitOver((b"client", 1), (key[0],))]


def test_a_wait_names_the_id_it_does_not_know(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    with pytest.raises(errors.TaskNotFound, match=UNKNOWN_ID):
        cluster.park("task.wait", {"task_ids": [cluster.public(number), UNKNOWN_ID]})
    assert wrong(cluster, "task.wait", {"task_ids": []}).field == "task_ids"
    assert wrong(cluster, "task.wait", {"task_ids": [5]}).field == "task_ids.0"


def test_a_task_forgotten_while_somebody_waited_is_left_out(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    over = ins.WaitOver((b"client", 1), (number, 77), (WALL_MS, WALL_MS))
    assert admin_waits.waited(cluster.admin, over).data["results"] == []


@pytest.mark.parametrize("op", ["task.wait", "task.cancel_many"])
def test_ids_that_are_no_texts_are_refused_without_cerberus_which_is_slow_for_many(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setattr(validation, "by_cerberus", lambda *_: pytest.fail("Cerberus was asked"))
    error = wrong(cluster, op, {"task_ids": [UNKNOWN_ID, *range(999)]})
    assert (error.field, error.reason) == ("task_ids.1", "must be a text")

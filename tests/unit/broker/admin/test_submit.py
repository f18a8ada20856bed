"""`task.submit` without the socket: what is taken, refused, repeated, and made together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from retire_cluster.broker.admin import submit as admin_submit
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.submission import reading
from retire_cluster.broker.core import instructions as ins
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from tests.unit.broker.kit import Cluster, MakeCluster, only, settings_with, submit, wrong

AT = "2023-11-14T22:13:20Z"
ECHO = {"task_type": "echo"}


def test_a_submission_is_answered_in_full_or_briefly(cluster: Cluster) -> None:
    data = submit(cluster, ECHO, {**ECHO, "priority": "high"})
    ids = [cluster.public(1), cluster.public(2)]
    assert data["task_ids"] == ids
    assert (data["submitted_at"], data["replayed"]) == (AT, False)
    assert [(task["task_id"], task["priority"]) for task in data["tasks"]] == [
        (ids[0], "normal"), (ids[1], "high"),
    ]  # fmt: skip
    assert "tasks" not in submit(cluster, ECHO, brief=True)


def test_tasks_that_are_alike_are_submitted_by_count(cluster: Cluster) -> None:
    data = cluster.call("task.submit", {"task": ECHO, "count": 3}, [b"{}"] * 3).data
    assert len(data["task_ids"]) == 3
    assert len(cluster.call("task.submit", {"task": ECHO}, [b"{}"]).data["tasks"]) == 1


def test_a_submission_may_wait_for_its_time(cluster: Cluster) -> None:
    data = submit(cluster, {**ECHO, "delay_seconds": 5}, ECHO)
    assert [cluster.status(1), cluster.status(2)] == ["pending", "queued"]
    assert [task["status"] for task in data["tasks"]] == ["pending", "queued"]


def test_defaults_of_requirements_are_filled_in_and_kept(cluster: Cluster) -> None:
    data = submit(cluster, {**ECHO, "requirements": {"min_cpu_cores": 2}, "metadata": {"by": "me"}})
    found = cluster.call("task.get", {"task_id": data["task_ids"][0]}).data
    assert found["requirements"] == {"min_cpu_cores": 2, "timeout_seconds": 300, "max_retries": 3}
    assert found["metadata"] == {"by": "me"}


DEEP: Any = "x"
for _ in range(400):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("args", "count", "field"),
    [
        ({}, 0, "tasks"),
        ({"tasks": []}, 0, "tasks"),
        ({"tasks": [ECHO] * 1001}, 1001, "tasks"),
        ({"tasks": ECHO}, 1, "tasks"),
        ({"tasks": [ECHO], "extra": 1}, 1, "extra"),
        ({"tasks": [ECHO]}, 2, ""),
        ({"tasks": [ECHO, 5]}, 2, "tasks.1"),
        ({"tasks": [ECHO, {"task_type": "echo", "color": 1}]}, 2, "tasks.1.color"),
        ({"tasks": [{}]}, 1, "tasks.0.task_type"),
        ({"task": ECHO, "count": 0}, 0, "count"),
        ({"task": ECHO, "count": True}, 1, "count"),
        ({"task": ECHO, "count": 1001}, 1001, "count"),
        ({"task": {"task_type": "NO"}}, 1, "task.task_type"),
        ({"task": {**ECHO, "priority": "asap"}}, 1, "task.priority"),
        ({"task": {**ECHO, "requirements": {"max_retries": 11}}}, 1,
         "task.requirements.max_retries"),
        ({"task": {**ECHO, "metadata": {"a": DEEP}}}, 1, "task"),
        ({"task": {"task_type": "never.heard"}}, 1, "task_type"),
        ({"task": ECHO, "owner": "me"}, 1, "idempotency_key"),
        ({"task": ECHO, "owner": "me", "idempotency_key": "", "fingerprint": "f"}, 1,
         "idempotency_key"),
        ({"task": ECHO, "owner": 5, "idempotency_key": "k", "fingerprint": "f"}, 1, "owner"),
    ],
)  # fmt: skip
def test_a_wrong_submission_names_the_field(
    cluster: Cluster, args: dict[str, Any], count: int, field: str
) -> None:
    assert wrong(cluster, "task.submit", args, [b"{}"] * count).field == field
    assert cluster.state.tasks == {}


@pytest.mark.parametrize(
    ("task_type", "payload", "field"),
    [
        ("echo", b"[]", "payload"),
        ("echo", b"{", "payload"),
        ("echo", b'{"a":1e400}', "payload"),
        ("echo", b'{"a":18446744073709551616}', "payload.a"),
        ("sleep", b'{"duration":-1}', "payload.duration"),
        ("sleep", b'{"length":1}', "payload.length"),
        ("command", b"{}", "payload.command"),
        ("http_request", b'{"url":"http://127.0.0.1:99999/"}', "payload.url"),
        ("resize", b'{"width":"wide"}', "payload.width"),
    ],
)
def test_a_wrong_payload_names_its_field(
    cluster: Cluster, task_type: str, payload: bytes, field: str
) -> None:
    cluster.device()
    task = {"task_type": task_type}
    assert wrong(cluster, "task.submit", {"task": task}, [payload]).field == field
    assert (
        wrong(cluster, "task.submit", {"tasks": [ECHO, task]}, [b"{}", payload]).field
        == f"tasks.1.{field}"
    )
    assert cluster.state.tasks == {}


@pytest.mark.parametrize("task_type", ["command", "http_request"])
def test_a_limit_in_a_payload_that_the_task_would_never_reach_is_refused(
    cluster: Cluster, task_type: str
) -> None:
    payload = b'{"command": ["ls"], "timeout": 400}'
    if task_type == "http_request":
        payload = b'{"url": "http://a/", "timeout": 400}'
    form: dict[str, Any] = {"task_type": task_type}
    error = wrong(cluster, "task.submit", {"tasks": [form]}, [payload])
    assert error.details["field"] == "tasks.0.payload.timeout"
    assert "requirements.timeout_seconds" in error.message
    form["requirements"] = {"timeout_seconds": 400}
    assert cluster.call("task.submit", {"tasks": [form]}, [payload]).data["task_ids"]


def test_a_payload_too_large_has_its_own_error(cluster: Cluster) -> None:
    payload = b'{"a":"' + b"x" * 262_144 + b'"}'
    with pytest.raises(errors.PayloadTooLarge) as caught:
        submit(cluster, ECHO, payload=payload)
    assert caught.value.details == {"field": "tasks.0.payload"}


def test_a_type_offered_once_may_be_submitted_while_its_device_is_away(cluster: Cluster) -> None:
    member = cluster.device(task_types=(msg.TypeInfo("mine", "", None),))
    member.say(msg.Goodbye(member.session))
    assert submit(cluster, {"task_type": "mine"}, payload=b'{"anything":1}')["task_ids"]
    cluster.restart()
    assert submit(cluster, {"task_type": "mine"})["task_ids"]
    cluster.call("device.remove", {"device_id": "box"})
    cluster.restart()
    with pytest.raises(errors.ValidationError, match="no device of this cluster offers"):
        submit(cluster, {"task_type": "mine"})


def test_a_full_backlog_and_a_full_disk_refuse_new_tasks_with_a_time_to_come_back(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(settings_with(scheduler={"backlog_limit": 3}))
    submit(cluster, ECHO, ECHO)
    with pytest.raises(errors.QueueFull, match="the limit is 3") as caught:
        submit(cluster, ECHO, ECHO)
    assert caught.value.retry_after == 5
    submit(cluster, ECHO)
    cluster.admin.health.refuse_tasks("the disk is full")
    with pytest.raises(errors.QueueFull, match="the disk is full"):
        submit(cluster, ECHO)
    assert cluster.call("health").data["components"]["task_scheduler"] == "degraded"
    # Cancelling goes on.
    cluster.call("task.cancel", {"task_id": cluster.public(1)})


IDEMPOTENT: dict[str, Any] = {"owner": "me", "idempotency_key": "k", "fingerprint": "f"}


def test_the_same_submission_again_gets_the_first_answer(cluster: Cluster) -> None:
    first = submit(cluster, ECHO, ECHO, **IDEMPOTENT)
    cluster.pass_time(60)
    for step in range(3):
        again = submit(cluster, ECHO, ECHO, **IDEMPOTENT)
        assert again == {**first, "replayed": True}
        if step == 0:
            cluster.call("task.cancel", {"task_id": cluster.public(1)})
        cluster.restart()
    assert cluster.state.ledger.total == 2


def test_the_same_key_with_another_body_is_a_conflict_and_of_another_owner_is_not(
    cluster: Cluster,
) -> None:
    submit(cluster, ECHO, **IDEMPOTENT)
    with pytest.raises(errors.IdempotencyConflict):
        submit(cluster, ECHO, **{**IDEMPOTENT, "fingerprint": "other"})
    other = submit(cluster, ECHO, **{**IDEMPOTENT, "owner": "you"})
    assert other["replayed"] is False


def test_a_replay_whose_tasks_are_gone_says_so(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_days": 0.1}))
    submit(cluster, ECHO, **IDEMPOTENT)
    cluster.call("task.cancel", {"task_id": cluster.public(1)})
    cluster.pass_time(20_000)
    cluster.tick("retention")
    with pytest.raises(errors.TaskNotFound):
        submit(cluster, ECHO, **IDEMPOTENT)


def test_forms_seen_before_are_not_validated_again_and_not_kept_without_end(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SPECS_KEPT", 2)
    for number in range(7):
        submit(cluster, {**ECHO, "metadata": {"n": number % 4}})
    assert len(cluster.admin.specs._known) <= 2


# --- submissions of one turn ---------------------------------------------------------------------


def gathered(cluster: Cluster, ticket: int, **more: Any) -> Any:
    """What a submission is answered at once, as one of several in a turn."""
    args = {"task": ECHO, "first_only": True, **more}
    call = Call((b"client", ticket), "task.submit", args, [b'{"n":%d}' % ticket], cluster.now)
    return admin_submit.submit.perform(cluster.admin, call)


def test_submissions_of_a_turn_are_made_together_and_answered_one_by_one(cluster: Cluster) -> None:
    for ticket in range(1, 4):
        assert gathered(cluster, ticket) is None
    with pytest.raises(errors.ValidationError, match="unknown field"):
        gathered(cluster, 4, colour="red")
    assert gathered(cluster, 5, wait_seconds=5) is None
    assert not cluster.state.tasks, "nothing is made before all have been heard"
    admin_submit.make(cluster.admin)
    answers = {ticket: reply for (_, ticket), reply in cluster.admin.answers}
    assert {
        ticket: reply.data["first_id"]
        for ticket, reply in answers.items()
        if isinstance(reply, Reply)
    } == {
        1: cluster.public(1), 2: cluster.public(2), 3: cluster.public(3),
    }  # fmt: skip
    assert [task.payload for task in cluster.state.tasks.values()] == [
        b'{"n":1}', b'{"n":2}', b'{"n":3}', b'{"n":5}',
    ]  # fmt: skip
    (stored,) = only(ins.StoreTasks, cluster.admin.turn)
    assert [row.number for row in stored.rows] == [1, 2, 3, 4]
    (waiting,) = cluster.state.waits.all
    assert (waiting.request.ticket, waiting.unfinished) == ((b"client", 5), {4})
    cluster.admin.begin_turn()
    admin_submit.make(cluster.admin)
    assert (cluster.admin.turn, cluster.admin.answers) == ([], [])


def test_a_delayed_submission_is_answered_as_what_it_is_with_its_time(cluster: Cluster) -> None:
    data = submit(cluster, {**ECHO, "delay_seconds": 60}, ECHO)
    delayed, plain = data["tasks"]
    assert (delayed["status"], delayed["due_at"]) == ("pending", "2023-11-14T22:14:20Z")
    assert plain["status"] == "queued"
    assert "due_at" not in plain
    args = {"task_id": delayed["task_id"]}
    for op in ("task.get", "task.status", "task.explain"):
        found = cluster.call(op, args).data
        assert (found["status"], found["due_at"]) == ("pending", delayed["due_at"]), op
    assert cluster.call("task.list").data["items"][1]["due_at"] == delayed["due_at"]
    cluster.restart()
    assert cluster.call("task.status", args).data["due_at"] == delayed["due_at"]
    # It counts by time that passes: a clock that is set moves what the clock will show then.
    cluster.pass_time(10)
    cluster.wall_ms += 3_600_000
    assert cluster.call("task.status", args).data["due_at"] == "2023-11-14T23:14:20Z"
    cluster.call("task.cancel", args)
    assert "due_at" not in cluster.call("task.status", args).data


def test_the_repetition_of_a_delayed_submission_tells_the_same(cluster: Cluster) -> None:
    args = {"task": {**ECHO, "delay_seconds": 60}, **IDEMPOTENT}
    first = cluster.call("task.submit", args, [b"{}"]).data["tasks"]
    again = cluster.call("task.submit", args, [b"{}"]).data
    assert again["replayed"]
    assert again["tasks"] == first
    assert first[0]["status"] == "pending"


def test_delays_and_keys_of_gathered_submissions_stay_with_their_own(cluster: Cluster) -> None:
    gathered(cluster, 1)
    gathered(cluster, 2, task={**ECHO, "delay_seconds": 60}, **IDEMPOTENT)
    gathered(cluster, 3)
    admin_submit.make(cluster.admin)
    assert [cluster.status(number) for number in (1, 2, 3)] == ["queued", "pending", "queued"]
    record = cluster.state.submissions["me", "k"]
    assert (record.first, record.size, record.fingerprint) == (2, 1, "f")


def test_a_key_that_is_said_twice_in_a_turn_makes_one_task(cluster: Cluster) -> None:
    gathered(cluster, 1, **IDEMPOTENT)
    again = Call((b"client", 2), "task.submit", {"task": ECHO, **IDEMPOTENT}, [b"{}"], cluster.now)
    other = replace(again, args={"task": ECHO, **IDEMPOTENT, "owner": "you"})
    assert admin_submit.submit.perform(cluster.admin, other) is None
    assert not cluster.state.tasks, "another's key says nothing of this one"
    reply = admin_submit.submit.perform(cluster.admin, again)
    assert reply is not None
    assert (reply.data["task_ids"], reply.data["replayed"]) == ([cluster.public(1)], True)
    assert sorted(cluster.state.tasks) == [1, 2]
    assert cluster.admin.batch.size == 0


def test_the_limit_counts_what_the_same_turn_gathered(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(scheduler={"backlog_limit": 1_000}))
    cluster.submit(998)
    gathered(cluster, 1)
    gathered(cluster, 2)
    with pytest.raises(errors.QueueFull, match="1000 tasks are waiting"):
        gathered(cluster, 3)

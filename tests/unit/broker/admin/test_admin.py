"""The admin socket's operations, without the socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retire_cluster.broker.admin import calls as admin_module
from retire_cluster.broker.admin import polls
from retire_cluster.broker.admin import tasks as admin_tasks
from retire_cluster.broker.admin import waits as admin_waits
from retire_cluster.broker.admin.calls import Admin, Call, Poll, Reply, operations
from retire_cluster.broker.admin.cluster import polled
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.conf.fields import Spec
from retire_cluster.conf.settings import all_specs
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text.jsontext import dumps
from retire_cluster.schemas.vocabulary import TaskStatus
from tests.unit.broker.kit import WALL_MS, Cluster, MakeCluster, only, settings_with, submit, wrong

ROOT = Path(__file__).resolve().parents[4]
AT = "2023-11-14T22:13:20Z"
UNKNOWN_ID = "018bcfe5-6800-7555-9555-550000000063"
ECHO = {"task_type": "echo"}


def test_the_table_is_the_protocols() -> None:
    assert set(operations()) == {
        "broker.info", "health", "cluster.status", "cluster.metrics", "cluster.config", "metrics",
        "device.list", "device.get", "device.status", "device.remove", "device.drain",
        "device.resume", "device.readmit", "device.ping", "device.summary",
        "task.submit", "task.list", "task.get", "task.status", "task.result", "task.cancel",
        "task.retry", "task.explain", "task.wait", "task.cancel_many", "task.statistics",
        "task.types",
        "config.get", "config.update", "config.reset", "events.poll", "rate.hit", "facade.report",
        "facade.identity",
        "token.create", "token.list", "token.revoke", "device.authorise",
        "api_key.changed", "api_key.used", "api_key.uses",
        "admin_key.add", "admin_key.list", "admin_key.revoke",
    }  # fmt: skip


def test_an_unknown_operation_is_not_found_and_the_others_named(cluster: Cluster) -> None:
    with pytest.raises(
        errors.NotFound, match=r"no operation 'task.sumbit'; there are .*task.submit"
    ):
        cluster.call("task.sumbit")


@pytest.mark.parametrize(
    "op", sorted(name for name, entry in operations().items() if entry.schema is not None)
)
def test_every_operation_refuses_an_argument_it_does_not_know(cluster: Cluster, op: str) -> None:
    assert "nonsense" in str(wrong(cluster, op, {"nonsense": 1}).details["errors"])


# --- finding and listing -------------------------------------------------------------------------

TASK_OPS = [
    "task.get", "task.status", "task.result", "task.cancel", "task.retry", "task.explain",
]  # fmt: skip


@pytest.mark.parametrize("op", TASK_OPS)
@pytest.mark.parametrize("task_id", ["", "nonsense", "x" * 200, UNKNOWN_ID, UNKNOWN_ID + "\n"])
def test_an_id_that_is_none_of_ours_is_not_found(cluster: Cluster, op: str, task_id: str) -> None:
    with pytest.raises(errors.TaskNotFound):
        cluster.call(op, {"task_id": task_id})


@pytest.mark.parametrize("ended", [False, True])
def test_a_tasks_number_with_another_time_is_not_its_id(cluster: Cluster, ended: bool) -> None:
    (number,) = cluster.submit()
    if ended:
        cluster.call("task.cancel", {"task_id": cluster.public(number)})
    with pytest.raises(errors.TaskNotFound):
        cluster.call("task.get", {"task_id": cluster.public(number, WALL_MS + 1)})
    upper = cluster.public(number).upper()
    assert cluster.call("task.status", {"task_id": upper}).data["task_id"] == upper.lower()


def test_a_task_forgotten_by_retention_is_not_found(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_days": 0.1}))
    cluster.submit()
    cluster.call("task.cancel", {"task_id": cluster.public(1)})
    cluster.pass_time(20_000)
    cluster.tick("retention")
    for op in TASK_OPS:
        with pytest.raises(errors.TaskNotFound):
            cluster.call(op, {"task_id": cluster.public(1)})


def listed(cluster: Cluster, **args: Any) -> tuple[list[int], dict[str, Any]]:
    data = cluster.call("task.list", args).data
    numbers = [cluster.state.ids.read(item["task_id"]) for item in data["items"]]
    return [number[0] for number in numbers if number is not None], data["pagination"]


def test_tasks_are_listed_newest_first_in_pages(cluster: Cluster) -> None:
    cluster.submit(45)
    numbers, pagination = listed(cluster)
    assert numbers == list(range(45, 25, -1))
    assert pagination == {
        "page": 1, "page_size": 20, "total_items": 45, "total_pages": 3, "has_next": True,
        "has_previous": False, "next_cursor": cluster.public(26),
    }  # fmt: skip
    numbers, pagination = listed(cluster, page=3)
    assert numbers == [5, 4, 3, 2, 1]
    assert (pagination["has_next"], pagination["has_previous"], pagination["next_cursor"]) == (
        False, True, None,
    )  # fmt: skip
    numbers, pagination = listed(cluster, page=1_000_000_000, page_size=100)
    assert (numbers, pagination["has_next"], pagination["has_previous"]) == ([], False, True)


def test_an_empty_list_has_no_pages(cluster: Cluster) -> None:
    numbers, pagination = listed(cluster, page=2)
    assert numbers == []
    assert (pagination["total_pages"], pagination["has_previous"]) == (0, False)


def test_a_cursor_walks_the_whole_list_while_new_tasks_arrive(cluster: Cluster) -> None:
    cluster.submit(25)
    seen, cursor = [], None
    while True:
        numbers, pagination = listed(cluster, page_size=10, **({"after": cursor} if cursor else {}))
        seen += numbers
        cursor = pagination["next_cursor"]
        cluster.submit(3)
        if cursor is None:
            break
    assert seen == list(range(25, 0, -1))


def test_a_page_size_above_the_limit_is_clamped_and_a_bad_cursor_refused(cluster: Cluster) -> None:
    cluster.submit(3)
    assert listed(cluster, page_size=5_000)[1]["page_size"] == 100
    assert wrong(cluster, "task.list", {"after": "x"}).field == "after"
    assert wrong(cluster, "task.list", {"page": 0}).field == "page"


def test_lists_are_filtered(cluster: Cluster) -> None:
    member, _ = cluster.give(2)
    cluster.submit(1, priority="high")
    cluster.submit(1, task_type="echo")
    member.finish(member.keys[0])
    assert listed(cluster, status="queued")[0] == [4, 3]
    assert listed(cluster, status="success")[0] == [1]
    assert listed(cluster, priority="high")[0] == [3]
    assert listed(cluster, task_type="echo")[0] == [4]
    assert listed(cluster, task_type="command")[0] == []
    assert listed(cluster, device_id="box")[0] == [2, 1]
    assert listed(cluster, device_id="box", status="assigned")[1]["total_items"] == 1


# --- one task ------------------------------------------------------------------------------------


def test_everything_about_a_task_while_it_lives_and_when_it_has_ended(cluster: Cluster) -> None:
    member, key = cluster.give(payload=b'{"duration":3}', max_retries=1)
    member.start()
    member.fail()
    cluster.live_on(4, member)
    reply = cluster.call("task.get", {"task_id": cluster.public(key[0])})
    assert reply.blobs == [("payload", b'{"duration":3}')]
    assert (reply.data["status"], reply.data["retry_count"], reply.data["result"]) == (
        "assigned", 1, None,
    )  # fmt: skip
    assert [one["status"] for one in reply.data["attempts"]] == ["failed", "assigned"]
    assert [one["cause"] for one in reply.data["error_history"]] == ["error"]
    member.finish(result=b'{"slept_for":3}', details=b'{"logs":"zzz"}')
    reply = cluster.call("task.get", {"task_id": cluster.public(key[0])})
    assert reply.blobs[1] == ("result.result_data", b'{"slept_for":3}')
    assert reply.data["result"]["logs"] == "zzz"
    assert [one["status"] for one in reply.data["attempts"]] == ["failed", "success"]


def test_a_task_without_result_data_sends_no_blob_for_it(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    task_id = cluster.public(number)
    cluster.call("task.cancel", {"task_id": task_id})
    assert len(cluster.call("task.get", {"task_id": task_id}).blobs) == 1
    assert cluster.call("task.result", {"task_id": task_id}).blobs == []


def test_the_status_of_a_task(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    found = cluster.call("task.status", {"task_id": cluster.public(number)}).data
    assert (found["status"], found["attempt"]) == ("queued", 0)
    assert found["queued_reason"] == {"eligible_devices": 0, "busy_devices": 0, "rejected": {}}
    member = cluster.device()
    cluster.place()
    found = cluster.call("task.status", {"task_id": cluster.public(number)}).data
    assert (found["status"], found["attempt"], found["queued_reason"]) == ("assigned", 1, None)
    member.finish()
    found = cluster.call("task.status", {"task_id": cluster.public(number)}).data
    assert (found["is_terminal"], found["attempt"]) == (True, 1)


def test_a_result_is_there_when_the_task_has_ended(cluster: Cluster) -> None:
    member, key = cluster.give()
    task_id = cluster.public(key[0])
    with pytest.raises(errors.NoTaskResult, match="The task is assigned"):
        cluster.call("task.result", {"task_id": task_id})
    member.finish(result=b"[1]")
    reply = cluster.call("task.result", {"task_id": task_id})
    assert reply.blobs == [("result_data", b"[1]")]
    assert (reply.data["task_id"], reply.data["status"]) == (task_id, "success")


def test_a_task_is_explained_device_by_device(cluster: Cluster) -> None:
    cluster.give(member=cluster.device("busy", tags=("x",)))
    cluster.device("plain")
    cluster.device("idle", tags=("x",))
    (number,) = cluster.submit(required_tags=["x"])
    found = cluster.call("task.explain", {"task_id": cluster.public(number)}).data
    assert found["devices"] == [
        {"device_id": "busy", "eligible": True, "reasons": ["all its slots are busy"]},
        {"device_id": "idle", "eligible": True, "reasons": []},
        {"device_id": "plain", "eligible": False, "reasons": ["missing tag x"]},
    ]
    assert found["queued_reason"]["eligible_devices"] == 2
    cluster.call("task.cancel", {"task_id": cluster.public(number)})
    found = cluster.call("task.explain", {"task_id": cluster.public(number)}).data
    assert (found["status"], found["devices"]) == ("cancelled", [])


def test_cancelling_answers_and_refuses_a_second_time(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    args = {"task_id": cluster.public(number)}
    assert cluster.call("task.cancel", args).data == {
        **args, "status": "cancelled", "cancelled_at": AT,
    }  # fmt: skip
    with pytest.raises(errors.CannotCancelTask, match="it is cancelled"):
        cluster.call("task.cancel", args)


def test_many_are_cancelled_at_once_and_those_that_cannot_be_are_told(cluster: Cluster) -> None:
    ended, waiting, other = (cluster.public(n) for _ in range(3) for n in cluster.submit())
    cluster.call("task.cancel", {"task_id": ended})
    asked = [ended, waiting.upper(), waiting.upper(), UNKNOWN_ID, "nonsense"]
    found = cluster.call("task.cancel_many", {"task_ids": asked}).data
    assert found["cancelled"] == [waiting]
    assert found["not_cancelled"] == [ended, UNKNOWN_ID, "nonsense"]
    assert cluster.call("task.status", {"task_id": waiting}).data["status"] == "cancelled"
    assert cluster.call("task.status", {"task_id": other}).data["status"] == "queued"


@pytest.mark.parametrize("args", [{}, {"task_ids": []}, {"task_ids": [1]}, {"task_ids": "x"},
                                  {"task_ids": ["x"] * 1_001}])  # fmt: skip
def test_a_list_of_ids_to_cancel_is_checked(cluster: Cluster, args: dict[str, Any]) -> None:
    assert wrong(cluster, "task.cancel_many", args).details["field"].startswith("task_ids")
    unknown = wrong(cluster, "task.cancel_many", {"task_ids": ["x"], "nonsense": 1})
    assert unknown.details["field"] == "nonsense"


@pytest.mark.parametrize("status", ["failed", "timeout", "cancelled"])
def test_a_task_that_did_not_succeed_can_be_retried(cluster: Cluster, status: str) -> None:
    member, key = cluster.give(max_retries=0)
    args = {"task_id": cluster.public(key[0])}
    if status == "cancelled":
        cluster.call("task.cancel", args)
    else:
        member.finish(outcome=status)
    assert cluster.status(key[0]) == status
    found = cluster.call("task.retry", args).data
    assert found == {**args, "status": "queued", "retried_at": AT}
    cluster.place()
    member.finish()
    with pytest.raises(errors.CannotRetryTask, match="The task is success"):
        cluster.call("task.retry", args)


def test_a_live_task_cannot_be_retried(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    with pytest.raises(errors.CannotRetryTask, match="The task is queued"):
        cluster.call("task.retry", {"task_id": cluster.public(number)})


@pytest.mark.parametrize("generations", [0, 1])
def test_a_task_that_ended_in_this_very_turn_is_retried_in_the_next(
    cluster: Cluster, generations: int
) -> None:
    (number,) = cluster.submit()
    args = {"task_id": cluster.public(number)}
    for _ in range(generations):
        cluster.call("task.cancel", args)
        cluster.call("task.retry", args)
    turn: list[ins.Instruction] = []
    cluster.admin.turn = turn
    cluster.admin.run(Call((b"", 1), "task.cancel", args, (), cluster.now))
    with pytest.raises(errors.TaskJustEnded, match="ended just now") as caught:
        cluster.admin.run(Call((b"", 2), "task.retry", args, (), cluster.now))
    assert caught.value.retry_after == 1
    cluster.store.commit([one for one in turn if isinstance(one, ins.WRITES)])
    cluster.call("task.retry", args)


# --- waiting -------------------------------------------------------------------------------------


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


# --- devices -------------------------------------------------------------------------------------

DEVICE_OPS = [
    "device.get", "device.status", "device.remove", "device.drain", "device.resume",
    "device.readmit", "device.ping",
]  # fmt: skip


@pytest.mark.parametrize("op", DEVICE_OPS)
def test_an_unknown_device_is_not_found(cluster: Cluster, op: str) -> None:
    with pytest.raises(errors.DeviceNotFound):
        cluster.call(op, {"device_id": "nobody"})
    assert wrong(cluster, op, {}).field == "device_id"


def test_devices_are_listed_by_id_filtered_and_in_pages(cluster: Cluster) -> None:
    cluster.device("c", tags=("x", "y"), role="mobile", platform="android")
    cluster.device("a", tags=("x",))
    gone = cluster.device("b")
    gone.say(msg.Goodbye(gone.session))

    def names(**args: Any) -> list[str]:
        items = cluster.call("device.list", args).data["items"]
        return [item["device_id"] for item in items]

    assert names() == names(status="all") == ["a", "b", "c"]
    assert names(status="online") == ["a", "c"]
    assert names(status="offline") == ["b"]
    assert names(role="mobile") == names(platform="android") == ["c"]
    assert names(tags=["x"]) == ["a", "c"]
    assert names(tags=["x", "y"]) == ["c"]
    assert names(page=2, page_size=2) == ["c"]
    found = cluster.call("device.list", {"page": 2, "page_size": 2}).data["pagination"]
    assert found == {
        "page": 2, "page_size": 2, "total_items": 3, "total_pages": 2, "has_next": False,
        "has_previous": True,
    }  # fmt: skip
    empty = cluster.call("device.list", {"role": "storage", "page": 3}).data["pagination"]
    assert (empty["total_pages"], empty["has_previous"]) == (0, False)


def test_draining_and_resuming_answer_the_devices_status(cluster: Cluster) -> None:
    cluster.device()
    found = cluster.call("device.drain", {"device_id": "box"}).data
    assert (found["accepting"], found["not_accepting_reason"]) == (
        False, "drained by the administrator",
    )  # fmt: skip
    assert cluster.call("device.resume", {"device_id": "box"}).data["accepting"] is True
    assert cluster.call("device.get", {"device_id": "box"}).data["accepting"] is True


def test_removing_and_readmitting_answer_when(cluster: Cluster) -> None:
    cluster.device()
    assert cluster.call("device.remove", {"device_id": "box"}).data == {
        "device_id": "box", "removed_at": AT, "was_online": True,
        "removal_reason": "removed by request",
    }  # fmt: skip
    with pytest.raises(errors.DeviceNotFound):
        cluster.call("device.get", {"device_id": "box"})
    found = cluster.call("device.readmit", {"device_id": "box"}).data
    assert found == {"device_id": "box", "readmitted_at": AT}


def test_a_ping_is_parked_until_the_device_answers(cluster: Cluster) -> None:
    cluster.device()
    assert cluster.park("device.ping", {"device_id": "box", "timeout_seconds": 3}) is None
    assert cluster.state.next_deadline() == cluster.mono + 3
    assert wrong(cluster, "device.ping", {"device_id": "box", "timeout_seconds": 11}).field == (
        "timeout_seconds"
    )


def test_the_summary_counts_devices(cluster: Cluster) -> None:
    big = {"cpu_count": 8, "memory_total_gb": 16, "has_gpu": True}
    cluster.device("big", capabilities=big)
    cluster.device("nearly", capabilities={**big, "memory_total_gb": 15.9, "has_gpu": "yes"})
    cluster.device("phone", role="mobile", platform="android", capabilities={"cpu_count": 4})
    gone = cluster.device("gone")
    gone.say(msg.Goodbye(gone.session))
    found = cluster.call("device.summary").data
    assert (found["total_devices"], found["online_devices"], found["offline_devices"]) == (4, 3, 1)
    assert found["by_role"] == {"worker": 3, "mobile": 1}
    assert found["by_platform"] == {"linux": 3, "android": 1}
    assert found["by_status"] == {"online": 3, "offline": 1}
    assert found["capabilities"] == {"gpu_enabled": 1, "mobile_devices": 1, "server_grade": 1}
    assert found["resource_totals"]["cpu_cores"] == 24


# --- the cluster ---------------------------------------------------------------------------------


def test_who_answers_here(cluster: Cluster) -> None:
    cluster.pass_time(90)
    assert cluster.call("broker.info").data == {
        "version": "1.2.3", "epoch": cluster.state.epoch, "pid": 77, "uptime_seconds": 90.0,
        "started_at": AT,
        "host": "127.0.0.1", "admin_port": 8080, "worker_port": 8082, "event_port": 8083,
        "store": "memory", "server_key": "", "bus_encrypted": False,
    }  # fmt: skip


def test_the_scheduler_is_unhealthy_when_ticks_stop(cluster: Cluster) -> None:
    assert cluster.call("health").data == {
        "components": {"cluster_server": "healthy", "task_scheduler": "healthy"}
    }
    cluster.pass_time(11)
    assert cluster.call("health").data["components"]["task_scheduler"] == "unhealthy"


def test_the_status_of_the_cluster(cluster: Cluster) -> None:
    empty = cluster.call("cluster.status").data["cluster_stats"]
    assert (empty["total_devices"], empty["health_percentage"]) == (0, 0.0)
    cluster.device("a")
    cluster.device("b")
    gone = cluster.device("c")
    gone.say(msg.Goodbye(gone.session))
    cluster.submit(4)
    cluster.place()
    cluster.pass_time(3_660)
    found = cluster.call("cluster.status").data
    stats = found["cluster_stats"]
    assert (stats["online_devices"], stats["offline_devices"]) == (2, 1)
    assert stats["health_percentage"] == 66.7
    assert stats["total_resources"] == {"cpu_cores": 12, "memory_gb": 24, "storage_gb": 300}
    assert stats["by_status"] == {"online": 2, "offline": 1}
    assert found["tasks"]["by_status"]["assigned"] == 2
    assert (found["tasks"]["queued"], found["tasks"]["running"]) == (2, 0)
    assert found["server_info"] == {
        "version": "1.2.3", "uptime": "1h 1m", "host": "127.0.0.1", "port": 8080,
    }  # fmt: skip


def test_the_metrics_are_measured(cluster: Cluster) -> None:
    member, _ = cluster.give(2)
    cluster.device("unsaid")
    member.beat(metrics={"cpu_percent": 30.0})
    member.finish(member.keys[0])
    report = {"facade": "f", "requests": 10, "errors": 1, "total_ms": 25.0}
    assert cluster.call("facade.report", report).data == {}
    found = cluster.call("cluster.metrics").data
    assert found["devices"]["online"] == 2
    assert found["resources"]["average_utilization"] == 30.0
    assert found["performance"]["average_response_time"] == 2.5
    assert found["performance"]["error_rate"] == 0.1
    assert found["performance"]["tasks_per_second"] == 0.017
    assert found["tasks"]["by_status"]["success"] == 1
    assert found["tasks"]["backlog"] == 0
    numbers = cluster.call("metrics").data
    assert numbers["slots"] == {"used": 1.0, "total": 3}
    assert numbers["task_duration_seconds"]["count"] == 1
    assert sum(numbers["task_duration_seconds"]["counts"]) == 1
    assert numbers["http"] == {"requests": 10, "errors": 1}
    assert set(numbers["heartbeat_age_seconds"]) == {"box", "unsaid"}
    assert numbers["store_commits"] == cluster.store.commits
    assert numbers["last_event"] == cluster.state.log.last
    assert numbers["events"] == cluster.state.log.last - cluster.state.epoch > 0
    assert numbers["tasks_ended"] == {"cancelled": 0, "failed": 0, "success": 1, "timeout": 0}


def test_metrics_without_devices_are_zero(cluster: Cluster) -> None:
    found = cluster.call("cluster.metrics").data
    assert found["resources"]["average_utilization"] == 0.0


def test_statistics_of_all_kept_tasks(cluster: Cluster) -> None:
    empty = cluster.call("task.statistics").data
    assert empty["performance_metrics"]["success_rate"] == 0.0
    assert empty["current_load"]["capacity_utilization"] == 0.0
    member, _ = cluster.give(4, max_retries=0)
    first, second, third, _ = member.keys
    member.finish(first, seconds=2.0)
    member.fail(second)
    cluster.call("task.cancel", {"task_id": cluster.public(third[0])})
    cluster.submit(1, priority="low", delay=5)
    cluster.tick("upkeep")
    found = cluster.call("task.statistics").data
    assert found["queue_stats"]["total_tasks"] == 5
    assert found["queue_stats"]["by_device"] == {"box": 4}
    assert found["queue_stats"]["by_type"] == {"sleep": 5}
    assert found["queue_stats"]["by_priority"]["low"] == 1
    figures = found["performance_metrics"]
    assert (figures["success_rate"], figures["tasks_per_hour"]) == (0.3333, 3)
    assert figures["average_execution_time"] == 1.25
    assert figures["device_utilization"] == 25.0
    assert found["current_load"] == {
        "pending_tasks": 1, "running_tasks": 1, "capacity_utilization": 25.0,
    }  # fmt: skip


def test_types_are_the_built_in_and_the_advertised_ones(cluster: Cluster) -> None:
    cluster.device("a")
    gone = cluster.device("b", task_types=(msg.TypeInfo("mine", "does it", None, True),))
    gone.say(msg.Goodbye(gone.session))
    found = cluster.call("task.types").data
    assert found["custom_types"] == ["mine", "resize"]
    assert found["supported_types"] == [*found["builtin_types"], "mine", "resize"]
    assert (found["total_count"], found["online_devices"]) == (8, 1)
    by_type = found["by_type"]
    assert (by_type["echo"]["devices"], by_type["http_request"]["devices"]) == (1, 0)
    assert by_type["resize"]["payload_schema"]["properties"]["width"] == {"type": "integer"}
    assert by_type["mine"] == {
        "devices": 0, "payload_schema": {"type": "object"}, "description": "does it",
        "repeatable": True, "described_otherwise_by": [],
    }  # fmt: skip
    cluster.call("device.remove", {"device_id": "b"})
    assert cluster.call("task.types").data["custom_types"] == ["resize"]


# --- configuration -------------------------------------------------------------------------------


def test_the_configuration_is_shown_whole_or_by_section(cluster: Cluster) -> None:
    whole = cluster.call("config.get").data
    assert list(whole) == [
        "server", "heartbeat", "scheduler", "retention", "database", "logging", "api",
    ]  # fmt: skip
    assert "keys" not in whole["api"]
    server = cluster.call("config.get", {"section": "server"}).data
    assert server == whole["server"]
    assert (server["port"], server["worker_port"]) == (8080, 8082)
    assert whole["database"]["url"] == "memory"
    with pytest.raises(errors.NotFound):
        cluster.call("config.get", {"section": "policy"})
    found = cluster.call("cluster.config").data
    assert found["heartbeat"] == {"interval": 5, "timeout": 30, "max_missed": 3}
    assert found["server"]["max_connections"] == 1000


def test_a_change_is_partial_and_takes_effect_at_once(cluster: Cluster) -> None:
    values = {"interval": 10, "timeout": 60}
    found = cluster.call("config.update", {"section": "heartbeat", "values": values}).data
    assert found["updated_fields"] == ["interval", "timeout"]
    assert found["current_config"] == {"interval": 10, "timeout": 60, "max_missed": 3}
    assert cluster.state.settings.heartbeat.timeout == 60
    assert cluster.events("config") == [
        ("config.changed", {"updated_fields": ["interval", "timeout"]})
    ]


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [
        ("heartbeat", {}, ""),
        ("heartbeat", {"interval": 0}, "interval"),
        ("heartbeat", {"timeout": 14}, "timeout"),
        ("heartbeat", {"interval": 4, "color": 1}, "color"),
        ("heartbeat", {"interval": "5"}, "interval"),
        ("heartbeat", {"interval": True}, "interval"),
        ("heartbeat", {"max_missed": 2.5}, "max_missed"),
        ("heartbeat", {"interval": [1]}, "interval"),
        ("heartbeat", {"interval": None}, "interval"),
        ("server", {"max_connections": 0}, "max_connections"),
        ("server", {"port": 9}, "port"),
        ("database", {"min_free_percent": 51}, "min_free_percent"),
        ("database", {"url": "memory://"}, "url"),
        ("logging", {"level": "DEBUG"}, "section"),
        ("nonsense", {"a": 1}, "section"),
    ],
)
def test_a_wrong_change_changes_nothing_and_names_the_field(
    cluster: Cluster, section: str, values: dict[str, Any], field: str
) -> None:
    args = {"section": section, "values": values}
    assert wrong(cluster, "config.update", args).field == field
    assert cluster.state.settings == cluster.base
    assert cluster.state.config_version == 1


def _another_value(spec: Spec) -> Any:
    """A value that a setting may have, other than its default."""
    if spec.kind == "bool":
        return not spec.default
    if spec.choices:
        return next(choice for choice in spec.choices if choice != spec.default)
    if spec.kind in ("int", "float"):
        return spec.default + 1
    return "192.0.2.9"


@pytest.mark.parametrize("spec", list(all_specs()), ids=lambda spec: spec.dotted)
def test_what_is_documented_as_live_can_be_changed_and_nothing_else(
    cluster: Cluster, spec: Spec
) -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    row = next(line for line in documented.splitlines() if line.startswith(f"| `{spec.dotted}`"))
    args = {"section": spec.section, "values": {spec.name: _another_value(spec)}}
    if "*live*" not in row:
        assert wrong(cluster, "config.update", args).field in ("section", spec.name)
        return
    assert cluster.call("config.update", args).data["updated_fields"] == [spec.name]
    cluster.restart()
    shown = cluster.call("config.get", {"section": spec.section}).data
    assert shown[spec.name] == _another_value(spec)
    cluster.call("config.reset")
    cluster.restart()
    assert cluster.state.settings == cluster.base


def test_a_reset_goes_back_to_what_the_process_was_started_with(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(settings_with(heartbeat={"interval": 7.0}))
    member = cluster.device()
    cluster.call("config.update", {"section": "heartbeat", "values": {"interval": 9}})
    found = cluster.call("config.reset").data
    assert (found["reset_at"], found["current_config"]["heartbeat"]["interval"]) == (AT, 7.0)
    assert [config.config.interval for config in member.told(msg.Config)] == [9, 7.0]


# --- events --------------------------------------------------------------------------------------


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
    assert polled(cluster.admin, parked).data["events"] == []
    cluster.submit()
    assert len(polled(cluster.admin, parked).data["events"]) == 1


def test_parked_polls_gather_what_comes_and_share_the_look(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def counted(admin: Admin, poll: Poll) -> Reply:
        looks.append(poll)
        return polled(admin, poll)

    monkeypatch.setattr(polls, "polled", counted)
    args = {"since": cluster.state.log.last, "wait_seconds": 20, "gather_seconds": 0.1}
    for _ in range(8):
        assert cluster.park("events.poll", args) is None
    other = {**args, "type": "device"}
    assert cluster.park("events.poll", other) is None
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


# --- a store in trouble --------------------------------------------------------------------------


def test_a_task_whose_row_vanished_is_not_found(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    cluster.store.commit([ins.ForgetTasks((number,))])
    with pytest.raises(errors.TaskNotFound):
        cluster.admin.row(number)
    with pytest.raises(errors.TaskNotFound):
        cluster.call("task.get", {"task_id": cluster.public(number)})
    cluster.state.ledger.add(50, TaskStatus.SUCCESS, "echo", 1)
    with pytest.raises(errors.TaskNotFound):
        admin_tasks._brief(cluster.admin, 50, cluster.now)
    cluster.state.ledger.drop(50)


def test_finding_a_task_knows_whether_it_has_ended(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    assert not cluster.admin.is_terminal(number)
    assert cluster.admin.ended(number) is None
    cluster.call("task.cancel", {"task_id": cluster.public(number)})
    assert cluster.admin.is_terminal(number)


def test_the_table_is_made_once() -> None:
    assert operations() is admin_module.operations()


def test_operations_work_on_sqlite_too(make_cluster: MakeCluster, tmp_path: Any) -> None:
    cluster = make_cluster(store=SQLiteStore(tmp_path / "cluster.db"))
    member, key = cluster.give()
    member.finish(result=dumps({"ok": [1]}))
    args = {"task_id": cluster.public(key[0])}
    assert cluster.call("task.result", args).blobs == [("result_data", b'{"ok":[1]}')]
    assert listed(cluster, status="success")[0] == [key[0]]
    assert cluster.call("broker.info").data["store"] == "sqlite"

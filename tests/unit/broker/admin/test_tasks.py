"""Operations on tasks: finding, listing, reading, cancelling, retrying."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.admin.calls import Call
from retire_cluster.broker.admin.table import OPERATIONS
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas import errors
from retire_cluster.schemas.text.json_text import dumps
from tests.unit.broker.kit import WALL_MS, Cluster, MakeCluster, settings_with, wrong

AT = "2023-11-14T22:13:20Z"
UNKNOWN_ID = "018bcfe5-6800-7555-9555-550000000063"


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
    cluster.admin.begin_turn()
    turn = cluster.admin.turn
    cancel, retry = OPERATIONS["task.cancel"], OPERATIONS["task.retry"]
    cancel.perform(cluster.admin, Call((b"", 1), "task.cancel", args, (), cluster.now))
    with pytest.raises(errors.TaskJustEnded, match="ended just now") as caught:
        retry.perform(cluster.admin, Call((b"", 2), "task.retry", args, (), cluster.now))
    assert caught.value.retry_after == 1
    cluster.store.commit([one for one in turn if isinstance(one, ins.WRITES)])
    cluster.call("task.retry", args)


def test_operations_work_on_sqlite_too(make_cluster: MakeCluster, tmp_path: Any) -> None:
    cluster = make_cluster(store=SQLiteStore(tmp_path / "cluster.db"))
    member, key = cluster.give()
    member.finish(result=dumps({"ok": [1]}))
    args = {"task_id": cluster.public(key[0])}
    assert cluster.call("task.result", args).blobs == [("result_data", b'{"ok":[1]}')]
    assert listed(cluster, status="success")[0] == [key[0]]
    assert cluster.call("broker.info").data["store"] == "sqlite"

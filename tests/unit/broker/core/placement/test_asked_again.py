"""Who said that it cannot run a task is asked last, and again only when nobody else may come."""

from __future__ import annotations

import pytest

from retire_cluster.broker.core.placement.passing_over import REFUSED_KEPT, REJOIN_SECONDS
from tests.unit.broker.core.placement.kit import lacks, notes, owns
from tests.unit.broker.kit import Cluster, Member


def test_a_device_where_it_failed_comes_before_one_that_said_it_cannot(cluster: Cluster) -> None:
    flaky = cluster.device("flaky", slots=4)
    (task,) = owns(cluster, max_retries=2)
    cluster.place()
    poor = cluster.device("poor", slots=4)
    flaky.finish(outcome="failed", cause="error", error="it broke", result=b"")
    cluster.call("device.drain", {"device_id": "poor"})
    (other,) = cluster.submit()
    cluster.place()
    assert [key[0] for key in flaky.keys] == [other]
    cluster.call("device.resume", {"device_id": "poor"})
    cluster.pass_time(600)
    flaky.beat()
    poor.beat()
    cluster.tick("deadlines")
    cluster.place()
    assert [key[0] for key in poor.keys] == [task]
    lacks(poor)
    cluster.place()
    assert not poor.keys, "it has more room, and would only say so again"
    assert task in [key[0] for key in flaky.keys]


def explained(cluster: Cluster, task: int) -> dict[str, list[str]]:
    """Why each device does not run a task, as `explain` says it."""
    public = cluster.public(task, cluster.task(task).created_ms)
    data = cluster.call("task.explain", {"task_id": public}).data
    rejected = data["queued_reason"]["rejected"]
    left_out = [row for row in data["devices"] if not row["eligible"]]
    assert all(reason in rejected for row in left_out for reason in row["reasons"])
    return {row["device_id"]: row["reasons"] for row in left_out}


def test_a_retry_that_waits_for_another_device_says_so(cluster: Cluster) -> None:
    flaky, busy = cluster.device("flaky"), cluster.device("busy")
    task, _ = owns(cluster, 2, max_retries=2)
    cluster.place()
    if flaky.keys[0][0] != task:
        flaky, busy = busy, flaky
    flaky.start()
    flaky.fail()
    cluster.pass_time(2)
    cluster.tick("deadlines")
    cluster.place()
    assert cluster.status(task) == "queued"
    reasons = explained(cluster, task)[flaky.device_id]
    assert reasons == ["it failed there: another device is waited for, for up to 30 s"]
    busy.finish()
    cluster.place()
    assert [key[0] for key in busy.keys] == [task]


def test_many_that_wait_for_another_device_keep_nobody_behind_them_waiting(
    cluster: Cluster,
) -> None:
    """Sixteen of a class that were passed by once kept all others of it from a free device."""
    poor, rich = cluster.device("poor", slots=4), cluster.device("rich", slots=4)
    cluster.call("device.drain", {"device_id": "rich"})
    refused = owns(cluster, 100, max_retries=0)
    while any(cluster.task(task).attempt == 0 for task in refused):
        cluster.place()
        lacks(poor)
    urgent = owns(cluster, 50, max_retries=0, priority="urgent")
    plain = owns(cluster, 20, max_retries=0)
    done: list[int] = []
    for _ in range(200):
        cluster.place()
        done += [key[0] for key in poor.keys]
        poor.finish()
    assert done == urgent + plain
    assert {cluster.status(task) for task in refused} == {"queued"}
    cluster.call("task.cancel", {"task_id": cluster.public(refused[0], cluster.wall_ms)})
    cluster.call("device.resume", {"device_id": "rich"})
    for _ in range(40):
        cluster.place()
        rich.finish()
    assert {cluster.status(task) for task in refused[1:]} == {"success"}


def away(cluster: Cluster, how: str) -> Member:
    """A device that is drained or silent."""
    rich = cluster.device("rich")
    if how == "drained":
        cluster.call("device.drain", {"device_id": "rich"})
    else:
        cluster.pass_time(60)
        cluster.tick("liveness")
        cluster.tick("liveness")
        assert not rich.record.online
    return rich


@pytest.mark.parametrize("how", ["silent", "drained"])
def test_a_task_waits_for_who_is_away_for_a_moment(cluster: Cluster, how: str) -> None:
    rich = away(cluster, how)
    poor = cluster.device("poor")
    (task,) = owns(cluster, max_retries=0)
    asked = 0
    for _ in range(100):
        cluster.place()
        if poor.keys:
            asked += 1
            lacks(poor)
        cluster.pass_time(1)
        poor.beat()
        cluster.tick("unschedulable", "deadlines")
    assert asked == 1
    if how == "drained":
        cluster.call("device.resume", {"device_id": "rich"})
    else:
        rich.join()
    cluster.place()
    assert [key[0] for key in rich.keys] == [task]


@pytest.mark.parametrize("how", ["silent", "drained"])
def test_it_waits_for_who_is_away_until_that_one_is_removed_and_says_so(
    cluster: Cluster, how: str
) -> None:
    away(cluster, how)
    poor = cluster.device("poor")
    (task,) = owns(cluster, max_retries=0)
    cluster.place()
    lacks(poor)
    for _ in range(5):
        cluster.place()
        assert not poor.keys
        cluster.pass_time(REJOIN_SECONDS)
        poor.beat()
        cluster.tick("unschedulable", "deadlines")
    assert cluster.status(task) == "queued"
    reasons = explained(cluster, task)
    word = "there is no program 'ffmpeg' on this device"
    assert reasons == {
        "poor": [f"it said that it cannot run this task: {word}"],
        "rich": ["offline" if how == "silent" else "draining"],
    }
    cluster.call("device.remove", {"device_id": "rich"})
    cluster.place()
    lacks(poor)
    message = str(cluster.outcome(task).error_message)
    assert "poor: there is no program" in message
    assert "asked again when one's worker starts anew" in message


@pytest.mark.parametrize("restarted", [False, True])
def test_a_new_process_is_asked_again_for_a_task_that_waits(
    cluster: Cluster, restarted: bool
) -> None:
    poor = cluster.device("poor")
    (task,) = owns(cluster, max_retries=0)
    cluster.place()
    busy = cluster.device("busy")
    cluster.submit()
    cluster.place()
    assert busy.keys
    lacks(poor)
    cluster.place()
    assert not poor.keys
    if restarted:
        cluster.restart()
        busy.join(held=(), unsent=tuple(busy.keys))
    poor.join(instance="after pip install")
    assert not cluster.task(task).excluded
    cluster.pass_time(30)
    cluster.place()
    assert [key[0] for key in poor.keys] == [task]
    cluster.restart()
    assert not cluster.task(task).excluded


def test_what_a_device_refused_is_forgotten_with_its_tasks(cluster: Cluster) -> None:
    poor = cluster.device("poor", slots=100)
    for _ in range(2 * REFUSED_KEPT // 100 + 1):
        owns(cluster, 100, max_retries=0)
        cluster.place()
        lacks(poor)
    assert not cluster.state.tasks
    assert len(poor.record.refused) <= REFUSED_KEPT


def test_who_fails_a_kind_gets_it_again_when_nobody_else_is_left(cluster: Cluster) -> None:
    bad, good = cluster.device("bad"), cluster.device("good")
    while not notes(bad):
        owns(cluster, 2, max_retries=0)
        cluster.place()
        if good.keys:
            good.finish()
        if bad.keys:
            bad.finish(outcome="failed", cause="error", error="it broke", result=b"")
    cluster.call("device.drain", {"device_id": "good"})
    owns(cluster)
    cluster.tick("unschedulable")
    cluster.place()
    assert not bad.keys, "the other one will be back"
    cluster.call("device.remove", {"device_id": "good"})
    cluster.tick("unschedulable")
    cluster.place()
    assert bad.keys

"""Who said that it cannot run a task is asked last, and again only when nobody else may come."""

from __future__ import annotations

import pytest

from retire_cluster.broker.passing_over import REFUSED_KEPT, REJOIN_SECONDS
from tests.unit.broker_kit import Cluster, Member
from tests.unit.test_broker_passing_over import lacks, notes, owns


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
        cluster.tick("stranded", "deadlines")
    assert asked == 1
    if how == "drained":
        cluster.call("device.resume", {"device_id": "rich"})
    else:
        rich.join()
    cluster.place()
    assert [key[0] for key in rich.keys] == [task]


def test_it_fails_when_who_was_away_does_not_come(cluster: Cluster) -> None:
    away(cluster, "silent")
    poor = cluster.device("poor")
    (task,) = owns(cluster, max_retries=0)
    cluster.place()
    lacks(poor)
    cluster.place()
    assert not poor.keys
    cluster.pass_time(REJOIN_SECONDS)
    poor.beat()
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
    cluster.tick("stranded")
    cluster.place()
    assert not bad.keys, "the other one will be back"
    cluster.call("device.remove", {"device_id": "good"})
    cluster.tick("stranded")
    cluster.place()
    assert bad.keys

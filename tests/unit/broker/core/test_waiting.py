"""Waiting for tasks to end."""

from __future__ import annotations

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.schemas.protocol.messages import AttemptKey
from tests.unit.broker.kit import Cluster, MakeCluster, only, settings_with

TICKET = (b"client", 1)


def ask(cluster: Cluster, numbers: list[int], seconds: float = 5.0) -> list[ins.Instruction]:
    open_ = frozenset(number for number in numbers if number in cluster.state.tasks)
    return cluster.do(ev.WaitRequested(TICKET, numbers, open_, seconds))


def test_a_wait_is_over_when_all_its_tasks_have_ended(cluster: Cluster) -> None:
    member, _ = cluster.give(2)
    keys: list[AttemptKey] = member.keys
    numbers = [key[0] for key in keys]
    assert ask(cluster, numbers) == []
    assert only(ins.WaitOver, member.finish(keys[0])) == []
    assert only(ins.WaitOver, member.finish(keys[1])) == [ins.WaitOver(TICKET, tuple(numbers))]
    assert cluster.state.waits.all == {}
    assert cluster.state.waits.by_task == {}


def test_a_wait_for_ended_tasks_or_no_time_is_over_at_once(cluster: Cluster) -> None:
    member, key = cluster.give()
    assert ask(cluster, [key[0]], 0.0) == [ins.WaitOver(TICKET, (key[0],))]
    member.finish()
    assert ask(cluster, [key[0]]) == [ins.WaitOver(TICKET, (key[0],))]


def test_a_wait_ends_with_its_time_and_leaves_other_waits_alone(cluster: Cluster) -> None:
    numbers = cluster.submit(2)
    ask(cluster, numbers, 5.0)
    ask(cluster, numbers[:1], 9.0)
    assert cluster.state.next_deadline() == cluster.mono + 5
    cluster.pass_time(5)
    assert cluster.tick("deadlines") == [ins.WaitOver(TICKET, tuple(numbers))]
    assert list(cluster.state.waits.by_task) == numbers[:1]
    assert only(ins.WaitOver, cluster.cancel(numbers[0])) == [ins.WaitOver(TICKET, (numbers[0],))]


def test_waits_that_have_ended_do_not_pile_up_until_their_time(cluster: Cluster) -> None:
    (patient,) = cluster.submit()
    ask(cluster, [patient], 30.0)
    for _ in range(500):
        (number,) = cluster.submit()
        ask(cluster, [number], 60.0)
        assert only(ins.WaitOver, cluster.cancel(number))
    assert len(cluster.state.waits.due) <= 110
    assert cluster.state.next_deadline() == cluster.mono + 30
    cluster.cancel(patient)
    assert cluster.state.next_deadline() is None


def test_a_retry_that_goes_on_does_not_end_a_wait(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(scheduler={"retry_base_seconds": 0}))
    member, key = cluster.give()
    ask(cluster, [key[0]])
    assert only(ins.WaitOver, member.fail()) == []
    assert cluster.status(key[0]) == "queued"

"""Attempts that cost a task nothing: counted, slowed down, tried elsewhere, told as few rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from retire_cluster.broker.core.placement import requeues
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.vocabulary import Outcome
from tests.unit.broker.kit import Cluster, Member

#: How a device may end an attempt without a charge, as often as it likes.
Ending = Callable[[Member], object]
_NEW = iter(range(10_000))


def released(member: Member) -> None:
    member.finish(outcome=str(Outcome.RELEASED), cause=None)


def cancelled(member: Member) -> None:
    member.start()
    member.finish(outcome=str(Outcome.CANCELLED), cause=None)


def started_anew(member: Member) -> None:
    member.join()


def said_goodbye(member: Member) -> None:
    member.start()
    member.say(msg.Goodbye(member.session))
    member.join()


def not_here_in_a_new_process(member: Member) -> None:
    member.fail(cause="not_here")
    member.join(instance=f"process {next(_NEW)}")


ENDINGS = [released, cancelled, started_anew, said_goodbye]


def play(cluster: Cluster, liar: Member, ending: Ending, seconds: float) -> int:
    """How many attempts a device gets that ends each at once, while time passes."""
    attempts = 0
    until = cluster.mono + seconds
    while cluster.mono < until:
        for _ in range(100):
            cluster.place()
            if not liar.record.attempts:
                break
            attempts += 1
            ending(liar)
        cluster.pass_time(0.25)
        liar.beat()
        cluster.tick("deadlines")
    return attempts


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_device_that_ends_every_attempt_for_nothing_gets_few(
    cluster: Cluster, ending: Ending
) -> None:
    liar = cluster.device("liar")
    (task,) = cluster.submit(max_retries=0)
    assert 3 <= play(cluster, liar, ending, 60.0) <= 10
    assert cluster.task(task).retries == 0
    rows = cluster.store.attempts(task)
    assert len(rows) == requeues.ROWS_KEPT + 1
    assert sum(row.times for row in rows) == cluster.task(task).attempt
    assert [row.number for row in rows[:3]] == [1, 2, 3]
    assert rows[-1].number == cluster.task(task).attempt


@pytest.mark.parametrize("ending", [*ENDINGS, not_here_in_a_new_process])
def test_another_device_that_can_do_it_does_it(cluster: Cluster, ending: Ending) -> None:
    liar, honest = cluster.device("liar"), cluster.device("honest")
    blocker, task = cluster.submit(2, max_retries=0)
    cluster.place()
    for _ in range(200):
        if liar.record.attempts:
            ending(liar)
        cluster.pass_time(0.5)
        liar.beat()
        honest.beat()
        cluster.tick()
        cluster.place()
        if honest.record.attempts and cluster.mono > 1_010:
            honest.start()
            honest.finish()
    assert {cluster.status(blocker), cluster.status(task)} == {"success"}
    assert cluster.outcome(task).retry_count == 0


def test_saying_not_here_in_one_process_after_another_is_slowed_down_too(cluster: Cluster) -> None:
    cluster.device("busy", slots=1)
    busy = cluster.submit(max_retries=0, timeout_seconds=3600)
    cluster.place()
    assert cluster.status(busy[0]) == "assigned"
    liar = cluster.device("liar")
    (task,) = cluster.submit(max_retries=0)
    assert play(cluster, liar, not_here_in_a_new_process, 60.0) <= 10
    assert cluster.status(task) in ("queued", "pending")
    assert len(cluster.store.attempts(task)) <= requeues.ROWS_KEPT + 1


def test_what_was_counted_survives_a_restart(cluster: Cluster) -> None:
    liar = cluster.device("liar")
    (task,) = cluster.submit(max_retries=0)
    play(cluster, liar, released, 20.0)
    before = dict(cluster.task(task).given_back)
    assert before["liar"].times >= 4
    cluster.restart()
    assert cluster.task(task).given_back == before
    again = cluster.device("liar")
    play(cluster, again, released, 30.0)
    assert len(cluster.store.attempts(task)) == requeues.ROWS_KEPT + 1


def test_who_drains_once_makes_nobody_wait(cluster: Cluster) -> None:
    first, key = cluster.give(max_retries=0)
    second = cluster.device("second")
    first.say(msg.Drain(first.session, "battery"))
    released(first)
    assert cluster.status(key[0]) == "queued"
    cluster.place()
    assert [found[0] for found in second.keys] == [key[0]]


def test_refusals_of_many_devices_make_nobody_wait(cluster: Cluster) -> None:
    """Each says it once: that is a search, no loop."""
    members = [cluster.device(f"lacks{number}") for number in range(12)]
    cluster.device("busy")
    cluster.submit(13, timeout_seconds=3600, max_retries=0)
    cluster.place()
    (task,) = cluster.submit(max_retries=0)
    for member in members:
        member.finish()
        cluster.place()
        if any(key[0] == task for key in member.keys):
            member.fail(cause="not_here")
            assert cluster.status(task) == "queued"
    assert len(cluster.task(task).given_back) == 12


def test_many_devices_are_counted_together(cluster: Cluster) -> None:
    (task,) = cluster.submit(max_retries=0)
    for number in range(requeues.MAX_DEVICES + 10):
        member = cluster.device(f"d{number:03}")
        play(cluster, member, released, 0.25)
        cluster.pass_time(400.0)
        cluster.tick("deadlines")
        cluster.place()
        if member.record.attempts:
            released(member)
        member.say(msg.Goodbye(member.session))
    found = cluster.task(task)
    assert len(found.given_back) <= requeues.MAX_DEVICES + 1
    most = (requeues.MAX_DEVICES + 1) * (requeues.ROWS_KEPT + 1)
    assert len(cluster.store.attempts(task)) <= most


def test_a_device_that_gives_back_many_tasks_gets_none_for_a_while(cluster: Cluster) -> None:
    liar = cluster.device("liar")
    cluster.device("honest", slots=1)
    cluster.submit(500, max_retries=0, timeout_seconds=3600)
    attempts = play(cluster, liar, released, 4.0)
    assert attempts == requeues.IN_A_ROW
    (note,) = liar.record.notes.values()
    assert note.message == "it gave back 20 tasks in a row that it had taken"


def test_the_explanation_and_the_attempts_say_who_gave_it_back(cluster: Cluster) -> None:
    liar = cluster.device("liar")
    (task,) = cluster.submit(max_retries=0)
    play(cluster, liar, released, 20.0)
    times = cluster.task(task).given_back["liar"].times
    reason = cluster.call("task.explain", {"task_id": cluster.public(task)}).data["queued_reason"]
    assert reason["given_back"] == {"liar": times}
    found = cluster.call("task.get", {"task_id": cluster.public(task)}).data["attempts"]
    assert [entry["times"] for entry in found] == [1, 1, 1, times - 3]

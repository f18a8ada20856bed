"""What an error tells of its task: enough to see how it came there, and no more than that."""

from __future__ import annotations

import pytest

from retire_cluster.broker.core import attempts, evidence, state
from retire_cluster.broker.core import cluster as core
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices import event_throttle
from retire_cluster.broker.core.evidence import EVENT_CHARACTERS, EVENTS_TOLD, EventFailed
from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.transitions import IllegalTransition
from retire_cluster.broker.net.channel import Peer
from retire_cluster.schemas.protocol import messages as msg
from tests.unit.broker.kit import Cluster


def kinds(history: tuple[str, ...]) -> list[str]:
    """`queued`, `assigned` and so on, of the lines of a history."""
    return [line.partition(": task.")[2].split()[0] for line in history]


def test_an_illegal_transition_tells_the_way_of_its_task(cluster: Cluster) -> None:
    box, key = cluster.give()
    cluster.submit(3)
    box.start()
    with pytest.raises(IllegalTransition) as caught:
        cluster.state.move(cluster.task(key[0]), "assign", cluster.now)
    error = caught.value
    assert (error.task, kinds(error.history)) == (key[0], ["queued", "assigned", "running"])
    assert "task 1, which is running, cannot take the event 'assign'" in str(error)
    assert "task.assigned on box {'from': 'queued', 'attempt': 1}" in str(error)


def test_a_rule_that_fails_tells_the_way_of_the_task_it_was_at(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, _ = cluster.give(2)
    box.start()
    last = box.keys[-1]

    def fail(*given: object) -> None:
        raise ZeroDivisionError("a rule has a bug")

    monkeypatch.setattr(event_throttle, "log_progress", fail)
    with pytest.raises(EventFailed) as caught:
        box.say(msg.Progress(box.session, (msg.ProgressItem(last, 1.0, "half"),)))
    error = caught.value
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert (error.task, kinds(error.history)) == (last[0], ["queued", "assigned", "running"])
    assert str(error).startswith(f"FromDevice of task {last[0]} failed\n  event ")
    assert cluster.do(ev.Tick("upkeep")) == [], "nothing is left of it for the next event"


def test_a_rule_that_fails_among_many_tasks_tells_the_one_it_was_at(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, key = cluster.give(3)
    box.start()
    begun = []

    def fail_second(cluster: state.ClusterState, one: Task, *given: object, **more: object) -> None:
        begun.append(one.number)
        if len(begun) == 2:
            raise ZeroDivisionError("a rule has a bug")

    monkeypatch.setattr(attempts, "_end_or_requeue", fail_second)
    monkeypatch.setattr(event_throttle, "log_withheld", fail_second)
    cluster.pass_time(cluster.task(key[0]).spec.timeout_seconds + 60)
    with pytest.raises(EventFailed) as caught:
        cluster.tick("limits")
    assert caught.value.task == begun[1]
    assert kinds(caught.value.history) == ["queued", "assigned", "running"]
    with pytest.raises(EventFailed) as caught:
        cluster.tick("upkeep")
    assert (caught.value.task, caught.value.history) == (0, ()), "it was at no task"


def test_an_event_that_names_its_task_is_enough(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.submit(2)
    monkeypatch.setattr(cluster.state, "tasks", None)
    with pytest.raises(EventFailed) as caught:
        core.handle(cluster.state, ev.CancelRequested(2), cluster.now)
    monkeypatch.undo()
    assert (caught.value.task, kinds(caught.value.history)) == (2, ["queued"])


def test_what_is_told_is_bounded(cluster: Cluster) -> None:
    box, key = cluster.give(max_retries=0)
    task = cluster.task(key[0])
    box.start()
    for percent in range(2 * EVENTS_TOLD):
        cluster.pass_time(1)
        item = msg.ProgressItem(key, float(percent), "x" * 10_000)
        box.say(msg.Progress(box.session, (item,)))
    found = evidence.last_events(cluster.state.log, task.number)
    assert len(found) == EVENTS_TOLD
    assert kinds(found) == ["progress"] * EVENTS_TOLD
    assert f"'percent': {2 * EVENTS_TOLD - 1}.0" in found[-1]
    cluster.state.log.add("task.progress", 0, task.number, 0, "box", {"message": "x" * 10_000})
    assert max(map(len, evidence.last_events(cluster.state.log, task.number))) == EVENT_CHARACTERS


def test_what_goes_well_reads_no_history(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> tuple[str, ...]:
        raise AssertionError("a history was read")

    monkeypatch.setattr(core, "last_events", fail)
    monkeypatch.setattr(state, "last_events", fail)
    box, key = cluster.give()
    box.start()
    box.finish()
    assert cluster.status(key[0]) == "success"


def test_tasks_devices_and_batches_say_who_they_are(cluster: Cluster) -> None:
    box, key = cluster.give()
    task = cluster.task(key[0])
    assert repr(task) == "<Task 1 assigned, attempt 1 on box>"
    assert repr(box.record) == "<Device box online, 1 attempts>"
    assert repr(task.dispatch) == "<Dispatch 1 to box, 1 open>"


def test_waits_and_connections_say_who_they_are(cluster: Cluster) -> None:
    args = {"task_ids": [cluster.public(n) for n in cluster.submit(3)], "timeout_seconds": 5}
    cluster.park("task.wait", args)
    (wait,) = cluster.state.waits.all
    until = cluster.now.mono + 5
    assert repr(wait) == f"<Wait {wait.request.ticket[1]!r} for 3 of 3 tasks, until {until:.3f}>"
    assert repr(Peer("192.0.2.1", None)) == "<Peer 192.0.2.1, no key>"
    assert repr(Peer("", "")) == "<Peer unknown, key e3b0c44298fc>"

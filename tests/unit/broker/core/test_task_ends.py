"""How a task ends or lives again: cancelled, retried by hand, not sent, damaged."""

from __future__ import annotations

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.cluster import handle
from retire_cluster.broker.core.evidence import EventFailed
from retire_cluster.broker.core.rows import OutcomeRow
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import Held
from tests.unit.broker.kit import WALL_MS, Cluster, sent

# --- cancelling ----------------------------------------------------------------------------------


def test_cancelling_a_queued_task(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    (stored,) = cluster.cancel(number)
    row = OutcomeRow(
        number, "cancelled", None, 0, None, None, WALL_MS, None, None, "cancelled by request", 0,
        ended_s=1,
    )  # fmt: skip
    assert stored == ins.StoreOutcomes((row,), ())
    cluster.device()
    assert cluster.place() == []


def test_cancelling_a_pending_task_forgets_its_time(cluster: Cluster) -> None:
    (number,) = cluster.submit(delay=5)
    (stored,) = cluster.cancel(number)
    assert isinstance(stored, ins.StoreOutcomes)
    assert stored.deviating == (number,)
    cluster.live_on(10)
    assert cluster.status(number) == "cancelled"
    assert cluster.state.next_deadline() is None


@pytest.mark.parametrize("running", [False, True])
def test_cancelling_placed_work_tells_its_device_to_kill_it(
    cluster: Cluster, running: bool
) -> None:
    member, key = cluster.give()
    if running:
        member.start()
        cluster.pass_time(2)
    found = cluster.cancel(key[0])
    assert found[1:] == [ins.Send(member.routing, msg.Cancel(member.session, (key,), "cancelled"))]
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.device_id) == ("cancelled", "box")
    assert outcome.execution_seconds == (2.0 if running else None)
    cluster.submit()
    assert len(cluster.place()) == 2


def test_cancelling_work_of_an_offline_device_waits_for_nobody(cluster: Cluster) -> None:
    member, key = cluster.give()
    cluster.live_on(16)
    assert sent(cluster.cancel(key[0])) == []
    found = member.beat(held=[Held(key, True, 16.0)])
    assert msg.Abandon(member.session, (key,)) in sent(found)


def test_the_first_end_of_a_task_wins(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.finish()
    with pytest.raises(EventFailed) as caught:
        handle(cluster.state, ev.CancelRequested(key[0]), cluster.now)
    assert isinstance(caught.value.__cause__, KeyError)
    assert cluster.outcome(key[0]).status == "success"


# --- retrying by hand ----------------------------------------------------------------------------


def test_a_manual_retry_is_a_new_generation_that_keeps_the_old_outcome(cluster: Cluster) -> None:
    member, key = cluster.give(max_retries=1)
    for _ in range(2):
        member.start()
        member.fail()
        cluster.live_on(5, member)
    assert cluster.outcome(key[0]).retry_count == 1
    found = cluster.retry(key[0])
    assert [type(i) for i in found] == [ins.StoreAttempts, ins.ReviveTasks, ins.StoreLive]
    task = cluster.task(key[0])
    assert (task.retries, task.retry_count, task.attempt) == (0, 1, 2)
    assert cluster.status(key[0]) == "queued"
    cluster.place()
    assert member.keys[0][:2] == (key[0], 3)
    member.start()
    member.fail()
    assert cluster.status(key[0]) == "pending"
    cluster.live_on(5, member)
    member.finish()
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.attempt, outcome.retry_count) == ("success", 4, 2)
    words = [(row.number, row.outcome) for row in cluster.store.attempts(key[0])]
    assert words == [(1, "failed"), (2, "failed"), (3, "failed")]


def test_a_task_cancelled_while_it_waited_does_not_overwrite_its_last_attempt(
    cluster: Cluster,
) -> None:
    member, key = cluster.give(max_retries=0)
    member.start()
    member.fail()
    cluster.call("device.drain", {"device_id": "box"})
    cluster.retry(key[0])
    cluster.cancel(key[0])
    cluster.retry(key[0])
    words = [(row.number, row.outcome) for row in cluster.store.attempts(key[0])]
    assert words == [(1, "failed")]
    assert cluster.status(key[0]) == "queued"


def test_a_retry_clears_who_refused_it_and_who_died_of_it(cluster: Cluster) -> None:
    member, key = cluster.give(task_type="command")
    member.fail(cause="policy_denied")
    assert cluster.status(key[0]) == "failed"
    cluster.retry(key[0])
    cluster.place()
    assert member.keys[0][:2] == (key[0], 2)


# --- not sent ------------------------------------------------------------------------------------


def test_an_attempt_that_could_not_be_sent_waits_longer_each_time_and_costs_nothing(
    cluster: Cluster,
) -> None:
    member, key = cluster.give()
    number = key[0]
    for seconds in (0.5, 1.0, 2.0):
        before = cluster.state.tasks[number].attempt
        cluster.do(ev.NotSent(number, cluster.state.tasks[number].key[2], "disk I/O error"))
        assert cluster.status(number) == "pending"
        assert member.record.attempts == {}
        cluster.pass_time(seconds - 0.01)
        cluster.tick("deadlines")
        assert cluster.status(number) == "pending"
        cluster.pass_time(0.02)
        cluster.tick("deadlines")
        cluster.place()
        assert cluster.status(number) == "assigned"
        assert cluster.state.tasks[number].attempt == before + 1
    assert cluster.state.tasks[number].retry_count == 0
    assert cluster.store.attempts(number) == []


def test_an_attempt_that_was_not_sent_is_remembered_over_a_restart(cluster: Cluster) -> None:
    _, key = cluster.give()
    cluster.do(ev.NotSent(key[0], key[2], "disk I/O error"))
    cluster.restart()
    assert cluster.status(key[0]) in ("queued", "pending")
    assert cluster.state.tasks[key[0]].attempt == 1


@pytest.mark.parametrize("state", ["running", "ended", "placed again"])
def test_a_late_word_that_an_attempt_was_not_sent_changes_nothing(
    cluster: Cluster, state: str
) -> None:
    member, key = cluster.give()
    token = key[2]
    if state == "running":
        member.start()
    elif state == "ended":
        member.finish()
    else:
        token += 1
    assert cluster.do(ev.NotSent(key[0], token, "disk I/O error")) == []


# --- damaged in the store ------------------------------------------------------------------------


def test_a_task_whose_payload_is_gone_fails_for_good(cluster: Cluster) -> None:
    member, key = cluster.give()
    (stored,) = cluster.do(ev.TaskDamaged(key[0]))
    assert isinstance(stored, ins.StoreOutcomes)
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.cause) == ("failed", "deterministic")
    assert outcome.error_message is not None
    assert "damaged" in outcome.error_message
    assert member.record.attempts == {}


def test_a_damaged_task_that_waits_fails_and_blocks_nobody(cluster: Cluster) -> None:
    first, second = cluster.submit(2)
    cluster.do(ev.TaskDamaged(first))
    outcome = cluster.outcome(first)
    assert (outcome.status, outcome.cause) == ("failed", "deterministic")
    assert "damaged" in str(outcome.error_message)
    cluster.device()
    cluster.place()
    assert cluster.status(second) == "assigned"


def test_a_damaged_result_turns_success_into_failure_and_can_be_retried(cluster: Cluster) -> None:
    member, (number, *_) = cluster.give()
    member.finish()
    old = cluster.outcome(number)
    cluster.do(ev.ResultDamaged(number, old.completed_ms, old._replace(result=b"", details=b"")))
    outcome = cluster.outcome(number)
    assert (cluster.status(number), outcome.status, outcome.result) == ("failed", "failed", b"")
    assert "it had ended: success" in str(outcome.error_message)
    cluster.retry(number)
    assert cluster.status(number) == "queued"


@pytest.mark.parametrize("state", ["gone", "running"])
def test_damage_is_no_matter_to_a_task_that_has_its_payload(cluster: Cluster, state: str) -> None:
    member, key = cluster.give()
    number = key[0]
    if state == "gone":
        member.finish()
    else:
        member.start()
    assert cluster.do(ev.TaskDamaged(number)) == []


def test_an_attempt_of_an_earlier_main_node_may_still_end_well(cluster: Cluster) -> None:
    member, key = cluster.give()
    cluster.restart()
    assert cluster.do(ev.TaskDamaged(key[0])) == []
    member.join(held=(Held(key, True, 1.0),))
    member.finish(key)
    assert cluster.status(key[0]) == "success"


def test_a_damaged_result_of_a_task_that_lives_again_or_is_gone_is_no_matter(
    cluster: Cluster,
) -> None:
    member, key = cluster.give(max_retries=0)
    member.fail()
    outcome = cluster.outcome(key[0])
    cluster.retry(key[0])
    for number in (key[0], 999):
        assert cluster.do(ev.ResultDamaged(number, WALL_MS, outcome)) == []

"""Submissions and attempts: the usual way, fencing, failures, losses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import AttemptRow, LiveRow, OutcomeRow, SubmissionRow, TaskRow
from retire_cluster.broker.core.state import INLINE_PAYLOAD_BYTES
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.wire import MAX_DETAILS_BYTES, MAX_RESULT_BYTES
from retire_cluster.schemas.vocabulary import Cause, Outcome
from tests.unit.broker.kit import WALL_MS, Cluster, Member, only, sent, task_spec

# --- submitting ----------------------------------------------------------------------------------


def test_submitted_tasks_are_stored_in_one_instruction(cluster: Cluster) -> None:
    spec = task_spec("echo", "high")
    event = ev.TasksSubmitted([spec, spec], [b'{"a":1}', b"{}"])
    rows = [
        TaskRow(number, WALL_MS, "echo", 2, 300, 3, spec.document, payload)
        for number, payload in ((1, b'{"a":1}'), (2, b"{}"))
    ]
    assert cluster.do(event) == [ins.StoreTasks(rows, [])]
    told = {"from": None, "attempt": 0, "priority": "high", "task_type": "echo"}
    assert cluster.events("task") == [("task.queued", told)] * 2


def test_a_delayed_task_is_pending_until_its_time(cluster: Cluster) -> None:
    cluster.device()
    (number,) = cluster.submit(delay=10.0)
    assert cluster.status(number) == "pending"
    assert cluster.past[-1] == ins.StoreLive((LiveRow(number, 0, 0, 0, WALL_MS + 10_000, (), ()),))
    assert cluster.state.next_deadline() == cluster.mono + 10
    cluster.live_on(9.5)
    assert cluster.status(number) == "pending"
    cluster.live_on(1)
    assert cluster.status(number) == "assigned"


def test_an_idempotency_key_is_stored_with_its_tasks(cluster: Cluster) -> None:
    event = ev.TasksSubmitted([task_spec()], [b"{}"], (), [ev.Keyed(0, 1, "me", "key", "print")])
    (stored,) = only(ins.StoreTasks, cluster.do(event))
    assert stored.submissions == [SubmissionRow("me", "key", "print", 1, 1, WALL_MS, 1)]


def test_only_small_payloads_stay_in_memory_and_only_while_their_task_lives(
    cluster: Cluster,
) -> None:
    large = b'"' + b"x" * INLINE_PAYLOAD_BYTES + b'"'
    (big,) = cluster.submit(payload=large)
    (small,) = cluster.submit(payload=b'{"a":1}')
    assert cluster.task(big).payload is None
    assert cluster.task(small).payload == b'{"a":1}'
    assert cluster.state.inline_bytes == 7
    cluster.cancel(small)
    assert cluster.state.inline_bytes == 0


def test_the_budget_for_payloads_in_memory_holds(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retire_cluster.broker.core.state.INLINE_BUDGET_BYTES", 10)
    kept = [cluster.task(number).payload for number in cluster.submit(3, payload=b'{"a":1}')]
    assert kept == [b'{"a":1}', None, None]


# --- the usual way -------------------------------------------------------------------------------


def test_a_result_is_stored_then_acknowledged(cluster: Cluster) -> None:
    member, key = cluster.give()
    cluster.pass_time(1)
    assert member.start() == []
    assert cluster.status(key[0]) == "running"
    cluster.pass_time(2)
    found = member.finish(seconds=1.9, details=b'{"logs":"hi"}')
    row = OutcomeRow(
        key[0], "success", "box", 1, WALL_MS, WALL_MS + 1_000, WALL_MS + 3_000, 1.9, None, None, 0,
        b'{"ok":true}', b'{"logs":"hi"}', 4,
    )  # fmt: skip
    assert found == [
        ins.StoreOutcomes([row], []),
        ins.Send(member.routing, msg.FinishedAck(member.session, 1)),
    ]
    assert member.record.succeeded == 1
    assert key[0] not in cluster.state.tasks


def test_a_batch_of_results_is_one_write_and_one_acknowledgement(cluster: Cluster) -> None:
    member, _ = cluster.give(5)
    found = member.finish()
    assert [type(i) for i in found] == [ins.StoreOutcomes, ins.Send]
    (stored,) = only(ins.StoreOutcomes, found)
    assert len(stored.rows) == 5


def test_in_a_batch_the_current_ones_count_each_once_and_the_rest_is_stale(
    cluster: Cluster,
) -> None:
    member, _ = cluster.give(4)
    first, second, third, fourth = member.keys
    member.start(second)
    old = (third[0], third[1] + 1, *third[2:])
    unknown = (999, 1, *first[2:])
    found = member.finish(first, second, first, old, unknown, fourth)
    (stored,) = only(ins.StoreOutcomes, found)
    assert [row.task for row in stored.rows] == [first[0], second[0], fourth[0]]
    assert cluster.state.stats.dropped["stale_attempt"] == 3
    assert cluster.status(third[0]) == "assigned"
    assert member.record.succeeded == 3


def test_a_result_without_started_counts_as_started(cluster: Cluster) -> None:
    member, key = cluster.give()
    cluster.pass_time(10)
    member.finish(seconds=4.0)
    outcome = cluster.outcome(key[0])
    assert (outcome.started_ms, outcome.execution_seconds) == (WALL_MS + 6_000, 4.0)
    assert [name for name, _ in cluster.events("task")][-2:] == ["task.running", "task.success"]


@pytest.mark.parametrize("seconds", [1e6, 1e12])
def test_a_device_cannot_have_started_before_it_was_given_the_task(
    cluster: Cluster, seconds: float
) -> None:
    member, key = cluster.give()
    cluster.pass_time(3)
    member.finish(seconds=seconds)
    assert cluster.outcome(key[0]).started_ms == WALL_MS
    assert cluster.call("task.get", {"task_id": cluster.public(key[0])})


def test_what_is_larger_than_the_protocol_allows_is_left_out_and_marked(cluster: Cluster) -> None:
    member, _ = cluster.give(2)
    first, second = member.keys
    before = {"logs": {"total_bytes": 9, "kept_bytes": 1, "missing": "middle"}}
    details = {"logs": "a", "truncated": before, "strange": [[]]}
    large = b'"' + b"x" * MAX_RESULT_BYTES + b'"'
    member.finish(first, result=large, details=json.dumps(details).encode())
    member.finish(second, details=b" " * (MAX_DETAILS_BYTES + 1))
    for number in (first[0], second[0]):
        assert cluster.outcome(number).status == "success"
    gone = {"total_bytes": len(large), "kept_bytes": 0, "missing": "all"}
    assert json.loads(cluster.outcome(first[0]).details) == {
        "logs": "a",
        "truncated": {**before, "result_data": gone},
    }
    gone = {"total_bytes": MAX_DETAILS_BYTES + 1, "kept_bytes": 0, "missing": "all"}
    assert json.loads(cluster.outcome(second[0]).details) == {"truncated": {"logs": gone}}
    assert (cluster.outcome(first[0]).result, cluster.outcome(second[0]).result) == (
        b"",
        b'{"ok":true}',
    )


def test_progress_is_shown_and_told(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.start()
    items = (msg.ProgressItem(key, 40.0, "half"), msg.ProgressItem((9, 1, 1, 1), 1.0, "stale"))
    assert member.say(msg.Progress(member.session, items)) == []
    assert cluster.task(key[0]).progress == (40.0, "half")
    assert cluster.events("task.progress") == [
        ("task.progress", {"percent": 40.0, "message": "half", "attempt": 1})
    ]
    assert cluster.state.stats.dropped["stale_attempt"] == 1


# --- fencing -------------------------------------------------------------------------------------

STALE = [
    lambda key: (key[0] + 50, *key[1:]),
    lambda key: (key[0], key[1] + 1, *key[2:]),
    lambda key: (key[0], key[1], key[2] ^ 1, key[3]),
    lambda key: (*key[:3], key[3] + 1),
]


@pytest.mark.parametrize("spoil", STALE, ids=["task", "attempt", "token", "epoch"])
def test_a_message_with_another_key_changes_nothing_but_is_acknowledged(
    cluster: Cluster, spoil: Any
) -> None:
    member, key = cluster.give()
    member.start(spoil(key))
    assert cluster.status(key[0]) == "assigned"
    found = member.finish(spoil(key))
    assert found == [ins.Send(member.routing, msg.FinishedAck(member.session, 1))]
    assert cluster.status(key[0]) == "assigned"
    assert cluster.state.stats.dropped["stale_attempt"] == 2


def test_a_key_counts_only_from_the_device_that_has_it(cluster: Cluster) -> None:
    _, key = cluster.give()
    thief = cluster.device("thief")
    thief.start(key)
    found = thief.finish(key)
    assert sent(found) == [msg.FinishedAck(thief.session, 1)]
    assert cluster.status(key[0]) == "assigned"


def test_the_first_attempt_cannot_end_the_second(cluster: Cluster) -> None:
    lost, key = cluster.give()
    lost.start()
    other = cluster.device("other")
    cluster.live_on(40, other)
    (second,) = other.keys
    assert second[:2] == (key[0], 2)
    lost.join()
    lost.finish(key)
    assert cluster.status(key[0]) == "assigned"
    other.finish()
    assert cluster.outcome(key[0]).device_id == "other"


def test_a_result_sent_twice_counts_once_and_is_acknowledged_twice(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.finish(key)
    before = cluster.outcome(key[0])
    found = member.finish(key, result=b'"other"')
    assert sent(found) == [msg.FinishedAck(member.session, 2)]
    assert cluster.outcome(key[0]) == before


def test_one_result_twice_in_one_batch_counts_once(cluster: Cluster) -> None:
    member, key = cluster.give()
    (stored,) = only(ins.StoreOutcomes, member.finish(key, key))
    assert len(stored.rows) == 1


def test_a_result_of_an_unknown_session_is_not_taken(cluster: Cluster) -> None:
    member, key = cluster.give()
    items = (msg.FinishedItem(key, "success", 1.0, None, None),)
    for routing, session in ((member.routing, "old"), (b"unknown", member.session)):
        found = cluster.do(
            ev.ResultsArrived(routing, msg.Finished.of(session, 1, items), [b"", b""])
        )
        assert found == [ins.Send(routing, msg.Reject(session, "register", "say HELLO again"))]
    assert cluster.status(key[0]) == "assigned"


def test_a_result_after_the_task_was_cancelled_is_stale(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.start()
    cluster.cancel(key[0])
    found = member.finish(key, outcome="cancelled")
    assert sent(found) == [msg.FinishedAck(member.session, 1)]
    assert cluster.outcome(key[0]).status == "cancelled"


# --- failures ------------------------------------------------------------------------------------


def test_a_failure_with_a_retry_left_waits_and_runs_again(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.start()
    found = member.fail()
    (history,) = only(ins.StoreAttempts, found)
    assert history.rows == (
        AttemptRow(key[0], 1, "box", "failed", "error", "it broke", WALL_MS, WALL_MS, WALL_MS, 0.5),
    )
    assert cluster.status(key[0]) == "pending"
    task = cluster.task(key[0])
    assert (task.retries, task.device, task.assigned_ms) == (1, None, None)
    assert 0 <= task.not_before_mono - cluster.mono <= 2.0
    assert cluster.state.stats.retries == {"error": 1}
    assert cluster.events("task.pending")[-1][1] == {
        "from": "running", "attempt": 1, "cause": "error", "message": "it broke",
    }  # fmt: skip
    assert member.record.last_error == "it broke"
    cluster.live_on(4, member)
    assert member.keys[0][:2] == (key[0], 2)


def test_a_task_that_keeps_failing_ends_after_its_retries(cluster: Cluster) -> None:
    member, key = cluster.give(max_retries=2)
    for _ in range(3):
        member.start()
        member.fail()
        cluster.live_on(10, member)
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.attempt, outcome.retry_count) == ("failed", 3, 2)
    assert (outcome.cause, outcome.error_message) == ("error", "it broke")
    assert [row.number for row in cluster.store.attempts(key[0])] == [1, 2]
    assert member.record.failed == 3


def test_a_deterministic_error_ends_the_task_at_once(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.fail(cause="deterministic")
    assert cluster.outcome(key[0]).retry_count == 0


def test_a_failure_without_a_cause_is_an_error_and_without_words_names_its_cause(
    cluster: Cluster,
) -> None:
    member, key = cluster.give(max_retries=0)
    member.finish(outcome="failed")
    outcome = cluster.outcome(key[0])
    assert (outcome.cause, outcome.error_message) == ("error", "error")


@pytest.mark.parametrize("budget", [0, 1])
def test_a_timeout_reported_by_the_device_may_be_retried(cluster: Cluster, budget: int) -> None:
    member, key = cluster.give(max_retries=budget)
    member.finish(outcome="timeout")
    if budget:
        assert cluster.task(key[0]).retries == 1
    else:
        outcome = cluster.outcome(key[0])
        assert (outcome.status, outcome.cause) == ("timeout", "timeout")


def test_long_error_messages_are_cut(cluster: Cluster) -> None:
    member, key = cluster.give(max_retries=0)
    member.finish(outcome="failed", error="x" * 100_000)
    message = cluster.outcome(key[0]).error_message
    assert message is not None
    assert len(message) == 4_096
    assert len(member.record.last_error) == 500


def test_a_refusal_by_policy_is_tried_elsewhere_free_of_charge(cluster: Cluster) -> None:
    first, key = cluster.give(task_type="command", max_retries=0)
    second = cluster.device("other")
    found = first.fail(cause="policy_denied")
    assert cluster.status(key[0]) == "queued"
    row = LiveRow(
        key[0], 1, 0, 0, 0, (("box", "it broke"),), (), ("box",), (("box", 1, 1),)
    )  # fmt: skip
    assert row in only(ins.StoreLive, found)[0].rows
    cluster.place()
    assert second.keys[0][:2] == (key[0], 2)
    second.fail(cause="policy_denied")
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.cause, outcome.retry_count) == ("failed", "policy_denied", 0)
    assert outcome.started_ms is None
    # Both devices' words; what was noted before, with its age.
    assert outcome.error_message == (
        "no device can run it (they are asked again when one's worker starts anew, or when this"
        " task is retried): box: it broke, seen 0 s ago; other: it broke"
    )


def test_a_refusal_that_no_other_device_could_make_good_ends_the_task(cluster: Cluster) -> None:
    member, key = cluster.give(task_type="command")
    member.fail(cause="policy_denied")
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.cause, outcome.retry_count) == ("failed", "policy_denied", 0)


@pytest.mark.parametrize("outcome", [Outcome.RELEASED, Outcome.CANCELLED])
@pytest.mark.parametrize("running", [False, True])
def test_what_a_device_gives_back_costs_nothing(
    cluster: Cluster, outcome: Outcome, running: bool
) -> None:
    member, key = cluster.give(max_retries=0)
    if running:
        member.start()
    found = member.finish(outcome=str(outcome), cause=None)
    assert cluster.status(key[0]) == "queued"
    task = cluster.task(key[0])
    assert (task.retries, task.killers) == (0, frozenset())
    assert only(ins.StoreAttempts, found)[0].rows[0].outcome == "released"
    cluster.place()
    assert member.keys[0][:2] == (key[0], 2)


# --- losses --------------------------------------------------------------------------------------


def vanish(cluster: Cluster, member: Member, *beating: Member) -> None:
    """`member` falls silent until its lease is over; the others live on."""
    cluster.live_on(31, *beating)
    assert not member.record.online


def test_losing_an_assigned_attempt_costs_nothing(cluster: Cluster) -> None:
    member, key = cluster.give(max_retries=0)
    vanish(cluster, member)
    task = cluster.task(key[0])
    assert (cluster.status(key[0]), task.retries, task.killers) == ("queued", 0, frozenset())
    (row,) = cluster.store.attempts(key[0])
    assert (row.outcome, row.cause) == ("lost", "worker_lost")
    assert row.error_message is not None
    assert "silent" in row.error_message


def test_losing_a_running_attempt_costs_a_retry(cluster: Cluster) -> None:
    member, key = cluster.give(max_retries=1)
    member.start()
    vanish(cluster, member)
    assert cluster.task(key[0]).retries == 1
    other = cluster.device("other")
    cluster.live_on(5, other)
    other.start()
    vanish(cluster, other)
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.cause, outcome.retry_count) == ("failed", "worker_lost", 1)


def test_three_devices_lost_on_one_task_end_it_as_poison(cluster: Cluster) -> None:
    (number,) = cluster.submit(max_retries=10)
    for name in ("a", "b", "c"):
        member = cluster.device(name)
        cluster.live_on(12, member)
        assert number in member.record.attempts
        member.start()
        vanish(cluster, member)
    outcome = cluster.outcome(number)
    assert (outcome.status, outcome.retry_count) == ("failed", 2)
    assert outcome.error_message is not None
    assert outcome.error_message.startswith("POISON: 3 devices were lost running it")


def test_one_device_dying_thrice_is_no_poison(cluster: Cluster) -> None:
    member = cluster.device()
    (number,) = cluster.submit(max_retries=10)
    for _ in range(4):
        cluster.live_on(20, member)
        member.start()
        member.join(instance=f"anew {cluster.sessions}")
    assert cluster.status(number) in ("pending", "queued")
    assert cluster.task(number).killers == {"box"}


def test_a_worker_process_that_died_is_reported_as_lost_by_its_device(cluster: Cluster) -> None:
    member, key = cluster.give()
    member.fail(cause=Cause.WORKER_LOST)
    task = cluster.task(key[0])
    assert (task.retries, task.killers) == (1, frozenset({"box"}))


def test_a_limit_that_the_device_did_not_enforce_is_enforced_by_the_broker(
    cluster: Cluster,
) -> None:
    member, key = cluster.give(timeout_seconds=10, max_retries=0)
    member.start()
    cluster.live_on(14, member)
    assert cluster.status(key[0]) == "running"
    cluster.live_on(2, member)
    outcome = cluster.outcome(key[0])
    assert (outcome.status, outcome.cause) == ("timeout", "timeout")
    assert outcome.error_message == "exceeded its limit of 10 s"
    assert outcome.execution_seconds == 16
    assert member.told(msg.Cancel) == [msg.Cancel(member.session, (key,), "timeout")]
    assert member.record.free_units > 0


def test_a_limit_passed_may_be_retried_and_an_offline_device_is_not_told(cluster: Cluster) -> None:
    member, key = cluster.give(timeout_seconds=10)
    member.start()
    cluster.live_on(18)
    assert cluster.task(key[0]).retries == 1
    assert member.told(msg.Cancel) == []

"""What clients request of tasks (submit, cancel, retry, wait), and what the shell found damaged.

The shell has checked that the task is there and in a state that allows it.
"""

from __future__ import annotations

from itertools import groupby, repeat
from typing import Any

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.attempts import Ending, end
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import (
    ReviveTasks,
    Send,
    StoreAttempts,
    StoreOutcomes,
    StoreTasks,
    WaitOver,
)
from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.placement import passing_over
from retire_cluster.broker.core.rows import AttemptRow, SubmissionRow, TaskRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.core.transitions import after
from retire_cluster.broker.core.waits import Wait
from retire_cluster.schemas.protocol.messages import Cancel
from retire_cluster.schemas.vocabulary import ELSEWHERE, PRIORITIES, Cause, TaskStatus


def submit(state: ClusterState, event: ev.TasksSubmitted, now: Now) -> None:
    """Keep new tasks, and queue those that are not delayed."""
    first = state.next_task
    count = len(event.specs)
    state.next_task += count
    kept = state.keep_payloads(event.payloads)
    rows: list[TaskRow] = []
    delayed: list[Task] = []
    delays = event.delays_seconds or repeat(0.0, count)
    # Neighbours of one form are handled together: batches are often all alike.
    for (spec, delay), run in groupby(zip(event.specs, delays, strict=True)):
        start, size = len(rows), len(list(run))
        numbers = range(first + start, first + start + size)
        status = after(None, "delay" if delay > 0 else "submit")
        tasks = [
            Task(number, spec, now.wall_ms, payload, status, now.mono)
            for number, payload in zip(numbers, kept[start : start + size], strict=True)
        ]
        state.tasks.update(zip(numbers, tasks, strict=True))
        state.ledger.extend(numbers[0], size, status, spec.task_type, spec.priority)
        data: dict[str, Any] = {
            "from": None,
            "attempt": 0,
            "priority": PRIORITIES[spec.priority],
            "task_type": spec.task_type,
        }
        created = [now.wall_ms] * size
        state.log.add_burst("task." + status.value, now.wall_ms, numbers, created, None, data)
        form = (spec.task_type, spec.priority, spec.timeout_seconds, spec.max_retries)
        rows += map(
            TaskRow, numbers, created, *map(repeat, form), repeat(spec.document),
            event.payloads[start : start + size],
        )  # fmt: skip
        if delay > 0:
            for task in tasks:
                state.wait_until(task, now.mono + delay)
            delayed += tasks
        else:
            state.enqueue_all(tasks, state.class_of(spec))
    at_s = state.clock.age_seconds(now)
    records = [
        SubmissionRow(
            one.owner, one.key, one.fingerprint, first + one.start, one.size, now.wall_ms, at_s
        )
        for one in event.keyed
    ]
    state.submissions.update(((row.owner, row.key), row) for row in records)
    state.emit(StoreTasks(rows, records))
    for task in delayed:
        state.store_deviation(task, now)


def cancel(state: ClusterState, event: ev.CancelRequested, now: Now) -> None:
    """End a live task, and have its device kill it. Raises `KeyError` for one that has ended."""
    task = state.tasks[event.task]
    device = task.device
    key = task.key if task.dispatch is not None else None
    backlog, task.backlog = task.backlog, None
    began = task.started_mono
    seconds = None if began is None else max(0.0, now.mono - began)
    end(state, task, "cancel", Ending(message="cancelled by request", seconds=seconds), now)
    if backlog is not None:
        backlog.leave()
    if device is not None and key is not None:
        if device.online:
            state.emit(Send(device.routing, Cancel(device.session, (key,), "cancelled")))
        state.note_room(device)


def fail_damaged(state: ClusterState, event: ev.TaskDamaged, now: Now) -> None:
    """Fail a live task whose stored row is damaged: it cannot be run, and no retry would help."""
    task = state.tasks.get(event.task)
    if task is None or task.status is TaskStatus.RUNNING:
        return
    if task.dispatch is not None and task.dispatch.epoch != state.epoch:
        return  # handed out before it was damaged: its device may still end it well
    device = task.device
    backlog, task.backlog = task.backlog, None
    message = "its payload is damaged in the main node's store; submit it again"
    end(state, task, "damage", Ending(Cause.DETERMINISTIC.value, message), now)
    if backlog is not None:
        backlog.leave()
    if device is not None:
        state.note_room(device)


def discard_damaged_result(state: ClusterState, event: ev.ResultDamaged, now: Now) -> None:
    """Drop an ended task's result that is damaged in the store: a success becomes `failed`."""
    old = event.outcome
    if event.task in state.tasks or not state.ledger.has(event.task):
        return
    before = state.ledger.status(event.task)
    status = after(before, "damage")
    note = f"its result is damaged in the main node's store (it had ended: {before.value})"
    row = old._replace(
        status=status.value, cause=old.cause or Cause.DETERMINISTIC.value,
        error_message=note, result=b"", details=b"",
    )  # fmt: skip
    state.ledger.move(event.task, status, old.device_id, state.ledger.ended_s(event.task))
    state.emit(ReviveTasks((event.task,)))
    state.emit(StoreOutcomes((row,)))
    state.log.add(
        "task." + status.value, now.wall_ms, event.task, event.created_ms, old.device_id,
        {"from": before.value, "attempt": old.attempt, "cause": row.cause},
    )  # fmt: skip


def retry(state: ClusterState, event: ev.RetryRequested, now: Now) -> None:
    """Run an ended task again as a new generation; its old outcome becomes history."""
    old = event.outcome
    payload = state.keep_payload(event.payload)
    task = Task(event.task, event.spec, event.created_ms, payload, TaskStatus(old.status), now.mono)
    task.attempt = old.attempt
    task.stored_retries = old.retry_count
    state.tasks[event.task] = task
    # A task that was cancelled while it waited ended without an attempt of its own.
    if old.assigned_ms is not None:
        history = AttemptRow(
            old.task, old.attempt, old.device_id, old.status, old.cause, old.error_message,
            old.assigned_ms, old.started_ms, old.completed_ms, old.execution_seconds,
            old.result, old.details,
        )  # fmt: skip
        state.emit(StoreAttempts((history,)))
    state.emit(ReviveTasks((event.task,)))
    if old.cause in ELSEWHERE:
        passing_over.give_a_chance(state, state.classes.kind_of(task.spec), now)
    state.move(task, "retry", now)
    state.enqueue(task, now)
    state.store_deviation(task, now)


def wait(state: ClusterState, event: ev.WaitRequested, now: Now) -> None:
    """Park a client until its tasks have ended or its time is over."""
    if not event.unfinished or event.timeout_seconds <= 0:
        state.emit(WaitOver.of(event))
        return
    state.waits.park(Wait(event, set(event.unfinished), now.mono + event.timeout_seconds))

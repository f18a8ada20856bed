"""Attempts of tasks: they start, progress, end, are lost or put back.

A message about an attempt counts only with the exact key of the task's current attempt, from the
device that has it (`current`); anything else is stale: counted, acknowledged, without effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import oversize
from retire_cluster.broker.core.devices import enrolment, event_throttle
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import (
    Send,
    StoreAttempts,
    StoreOutcomes,
)
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.broker.core.placement import outliers, passing_over, requeues
from retire_cluster.broker.core.retry import Decision, decide
from retire_cluster.broker.core.rows import AttemptRow, OutcomeRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.core.transitions import TaskEvent
from retire_cluster.schemas.protocol.batches import FinishedGroup
from retire_cluster.schemas.protocol.messages import (
    AttemptKey,
    Cancel,
    FinishedAck,
    FinishedItem,
    Held,
    Progress,
    Reject,
    Started,
)
from retire_cluster.schemas.text.clean_text import plain, plain_lines
from retire_cluster.schemas.vocabulary import ELSEWHERE, Cause, Outcome, TaskStatus

#: The pause after an assignment that could not be sent; it doubles …
UNSENT_SECONDS = 0.5
#: … up to this.
UNSENT_AT_MOST_SECONDS = 30.0
_FINAL_EVENT: Final[dict[TaskStatus, TaskEvent]] = {
    TaskStatus.FAILED: "fail",
    TaskStatus.TIMEOUT: "time_out",
}
MAX_ERROR_CHARACTERS = 4_096
#: Devices remembered of a task, at most.
MAX_TRIED = 8
#: The outcome word of an attempt whose device was lost.
LOST = "lost"


def current(state: ClusterState, key: AttemptKey, device: Device) -> Task | None:
    """Return the task whose current attempt, on this device, has this key; None if it is stale."""
    state.at_task = key[0]
    task = state.tasks.get(key[0])
    if task is not None and task.device is device and task.attempt == key[1]:
        dispatch = task.dispatch
        if dispatch is not None and dispatch.token == key[2] and dispatch.epoch == key[3]:
            return task
    state.stats.dropped["stale_attempt"] += 1
    return None


def record_started(state: ClusterState, device: Device, message: Started, now: Now) -> None:
    """Record that attempts began to run (STARTED)."""
    for key in message.items:
        task = current(state, key, device)
        if task is not None and task.status is TaskStatus.ASSIGNED:
            start(state, task, 0.0, now)


def start(state: ClusterState, task: Task, elapsed_seconds: float, now: Now) -> None:
    """Record that an assigned attempt has run for `elapsed_seconds`, bounded by its assignment."""
    start_all(state, ((task, elapsed_seconds),), now)


def start_all(state: ClusterState, starting: Sequence[tuple[Task, float]], now: Now) -> None:
    """Do the same as `start` for attempts on one device, each with its elapsed seconds."""
    if not starting:
        return
    for task, elapsed in starting:
        if task.assigned_ms is not None:
            elapsed = min(elapsed, max(0, now.wall_ms - task.assigned_ms) / 1000)
        task.started_mono = now.mono - elapsed
        task.started_ms = now.wall_ms - int(elapsed * 1000)
        state.running[task.number] = task
    state.move_all([task for task, _ in starting], "start", now)


def record_progress(state: ClusterState, device: Device, message: Progress, now: Now) -> None:
    """Record how far attempts are (PROGRESS)."""
    for item in message.items:
        task = current(state, item.key, device)
        if task is None:
            continue
        task.progress = (item.percent, plain(item.message))
        event_throttle.log_progress(state, device, task, now)


def record_results(state: ClusterState, event: ev.ResultsArrived, now: Now) -> None:
    """Record the current results of a FINISHED batch, and acknowledge all of it."""
    device = state.connections.get(event.routing)
    message = event.message
    if event.key is not None and enrolment.refuse_wrong_key(
        state, event.key, device, event.routing, now
    ):
        return
    if device is None or device.session != message.session:
        state.emit(Send(event.routing, Reject(message.session, "register", "say HELLO again")))
        return
    device.last_seen_mono = now.mono
    outcomes: list[OutcomeRow] = []
    deviating: list[int] = []
    results, details = oversize.bounded(event.blobs)
    start = 0
    for group in message.groups:
        end = start + len(group.tasks)
        part = _GroupResults(group, results[start:end], details[start:end])
        ended = _record_successes if group.outcome == Outcome.SUCCESS else _record_others
        outcomes += ended(state, device, part, deviating, now)
        start = end
    if outcomes:
        state.emit(StoreOutcomes(outcomes, deviating))
    state.emit(Send(event.routing, FinishedAck(message.session, message.batch)))
    state.note_room(device)


class _GroupResults(NamedTuple):
    """Attempts of a batch that ended alike, with the result and details of each."""

    group: FinishedGroup
    results: Sequence[bytes]
    details: Sequence[bytes]


def _record_successes(
    state: ClusterState, device: Device, part: _GroupResults, deviating: list[int], now: Now
) -> list[OutcomeRow]:
    """Record attempts that ended well; returns the outcomes of those that are current."""
    group, results, details = part
    found: dict[int, int] = {}
    for index, (number, attempt) in enumerate(zip(group.tasks, group.attempts, strict=True)):
        if number in found:
            state.stats.dropped["stale_attempt"] += 1  # said twice
        elif current(state, (number, attempt, group.token, group.epoch), device) is not None:
            found[number] = index
    if not found:
        return []
    tasks = [state.tasks[number] for number in found]
    seconds, chosen = group.execution_seconds, list(found.values())
    fresh = [(state.tasks[n], seconds[i]) for n, i in found.items()]
    start_all(state, [pair for pair in fresh if pair[0].status is TaskStatus.ASSIGNED], now)
    device.succeeded += len(tasks)
    device.given_back = 0
    if state.tallies or device.notes:
        outliers.record_successes(state, device, tasks, now)
    changed = [task for task in tasks if task.deviates]
    if changed:
        outliers.confirm_refusals(state, device, changed, now)
        deviating += [task.number for task in changed]
    endings = _SharedEnding(
        None, None, [seconds[index] for index in chosen], [results[index] for index in chosen],
        [details[index] for index in chosen],
    )  # fmt: skip
    return _conclude_all(state, tasks, "succeed", endings, now)


def _record_others(
    state: ClusterState, device: Device, part: _GroupResults, deviating: list[int], now: Now
) -> list[OutcomeRow]:
    """Record attempts that ended otherwise; returns the outcomes of the tasks that they end."""
    rows = []
    for item, result, detail in zip(part.group.items(), part.results, part.details, strict=True):
        task = current(state, item.key, device)
        if task is None:
            continue
        row = _judge_result(state, device, task, item, result, detail, now)
        if row is not None:
            rows.append(row)
            if task.deviates:
                deviating.append(task.number)
    return rows


def _judge_result(
    state: ClusterState,
    device: Device,
    task: Task,
    item: FinishedItem,
    result: bytes,
    details: bytes,
    now: Now,
) -> OutcomeRow | None:
    """Apply a current result other than success; returns the outcome if it ends the task."""
    elsewhere = item.cause in ELSEWHERE
    if item.outcome in (Outcome.RELEASED, Outcome.CANCELLED):
        # Nobody here cancelled it (a cancelled task has no current attempt): it was given back.
        requeues.count_in_a_row(state, device, task, now)
        ending = Ending(message="given back by its device")
        requeue(state, task, Decision(None), "released", ending, now)
        return None
    if task.status is TaskStatus.ASSIGNED and not elsewhere:
        start(state, task, item.execution_seconds, now)
    cause = Cause.TIMEOUT if item.outcome == Outcome.TIMEOUT else (item.cause or Cause.ERROR)
    message = plain_lines((item.error_message or str(cause))[:MAX_ERROR_CHARACTERS])
    device.failed += 1
    device.last_error = message[:500]
    said_before = device.device_id in task.excluded
    note_tried(task, device)
    if elsewhere:
        passing_over.exclude(state, device, task, message)
        outliers.record_refusal(state, device, task, Cause(cause), message, now)
    elif cause == Cause.WORKER_LOST:
        task.killers |= {device.device_id}
    elif outliers.is_evidence(task, cause):
        outliers.record_failure(state, device, task, now)
    decision = decide(
        task, cause, state.settings.scheduler, state.rng, started=True, said_before=said_before
    )
    if elsewhere:
        nobody = passing_over.nobody_left(state, state.class_of(task.spec), now, task.excluded)
        if nobody is not None:
            decision, message = Decision(TaskStatus.FAILED), nobody[:MAX_ERROR_CHARACTERS]
    ending = Ending(str(cause), message, item.execution_seconds, result, details)
    if decision.final is None:
        requeue(state, task, decision, item.outcome, ending, now)
        return None
    ending = ending._replace(message=_noted(message, decision.note))
    return conclude(state, task, _FINAL_EVENT[decision.final], ending, now)


def note_tried(task: Task, device: Device) -> None:
    """Note that an attempt here did not end well: other devices come first from now on."""
    if len(task.tried) < MAX_TRIED:
        task.tried |= {device.device_id}


def _noted(message: str, note: str) -> str:
    return f"{note} ({message})" if note else message


class Ending(NamedTuple):
    """What is known of how an attempt ended."""

    cause: str | None = None
    message: str | None = None
    #: How long it ran; None: not known, or it never began.
    seconds: float | None = None
    result: bytes = b""
    details: bytes = b""


class _SharedEnding(NamedTuple):
    """What is known of attempts that ended alike: one figure, result and details an attempt."""

    cause: str | None
    message: str | None
    seconds: Sequence[float | None]
    results: Sequence[bytes]
    details: Sequence[bytes]


def end(state: ClusterState, task: Task, event: TaskEvent, ending: Ending, now: Now) -> None:
    """End a task and have its outcome stored."""
    row = conclude(state, task, event, ending, now)
    state.emit(StoreOutcomes((row,), (task.number,) if task.deviates else ()))


def conclude(
    state: ClusterState, task: Task, event: TaskEvent, ending: Ending, now: Now
) -> OutcomeRow:
    """End a task and return its outcome, for the caller to have stored."""
    cause, message, seconds, result, details = ending
    endings = _SharedEnding(cause, message, (seconds,), (result,), (details,))
    return _conclude_all(state, (task,), event, endings, now)[0]


def _conclude_all(
    state: ClusterState, tasks: Sequence[Task], event: TaskEvent, endings: _SharedEnding, now: Now
) -> list[OutcomeRow]:
    """End tasks of one device (or of none) alike, and return their outcomes."""
    cause, message, seconds, results, details = endings
    data: dict[str, Any] = {} if cause is None else {"cause": cause}
    status = state.move_all(tasks, event, now, **data)
    device = tasks[0].device
    device_id = device.device_id if device is not None else None
    ended_s = state.clock.age_seconds(now)
    rows = [
        OutcomeRow(
            task.number, status.value, device_id, task.attempt, task.assigned_ms, task.started_ms,
            now.wall_ms, took, cause, message, task.retry_count, result, detail,
            ended_s,
        )
        for task, took, result, detail in zip(tasks, seconds, results, details, strict=True)
    ]  # fmt: skip
    state.leave_device(tasks)
    state.stats.ended(status, seconds, state.clock.age_ms(now))
    state.end(tasks)
    return rows


def requeue(
    state: ClusterState, task: Task, decision: Decision, outcome: str, ending: Ending, now: Now
) -> None:
    """Put a task back whose attempt ended: keep the attempt as history, wait, queue again."""
    device = task.device
    cause = ending.cause
    row = AttemptRow(
        task.number, task.attempt, device.device_id if device is not None else None, outcome,
        cause, ending.message, task.assigned_ms, task.started_ms, now.wall_ms, ending.seconds,
        ending.result, ending.details,
    )  # fmt: skip
    wait_seconds = decision.delay_seconds
    if decision.costs_retry:
        task.retries += 1
        state.stats.retries[str(cause)] += 1
        state.emit(StoreAttempts((row,)))
    else:
        state.returned.add(task.number)
        counted = requeues.count(
            task,
            row.device_id,
            task.attempt,
            state.settings.scheduler,
            elsewhere=cause in ELSEWHERE,
        )
        wait_seconds = max(wait_seconds, counted.wait_seconds)
        replaced = () if counted.replaces is None else ((task.number, counted.replaces),)
        state.emit(StoreAttempts((requeues.row_of(row, counted),), replaced))
        if device is not None and device.device_id in requeues.last_choices(task):
            note_tried(task, device)
    state.leave_device((task,))
    task.device = None
    task.assigned_ms = task.started_ms = task.started_mono = None
    state.move(task, "wait", now, cause=cause, message=ending.message)
    if wait_seconds > 0:
        state.wait_until(task, now.mono + wait_seconds)
    else:
        become_due(state, task, now)
    state.store_deviation(task, now)


def requeue_unsent(state: ClusterState, event: ev.NotSent, now: Now) -> None:
    """Put back an attempt that was never sent: it costs no retry and is placed again later."""
    task = state.tasks.get(event.task)
    if (
        task is None
        or task.status is not TaskStatus.ASSIGNED
        or task.dispatch is None
        or task.dispatch.token != event.token
    ):
        return
    device = task.device
    state.leave_device((task,))
    task.device = None
    task.assigned_ms = None
    pause = min(UNSENT_SECONDS * 2.0 ** min(task.unsent, 10), UNSENT_AT_MOST_SECONDS)
    task.unsent += 1
    state.move(task, "wait", now, message=event.reason)
    state.wait_until(task, now.mono + pause)
    state.store_deviation(task, now)
    if device is not None:
        state.note_room(device)


def become_due(state: ClusterState, task: Task, now: Now) -> None:
    """Queue a pending task whose time has come."""
    state.at_task = task.number
    task.not_before_mono = 0.0
    state.move(task, "due", now)
    state.enqueue(task, now)


def lose(state: ClusterState, task: Task, reason: str, now: Now, *, free: bool = False) -> None:
    """Run a task again, or end it, whose device is gone or does not have it.

    `free`: it costs nothing and blames nobody (the device was removed or gave it up).
    """
    state.at_task = task.number
    device = task.device
    began = task.status is TaskStatus.RUNNING
    if began and device is not None and not free:
        task.killers |= {device.device_id}
        note_tried(task, device)
    decision = Decision(None)
    if not free:
        scheduler = state.settings.scheduler
        decision = decide(task, Cause.WORKER_LOST, scheduler, state.rng, started=began)
    _end_or_requeue(state, task, decision, LOST, Ending(Cause.WORKER_LOST.value, reason), now)
    if device is not None:
        state.note_room(device)


def confirm(state: ClusterState, held: Held, task: Task, now: Now) -> None:
    """Note that a device has an attempt, and whether it runs."""
    state.at_task = task.number
    task.confirmed_mono = now.mono
    if held.started and task.status is TaskStatus.ASSIGNED:
        start(state, task, held.elapsed_seconds, now)


def time_out(state: ClusterState, task: Task, now: Now) -> None:
    """End a running attempt past its limit that its device did not end."""
    state.at_task = task.number
    device, key = task.device, task.key
    assert device is not None
    seconds = now.mono - (task.started_mono if task.started_mono is not None else now.mono)
    message = f"exceeded its limit of {task.spec.timeout_seconds} s"
    note_tried(task, device)
    outliers.record_failure(state, device, task, now)
    decision = decide(task, Cause.TIMEOUT, state.settings.scheduler, state.rng, started=True)
    ending = Ending(Cause.TIMEOUT.value, message, seconds)
    _end_or_requeue(state, task, decision, Outcome.TIMEOUT, ending, now)
    if device.online:
        state.emit(Send(device.routing, Cancel(device.session, (key,), "timeout")))
    state.note_room(device)


def _end_or_requeue(
    state: ClusterState, task: Task, decision: Decision, outcome: str, ending: Ending, now: Now
) -> None:
    if decision.final is None:
        requeue(state, task, decision, outcome, ending, now)
    else:
        ending = ending._replace(message=_noted(ending.message or "", decision.note))
        end(state, task, _FINAL_EVENT[decision.final], ending, now)

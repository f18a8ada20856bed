"""Makes a cluster state of what the store kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.model import Device, Dispatch, Task, TaskSpec, Times
from retire_cluster.broker.core.placement import passing_over
from retire_cluster.broker.core.placement.requeues import LEAST_SECONDS
from retire_cluster.broker.core.records import audit_rows
from retire_cluster.broker.core.records.clock import resume
from retire_cluster.broker.core.rows import IndexRow, LiveRow, Snapshot, TaskRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.core.transitions import after
from retire_cluster.conf.settings import Settings, merge_section
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.vocabulary import TaskStatus


def restore(
    snapshot: Snapshot, settings: Settings, rng: random.Random, now: Now, boot: str = ""
) -> tuple[ClusterState, list[str]]:
    """Return the state of a new epoch, and warnings about what could not be taken over.

    Attempts that were out when the last broker stopped keep their lease, counted from now: their
    devices claim them in HELLO, or they are lost when it is over. `boot` names the boot of the
    machine, see `records/clock.py`.
    """
    settings, warnings = _with_persisted(settings, snapshot)
    warnings += snapshot.warnings
    clock, warning = resume(snapshot.mark, now, boot)
    warnings += [warning] if warning else []
    state = ClusterState(
        settings,
        epoch=snapshot.epoch,
        salt=snapshot.salt,
        rng=rng,
        clock=clock,
        config_version=snapshot.config_version,
    )
    state.next_task, state.next_dispatch = snapshot.next_task, snapshot.next_dispatch
    warnings += _devices(state, snapshot, now)
    warnings += state.access.load(snapshot.access)
    audit_rows.recall(state.log, snapshot.audit)
    _tasks(state, snapshot, now)
    held = {task.dispatch.number for task in state.tasks.values() if task.dispatch is not None}
    state.ended_dispatches = [row.number for row in snapshot.dispatches if row.number not in held]
    for (device_id, final), count in state.ledger.by_device_and_status().items():
        device = state.devices.get(device_id)
        if device is not None:
            if final is TaskStatus.SUCCESS:
                device.succeeded += count
            elif final in (TaskStatus.FAILED, TaskStatus.TIMEOUT):
                device.failed += count
    age_s = clock.age_seconds(now)
    for ended_s, word, seconds in snapshot.recent:
        state.stats.recall(TaskStatus(word), (seconds,), 1000 * min(ended_s, age_s))
    # What is younger than the clock was noted after its last mark, or is damaged: it is new.
    rows = [row._replace(at_s=min(row.at_s, age_s)) for row in snapshot.submissions]
    rows.sort(key=lambda row: row.at_s)
    state.submissions = {(row.owner, row.key): row for row in rows}
    return state, warnings


def _with_persisted(settings: Settings, snapshot: Snapshot) -> tuple[Settings, list[str]]:
    warnings = []
    for name, values in snapshot.config.items():
        try:
            section = merge_section(getattr(settings, name), values)
        except (ValidationError, AttributeError) as error:
            warnings.append(f"the stored configuration of {name} is not used: {error}")
            continue
        settings = settings.with_sections({name: section})
    return settings, warnings


def _devices(state: ClusterState, snapshot: Snapshot, now: Now) -> list[str]:
    warnings, age_s = [], state.clock.age_seconds(now)
    for row in snapshot.devices:
        if row.removed_ms is not None:
            state.tombstones[row.device_id] = row.removed_ms
        try:
            device = Device.from_row(row, state.heartbeat_config(), now.mono, age_s)
        except (KeyError, TypeError, ValueError) as error:
            warnings.append(f"the stored device {row.device_id} is damaged ({error}): forgotten")
            continue
        if row.removed_ms is None:
            state.devices[row.device_id] = device
            state.own_types.put(device)
            if device.gone_s is None:
                device.gone_s = state.clock.age_seconds(now)
                device.dirty = True
            passing_over.remember(state, device)
    return warnings


def _newest_dispatches(snapshot: Snapshot) -> dict[int, tuple[Dispatch, int, int]]:
    """Task → (its newest batch, attempt number, when)."""
    found: dict[int, tuple[Dispatch, int, int]] = {}
    for row in snapshot.dispatches:
        dispatch = Dispatch(row.number, row.epoch, row.token, row.device_id)
        for number, attempt in row.attempts:
            found[number] = (dispatch, attempt, row.at_ms)
    return found


def _tasks(state: ClusterState, snapshot: Snapshot, now: Now) -> None:
    """Put every task into the ledger, and the live ones into the state.

    Runs of neighbours that are alike are taken together: of a million, most are in few runs.
    """
    out = _newest_dispatches(snapshot)
    specs: dict[tuple[object, ...], TaskSpec] = {}
    rows = {row.number: row for row in snapshot.live}
    usual = rows.keys() - out.keys() - snapshot.deviations.keys()
    seen, age_s = 0, state.clock.age_seconds(now)

    def alike(line: IndexRow) -> tuple[object, ...]:
        nonlocal seen
        number, *form = line
        # What follows on its forerunner has the same distance to a running count.
        seen += 1
        if form[2] is None:
            row = rows[number]
            alone = 0 if number in usual else number
            return (number - seen, None, alone, row.created_ms, row[2:7])
        return (number - seen, *form)

    for _, lines in groupby(snapshot.index, alike):
        run = list(lines)
        number, kind, priority, status, device_id, ended_s = run[0]
        if status is not None:
            state.ledger.extend(
                number, len(run), TaskStatus(status), kind, priority, device_id,
                min(ended_s, age_s),
            )  # fmt: skip
            continue
        some = [rows[line[0]] for line in run]
        form = some[0][2:7]
        spec = specs.get(form)
        if spec is None:
            spec = specs[form] = TaskSpec(*form)
        if number in usual:
            _usual(state, some, spec, snapshot, now)
        else:
            _live(state, some[0], snapshot, out.get(number), spec, now)
    state.ledger.sort_endings()


def _usual(
    state: ClusterState, rows: Sequence[TaskRow], spec: TaskSpec, snapshot: Snapshot, now: Now
) -> None:
    """Restore neighbours of one submission that still wait as they were submitted."""
    first, created_ms = rows[0].number, rows[0].created_ms
    sizes = snapshot.live_payload_bytes
    if all(len(row.payload) == sizes[row.number] for row in rows):
        payloads = state.keep_payloads([row.payload for row in rows])
    else:
        payloads = [_payload(state, row, snapshot) for row in rows]
    since = now.mono - _waited(state, created_ms, now)
    status = after(None, "submit")
    tasks = [
        Task(row.number, spec, created_ms, payload, status, since)
        for row, payload in zip(rows, payloads, strict=True)
    ]
    state.tasks.update(zip(range(first, first + len(rows)), tasks, strict=True))
    state.ledger.extend(first, len(rows), status, spec.task_type, spec.priority)
    state.enqueue_all(tasks, state.class_of(spec))


def _waited(state: ClusterState, created_ms: int, now: Now) -> float:
    """Return the seconds that a task has waited, never more than the cluster's age."""
    return min(max(0, now.wall_ms - created_ms), state.clock.age_ms(now)) / 1000


def _payload(state: ClusterState, row: TaskRow, snapshot: Snapshot) -> bytes | None:
    whole = len(row.payload) == snapshot.live_payload_bytes[row.number]
    return state.keep_payload(row.payload) if whole else None


def _live(
    state: ClusterState,
    row: TaskRow,
    snapshot: Snapshot,
    out: tuple[Dispatch, int, int] | None,
    spec: TaskSpec,
    now: Now,
) -> None:
    """Restore a task that was handed out, or differs otherwise from how it was submitted."""
    payload = _payload(state, row, snapshot)
    status = after(None, "submit")
    task = Task(row.number, spec, row.created_ms, payload, status, now.mono)
    kept = snapshot.deviations.get(row.number)
    if kept is not None:
        _deviate(task, kept)
        if task.given_back:
            state.returned.add(row.number)
        for device_id in task.excluded.keys() & state.devices.keys():
            state.devices[device_id].refused.add(row.number)
    state.tasks[row.number] = task
    device = state.devices.get(out[0].device_id) if out is not None else None
    if out is not None and device is not None and out[1] > task.attempt:
        task.dispatch, task.attempt, task.assigned_ms = out
        task.dispatch.open += 1
        task.device = device
        task.confirmed_mono = now.mono
        task.status = after(status, "assign")
        device.hold((task,))
        state.ledger.add(row.number, task.status, row.task_type, row.priority, device.device_id)
        return
    wait = 0.0
    if kept is not None:
        wait = min((kept.not_before_ms - now.wall_ms) / 1000, _longest_wait(state, row, kept))
    if wait > 0:
        task.status = after(None, "delay")
        state.wait_until(task, now.mono + wait)
    state.ledger.add(row.number, task.status, row.task_type, row.priority)
    if task.status is TaskStatus.QUEUED:
        state.enqueue(task, now)
        task.queued_mono = now.mono - _waited(state, row.created_ms, now)


def _deviate(task: Task, kept: LiveRow) -> None:
    task.attempt, task.retries, task.stored_retries = (
        kept.attempt,
        kept.retries,
        kept.stored_retries,
    )
    task.excluded, task.killers = dict(kept.excluded), frozenset(kept.killers)
    task.tried = frozenset(kept.tried)
    if kept.given_back:
        task.given_back = {name: Times(*times) for name, *times in kept.given_back}
    task.deviates = True


def _longest_wait(state: ClusterState, row: TaskRow, kept: LiveRow) -> float:
    # A clock that jumped back while the broker was down must not keep a task waiting for days: a
    # retry never waits longer than its cap, a delayed start never longer than was asked for.
    if kept.attempt:
        return max(LEAST_SECONDS, state.settings.scheduler.retry_cap_seconds)
    return (kept.not_before_ms - row.created_ms) / 1000

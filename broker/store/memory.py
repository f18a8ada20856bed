"""A store that keeps everything in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import (
    AccessRow,
    AttemptRow,
    AuditRow,
    DeviceRow,
    DispatchRow,
    LiveRow,
    Mark,
    OutcomeRow,
    Snapshot,
    SubmissionRow,
    TaskRow,
)
from retire_cluster.broker.store.base import HOUR_SECONDS, Payloads, StoreError


class MemoryStore:
    """Forgets everything at exit; for tests and for those who want no disk."""

    def __init__(self) -> None:
        self.name = "memory"
        self.commits = 0
        self._epoch = 0
        self._salt = 0x155555555
        self._next_task = 1
        self._next_dispatch = 1
        self._tasks: dict[int, TaskRow] = {}
        self._outcomes: dict[int, OutcomeRow] = {}
        self._attempts: dict[int, list[AttemptRow]] = {}
        self._live: dict[int, LiveRow] = {}
        self._dispatches: dict[int, DispatchRow] = {}
        self._devices: dict[str, DeviceRow] = {}
        self._submissions: dict[tuple[str, str], SubmissionRow] = {}
        self._config: dict[str, dict[str, object]] = {}
        self._config_version = 1
        self._mark: Mark | None = None
        self._access: dict[tuple[str, str], AccessRow] = {}
        #: Denials and the others, by id.
        self._audit: dict[bool, dict[int, AuditRow]] = {False: {}, True: {}}

    def load(self, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
        """See `Store.load`."""
        last_event = 0 if self._mark is None else self._mark.last_event
        self._epoch = begin(max(self._epoch, last_event))
        live = [row for number, row in self._tasks.items() if number not in self._outcomes]
        index: list[tuple[int, str, int, str | None, str | None, int]] = []
        for row in self._tasks.values():
            outcome = self._outcomes.get(row.number)
            status = None if outcome is None else outcome.status
            device_id = None if outcome is None else outcome.device_id
            ended_s = 0 if outcome is None else outcome.ended_s
            index.append((row.number, row.task_type, row.priority, status, device_id, ended_s))
        since_s = (0 if self._mark is None else self._mark.age_ms // 1000) - HOUR_SECONDS
        rows = [row for row in self._outcomes.values() if row.ended_s > since_s]
        rows.sort(key=lambda row: row.ended_s)
        recent = [(row.ended_s, row.status, row.execution_seconds) for row in rows]
        return Snapshot(
            salt=self._salt,
            epoch=self._epoch,
            next_task=self._next_task,
            next_dispatch=self._next_dispatch,
            live=[
                row if len(row.payload) <= inline_bytes else row._replace(payload=b"")
                for row in live
            ],
            mark=self._mark,
            live_payload_bytes={row.number: len(row.payload) for row in live},
            deviations=dict(self._live),
            dispatches=list(self._dispatches.values()),
            devices=list(self._devices.values()),
            index=index,
            recent=recent,
            submissions=list(self._submissions.values()),
            access=list(self._access.values()),
            audit=[row for kept in self._audit.values() for row in kept.values()],
            config={name: dict(values) for name, values in self._config.items()},
            config_version=self._config_version,
        )

    def commit(self, writes: Sequence[ins.Write]) -> None:
        """See `Store.commit`."""
        self._check(writes)
        for write in writes:
            self._apply(write)
        self.commits += 1

    def _check(self, writes: Sequence[ins.Write]) -> None:
        """Refuse what would write a task or an outcome twice, before anything is changed."""
        tasks: set[int] = set()
        ended: set[int] = set()
        revived: set[int] = set()
        for write in writes:
            if isinstance(write, ins.StoreTasks):
                for row in write.rows:
                    if row.number in tasks or row.number in self._tasks:
                        raise StoreError(f"task {row.number} is in the store already")
                    tasks.add(row.number)
            elif isinstance(write, ins.StoreOutcomes):
                for outcome in write.rows:
                    number = outcome.task
                    if number in ended or (number in self._outcomes and number not in revived):
                        raise StoreError(f"task {number} has ended already")
                    ended.add(number)
            elif isinstance(write, ins.ReviveTasks):
                ended.difference_update(write.tasks)
                revived.update(write.tasks)

    def _apply(self, write: ins.Write) -> None:
        match write:
            case ins.StoreTasks(rows, submissions):
                for row in rows:
                    self._tasks[row.number] = row
                    self._next_task = row.number + 1
                for submission in submissions:
                    self._submissions[submission.owner, submission.key] = submission
            case ins.StoreOutcomes(outcomes, deviating):
                for outcome in outcomes:
                    self._outcomes[outcome.task] = outcome
                for number in deviating:
                    self._live.pop(number, None)
            case ins.StoreAttempts(attempts, replaced):
                for task, attempt_number in replaced:
                    self._attempts[task] = [
                        row for row in self._attempts[task] if row.number != attempt_number
                    ]
                for attempt in attempts:
                    self._attempts.setdefault(attempt.task, []).append(attempt)
            case ins.StoreLive(live):
                for entry in live:
                    self._live[entry.task] = entry
            case ins.ReviveTasks(numbers):
                for number in numbers:
                    self._outcomes.pop(number, None)
            case ins.StoreDispatch(dispatch):
                self._dispatches[dispatch.number] = dispatch
                self._next_dispatch = dispatch.number + 1
            case ins.ForgetDispatches(numbers):
                for number in numbers:
                    self._dispatches.pop(number, None)
            case ins.StoreDevices(devices):
                for device in devices:
                    self._devices[device.device_id] = device
            case ins.ForgetDevices(device_ids):
                for device_id in device_ids:
                    self._devices.pop(device_id, None)
            case ins.StoreConfig(sections, version):
                self._config.update(sections)
                self._config_version = version
            case ins.StoreAccess(keys):
                for key in keys:
                    self._access.pop(key[:2], None)
                    if key.document is not None:
                        self._access[key[:2]] = key
            case ins.StoreAudit(audit, denials, oldest):
                kept = {**self._audit[denials], **{one.id: one for one in audit}}
                self._audit[denials] = {key: one for key, one in kept.items() if key >= oldest}
            case ins.ForgetTasks(numbers):
                for number in numbers:
                    self._tasks.pop(number, None)
                    self._outcomes.pop(number, None)
                    self._attempts.pop(number, None)
                    self._live.pop(number, None)
            case ins.ForgetSubmissions(before_s):
                self._submissions = {
                    k: row for k, row in self._submissions.items() if row.at_s >= before_s
                }
            case ins.StoreMark(mark):
                self._mark = mark

    def task(self, number: int) -> TaskRow | None:
        """See `Store.task`."""
        return self._tasks.get(number)

    def heads(self, numbers: Iterable[int]) -> dict[int, TaskRow]:
        """See `Store.heads`."""
        return {n: self._tasks[n] for n in numbers if n in self._tasks}

    def openings(self, numbers: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
        """See `Store.openings`."""
        rows = (self._tasks[n] for n in numbers if n in self._tasks)
        return {row.number: (row.document, row.payload) for row in rows}

    def payloads(self, numbers: Iterable[int]) -> Payloads:
        """See `Store.payloads`."""
        return Payloads({n: self._tasks[n].payload for n in numbers if n in self._tasks}, {})

    def outcomes(self, numbers: Iterable[int], *, results: bool) -> dict[int, OutcomeRow]:
        """See `Store.outcomes`."""
        return {n: self._outcomes[n] for n in numbers if n in self._outcomes}

    def attempts(self, number: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        return list(self._attempts.get(number, ()))

    def free_percent(self) -> float:
        """Return 100: memory is not measured."""
        return 100.0

    def close(self) -> None:
        """Do nothing: there is no file."""

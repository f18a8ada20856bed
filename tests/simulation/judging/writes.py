"""What a turn writes: attempts, leases, slots, budgets of retries, one outcome a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import AttemptRow, LiveRow, OutcomeRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.text.clean_text import clean
from retire_cluster.schemas.text.json_text import JSONError, dumps, loads
from tests.simulation.judging.elsewhere import CAUSES
from tests.simulation.judging.facts import (
    ENDED,
    HELD,
    Fact,
    check_device,
    check_slots,
)

if TYPE_CHECKING:
    from tests.simulation.judging.judge import Judge


class Writes:
    """Holds each write to what is known of its task."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        #: Device → different tasks that failed on it for a cause of its own.
        self.failed_on: dict[str, set[int]] = {}

    def check(
        self,
        state: ClusterState,
        event: ev.Event,
        now: ev.Now,
        out: list[ins.Instruction],
        moved: dict[int, Fact],
    ) -> None:
        ended: set[int] = set()
        lost: dict[int, AttemptRow] = {}
        placed: set[str] = set()
        for instruction in out:
            if not isinstance(instruction, ins.WRITES):
                continue
            self.judge.book.pending.append(instruction)
            if isinstance(instruction, ins.StoreTasks):
                for row in instruction.rows:
                    fact = self.judge.book.add(row)
                    fact.status = state.ledger.status(row.number).value
                    self.judge.engine.tell("state", f"task {row.number}: new, {fact}", [row.number])
            elif isinstance(instruction, ins.StoreDispatch):
                self._dispatched(state, instruction, now)
                placed.add(instruction.row.device_id)
            elif isinstance(instruction, ins.StoreAttempts):
                for task, gone in instruction.replaced:
                    self.judge.book.touch(task).free_rows -= {gone}
                for attempt in instruction.rows:
                    lost[attempt.task] = attempt
                    if not isinstance(event, ev.RetryRequested):
                        self._attempt_over(state, event, now, attempt)
            elif isinstance(instruction, ins.StoreLive):
                for live in instruction.rows:
                    self._live(state, event, now, live, lost.get(live.task))
            elif isinstance(instruction, ins.StoreOutcomes):
                for outcome in instruction.rows:
                    self._ended(state, event, outcome)
                    ended.add(outcome.task)
            elif isinstance(instruction, ins.ReviveTasks):
                self._revived(event, instruction)
            elif isinstance(instruction, ins.ForgetTasks):
                self.judge.fail(f"tasks {instruction.tasks} are deleted, none is old enough")
            elif isinstance(instruction, ins.ForgetSubmissions):
                self.judge.fail("idempotency keys are forgotten, none is old enough")
        if ended != {n for n, fact in moved.items() if fact.status in ENDED}:
            self.judge.fail(f"stored outcomes {ended} are not what ended: {sorted(moved)}")
        for number, fact in moved.items():
            if (fact.status in HELD) != (fact.key is not None):
                self.judge.fail(
                    f"task {number} is {fact.status} with the attempt {fact.key}", number
                )
        for device_id in placed:
            check_slots(list(self.judge.book.on(device_id)), state.devices[device_id])
        if placed:
            chosen = [fact for fact in moved.values() if fact.status == "assigned"]
            self.judge.order.placed(state, self.judge.book.facts.values(), chosen, now.mono)
            for fact in chosen:
                self.judge.elsewhere.check_given(state, fact, self.judge.engine.now)

    def not_sent(self, event: ev.NotSent, fact: Fact) -> None:
        key = fact.key
        if key is None or key[2] != event.token or key in self.judge.running.delivered:
            self.judge.fail(f"attempt {key} of task {event.task} was sent after all", event.task)
        fact.key = None

    def _dispatched(self, state: ClusterState, write: ins.StoreDispatch, now: ev.Now) -> None:
        row = write.row
        device = state.devices[row.device_id]
        for number, attempt in row.attempts:
            fact = self.judge.book.touch(number)
            if fact.key is not None:
                self.judge.fail(
                    f"task {number} is placed while {fact.key} is on {fact.device}", number
                )
            if attempt != fact.attempt + 1:
                self.judge.fail(
                    f"attempt {attempt} of task {number} follows {fact.attempt}", number
                )
            if now.mono < fact.not_before_mono - 1e-6:
                self.judge.fail(f"task {number} was given back so often, and goes at once", number)
            check_device(fact, device)
            fact.attempt = attempt
            fact.key = (number, attempt, row.token, row.epoch)
            fact.device = row.device_id

    def _attempt_over(
        self, state: ClusterState, event: ev.Event, now: ev.Now, row: AttemptRow
    ) -> None:
        fact = self.judge.book.touch(row.task)
        if fact.key is None or row.number != fact.attempt or row.device_id != fact.device:
            self.judge.fail(
                f"attempt {row.number} of task {row.task} ended, it is not current", row.task
            )
        if isinstance(event, ev.Tick) and event.sweep == "liveness":
            silent = now.mono - self.judge.heard[fact.device]
            if silent <= state.devices[fact.device].config.timeout:
                self.judge.fail(
                    f"{fact.device} lost task {row.task} after {silent:.1f} s", row.task
                )
        self._note(state, fact, row.outcome, row.cause)
        fact.key = None
        free = isinstance(event, ev.DeviceRemoved) or _is_goodbye(event)
        if row.outcome == "lost":
            if row.started_ms is not None and not free:
                fact.killers |= {fact.device}
                fact.tried |= {fact.device}
        elif row.cause == "worker_lost":
            fact.killers |= {fact.device}
        elif row.cause in CAUSES:
            fact.said_before = fact.device in fact.excluded
            fact.excluded |= {fact.device}
        if row.outcome in ("failed", "timeout"):
            fact.tried |= {fact.device}
        if row.cause == "worker_lost" and fact.killers:
            self._check_poison(state, fact)
        if not self._charge(event, row, fact):
            self._given_back(state, now, row, fact)

    def _given_back(self, state: ClusterState, now: ev.Now, row: AttemptRow, fact: Fact) -> None:
        """It cost nothing: it is counted, waits, goes elsewhere, and is few rows."""
        times = fact.given_back.get(fact.device, (0, 0))[0] + 1
        fact.given_back = {**fact.given_back, fact.device: (times, row.number)}
        fact.free_rows |= {row.number}
        if times > 1:
            fact.tried |= {fact.device}
        further = times - 1
        if row.cause not in CAUSES:
            further = max(further, sum(one for one, _ in fact.given_back.values()) - 3)
        if further > 0:
            scheduler = state.settings.scheduler
            base = max(0.5, scheduler.retry_base_seconds)
            wait = min(scheduler.retry_cap_seconds, base * 2 ** (further - 1))
            fact.not_before_mono = now.mono + wait
        if row.times != max(1, times - 3):
            self.judge.fail(f"the row of attempt {row.number} stands for {row.times}", row.task)
        if len(fact.free_rows) > 4 * len(fact.given_back):
            self.judge.fail(
                f"task {row.task} has {len(fact.free_rows)} rows of no charge", row.task
            )

    def _note(self, state: ClusterState, fact: Fact, outcome: str, cause: str | None) -> None:
        """What an attempt says of its device."""
        if cause in CAUSES:
            self.judge.elsewhere.said(state, fact, cause == "policy_denied", self.judge.engine.now)
        elif outcome == "failed" and cause == "error":
            self.failed_on.setdefault(fact.device, set()).add(fact.number)

    def _check_poison(self, state: ClusterState, fact: Fact) -> None:
        if len(fact.killers) >= state.settings.scheduler.poison_devices:
            self.judge.fail(
                f"task {fact.number} goes on after killing {sorted(fact.killers)}", fact.number
            )

    def _live(
        self,
        state: ClusterState,
        event: ev.Event,
        now: ev.Now,
        row: LiveRow,
        attempt: AttemptRow | None,
    ) -> None:
        fact = self.judge.book.touch(row.task)
        if attempt is not None and not isinstance(event, ev.RetryRequested):
            charge = row.retries - fact.retries
            expected = self._charge(event, attempt, fact)
            if charge != expected:
                self.judge.fail(
                    f"task {row.task}: {attempt.outcome}/{attempt.cause} (started:"
                    f" {attempt.started_ms is not None}) cost {charge} retries, not {expected}",
                    row.task,
                )
            fact.retries = row.retries
            scheduler = state.settings.scheduler
            if row.not_before_ms > now.wall_ms + 1000 * scheduler.retry_cap_seconds + 1:
                self.judge.fail(f"task {row.task} waits longer than a retry may", row.task)
        if fact.retries > fact.max_retries:
            self.judge.fail(f"task {row.task} has used {fact.retries} retries", row.task)
        kept = (row.attempt, row.retries, row.stored_retries)
        if kept != (fact.attempt, fact.retries, fact.stored):
            self.judge.fail(f"task {row.task} is stored as {row}, it is {fact}", row.task)
        said = frozenset(name for name, _ in row.excluded)
        gone = fact.excluded - said
        if attempt is None and all(self.judge.elsewhere.is_new(state, device) for device in gone):
            fact.excluded -= gone
        visited = (frozenset(row.killers), said, frozenset(row.tried))
        returned = {name: tuple(times) for name, *times in row.given_back}
        if (*visited, returned) != (fact.killers, fact.excluded, fact.tried, fact.given_back):
            self.judge.fail(f"task {row.task} is stored as {row}, it is {fact}", row.task)

    @staticmethod
    def _charge(event: ev.Event, row: AttemptRow, fact: Fact) -> int:
        """What an attempt that ended may cost (trust.md, Semantics)."""
        if row.outcome == "released":
            return 0
        if row.cause in CAUSES:
            return int(fact.said_before)
        if row.outcome == "lost":
            free = isinstance(event, ev.DeviceRemoved) or _is_goodbye(event)
            return 0 if free or row.started_ms is None else 1
        return 1

    def _ended(self, state: ClusterState, event: ev.Event, row: OutcomeRow) -> None:
        fact = self.judge.book.touch(row.task)
        if fact.outcome is not None:
            self.judge.fail(
                f"task {row.task} ended {fact.outcome.status} and again {row.status}", row.task
            )
        if odd := _unsendable(row):
            self.judge.fail(f"task {row.task} {odd}", row.task)
        retries, most = fact.retries, fact.max_retries
        if fact.key is not None:
            self._note(state, fact, row.status, row.cause)
        if row.attempt != fact.attempt or row.retry_count != fact.stored + retries:
            self.judge.fail(f"the outcome {row} is not of {fact}", row.task)
        wrong = ""
        if row.status == "success":
            if not isinstance(event, ev.ResultsArrived) or fact.key is None:
                wrong = "succeeded without a result"
            else:
                self.judge.elsewhere.did_well(state, fact, self.judge.engine.now)
            if wrong or fact.task_type == "echo":
                pass
            elif tuple(loads(row.result)["key"]) != fact.key:
                wrong = f"succeeded with the result {row.result!r} of another attempt"
        elif row.status == "cancelled":
            if not isinstance(event, ev.CancelRequested):
                wrong = "was cancelled by nobody"
        elif row.status == "timeout" or row.cause == "error":
            if retries != most:
                wrong = f"ended with {retries} of {most} retries used"
        elif row.cause == "worker_lost":
            killers = fact.killers | {fact.device}
            if retries != most and len(killers) < state.settings.scheduler.poison_devices:
                wrong = f"was given up after {retries} of {most} retries, killing {killers}"
        elif row.cause in CAUSES:
            if retries != most or fact.device not in fact.excluded:
                self.judge.elsewhere.check_given_up(state, fact)
        elif row.cause != "deterministic":
            wrong = f"ended {row.status} for no known cause"
        if wrong:
            self.judge.fail(f"task {row.task} {wrong}", row.task)
        fact.key = None
        fact.outcome = row

    def _revived(self, event: ev.Event, write: ins.ReviveTasks) -> None:
        for number in write.tasks:
            fact = self.judge.book.touch(number)
            if fact.outcome is None or not isinstance(event, ev.RetryRequested):
                self.judge.fail(f"task {number} lives again, nobody asked for it", number)
                return
            if fact.outcome.cause in CAUSES:
                self.judge.elsewhere.asked_again(fact)
            fact.outcome = None
            fact.generation += 1
            fact.stored += fact.retries
            fact.retries = 0
            fact.killers = fact.excluded = fact.tried = frozenset()
            fact.given_back, fact.free_rows = {}, frozenset()
            fact.not_before_mono = 0.0


def _unsendable(row: OutcomeRow) -> str:
    """What of an outcome no answer could carry."""
    message = row.error_message
    if message is not None and (not isinstance(message, str) or clean(message) != message):
        return f"ended with a message that is no text: {message!r}"
    for name, text in (("result", row.result), ("details", row.details)):
        try:
            if text:
                dumps(loads(text))
        except JSONError as error:
            return f"ended with {name} that are no JSON: {error}"
    return ""


def _is_goodbye(event: ev.Event) -> bool:
    return isinstance(event, ev.FromDevice) and isinstance(event.message, msg.Goodbye)

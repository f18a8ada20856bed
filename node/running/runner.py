"""Runs attempts: `echo` at once and in batches, `sleep` as a timer, the rest in task processes.

Belongs to the agent's thread. Slots (slot.py) are other threads that only post news; `collect`
takes them in. An attempt ends in exactly one `Result`, except an abandoned one, which ends in none.
"""

from __future__ import annotations

import heapq
import logging
import queue
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from retire_cluster.node.core.events import Ended, Event, Progressed, Started
from retire_cluster.node.core.records import (
    ABANDONED,
    CANCELLED,
    TIMEOUT,
    UNSTARTED,
    Attempt,
    Result,
)
from retire_cluster.node.process.replies import Begun, Done, Progress
from retire_cluster.node.running import outcomes
from retire_cluster.node.running.catalog import Catalog, Kind, Place, decode
from retire_cluster.node.running.description import OwnTypes
from retire_cluster.node.running.outcomes import Verdict
from retire_cluster.node.running.slot import Died, Job, News, Slot
from retire_cluster.node.running.task_process import TaskProcess
from retire_cluster.node.tasks import echo, sleep, system_info
from retire_cluster.node.tasks.base import Limits, TaskFailed
from retire_cluster.schemas.protocol.messages import AttemptKey, ProgressItem, TypeInfo
from retire_cluster.schemas.text.json_text import dumps
from retire_cluster.schemas.vocabulary import Cause, Outcome

log = logging.getLogger("retire_cluster.node")

#: A command ends itself at its time, keeping its output; the worker's own limit comes after.
COMMAND_SLACK_SECONDS = 1.0
#: For a task process to start, on a slow card; until then the attempt's time does not count.
START_SECONDS = 60.0
#: Between telling an own type that it is cancelled and killing it.
SOFT_CANCEL_SECONDS = 0.5

_SUCCESS = Outcome.SUCCESS.value


class _Active:
    """An attempt that occupies a slot."""

    __slots__ = ("attempt", "began", "deadline", "kind", "reason", "slot", "started", "wake_at")

    def __init__(self, attempt: Attempt, kind: Kind, now: float) -> None:
        self.attempt = attempt
        self.kind = kind
        self.began = now
        #: When the runner ends it.
        self.deadline = now + attempt.timeout_seconds
        #: When a `sleep` is over.
        self.wake_at: float | None = None
        self.slot: Slot | None = None
        #: Its process has taken it up: from here its time counts.
        self.started = False
        #: Why it is being ended, or None.
        self.reason: str | None = None

    def __repr__(self) -> str:
        state = "started" if self.started else "starting"
        ending = f", being ended ({self.reason})" if self.reason else ""
        return f"<{self.attempt!r} in {self.slot!r}: {state}{ending}>"


class Runner:
    """Everything this device is working on.

    :param slots: attempts that occupy the device at once
    :param limits: what the owner grants each task
    :param start_process: starts a task process; called from slots' threads, may raise `OSError`
    :param facts: gives capabilities and metrics, for `system_info`
    :param clock: gives monotonic seconds
    :param wake: ends the agent's wait; called from slots' threads
    """

    def __init__(
        self,
        *,
        slots: int,
        catalog: Catalog,
        limits: Limits,
        start_process: Callable[[], TaskProcess],
        facts: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._catalog = catalog
        self._limits = asdict(limits)
        self._start_process = start_process
        self._facts = facts
        self._clock = clock
        self._wake = wake
        self._waiting: deque[tuple[Attempt, Kind]] = deque()
        self._active: dict[AttemptKey, _Active] = {}
        self._timers: list[tuple[float, AttemptKey]] = []
        self._threads: list[Slot] = []
        self._idle: list[Slot] = []
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._started: list[AttemptKey] = []
        self._told: list[ProgressItem] = []
        self._results: list[Result] = []
        #: The last thing that kept this device from running a task, for heartbeats.
        self.last_error = ""

    # --- for the agent ------------------------------------------------------------------------

    def run(self, attempts: list[Attempt], now: float) -> None:
        """Take attempts; instant ones are over when this returns."""
        instant: list[Attempt] = []
        for attempt in attempts:
            try:
                kind = self._catalog.kind(attempt.task_type)
                if kind.place is Place.INLINE:
                    instant.append(attempt)
                    continue
                if kind.check is not None:
                    kind.check(decode(attempt.payload))
                if kind.place is Place.FACTS:
                    self._tell_facts(attempt)
                else:
                    self._waiting.append((attempt, kind))
            except TaskFailed as failure:
                self._fail(attempt.key, failure)
            except Exception as error:
                self._give_up(attempt.key, error, now)
        if instant:
            self._echo(instant)
        self._fill(now)

    def kill(self, keys: list[AttemptKey], reason: str, now: float) -> None:
        """End attempts, running or waiting, for one of the reasons in records.py."""
        wanted = set(keys)
        if self._waiting and not wanted.isdisjoint(a.key for a, _ in self._waiting):
            kept: deque[tuple[Attempt, Kind]] = deque()
            for attempt, kind in self._waiting:
                if attempt.key in wanted:
                    self._end_waiting(attempt.key, reason)
                else:
                    kept.append((attempt, kind))
            self._waiting = kept
        for key in keys:
            active = self._active.get(key)
            if active is not None:
                self._end_active(active, reason, now)
        self._fill(now)

    def replace_own_types(self, own: OwnTypes, now: float) -> tuple[TypeInfo, ...]:
        """Run other own types in what begins from now on; all types that are offered then."""
        self._catalog.replace_own(own.types, own.left_out)
        for slot in self._threads:
            slot.outdate()
        waiting = [attempt for attempt, _ in self._waiting]
        self._waiting.clear()
        self.run(waiting, now)
        return self._catalog.advertised()

    def collect(self, now: float) -> list[Event]:
        """What happened since the last call, in order."""
        while True:
            try:
                news = self._news.get_nowait()
            except queue.Empty:
                break
            try:
                self._take(news, now)
            except Exception as error:
                self._give_up(news.key, error, now)
        self._look_at_clock(now)
        self._fill(now)
        events: list[Event] = []
        if self._started:
            events.append(Started(self._started))
            self._started = []
        if self._told:
            events.append(Progressed(self._told))
            self._told = []
        if self._results:
            events.append(Ended(self._results))
            self._results = []
        return events

    def next_due(self) -> float | None:
        """When `collect` has something to do though nothing was posted."""
        if self._results or self._started or self._told:
            return 0.0
        return self._timers[0][0] if self._timers else None

    def note_trouble(self, text: str) -> None:
        """Tell the device's owner of a trouble, with the next heartbeat."""
        self.last_error = text

    def close(self, patience_seconds: float = 5.0) -> None:
        """End everything that runs, and wait `patience_seconds` at most until it is gone."""
        self._waiting.clear()
        for slot in self._threads:
            slot.close()
        end = self._clock() + patience_seconds
        for slot in self._threads:
            slot.join(max(0.0, end - self._clock()))

    # --- the three ways to run ----------------------------------------------------------------

    def _echo(self, attempts: list[Attempt]) -> None:
        began = self._clock()
        data = [echo.result_data(attempt.payload) for attempt in attempts]
        each = (self._clock() - began) / len(attempts)
        self._results += [
            Result(attempt.key, _SUCCESS, each, None, None, text, b"")
            for attempt, text in zip(attempts, data, strict=True)
        ]

    def _tell_facts(self, attempt: Attempt) -> None:
        began = self._clock()
        capabilities, metrics = self._facts()
        text = dumps(system_info.result(capabilities, metrics))
        elapsed = self._clock() - began
        self._results.append(Result(attempt.key, _SUCCESS, elapsed, None, None, text, b""))

    def _fill(self, now: float) -> None:
        while self._waiting and len(self._active) < self._slots:
            attempt, kind = self._waiting.popleft()
            active = _Active(attempt, kind, now)
            self._active[attempt.key] = active
            try:
                if kind.place is Place.TIMER:
                    self._begin_sleep(active, now)
                else:
                    self._begin_child(active, now)
            except Exception as error:
                self._give_up(attempt.key, error, now)

    def _begin_sleep(self, active: _Active, now: float) -> None:
        attempt = active.attempt
        active.wake_at = now + sleep.duration_seconds(decode(attempt.payload))
        self._started.append(attempt.key)
        self._set_timer(min(active.wake_at, active.deadline), attempt.key)

    def _begin_child(self, active: _Active, now: float) -> None:
        attempt = active.attempt
        if not self._idle:
            slot = Slot(len(self._threads) + 1, self._start_process, self._post)
            slot.start()
            self._threads.append(slot)
            self._idle.append(slot)
        active.slot = self._idle.pop()
        header = {
            "kind": "run",
            "task_id": attempt.task_id,
            "attempt": attempt.key[1],
            "task_type": attempt.task_type,
            "timeout_seconds": attempt.timeout_seconds,
            "entry_point": active.kind.entry_point,
            "limits": self._limits,
        }
        active.deadline = now + START_SECONDS
        self._set_timer(active.deadline, attempt.key)
        active.slot.submit(Job(attempt.key, header, attempt.payload))

    def _post(self, news: News) -> None:
        """Take news from a slot, in its thread."""
        self._news.put(news)
        self._wake()

    # --- news of slots ------------------------------------------------------------------------

    def _take(self, news: News, now: float) -> None:
        active = self._active.get(news.key)
        what = news.what
        if isinstance(what, (Done, Died)):
            self._idle.append(news.slot)
        if active is None or active.slot is not news.slot:
            return
        if isinstance(what, Begun):
            active.began = now
            active.started = True
            self._started.append(news.key)
            if active.reason is None:
                slack = COMMAND_SLACK_SECONDS if active.attempt.task_type == "command" else 0.0
                active.deadline = now + active.attempt.timeout_seconds + slack
                self._set_timer(active.deadline, news.key)
        elif isinstance(what, Progress):
            self._told.append(ProgressItem(news.key, what.percent, what.message))
        else:
            del self._active[news.key]
            if isinstance(what, Done) and active.reason not in (CANCELLED, ABANDONED):
                self._finish(active, what, now)  # it was faster than what was to end it
            elif active.reason is not None:
                self._end_killed(active, active.reason, now)
            elif isinstance(what, Died):
                self._died(active, what, now)

    def _give_up(self, key: AttemptKey, error: Exception, now: float) -> None:
        """Fail the one attempt that an error of the worker's own was met with."""
        log.error("an attempt failed by an error of the worker's own", exc_info=error)
        active = self._active.pop(key, None)
        if active is not None and active.slot is not None:
            active.slot.kill(key)
        took = 0.0 if active is None else now - active.began
        words = f"the worker met an error of its own: {type(error).__name__} (its log has more)"
        self.last_error = words
        self._add(key, Verdict(Outcome.FAILED, Cause.ERROR, words), took)

    def _finish(self, active: _Active, done: Done, now: float) -> None:
        key, took, cause = active.attempt.key, now - active.began, done.cause
        if cause == Cause.POLICY_DENIED and active.kind.entry_point:
            # What the owner refuses is for the worker to say: it speaks for all tasks of the type.
            cause = Cause.ERROR.value
        self._results.append(
            Result(key, done.outcome, took, cause, done.error_message, done.data, done.details)
        )

    def _died(self, active: _Active, died: Died, now: float) -> None:
        if died.code is None:
            self.last_error = died.words[:500]
        self._judge(active, outcomes.of_dead_process(active.attempt.task_type, died), now)

    # --- ends ---------------------------------------------------------------------------------

    def _look_at_clock(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, key = heapq.heappop(self._timers)
            active = self._active.get(key)
            if active is None:
                continue
            try:
                self._be_due(active, now)
            except Exception as error:
                self._give_up(key, error, now)

    def _be_due(self, active: _Active, now: float) -> None:
        if active.wake_at is not None and now >= active.wake_at:
            if active.wake_at > active.deadline:
                self._end_active(active, TIMEOUT, now)
            else:
                self._wake_up(active, now)
        elif now >= active.deadline:
            if active.reason == CANCELLED and active.slot is not None:
                active.slot.kill(active.attempt.key)  # it was asked to stop and had its time
            elif active.slot is not None and not active.started:
                self._end_active(active, UNSTARTED, now)
            else:
                self._end_active(active, TIMEOUT, now)

    def _wake_up(self, active: _Active, now: float) -> None:
        attempt = active.attempt
        del self._active[attempt.key]
        text = dumps(sleep.result(sleep.duration_seconds(decode(attempt.payload))))
        elapsed = now - active.began
        self._results.append(Result(attempt.key, _SUCCESS, elapsed, None, None, text, b""))

    def _end_active(self, active: _Active, reason: str, now: float) -> None:
        key = active.attempt.key
        if active.slot is None:
            del self._active[key]
            self._end_killed(active, reason, now)
            return
        soft = reason == CANCELLED and active.kind.entry_point and active.reason is None
        # A stronger reason that comes later decides what is told; the first kill stays.
        if active.reason is None or reason == ABANDONED:
            active.reason = reason
        if soft:
            active.slot.ask_to_stop(key)
            active.deadline = now + SOFT_CANCEL_SECONDS
            self._set_timer(active.deadline, key)
        else:
            active.slot.kill(key)

    def _end_killed(self, active: _Active, reason: str, now: float) -> None:
        verdict = outcomes.of_killed(
            active.attempt, reason, ran_seconds=now - active.began, start_seconds=START_SECONDS
        )
        if verdict is not None:
            if reason == UNSTARTED:
                self.last_error = verdict.message
            self._judge(active, verdict, now)

    def _end_waiting(self, key: AttemptKey, reason: str) -> None:
        verdict = outcomes.of_waiting(reason)
        if verdict is not None:
            self._add(key, verdict, 0.0)

    def _judge(self, active: _Active, verdict: Verdict, now: float) -> None:
        self._add(active.attempt.key, verdict, now - active.began)

    def _add(self, key: AttemptKey, verdict: Verdict, ran_seconds: float) -> None:
        outcome, cause, message = verdict
        cause_text = None if cause is None else cause.value
        self._results.append(Result(key, outcome.value, ran_seconds, cause_text, message, b"", b""))

    def _fail(self, key: AttemptKey, failure: TaskFailed) -> None:
        self._add(key, Verdict(failure.outcome, failure.cause, failure.message), 0.0)

    def _set_timer(self, at: float, key: AttemptKey) -> None:
        heapq.heappush(self._timers, (at, key))

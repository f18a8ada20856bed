"""Planted bugs: the simulation must notice each of them, or it proves nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

from retire_cluster.broker import loading, server
from retire_cluster.broker.core import attempts, restore, retry
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.broker.core.placement import assignment, outliers, passing_over, requeues
from retire_cluster.broker.core.placement.backlog import Head, Lanes
from retire_cluster.broker.core.placement.matching import TaskClass
from retire_cluster.broker.core.placement.starvation import Share, Waiting
from retire_cluster.broker.core.records.clock import ClusterClock
from retire_cluster.broker.core.records.event_log import EPOCH_STEP
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.core.waits import Wait, Waits
from retire_cluster.broker.net.handing_out import hand_out
from retire_cluster.broker.server import Broker
from retire_cluster.conf.sections import Scheduler
from retire_cluster.node.core.outbox import Outbox
from retire_cluster.node.core.session import Session
from retire_cluster.node.process import replies
from retire_cluster.node.process.frames import RawFrame
from tests.simulation.main_node import WALL_START_MS
from tests.simulation.storage import Disk, LazyDisk
from tests.simulation.world import swapped


def _answers_before_commit() -> AbstractContextManager[None]:
    """A turn's writes are committed with the next turn's."""

    def late(self: Any, now: Any) -> None:
        writes = [i for i in self._admin.turn if isinstance(i, ins.WRITES)]
        kept, self.kept_back = getattr(self, "kept_back", []), writes
        if kept:
            self._store.commit(kept)

    return swapped(Broker, "_commit", late)


def _stale_token() -> AbstractContextManager[None]:
    """Any message of the right device about the task counts, whatever attempt it is about."""

    def current(state: ClusterState, key: Any, device: Device) -> Task | None:
        task = state.tasks.get(key[0])
        if task is None or task.device is not device or task.dispatch is None:
            return None
        return task

    return swapped(attempts, "current", current)


def _no_poison_guard() -> AbstractContextManager[None]:
    """Devices that die on a task are not counted."""
    decide = retry.decide

    def reckless(task: Task, cause: str, scheduler: Scheduler, *given: Any, **how: Any) -> Any:
        return decide(task, cause, replace(scheduler, poison_devices=999), *given, **how)

    return swapped(attempts, "decide", reckless)


def _requeue_keeps_device() -> AbstractContextManager[None]:
    """An attempt that is given back is not taken off its device."""
    requeue, leave = attempts.requeue, ClusterState.leave_device

    def forgetful(self: ClusterState, tasks: Sequence[Task]) -> None:
        for task in tasks:
            task.dispatch = None

    def careless(*given: Any, **how: Any) -> None:
        ClusterState.leave_device = forgetful  # type: ignore[method-assign]
        try:
            requeue(*given, **how)
        finally:
            ClusterState.leave_device = leave  # type: ignore[method-assign]

    return swapped(attempts, "requeue", careless)


def _charges_unstarted() -> AbstractContextManager[None]:
    """A lost attempt costs a retry also when it had not begun."""
    decide = retry.decide
    return swapped(
        attempts, "decide", lambda *given, **how: decide(*given, **{**how, "started": True})
    )


def _forgets_dispatches() -> AbstractContextManager[None]:
    """A restarted main node does not know who runs what."""
    return swapped(restore, "_newest_dispatches", lambda snapshot: {})


def _ignores_slots() -> AbstractContextManager[None]:
    """Devices are picked whether they have room or not."""

    def pick(self: TaskClass, free: Any, sample: int = 8) -> Device | None:
        return next((device for device in self.ring if device.ready), None)

    return swapped(TaskClass, "pick", pick)


def _priority_is_ignored() -> AbstractContextManager[None]:
    """Who waits longest goes first, whatever its priority."""
    head = Lanes.head

    def oldest(self: Lanes) -> Head | None:
        found = [task for task in map(self.oldest, range(4)) if task is not None]
        first = min(found, key=lambda task: task.number, default=None)
        if first is None:
            return head(self)
        lane = first.spec.priority
        return Head(-lane, first.number, lane, first.queued_mono)

    return swapped(Lanes, "head", oldest)


def _overtakes_at_will() -> AbstractContextManager[None]:
    """Who has waited too long goes first, every time."""
    return swapped(Share, "overtook", lambda self: None)


def _overtakes_at_once() -> AbstractContextManager[None]:
    """Nobody has to wait before it may overtake."""
    init = Waiting.__init__

    def careless(self: Waiting, classes: Any, below: int, since_mono: float) -> None:
        init(self, classes, below, since_mono + 1e9)

    return swapped(Waiting, "__init__", careless)


def _eats_the_queue() -> AbstractContextManager[None]:
    """Nobody compares how devices do."""
    return swapped(outliers, "record_failure", lambda *given: None)


def _goes_back() -> AbstractContextManager[None]:
    """A retry goes wherever there is room, also where it failed."""
    return swapped(assignment._Pass, "_device_for", lambda self, cls, task, device: device)


def _asks_again() -> AbstractContextManager[None]:
    """That a device cannot run a kind of task is not noted."""
    return swapped(outliers, "record_refusal", lambda *given: None)


def _believes_each() -> AbstractContextManager[None]:
    """What a device says of single tasks counts for their type, whoever else can run them."""

    def lacks(state: Any, device: Device, task: Task, cause: Any, message: str, now: Now) -> None:
        passing_over.note(state, device, state.classes.kind_of(task.spec), cause, message, now)

    return swapped(outliers, "record_refusal", lacks)


def _gives_up_early() -> AbstractContextManager[None]:
    """One device that cannot run a task is enough to give it up."""
    return swapped(passing_over, "nobody_left", lambda *given: "nobody can run it")


def _comes_back_at_once() -> AbstractContextManager[None]:
    """However often a task was given back, it goes again at once."""
    count = requeues.count
    return swapped(
        requeues, "count", lambda *given, **how: count(*given, **how)._replace(wait_seconds=0.0)
    )


def _keeps_every_row() -> AbstractContextManager[None]:
    """Each attempt that was given back is a row for ever."""
    count = requeues.count
    return swapped(
        requeues, "count", lambda *given, **how: count(*given, **how)._replace(replaces=None)
    )


def _condemns_all() -> AbstractContextManager[None]:
    """What the last device said of some tasks of a type ends all that wait."""
    return swapped(passing_over, "trust_the_last", lambda *given: False)


def _no_fence() -> AbstractContextManager[None]:
    """A device that lost the main node goes on with what may not run twice."""

    def look_away(self: Any, now: float) -> None:
        if self.fence_at is not None and now >= self.fence_at:
            self.lease.fenced = True

    return swapped(Session, "_check_fence", look_away)


def _forgets_results() -> AbstractContextManager[None]:
    """A device does not send again what was not acknowledged."""

    def start_over(self: Any) -> None:
        self._batches.clear()

    return swapped(Outbox, "start_over", start_over)


def _ages_by_the_wall_clock() -> AbstractContextManager[None]:
    """What is old is told by the wall clock, as dates are."""

    def by_date(self: ClusterClock, now: Now) -> int:
        return now.wall_ms - WALL_START_MS + 40 * 86_400_000

    return swapped(ClusterClock, "age_ms", by_date)


def _counts_epochs() -> AbstractContextManager[None]:
    """An epoch is the one before and a step: a restored backup gives it out again."""
    return swapped(loading, "fresh_epoch", lambda newest, now, rng: newest + EPOCH_STEP)


def _unread_answers() -> AbstractContextManager[None]:
    """What a task's own process says is passed on as it is."""

    def unread(frame: RawFrame) -> replies.Done:
        said = json.loads(frame.header)
        return replies.Done(
            said["outcome"], said["cause"], said["error_message"], frame.blob, b"", False
        )

    return swapped(replies, "read", unread)


def _trouble_is_damage() -> AbstractContextManager[None]:
    """A payload that cannot be read now counts as damaged."""
    return swapped(server, "hand_out", _hand_out_or_fail)


def _hand_out_or_fail(*given: Any) -> list[Any]:
    return [
        ev.TaskDamaged(event.task) if isinstance(event, ev.NotSent) else event
        for event in hand_out(*given)
    ]


def _waits_for_the_ended() -> AbstractContextManager[None]:
    """A task that has ended is still noted as waited for."""
    finish = Waits.finish

    def forgetful(self: Waits, number: int) -> list[Wait]:
        waiting = self.by_task[number]
        over = finish(self, number)
        self.by_task[number] = waiting
        return over

    return swapped(Waits, "finish", forgetful)


def _nothing() -> AbstractContextManager[None]:
    return contextlib.nullcontext()


#: Name → how to plant it.
BUGS: Final[dict[str, Callable[[], AbstractContextManager[None]]]] = {
    "answers-before-commit": _answers_before_commit,
    "unsynced-store": _nothing,
    "stale-token": _stale_token,
    "no-poison-guard": _no_poison_guard,
    "requeue-keeps-device": _requeue_keeps_device,
    "charges-unstarted": _charges_unstarted,
    "forgets-dispatches": _forgets_dispatches,
    "ignores-slots": _ignores_slots,
    "priority-is-ignored": _priority_is_ignored,
    "overtakes-at-will": _overtakes_at_will,
    "overtakes-at-once": _overtakes_at_once,
    "eats-the-queue": _eats_the_queue,
    "goes-back": _goes_back,
    "asks-again": _asks_again,
    "believes-each": _believes_each,
    "gives-up-early": _gives_up_early,
    "comes-back-at-once": _comes_back_at_once,
    "keeps-every-row": _keeps_every_row,
    "condemns-all": _condemns_all,
    "no-fence": _no_fence,
    "forgets-results": _forgets_results,
    "ages-by-the-wall-clock": _ages_by_the_wall_clock,
    "counts-epochs": _counts_epochs,
    "unread-answers": _unread_answers,
    "trouble-is-damage": _trouble_is_damage,
    "waits-for-the-ended": _waits_for_the_ended,
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[Disk | None]:
    """Plant a bug for a while (none for an empty name); the disk to use in place of the usual."""
    with BUGS[name]() if name else _nothing():
        yield LazyDisk() if name == "unsynced-store" else None

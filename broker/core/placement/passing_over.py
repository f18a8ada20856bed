"""Devices are passed over for a kind of task for a while: what they lack, refuse or fail.

A device that says "not here" (a program, a package, a permission that it lacks) is right about
itself and says nothing of the task: the task goes elsewhere, and no other task of the kind goes
there for a while, longer each time it says so again. A new process of the device clears it: its
owner may have installed what was missing. `outliers` uses the same notes for devices that fail
what others do.

When every device that could run a kind has said so, nobody is left to wait for: `nobody_left`.
What holds for one task of a type need not hold for the others, so the last device that can run a
type is not passed over for the whole of it: `trust_the_last`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Final

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import StoreDevices
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.broker.core.placement.matching import TaskClass, notes_on, unfit
from retire_cluster.broker.core.placement.notes import LONGEST_SECONDS, Note, TaskKind
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas import needs
from retire_cluster.schemas.vocabulary import ELSEWHERE, FAILING, Cause

#: How long the first time lasts; each time lasts twice as long, up to the longest.
FIRST_SECONDS: Final = 300.0
#: Notes of one device; the one that ends first goes for another.
MAX_NOTES: Final = 64
#: A device silent for longer than this does not keep others from being asked again.
REJOIN_SECONDS: Final = 600.0
#: Who may come to run a class is looked up no more often: it takes a look at every device.
_COMING_SECONDS: Final = 1.0
#: Tasks that ended are swept from what a device refused when there are so many of them.
REFUSED_KEPT: Final = 1_000
#: The notes of one device are stored no more often, and of so many devices in one turn.
_STORE_SECONDS: Final = 1.0
_STORED: Final = 64
#: Notes that one sweep ends at most.
_ENDED: Final = 1_000
_MAX_MESSAGE: Final = 300
#: Of what a device says of one task: kept with the task, once a device.
_MAX_WORD: Final = 200
#: Devices whose words are told when nobody is left.
_TOLD: Final = 20


def note(
    state: ClusterState,
    device: Device,
    kind: TaskKind,
    cause: str,
    message: str,
    now: Now,
    *,
    first_seconds: float = FIRST_SECONDS,
    longest_seconds: float = LONGEST_SECONDS,
) -> None:
    """Pass a device over for a kind of task from now on, for a while."""
    before = device.notes.get(kind)
    # A pause neither stands for a verdict nor makes one longer.
    same = before is not None and before.cause == cause and before.seconds >= first_seconds
    if before is not None and before.active and (same or before.seconds > longest_seconds):
        return  # an attempt that was on its way says it again
    times = before.times + 1 if before is not None and same else 1
    seconds = min(longest_seconds, first_seconds * 2.0 ** min(times - 1, 16))
    if kind not in device.notes and len(device.notes) >= MAX_NOTES:
        _drop(state, device, min(device.notes, key=lambda one: device.notes[one].until_mono), now)
    since_s = state.clock.age_seconds(now)
    found = Note(cause, message[:_MAX_MESSAGE], now.mono, seconds, times, since_s)
    device.notes[kind] = found
    state.note_index.add(device.device_id, kind, found.until_mono)
    if kind.needs:
        state.classes.tell_apart(kind, state.note_index.kinds)
    _judge_again(state, device, kind)
    state.stats.passed_over[cause] += 1
    data = {
        "task_type": kind.task_type, "needs": needs.in_words(kind.needs), "cause": cause,
        "message": found.message, "seconds": seconds,
    }  # fmt: skip
    state.log.add("device.passed_over", now.wall_ms, device_id=device.device_id, data=data)
    # A device that lacks many things says so many times a second; all its notes are one row.
    state.note_index.unstored[device.device_id] = None
    if now.mono - device.noted_mono >= _STORE_SECONDS:
        _store(state, (device.device_id,), now)


def store_some(state: ClusterState, now: Now) -> None:
    """Store notes that are not stored yet; a crash before only has a device asked once more."""
    _store(state, list(islice(state.note_index.unstored, _STORED)), now)


def _store(state: ClusterState, device_ids: Sequence[str], now: Now) -> None:
    rows = []
    for device_id in device_ids:
        del state.note_index.unstored[device_id]
        device = state.devices.get(device_id)
        if device is not None:
            device.noted_mono = now.mono
            rows.append(device.row())
    if rows:
        state.emit(StoreDevices(tuple(rows)))


def lift(state: ClusterState, device: Device, kind: TaskKind, now: Now) -> None:
    """Drop a device's note on a kind that it did a task of well."""
    if kind in device.notes:
        _drop(state, device, kind, now)
        device.dirty = True


def give_a_chance(state: ClusterState, kind: TaskKind, now: Now) -> None:
    """Lift the notes by which devices lack what a kind needs: somebody retries such a task."""
    for device_id in state.note_index.devices(kind):
        device = state.devices[device_id]
        if device.notes[kind].cause in ELSEWHERE:
            lift(state, device, kind, now)


def forget(state: ClusterState, device: Device, now: Now) -> None:
    """Drop all that is noted of a device, for it has a new process."""
    for kind in list(device.notes):
        _drop(state, device, kind, now)
    device.records.clear()
    unsay(state, device, now)


def forget_types(state: ClusterState, device: Device, names: Set[str], now: Now) -> None:
    """Drop what is noted of a device for types that it now has in another form or version."""
    for kind in [kind for kind in device.notes if kind.task_type in names]:
        _drop(state, device, kind, now)
    for kind in [kind for kind in device.records if kind.task_type in names]:
        del device.records[kind]
    unsay(state, device, now, names)


def unsay(state: ClusterState, device: Device, now: Now, only: Set[str] | None = None) -> None:
    """Drop what a device said of single tasks (`only` of these types)."""
    busy = set()
    for number in device.refused:
        task = state.tasks.get(number)
        if task is None or device.device_id not in task.excluded:
            continue
        if only is not None and task.spec.task_type not in only:
            busy.add(number)
            continue
        if task.dispatch is not None:
            busy.add(number)  # a row of it that is stored now would stand for an attempt that ended
            continue
        task.excluded = {
            name: word for name, word in task.excluded.items() if name != device.device_id
        }
        state.store_deviation(task, now)
    device.refused = busy


def exclude(state: ClusterState, device: Device, task: Task, message: str) -> None:
    """Exclude a device that said it cannot run a task: it is asked last, until its next process."""
    task.excluded = {**task.excluded, device.device_id: message[:_MAX_WORD]}
    device.refused.add(task.number)
    if len(device.refused) > REFUSED_KEPT + len(state.tasks):
        device.refused &= state.tasks.keys()


def remember(state: ClusterState, device: Device) -> None:
    """Take over the notes that a device has from an earlier main node."""
    for kind, found in device.notes.items():
        state.note_index.add(device.device_id, kind, found.until_mono)
        if kind.needs:
            state.classes.tell_apart(kind, state.note_index.kinds)


def leave(state: ClusterState, device: Device, now: Now) -> None:
    """Drop what is noted of a device that leaves the cluster."""
    unsay(state, device, now)
    for kind in device.notes:
        state.note_index.drop(device.device_id, kind)


def expire(state: ClusterState, now: Now) -> None:
    """End notes whose time is over; each is kept as long again, so that a next one lasts longer."""
    for device_id, kind in state.note_index.ended(now.mono, _ENDED):
        device = state.devices[device_id]
        found = device.notes[kind]
        if not found.active:
            _drop(state, device, kind, now)
            continue
        _end(state, device, kind, now)
        found.until_mono = now.mono + 2 * found.seconds
        state.note_index.add(device_id, kind, found.until_mono)


def _drop(state: ClusterState, device: Device, kind: TaskKind, now: Now) -> None:
    _end(state, device, kind, now)
    del device.notes[kind]
    state.note_index.drop(device.device_id, kind)


def _end(state: ClusterState, device: Device, kind: TaskKind, now: Now) -> None:
    found = device.notes[kind]
    if not found.active:
        return
    found.active = False
    _judge_again(state, device, kind)
    need = needs.in_words(kind.needs)
    data = {"task_type": kind.task_type, "needs": need, "cause": found.cause}
    state.log.add("device.eligible_again", now.wall_ms, device_id=device.device_id, data=data)


def _judge_again(state: ClusterState, device: Device, kind: TaskKind) -> None:
    if not device.online:
        return
    for cls in state.classes.of(kind):
        cls.judge(device)


def nobody_left(
    state: ClusterState, cls: TaskClass, now: Now, asked: Mapping[str, str] | None = None
) -> str | None:
    """Return what all devices lack that could run a class otherwise; None while one may run it.

    A device that is drained or away counts as one that may, however long: it is part of the
    cluster until it is removed. Where no device was ever able to, the class waits for one, as
    always. `asked`: devices that said so of the very task.
    """
    asked = asked or {}
    if not cls.eligible.keys() <= asked.keys():
        return None
    said = []
    for device in _able(state, cls):
        notes = _words_on(cls, device)
        if not notes and device.device_id not in asked:
            return None
        words = describe(notes[0], now) if notes else asked[device.device_id]
        said.append(f"{device.device_id}: {words}")
    if not said:
        return None
    more = f"; and {len(said) - _TOLD} more" if len(said) > _TOLD else ""
    # The cure comes first: the end of a long text is cut.
    return (
        "no device can run it (they are asked again when one's worker starts anew, or when this"
        f" task is retried): {'; '.join(said[:_TOLD])}{more}"
    )


def trust_the_last(state: ClusterState, cls: TaskClass, now: Now) -> bool:
    """Let those run a class again that fail it, when nobody else can; or else, lack a whole type.

    Who lacks what the tasks need is left out: it would not be the last to run them.
    """
    failing, lacking = [], []
    whole = TaskKind(cls.key.task_type, "")
    for device in _able(state, cls):
        if not device.online and device.silent_for(now.mono) > REJOIN_SECONDS:
            continue
        notes = notes_on(cls.key, device)
        if not notes:
            return False
        if all(one.cause == FAILING for one in notes):
            failing.append(device)
        elif notes == [device.notes.get(whole)]:
            lacking.append(device)
    for device in failing:
        for kind in cls.key.kinds:
            lift(state, device, kind, now)
    if failing:
        return True
    for device in lacking:
        lift(state, device, whole, now)
    return bool(lacking)


def may_come(state: ClusterState, cls: TaskClass, now: Now) -> frozenset[str]:
    """Return the ids of devices that may run a class now or later: busy, drained or away."""
    found, looked_mono, known = cls.coming
    if now.mono - looked_mono >= _COMING_SECONDS or known != len(state.devices):
        able = _able(state, cls)
        found = frozenset(one.device_id for one in able if not _words_on(cls, one))
        cls.coming = (found, now.mono, len(state.devices))
    return found


def _words_on(cls: TaskClass, device: Device) -> list[Note]:
    """Return the notes in which a device says what it lacks for a class."""
    return [one for one in notes_on(cls.key, device) if one.cause in ELSEWHERE]


def _able(state: ClusterState, cls: TaskClass) -> Iterator[Device]:
    """Yield the devices that could run a class by what they are, here or not."""
    return (one for one in state.devices.values() if not unfit(cls.key, one))


def cause_of(state: ClusterState, cls: TaskClass) -> Cause:
    """Return the cause of tasks that nobody can run: a refusal only where all refuse."""
    causes = {
        one.cause
        for device in state.devices.values()
        if device.notes
        for one in notes_on(cls.key, device)
    }
    return Cause.POLICY_DENIED if causes == {Cause.POLICY_DENIED.value} else Cause.NOT_HERE


def describe(found: Note, now: Now) -> str:
    """Return the text of a note with its age."""
    return f"{found.message}, seen {_ago(now.mono - found.since_mono)}"


def _ago(seconds: float) -> str:
    """Return a time as in `3 min ago`, in the largest unit that fits."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} ago"
    return f"{whole} s ago"

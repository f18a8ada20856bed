"""Requeues that cost a task no retry: attempts given back, lost before they began, refused.

Each such ending is free by itself: a device that drains, restarts or lacks a program takes nothing
from a task. A device that does nothing else would have it run for ever. So they are counted, by
task and device (`Task.given_back`):

- The first of a device costs no time either, the next ones wait, twice as long each time; so do
  those of a task that several devices give back. Who says "not here" is not asked again anyway, so
  only saying it twice counts.
- A device that gave a task back twice comes after all others that may run it.
- The store keeps the first few endings of a device, and of the further ones the newest, with how
  many it stands for.
- A device that takes work and gives back many attempts in a row gets none for a while.

No number of them fails a task: it would fail of what only one device says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.model import Device, Task, Times
from retire_cluster.broker.core.placement.passing_over import note
from retire_cluster.broker.core.rows import AttemptRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.conf.sections import Scheduler
from retire_cluster.schemas.vocabulary import FAILING

#: Endings that make nobody wait: of one device, and of all together.
FREE_OF_ONE: Final = 1
FREE_OF_ALL: Final = 3
#: The shortest wait, also where retries do not wait.
LEAST_SECONDS: Final = 0.5
#: From so many on a device comes after all others.
LAST_FROM: Final = 2
#: Endings of one device that are kept one by one.
ROWS_KEPT: Final = 3
#: Devices counted one by one; all others are counted together, by this name.
MAX_DEVICES: Final = 32
OTHERS: Final = ""
#: Attempts in a row that a device gives back while it takes work, until it gets none for a while.
IN_A_ROW: Final = 20
PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 300.0


class Counted(NamedTuple):
    """What follows from one more ending."""

    #: Seconds until the task may be placed again.
    wait_seconds: float
    #: What the row of it says: for how many endings it stands.
    stands_for: int
    #: The attempt whose row it replaces.
    replaces: int | None


def count(
    task: Task, device_id: str | None, attempt: int, scheduler: Scheduler, *, elsewhere: bool
) -> Counted:
    """Count an ending that cost nothing; `elsewhere`: the device cannot run the task, as it says.

    Called before anything of the task changes.
    """
    known = task.given_back
    name = device_id or OTHERS
    if name not in known and len(known) >= MAX_DEVICES:
        name = OTHERS
    before = known.get(name)
    times = 1 if before is None else before.times + 1
    task.given_back = {**known, name: Times(times, attempt)}
    further = times - FREE_OF_ONE if name else 0
    if not elsewhere:
        further = max(further, sum(one.times for one in task.given_back.values()) - FREE_OF_ALL)
    wait = 0.0
    if further > 0:
        base = max(LEAST_SECONDS, scheduler.retry_base_seconds)
        cap = max(LEAST_SECONDS, scheduler.retry_cap_seconds)
        wait = min(cap, base * 2.0 ** min(further - 1, 32))
    if times <= ROWS_KEPT or before is None:
        return Counted(wait, 1, None)
    return Counted(wait, times - ROWS_KEPT, before.attempt if times > ROWS_KEPT + 1 else None)


def last_choices(task: Task) -> frozenset[str]:
    """Return the devices that gave a task back so often that they come after all others."""
    return frozenset(
        name for name, one in task.given_back.items() if name and one.times >= LAST_FROM
    )


def count_in_a_row(state: ClusterState, device: Device, task: Task, now: Now) -> None:
    """Count an attempt that a device gave back; one that gives back many in a row pauses."""
    if not device.ready:
        return  # it drains
    device.given_back += 1
    if device.given_back < IN_A_ROW:
        return
    others = state.class_of(task.spec).eligible.values()
    if any(other.ready for other in others if other is not device):
        note(
            state, device, state.classes.kind_of(task.spec), FAILING,
            f"it gave back {device.given_back} tasks in a row that it had taken",
            now, first_seconds=PAUSE_SECONDS, longest_seconds=LONGEST_PAUSE_SECONDS,
        )  # fmt: skip


def repeated_returns(task: Task) -> Mapping[str, int]:
    """Return how often each device gave a task back, for people; single times are left out."""
    return {
        name or "other devices": one.times
        for name, one in sorted(task.given_back.items())
        if one.times >= LAST_FROM
    }


def row_of(row: AttemptRow, counted: Counted) -> AttemptRow:
    """Return the row of an ending with how many endings it stands for."""
    return row._replace(times=counted.stands_for) if counted.stands_for > 1 else row

"""Whether priority orders: who was placed before better-ranked work, how often, after what wait.

A placement overtakes when better-ranked work still waits that its device could have run in its
place. One in ten may, and only of tasks that waited long enough. Within a turn the order is not
seen, so that a turn is judged as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from retire_cluster.broker.core.model import Device
from retire_cluster.broker.core.state import ClusterState
from tests.simulation.engine import Violation
from tests.simulation.judging.facts import Fact, misfits

_ONE_IN = 10


class Order:
    """What may overtake, since the main node started."""

    def __init__(self) -> None:
        #: Task → when it began to wait; those of an earlier main node are not here.
        self._since: dict[int, float] = {}
        #: What may be spent on overtaking: an overtaking costs one, a placement brings a tenth.
        self._saved = 0.0

    def restarted(self) -> None:
        """A main node begins; who waits for how long is not known any more."""
        self._since.clear()
        self._saved = 0.0

    def queued(self, number: int, mono: float) -> None:
        """A task waits for a device."""
        self._since[number] = mono

    def placed(
        self, state: ClusterState, facts: Iterable[Fact], chosen: Iterable[Fact], mono: float
    ) -> None:
        """A turn gave these tasks to devices; raises `Violation`."""
        waiting = [fact for fact in facts if fact.status == "queued"]
        for fact in chosen:
            device = state.devices[fact.device]
            self._saved += 1 / _ONE_IN
            if not any(_could_have(fact, other, device) for other in waiting):
                continue
            self._saved -= 1
            waited = mono - self._since.get(fact.number, float("-inf"))
            if waited < state.settings.scheduler.aging_seconds:
                raise Violation(
                    f"task {fact.number} went before better-ranked work after {waited:.1f} s",
                    fact.number,
                )
        if self._saved < -1e-6:
            raise Violation("more than one placement in ten went before better-ranked work")
        self._saved = min(1.0, self._saved)


def _could_have(fact: Fact, other: Fact, device: Device) -> bool:
    """Whether this device could have run the other, better-ranked task in place of the first."""
    return (
        other.priority > fact.priority
        # It waits for another device, or for this one to be trusted again.
        and device.device_id not in other.tried
        and not any(note.active for note in device.notes.values())
        and device.units_of(other.task_type) <= device.units_of(fact.task_type)
        and not misfits(other, device)
    )

"""Who said that a kind of task cannot run there, and whether it was listened to.

Kept beside the main node: from what attempts ended with, from new processes of devices, from tasks
that went well. Devices of the simulation differ by task type only, so one task's word counts for it
alone. An owner's refusal counts for the type, where another device can run it; else only a short
pause follows, and what counts is that others do well what the device had refused: so several times
before it is left out for longer, and then for long.
"""

from __future__ import annotations

from collections.abc import Collection

from retire_cluster.broker.core.model import SLOT_UNITS
from retire_cluster.broker.core.state import ClusterState
from tests.simulation.engine import Violation
from tests.simulation.judging.facts import Fact, misfits

#: As long at least a device is not asked again.
_SECONDS = 300.0
#: How long one task's word counts for others of its type, in the main node's time.
_PAUSE_SECONDS = 5.0
#: So many tasks that another device did well say something of their type.
_PROOF = 3
#: A device silent for no longer than this counts as one that can.
_GONE_SECONDS = 600.0
#: What was noted so lately may be lost with the main node.
_UNSTORED_SECONDS = 5.0
CAUSES = frozenset({"not_here", "policy_denied"})


class Elsewhere:
    """See the module's text."""

    def __init__(self) -> None:
        #: `(device, type)` → virtual second in which it was said.
        self._said: dict[tuple[str, str], float] = {}
        self._before: dict[tuple[str, str], float] | None = None
        #: `(device, type)` → virtual second of a pause for it.
        self._pauses: dict[tuple[str, str], float] = {}
        #: `(device, type)` → tasks that it could not run since it did one well, or the start.
        self._rows: dict[tuple[str, str], set[int]] = {}
        #: `(device, type)` → of these, what others did well.
        self._proofs: dict[tuple[str, str], set[int]] = {}
        #: The same, whatever came after: enough for a note that a restart brings back.
        self._proved: dict[tuple[str, str], set[int]] = {}
        #: `(device, type)` that an owner refused.
        self._refused: set[tuple[str, str]] = set()
        #: Whoever ever said so of a type: enough for a row that other failures began.
        self._ever: set[tuple[str, str]] = set()
        self._instances: dict[str, str] = {}
        #: Devices that have another process since the last look.
        self._new: set[str] = set()

    def _change(self) -> dict[tuple[str, str], float]:
        if self._before is None:
            self._before = dict(self._said)
        return self._said

    def commit(self) -> None:
        """The turn is durable."""
        self._before = None

    def roll_back(self, now: float) -> None:
        """The turn never happened, and what was in memory only is gone."""
        self._rows.clear()
        self._proofs.clear()
        self._pauses.clear()
        if self._before is not None:
            self._said, self._before = self._before, None
        # A device's notes are stored once a second.
        for key in [key for key, said in self._said.items() if now - said <= _UNSTORED_SECONDS]:
            del self._said[key]

    def said(self, state: ClusterState, fact: Fact, refused: bool, now: float) -> None:
        """The device of a task's attempt says that it cannot run it."""
        key = (fact.device, fact.task_type)
        self._ever.add(key)
        row = self._rows.setdefault(key, set())
        row.add(fact.number)
        if refused:
            self._refused.add(key)
        if not _others_can(state, fact, fact.device):
            return
        if refused or len(self._proofs.get(key, ())) >= _PROOF:
            self._change().setdefault(key, now)
        else:
            self._pauses.setdefault(key, now)

    def did_well(self, state: ClusterState, fact: Fact, now: float) -> None:
        """An attempt succeeded."""
        own = (fact.device, fact.task_type)
        for record in (self._rows, self._proofs):
            record.pop(own, None)
        self._pauses.pop(own, None)
        self._change().pop(own, None)
        for name in fact.excluded - {fact.device}:
            key = (name, fact.task_type)
            self._proved.setdefault(key, set()).add(fact.number)
            if fact.number in self._rows.get(key, ()):
                proofs = self._proofs.setdefault(key, set())
                before = len(proofs)
                proofs.add(fact.number)
                if (
                    len(proofs) > before
                    and len(proofs) >= _PROOF
                    and _others_can(state, fact, name)
                ):
                    self._change().setdefault(key, now)

    def asked_again(self, fact: Fact) -> None:
        """A client wants a task run again that no device could run."""
        said = self._change()
        for key in [key for key in said if key[1] == fact.task_type]:
            del said[key]

    def removed(self, device_id: str) -> None:
        """A device is a stranger from now on."""
        for record in (self._rows, self._proofs, self._pauses):
            for key in [key for key in record if key[0] == device_id]:
                del record[key]
        said = self._change()
        for key in [key for key in said if key[0] == device_id]:
            del said[key]

    def is_new(self, state: ClusterState, device_id: str) -> bool:
        """Whether a device had another process at the look before, or is no device any more."""
        return device_id in self._new or device_id not in state.devices

    def look_at(self, state: ClusterState, facts: Collection[Fact], mono: float) -> None:
        """Processes that are new may have what the ones before had not; the last one is trusted."""
        self._new.clear()
        for device in state.devices.values():
            if device.instance != self._instances.get(device.device_id):
                self._new.add(device.device_id)
                self._instances[device.device_id] = device.instance
                self.removed(device.device_id)
        for name, task_type in [*self._said, *self._pauses]:
            here = [
                device
                for device in state.devices.values()
                if device.device_id != name
                and (device.online or device.silent_for(mono) <= _GONE_SECONDS)
            ]
            if any(
                fact.status == "queued"
                and fact.task_type == task_type
                and all(misfits(fact, device) for device in here)
                for fact in facts
            ):
                self._change().pop((name, task_type), None)
                self._pauses.pop((name, task_type), None)

    def check_notes(self, state: ClusterState) -> None:
        """No device is left out for long because of what single tasks want."""
        for device in state.devices.values():
            for kind, note in device.notes.items():
                key = (device.device_id, kind.task_type)
                if not note.active or note.cause not in CAUSES or key in self._refused:
                    continue
                proofs = self._proved.get(key, set())
                if len(proofs) < _PROOF:
                    raise Violation(
                        f"{key[0]} gets no {key[1]} for {note.seconds:.0f} s; others did only"
                        f" {sorted(proofs)} of what it refused"
                    )

    def check_given(self, state: ClusterState, fact: Fact, now: float) -> None:
        """A task was given to a device; raises `Violation` where another was to be first."""
        name = fact.device
        said = self._said.get((name, fact.task_type))
        if said is not None and now - said < _SECONDS:
            raise Violation(
                f"task {fact.number} was given to {name}, which had said that it cannot run"
                f" {fact.task_type} {now - said:.1f} s ago", fact.number,
            )  # fmt: skip
        paused = self._pauses.get((name, fact.task_type))
        if paused is not None and now - paused < _PAUSE_SECONDS:
            raise Violation(
                f"task {fact.number} was given to {name} {now - paused:.1f} s after another of its"
                " type was refused there", fact.number,
            )  # fmt: skip
        self._pauses.pop((name, fact.task_type), None)
        if name not in fact.tried:
            return
        for device in state.devices.values():
            other = device.device_id
            if (
                other not in fact.tried
                and device.ready
                and device.free_units >= SLOT_UNITS
                and not misfits(fact, device)
                and not any(note.active for note in device.notes.values())
            ):
                raise Violation(
                    f"task {fact.number} went back to {name} where it failed; {other} has room",
                    fact.number,
                )

    def check_given_up(self, state: ClusterState, fact: Fact) -> None:
        """A task failed because nobody can run it; raises `Violation` when somebody may."""
        for device in state.devices.values():
            name = device.device_id
            told = (name, fact.task_type) in self._ever or name in fact.excluded | {fact.device}
            if device.online and not told and not misfits(fact, device):
                raise Violation(f"task {fact.number} was given up, {name} may run it", fact.number)


def _others_can(state: ClusterState, fact: Fact, name: str) -> bool:
    """Whether another device surely takes such a task now."""
    return any(
        device.device_id != name
        and device.ready
        and not misfits(fact, device)
        and not any(note.active for note in device.notes.values())
        for device in state.devices.values()
    )

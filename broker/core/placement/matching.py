"""Requirements against devices: who is eligible, and why the others are not.

Every task belongs to a *requirement class* (its type, its requirements, and where devices differ in
it, what its payload needs). Eligibility is judged once per class and device, not per task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from retire_cluster.broker.core.model import Device, TaskSpec
from retire_cluster.broker.core.placement.backlog import Lanes
from retire_cluster.broker.core.placement.notes import Note, TaskKind
from retire_cluster.schemas import needs
from retire_cluster.schemas.text.json_text import JSONError, loads
from retire_cluster.schemas.vocabulary import OFF_BY_DEFAULT

NO_GB = 0.0
#: Idle requirement classes kept for reuse.
CLASSES_KEPT = 2_000
#: Needs by which queues are told apart (passing_over.py), at most.
MAX_APART = 256


class Requirements(NamedTuple):
    """What a device must be or have (the REST document's `requirements`, without the limits)."""

    min_cpu_cores: int = 0
    min_memory_gb: float = NO_GB
    min_storage_gb: float = NO_GB
    required_platform: str = ""
    #: Major and minor version, as `3.11`.
    required_python: str = ""
    required_role: str = ""
    required_tags: frozenset[str] = frozenset()
    gpu_required: bool = False
    internet_required: bool = False
    #: What the payload needs (`schemas.needs`); empty also where devices are not told apart by it.
    needs: str = ""

    @classmethod
    def of(cls, document: bytes) -> Requirements:
        """Read a task's stored document.

        One that was damaged on disk asks for nothing: its checksum keeps the task from being run.
        """
        try:
            found = loads(document)
            return cls.read(found.get("requirements") or {}, found.get("needs") or "")
        except JSONError:
            return cls()

    @classmethod
    def read(cls, given: Mapping[str, Any], needed: str = "") -> Requirements:
        """Read a validated `requirements` object, and the word for what the payload needs."""
        return cls(
            min_cpu_cores=given.get("min_cpu_cores") or 0,
            min_memory_gb=float(given.get("min_memory_gb") or NO_GB),
            min_storage_gb=float(given.get("min_storage_gb") or NO_GB),
            required_platform=given.get("required_platform") or "",
            required_python=given.get("required_python") or "",
            required_role=given.get("required_role") or "",
            required_tags=frozenset(given.get("required_tags") or ()),
            gpu_required=bool(given.get("gpu_required")),
            internet_required=bool(given.get("internet_required")),
            needs=needed,
        )


class ClassKey(NamedTuple):
    """What makes two tasks wait for the same devices."""

    task_type: str
    requirements: Requirements

    @property
    def kinds(self) -> tuple[TaskKind, ...]:
        """Kinds of task for which a device may be passed over, and with them for this class."""
        need = self.requirements.needs
        whole = TaskKind(self.task_type, "")
        return (TaskKind(self.task_type, need), whole) if need else (whole,)


def _number(facts: Mapping[str, Any], name: str) -> float:
    """Return a capability as a number; a fact left out or odd counts as 0."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    return float(value)


def _python(facts: Mapping[str, Any]) -> str:
    """Major and minor version of a device's Python; empty for one that tells none."""
    version = facts.get("python_version")
    return ".".join(version.split(".")[:2]) if isinstance(version, str) else ""


def unfit(key: ClassKey, device: Device) -> list[str]:
    """Return why this device, as it describes itself, can never run tasks of this class."""
    need, facts = key.requirements, device.capabilities
    reasons = []
    info = device.types.get(key.task_type)
    if info is None:
        # What is off until a device's owner allows it: others are not installed there.
        off = key.task_type in OFF_BY_DEFAULT
        cure = f" (its owner allows it with --allow {key.task_type})" if off else ""
        reasons.append(f"does not run {key.task_type}{cure}")
    elif need.needs and info.allows:
        refusal = needs.refusal(need.needs, info.allows)
        if refusal is not None:
            reasons.append(refusal)
    if need.required_platform and need.required_platform != device.platform:
        reasons.append(f"platform is not {need.required_platform}")
    if need.required_python and need.required_python != _python(facts):
        reasons.append(f"Python is not {need.required_python}")
    if need.required_role and need.required_role != device.role:
        reasons.append(f"role is not {need.required_role}")
    reasons.extend(f"missing tag {tag}" for tag in sorted(need.required_tags - device.tags))
    if _number(facts, "cpu_count") < need.min_cpu_cores:
        reasons.append(f"fewer than {need.min_cpu_cores} CPU cores")
    if _number(facts, "memory_total_gb") < need.min_memory_gb:
        reasons.append(f"less than {need.min_memory_gb:g} GB memory")
    if _number(facts, "storage_total_gb") < need.min_storage_gb:
        reasons.append(f"less than {need.min_storage_gb:g} GB storage")
    if need.gpu_required and facts.get("has_gpu") is not True:
        reasons.append("no GPU")
    if need.internet_required and facts.get("has_internet") is not True:
        reasons.append("no internet access")
    return reasons


def why_not(key: ClassKey, device: Device) -> list[str]:
    """Return why this device gets no tasks of this class; empty when it may."""
    reasons = unfit(key, device)
    if device.notes:
        reasons += [note.message for note in notes_on(key, device)]
    return reasons


def notes_on(key: ClassKey, device: Device) -> list[Note]:
    """Return the notes by which this device is passed over for a class (passing_over.py)."""
    found = (device.notes.get(kind) for kind in key.kinds)
    return [note for note in found if note is not None and note.active]


class TaskClass:
    """One requirement class: its backlog and the reachable devices that may run it."""

    __slots__ = ("_cursor", "blocked", "coming", "eligible", "key", "lanes", "ring")

    def __init__(self, key: ClassKey) -> None:
        self.key = key
        self.lanes = Lanes()
        #: Eligible devices that are online.
        self.eligible: dict[str, Device] = {}
        #: The same as a list, walked round so that work spreads; rebuilt when `eligible` changes.
        self.ring: list[Device] = []
        self._cursor = 0
        #: No eligible device had room when last looked; set free by a device that gets room.
        self.blocked = False
        #: Devices that may come to run it, and when that was looked up (passing_over.py).
        self.coming: tuple[frozenset[str], float, int] = (frozenset(), float("-inf"), 0)

    def leave(self) -> None:
        """Note that a queued task of it left otherwise than by being placed."""
        self.lanes.left()

    def judge(self, device: Device) -> None:
        """Note whether a reachable device is eligible."""
        if why_not(self.key, device):
            self.forget(device)
        elif device.device_id not in self.eligible:
            self.eligible[device.device_id] = device
            self.ring.append(device)
            self.blocked = False

    def forget(self, device: Device) -> None:
        """Note that a device is gone or no longer eligible."""
        if self.eligible.pop(device.device_id, None) is not None:
            self.ring = list(self.eligible.values())

    def pick(
        self, free: Mapping[str, Device], sample: int = 8, avoid: Collection[str] = ()
    ) -> Device | None:
        """Return an eligible device with room for a task, the least loaded of a few; else None.

        Looks through the shorter of the free devices and the eligible ones, never at `avoid`.
        """
        best: Device | None = None
        seen = 0
        task_type = self.key.task_type
        for device in self._candidates(free):
            if device.free_units < device.units_of(task_type) or not device.ready:
                continue
            if avoid and device.device_id in avoid:
                continue
            if best is None or device.load < best.load:
                best = device
            seen += 1
            if seen >= sample:
                break
        return best

    def nearly(self, free: Mapping[str, Device]) -> Device | None:
        """Return the free device that is nearest to room for a whole-slot task; None without one.

        Small work of other classes would fill its last slot again and again.
        """
        ready = [device for device in self._candidates(free) if device.ready]
        return max(ready, key=lambda device: device.free_units, default=None)

    def _candidates(self, free: Mapping[str, Device]) -> Iterable[Device]:
        if len(free) < len(self.ring):
            eligible = self.eligible
            for device_id, device in free.items():
                if device_id in eligible:
                    yield device
            return
        ring, count = self.ring, len(self.ring)
        start = self._cursor % count if count else 0
        self._cursor = start + 1
        for offset in range(count):
            device = ring[(start + offset) % count]
            if device.device_id in free:
                yield device


class Classes(dict[ClassKey, TaskClass]):
    """Requirement classes by their keys, and by the kinds of task they are of."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[TaskKind, list[TaskClass]] = {}
        #: Kinds of task whose queue is told apart, because devices differ in them.
        self.apart: set[TaskKind] = set()
        #: What a task's stored document asks of a device, by that document; a cache.
        self._requirements: dict[bytes, Requirements] = {}

    def add(self, key: ClassKey) -> TaskClass:
        """Add a class; of many, those that nothing waits in go."""
        if len(self) > CLASSES_KEPT:
            self.drop_idle()
        cls = self[key] = TaskClass(key)
        for kind in key.kinds:
            self._of.setdefault(kind, []).append(cls)
        return cls

    def of(self, kind: TaskKind) -> Sequence[TaskClass]:
        """Return the classes that a note on a kind is about."""
        return self._of.get(kind, ())

    def requirements_of(self, spec: TaskSpec) -> Requirements:
        """Return what tasks of this form ask of a device."""
        need = self._requirements.get(spec.document)
        if need is None:
            need = Requirements.of(spec.document)
            if len(self._requirements) > CLASSES_KEPT:
                self._requirements.clear()
            self._requirements[spec.document] = need
        return need

    def kind_of(self, spec: TaskSpec) -> TaskKind:
        """Return the kind of task by which devices are passed over, or do well."""
        return TaskKind(spec.task_type, self.requirements_of(spec).needs)

    def is_apart(self, kind: TaskKind) -> bool:
        """Return whether tasks of this kind have a class of their own."""
        return kind in self.apart or kind.needs in needs.ALWAYS_APART

    def tell_apart(self, kind: TaskKind, noted: Collection[TaskKind]) -> bool:
        """Give tasks of this need a class of their own, if there is room; whether they have one."""
        if self.is_apart(kind):
            return True
        if len(self.apart) >= MAX_APART:
            self.apart = {
                kind
                for kind in self.apart
                if kind in noted or any(cls.lanes.size for cls in self.of(kind))
            }
        if len(self.apart) >= MAX_APART:
            return False
        self.apart.add(kind)
        return True

    def drop_idle(self) -> None:
        """Forget the classes that nothing waits in."""
        busy = [cls for cls in self.values() if cls.lanes.size]
        self.clear()
        self._of.clear()
        for cls in busy:
            self[cls.key] = cls
            for kind in cls.key.kinds:
                self._of.setdefault(kind, []).append(cls)

"""The registry of own task types: who offers each, and which description of it counts.

A type is there as long as a device offers it that is a member: until that is removed, offers it no
more in a new HELLO, or was away for seven days. Nothing else keeps a name.

Each device describes its types itself, and may lie. A payload is judged by what most of the devices
say that offer the type; where as many say otherwise, by what the one says that joined first. Who
says otherwise is shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from retire_cluster.broker.core.model import Device
from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.rest.device_schemas import safe_schema
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.json_text import JSONError, dumps

#: Own types of one device, and bytes of what it says of one and of all of them.
MAX_OWN_TYPES: Final = 100
MAX_TYPE_BYTES: Final = 32 * 1024
MAX_TYPES_BYTES: Final = 256 * 1024
#: Devices named that describe a type otherwise than most.
DEVICES_TOLD: Final = 20
#: A device away for longer offers nothing.
GONE_SECONDS: Final = 7 * 86_400
#: Verdicts on schemas that are remembered: a HELLO that is repeated costs no second look.
_VERDICTS_KEPT: Final = 4_096

_verdicts: dict[bytes, bool] = {}


class Consensus(NamedTuple):
    """The description of a type that counts."""

    info: TypeInfo
    #: Devices that describe it otherwise.
    otherwise: tuple[str, ...]


class _Offer(NamedTuple):
    """A type as one device describes it."""

    device: Device
    #: Its payload schema, alike where two of them mean the same.
    schema: str


class TypeRegistry:
    """Own types by the devices that offer them."""

    def __init__(self) -> None:
        self._by_type: dict[str, dict[str, _Offer]] = {}
        self._by_device: dict[str, dict[str, TypeInfo]] = {}
        self._judged: dict[str, Consensus] = {}

    @property
    def names(self) -> Collection[str]:
        """Names of the types that some device offers."""
        return self._by_type.keys()

    @property
    def devices(self) -> Collection[str]:
        """Ids of the devices that offer own types."""
        return self._by_device.keys()

    def of(self, name: str) -> Collection[Device]:
        """Return the devices that offer a type."""
        return [offer.device for offer in self._by_type.get(name, {}).values()]

    def put(self, device: Device) -> None:
        """Register what a device's HELLO offers, in place of what it offered before."""
        device_id, types = device.device_id, device.types
        own = {name: info for name, info in types.items() if name not in BUILTIN}
        if own == self._by_device.get(device_id, {}):
            return  # a HELLO said again has nobody judged anew
        self.drop(device_id)
        if own:
            self._by_device[device_id] = own
        for name, info in own.items():
            schema = json.dumps(info.payload_schema, sort_keys=True)
            self._by_type.setdefault(name, {})[device_id] = _Offer(device, schema)
            self._judged.pop(name, None)

    def drop(self, device_id: str) -> None:
        """Remove what a device offers."""
        for name in self._by_device.pop(device_id, ()):
            self._judged.pop(name, None)
            some = self._by_type[name]
            del some[device_id]
            if not some:
                del self._by_type[name]

    def consensus(self, name: str) -> Consensus | None:
        """Return the description of a type that counts; None for one that nobody offers."""
        found = self._judged.get(name)
        if found is None and name in self._by_type:
            found = self._judged[name] = _judge(name, self._by_type[name].values())
        return found

    def disputed(self, device: Device) -> list[str]:
        """Return the types that a device describes otherwise than most do, sorted."""
        names = self._by_device.get(device.device_id, ())
        return sorted(
            name
            for name in names
            if (found := self.consensus(name)) and device.device_id in found.otherwise
        )


def _judge(name: str, offers: Iterable[_Offer]) -> Consensus:
    said: dict[str, list[Device]] = {}
    for device, schema in sorted(offers, key=_first_met):
        said.setdefault(schema, []).append(device)
    # Of equally many the one that was met first stays.
    most = max(said.values(), key=len)
    otherwise = [one.device_id for some in said.values() if some is not most for one in some]
    return Consensus(most[0].types[name], tuple(otherwise))


def _first_met(offer: _Offer) -> tuple[int, str]:
    return (offer.device.registered_ms, offer.device.device_id)


def bounded(infos: Iterable[TypeInfo]) -> tuple[tuple[TypeInfo, ...], list[str]]:
    """Return the types that a device may offer of those it names, and why others are left out."""
    kept: list[TypeInfo] = []
    reasons: list[str] = []
    own = total = 0
    for info in infos:
        if info.name in BUILTIN:
            kept.append(info)
            continue
        size = _size(info)
        if size is None:
            why = "its description is no JSON"
        elif size > MAX_TYPE_BYTES:
            why = f"its description is {size} bytes, more than {MAX_TYPE_BYTES}"
        elif own >= MAX_OWN_TYPES:
            why = f"a device offers at most {MAX_OWN_TYPES} own types"
        elif total + size > MAX_TYPES_BYTES:
            why = f"what a device says of its own types is at most {MAX_TYPES_BYTES} bytes"
        else:
            own, total = own + 1, total + size
            kept.append(info)
            continue
        reasons.append(f"task type {info.name} is left out: {why}")
    return tuple(kept), reasons


def _size(info: TypeInfo) -> int | None:
    """Bytes of what a device says of a type; None when it is no JSON."""
    try:
        return len(dumps([info.payload_schema, info.description, info.allows]))
    except JSONError:
        return None


def is_safe(schema: dict[str, object]) -> bool:
    """Return the verdict of `safe_schema`, remembered for schemas seen before."""
    key = hashlib.sha256(dumps(schema)).digest()
    found = _verdicts.get(key)
    if found is None:
        found = safe_schema(schema)
        if len(_verdicts) >= _VERDICTS_KEPT:
            _verdicts.clear()
        _verdicts[key] = found
    return found

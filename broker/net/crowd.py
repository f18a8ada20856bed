"""How many connections there may be, and whose is given up for one too many. Pure.

Strangers can open connections without end, and each takes a file. Whoever has said something is
let be. Of those that never did the oldest goes: of an address that has too many, and of the one
with most of them where all together are too many, so that no address keeps the others out.
Many devices may share one address: they speak at once, and do not count against each other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

#: Files that are no connections.
_FILES_BESIDE: Final = 128
_LEAST: Final = 64
#: Connections that are not those of devices, and of some that come back before they are missed.
_BESIDE_DEVICES: Final = 512


def room_for(devices: int, files: int | None) -> int:
    """How many connections there may be.

    :param devices: how many may be online
    :param files: how many files this process may have; None: as many as it likes
    """
    wanted = devices + _BESIDE_DEVICES
    return wanted if files is None else max(_LEAST, min(wanted, files - _FILES_BESIDE))


class Addressed(Protocol):
    """What is looked at."""

    @property
    def address(self) -> str:
        """Of its other end."""


_One = TypeVar("_One", bound=Addressed)


class Crowd(Generic[_One]):
    """Connections by address.

    :param room: how many there may be in all; half of them of one address that say nothing
    """

    def __init__(self, room: Callable[[], int]) -> None:
        self.room = room
        self._all: set[_One] = set()
        self._silent: dict[str, dict[_One, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, new: _One) -> _One | None:
        """Count a new connection, and the one that is given up for it, if there is one."""
        self._all.add(new)
        mine = self._silent.setdefault(new.address, {})
        mine[new] = None
        room = self.room()
        if len(mine) > room // 2:
            return next(iter(mine))
        if len(self._all) > room:
            most = max(self._silent.values(), key=len)
            return next(iter(most))
        return None

    def mark_active(self, one: _One) -> None:
        """It has said something that was let through."""
        mine = self._silent.get(one.address)
        if mine is not None:
            mine.pop(one, None)
            if not mine:
                del self._silent[one.address]

    def remove(self, one: _One) -> None:
        """It has ended or been given up; once more is no matter."""
        self._all.discard(one)
        self.mark_active(one)


def network_of(address: str) -> str:
    """The address, or for IPv6 its /64: one subscriber has that many addresses to himself."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network(f"{address}/64", strict=False))
    except ValueError:
        return address

"""How many connections there may be, and which is closed when there is one too many. Pure.

Strangers can open connections without end, and each takes a file. A connection that has sent a
message stays. Of the silent ones the oldest is closed: of an address that has too many, and of the
address with most of them when all together are too many, so that no address keeps the others out.
Many devices may share one address: they send at once, and do not count against each other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

#: Files that are no connections.
_FILES_BESIDE: Final = 128
_LEAST: Final = 64
#: Connections beside one for each device: of clients, and of devices that came back early.
_BESIDE_DEVICES: Final = 512


def room_for(devices: int, files: int | None) -> int:
    """Return how many connections there may be.

    :param devices: how many may be online
    :param files: how many files this process may have; None: as many as it likes
    """
    wanted = devices + _BESIDE_DEVICES
    return wanted if files is None else max(_LEAST, min(wanted, files - _FILES_BESIDE))


class Addressed(Protocol):
    """A connection, as far as it is counted here."""

    @property
    def address(self) -> str:
        """Address of its other end."""


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
        """Count a new connection; return the one to be closed for it, or None."""
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
        """Note that a connection has sent a message: it is not closed for another."""
        mine = self._silent.get(one.address)
        if mine is not None:
            mine.pop(one, None)
            if not mine:
                del self._silent[one.address]

    def remove(self, one: _One) -> None:
        """Forget a connection that has ended or was closed; it may be unknown."""
        self._all.discard(one)
        self.mark_active(one)


def network_of(address: str) -> str:
    """Return the address, or for IPv6 its /64: one subscriber has all the addresses of it."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network(f"{address}/64", strict=False))
    except ValueError:
        return address

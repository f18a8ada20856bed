"""Devices that speak another version of the wire, for the log: each is told of once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from retire_cluster.broker.core.devices.versions import word_of
from retire_cluster.schemas.protocol.messages import Reject

log = logging.getLogger("broker")

_MOST_LOGGED: Final = 1_000


class Misfits:
    """Logs each of them once."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, object]] = set()

    def log(self, header: Mapping[str, Any], reject: Reject, address: str) -> None:
        """One line for people."""
        found = header.get("protocol")
        who = (word_of(header, "device_id"), found if type(found) is int else None)
        if who not in self._logged:
            if len(self._logged) >= _MOST_LOGGED:
                self._logged.clear()
            self._logged.add(who)
            log.warning("refused %s: %r", address or "a peer", reject.message)

"""Log devices that speak another version of the wire, each once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from retire_cluster.broker.core.devices.versions import word_of
from retire_cluster.schemas.protocol.messages import Reject

log = logging.getLogger("broker")

_MOST_LOGGED: Final = 1_000


class Misfits:
    """Remembers which devices were logged."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, object]] = set()

    def log(self, header: Mapping[str, Any], reject: Reject, address: str) -> None:
        """Log that a device was refused, unless it was logged before."""
        found = header.get("protocol")
        who = (word_of(header, "device_id"), found if type(found) is int else None)
        if who not in self._logged:
            if len(self._logged) >= _MOST_LOGGED:
                self._logged.clear()
            self._logged.add(who)
            log.warning("refused %s: %r", address or "a peer", reject.message)

"""Rate limits of the REST API, counted once for all facade processes.

Moving windows: `per_minute + burst` requests in any minute, `per_hour` in any hour.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

MINUTE = 60.0
HOUR = 3600.0
#: Clients remembered at once; the one that was away longest is forgotten first.
CLIENTS_KEPT = 20_000


@dataclass(frozen=True)
class RequestLimits:
    """How many requests a client may make."""

    per_minute: int = 60
    per_hour: int = 1000
    burst: int = 10


class RequestWindows:
    """When each client asked, for the last hour."""

    def __init__(self) -> None:
        self._hits: OrderedDict[str, deque[float]] = OrderedDict()

    def hit(
        self, client: str, limits: RequestLimits, now_mono: float, wall_ms: int
    ) -> dict[str, Any]:
        """Count a request if it is allowed; return the answer of `rate.hit` (docs/protocol.md)."""
        hits = self._hits.get(client)
        if hits is None:
            hits = self._hits[client] = deque()
            if len(self._hits) > CLIENTS_KEPT:
                self._hits.popitem(last=False)
        else:
            self._hits.move_to_end(client)
        while hits and hits[0] <= now_mono - HOUR:
            hits.popleft()
        ceiling = limits.per_minute + limits.burst
        recent = 0
        first_recent = now_mono
        for at in reversed(hits):
            if at <= now_mono - MINUTE:
                break
            recent += 1
            first_recent = at
        wait = 0.0
        if recent >= ceiling:
            # The window has room again when enough of its requests have left it.
            wait = hits[len(hits) - ceiling] + MINUTE - now_mono
        if len(hits) >= limits.per_hour:
            wait = max(wait, hits[len(hits) - limits.per_hour] + HOUR - now_mono)
        allowed = wait <= 0
        if allowed:
            hits.append(now_mono)
            recent += 1
        reset = first_recent + MINUTE if recent else now_mono
        return {
            "allowed": allowed,
            "limit": limits.per_minute,
            "remaining": max(0, limits.per_minute - recent),
            "reset": math.ceil(wall_ms / 1000 + (reset - now_mono)),
            "retry_after": 0 if allowed else max(1, math.ceil(wait)),
        }

"""Events that tell who may do what, and who tried to: they are kept apart from all others.

What an administrator does, and devices that join by his tokens, is kept to its own number: nothing
that a device or a stranger sends pushes it out. What was denied is kept apart from that again, and
each source of it is told once a minute, with how often it was since. Both are stored
(audit_rows.py).
"""

from __future__ import annotations

from typing import Final

#: Done by an administrator, or by his leave.
ACTS: Final = frozenset(
    {
        "admin_key.created",
        "admin_key.revoked",
        "api_key.created",
        "api_key.revoked",
        "config.changed",
        "device.authorised",
        "device.enrolled",
        "device.readmitted",
        "device.removed",
        "token.created",
        "token.revoked",
    }
)
#: Tried by a device or a stranger, and not allowed.
DENIALS: Final = frozenset({"device.flooding", "device.impersonated", "device.refused"})
#: Denials kept.
DENIALS_KEPT: Final = 1_000
#: One source's denials of a kind are told so often.
TOLD_SECONDS: Final = 60.0
#: Sources known at a time.
_MAX_SOURCES: Final = 1_000


class Denials:
    """How often each source was denied something since that was last logged."""

    def __init__(self) -> None:
        #: `(type, source)` → `(when it was told, how often since)`.
        self._known: dict[tuple[str, str], tuple[float, int]] = {}

    def times(self, type_: str, source: str, mono: float, times: int = 1) -> int:
        """Count denials; returns how many to log now, 0 if a log of them is not due."""
        told_mono, untold = self._known.pop((type_, source), (float("-inf"), 0))
        untold += times
        due = mono - told_mono >= TOLD_SECONDS
        if len(self._known) >= _MAX_SOURCES:
            del self._known[next(iter(self._known))]
        self._known[type_, source] = (mono, 0) if due else (told_mono, untold)
        return untold if due else 0

"""Heartbeats sent and acknowledged: the round trip, and how long the lease can be relied on.

The device counts from the *send* time of the last heartbeat that was acknowledged, the main node
from its receipt, which is later: so the device always lets go first.
"""

from __future__ import annotations


def fence_margin(timeout_seconds: float) -> float:
    """Seconds before the lease's end at which a device stops relying on it."""
    return max(0.5, 0.1 * timeout_seconds)


class Lease:
    """One device's hold on its attempts."""

    def __init__(self) -> None:
        self._beat = 0
        #: Heartbeat → when it was sent, of those that are not acknowledged.
        self._sent: dict[int, float] = {}
        #: Send time of what the main node last acknowledged; None before the first WELCOME.
        self._renewed_at: float | None = None
        #: The device has let go; what may not run twice was stopped.
        self.fenced = False
        #: Round trip of the last acknowledged heartbeat; None before the first.
        self.rtt_ms: float | None = None

    def open_session(self) -> None:
        """Count beats from 1 again; those of the old session are not acknowledged any more."""
        self._beat = 0
        self._sent.clear()

    def renew(self, sent: float) -> None:
        """Count the lease from when an acknowledged HELLO or heartbeat was sent."""
        self._renewed_at = sent
        self.fenced = False

    @property
    def last_beat(self) -> int:
        """The newest heartbeat sent in this session; 0 before the first."""
        return self._beat

    def next_beat(self, now: float) -> int:
        """Count a heartbeat that is sent now; its number."""
        self._beat += 1
        self._sent[self._beat] = now
        return self._beat

    def acknowledge(self, beat: int, now: float) -> None:
        """Renew the lease by a heartbeat that was answered; one that is none of ours is ignored."""
        sent = self._sent.get(beat)
        if sent is None:
            return
        self.rtt_ms = round((now - sent) * 1000, 3)
        self.renew(sent)
        for earlier in [number for number in self._sent if number <= beat]:
            del self._sent[earlier]

    def fence_at(self, timeout_seconds: float) -> float | None:
        """When the device lets go; None while it has no lease."""
        if self._renewed_at is None:
            return None
        return self._renewed_at + timeout_seconds - fence_margin(timeout_seconds)

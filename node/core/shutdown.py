"""How a worker goes: running work may end, then it is killed, then its results are acknowledged.

Each step has its time, and the next one begins as soon as the step has nothing to wait for.
"""

from __future__ import annotations

from enum import Enum

from retire_cluster.node.core import exit_codes
from retire_cluster.node.core.pace import Pace


class Step(Enum):
    """What is to be done now of leaving."""

    WAIT = "wait"
    #: The grace is over: end what still runs.
    KILL = "kill"
    #: Nothing is left to wait for.
    LEAVE = "leave"


class Shutdown:
    """The end of a session, from the first signal on."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        #: Why the worker goes; None while nobody asked for that.
        self.reason: str | None = None
        self.exit_code = exit_codes.OK
        self._grace_until = 0.0
        #: Until when killed work is waited for; None before it was killed.
        self._kill_until: float | None = None
        #: Until when the last results are waited for; None while work is held.
        self._ack_until: float | None = None

    @property
    def asked(self) -> bool:
        """Whether the worker is to go."""
        return self.reason is not None

    def begin(self, reason: str, now: float) -> None:
        """Leave once what runs has ended, at the latest when its grace is over."""
        self.reason = reason
        self._grace_until = now + self._pace.grace_seconds

    def hurry(self, now: float) -> None:
        """Leave at once: everything is killed by now."""
        self.exit_code = exit_codes.INTERRUPTED
        self._kill_until = now + min(self._pace.hurried_kill_seconds, self._pace.kill_seconds)
        self._ack_until = now + min(self._pace.hurried_ack_seconds, self._pace.last_ack_seconds)

    def due(self, *, holds: bool) -> float | None:
        """When `step` says something else.

        :param holds: whether attempts are held
        """
        if not self.asked:
            return None
        if not holds:
            return self._ack_until
        return self._grace_until if self._kill_until is None else self._kill_until

    def step(self, now: float, *, holds: bool, owes: bool) -> Step:
        """What is to be done now.

        :param holds: whether attempts are held
        :param owes: whether results are not acknowledged
        """
        if holds and self._kill_until is None:
            if now < self._grace_until:
                return Step.WAIT
            self._kill_until = now + self._pace.kill_seconds
            return Step.KILL
        if holds and self._kill_until is not None and now < self._kill_until:
            return Step.WAIT
        if self._ack_until is None:
            self._ack_until = now + self._pace.last_ack_seconds
        return Step.WAIT if owes and now < self._ack_until else Step.LEAVE

"""When to dial, when to say HELLO, and what to tell the owner of a main node that does not answer.

    connecting --LinkUp--> greeting --WELCOME--> ready
         ^---- LinkDown, silence, REJECT ----------'

The transport dials again by itself. A socket is replaced where that leads nowhere, after waits that
double up to a cap, the upper half of each random: a thousand devices do not come back at once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from retire_cluster.node.core.instructions import Connect, Instruction, Log
from retire_cluster.node.core.pace import Pace


class Phase(Enum):
    """Where the session is."""

    CONNECTING = "connecting"
    GREETING = "greeting"
    READY = "ready"
    #: Told by the session in place of those above, once a stop was asked for.
    DRAINING = "draining"
    #: Nothing leads out of it.
    CLOSED = "closed"


#: Where each event leads, from every phase but CLOSED.
PHASE_AFTER: Final = {
    "dial": Phase.CONNECTING,
    "link_down": Phase.CONNECTING,
    "wait": Phase.CONNECTING,
    "greet": Phase.GREETING,
    "welcome": Phase.READY,
    "close": Phase.CLOSED,
}


class Connection:
    """The way from a new socket to a WELCOME.

    :param random: gives numbers from 0 to 1
    :param address: the main node, as the log names it
    :param emit: takes the instructions, in order
    """

    def __init__(
        self,
        *,
        pace: Pace,
        random: Callable[[], float],
        address: str,
        emit: Callable[[Instruction], None],
    ) -> None:
        self._pace = pace
        self._random = random
        self._address = address
        self._emit = emit
        #: CONNECTING, GREETING, READY or CLOSED.
        self.phase = Phase.CONNECTING
        #: Whether the transport is up.
        self._linked = False
        #: Sockets that led to no WELCOME, since the last one that did.
        self._failures = 0
        #: When the socket is replaced, when HELLO may be said again, and until when WELCOME is
        #: waited for; None: not waited for.
        self._redial_at: float | None = None
        self._greet_at: float | None = None
        self._welcome_by: float | None = None
        #: Whether this outage was logged.
        self._outage_logged = False
        #: Code of the last REJECT that was logged.
        self._last_refusal = ""

    def due(self) -> tuple[float | None, ...]:
        """When `tick` has something to do, before there is a WELCOME."""
        return self._redial_at, self._greet_at, self._welcome_by

    def _move(self, event: str) -> None:
        assert self.phase is not Phase.CLOSED, f"{event} after the end"
        self.phase = PHASE_AFTER[event]

    def close(self) -> None:
        """Note that the session is over."""
        self._move("close")

    def dial(self, now: float) -> None:
        """Replace the socket."""
        self._move("dial")
        self._linked = False
        self._greet_at = self._welcome_by = None
        self._redial_at = now + self._backoff()
        self._emit(Connect())

    def _backoff(self) -> float:
        wait = self._pace.backoff_seconds * float(2 ** min(self._failures, 10))
        self._failures += 1
        return min(self._pace.backoff_cap_seconds, wait) * (0.5 + 0.5 * self._random())

    def link_up(self, now: float) -> bool:
        """Note that the transport is up; whether HELLO is to be said now."""
        self._linked = True
        self._redial_at = None
        return self._greet_at is None or self._greet_at <= now

    def link_down(self, now: float) -> None:
        """Note that the transport is down."""
        # It dials again by itself; the timer is for when that leads nowhere.
        if self._linked:
            self._redial_at = now + self._backoff()
        self._linked = False
        self._move("link_down")
        self._welcome_by = None

    def greet(self, now: float) -> None:
        """Note that HELLO is said now."""
        self._move("greet")
        self._greet_at = self._redial_at = None
        self._welcome_by = now + self._pace.welcome_seconds

    def welcome(self) -> None:
        """Note that WELCOME came."""
        self._move("welcome")
        self._welcome_by = self._redial_at = None
        self._failures = 0
        self._outage_logged = False
        self._last_refusal = ""

    def back_off(self, now: float) -> None:
        """Say HELLO again after a wait, on this socket."""
        self._greet_later(self._backoff(), now)

    def refuse(self, code: str, text: str, wait: float | None, now: float) -> None:
        """Say HELLO again after `wait` seconds, and log the REJECT when it is another one."""
        wait = min(max(self._pace.refused_seconds if wait is None else wait, 0.1), 3600.0)
        if code != self._last_refusal:
            self._last_refusal = code
            self._warn(
                f"{self._address} does not take this worker now ({code}):"
                f" {text or 'no reason given'}; trying again every {wait:g} s"
            )
        self._greet_later(wait * (1.0 + 0.1 * self._random()), now)

    def _greet_later(self, wait_seconds: float, now: float) -> None:
        self._move("wait")
        self._welcome_by = self._redial_at = None
        self._greet_at = now + wait_seconds

    def tick(self, now: float, *, quiet: bool) -> bool:
        """Do what is due before there is a WELCOME; whether HELLO is to be said now.

        :param quiet: log no outage
        """
        if self._greet_at is not None and now >= self._greet_at:
            self._greet_at = None
            if self._linked:
                return True
            self.dial(now)
        elif self._welcome_by is not None and now >= self._welcome_by:
            # The answer may still come; until the socket is replaced it counts.
            self._welcome_by = None
            self.log_outage("it does not answer", quiet=quiet)
            self._redial_at = now + self._backoff()
        elif self._redial_at is not None and now >= self._redial_at:
            self.log_outage("no answer", quiet=quiet)
            self.dial(now)
        return False

    def log_outage(self, reason: str, *, quiet: bool, cured: bool = False) -> None:
        """Warn, once in each outage, that there is no connection.

        :param cured: the reason names its own cure
        """
        if self._outage_logged or quiet:
            return
        self._outage_logged = True
        if cured:
            self._warn(f"no connection to {self._address}: {reason}; trying on")
            return
        self._warn(
            f"no connection to {self._address} ({reason}). Check that the main node runs there,"
            " that its worker port is this one and that no firewall is between; trying on"
        )

    def _warn(self, text: str) -> None:
        self._emit(Log("warning", text))

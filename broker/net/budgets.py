"""How much one device may say: a budget for each kind of message, before it is read.

A message beyond its budget is dropped unread, counted and told. A budget is far above what a worker
of this release needs, and whatever is dropped by mistake is said again (HELLO, HEARTBEAT, FINISHED)
or made up for by the next (PROGRESS, STARTED). FINISHED has no budget of its own: results come as
fast as a device works. What counts there is what is stale or malformed (`blame`): who says much
about attempts that it does not have is not heard until it has paid for it.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple


class Limit(NamedTuple):
    """A budget: it fills by `a_second`, up to `at_once`; a message costs one, and its size."""

    a_second: float
    at_once: float
    #: A message costs one more for each so many bytes.
    bytes_a_unit: int = 16_384


LIMITS: Final = {
    b"HELLO": Limit(1.0, 20.0, 1 << 20),
    b"ENROL": Limit(1.0, 20.0),
    b"GOODBYE": Limit(1.0, 20.0),
    b"DRAIN": Limit(2.0, 20.0),
    b"CONFIG_ACK": Limit(20.0, 100.0),
    b"PONG": Limit(100.0, 200.0),
    b"HEARTBEAT": Limit(100.0, 200.0),
    b"PROGRESS": Limit(40.0, 200.0),
    b"STARTED": Limit(2_000.0, 4_000.0),
}
#: What is no message of the protocol.
UNKNOWN: Final = Limit(10.0, 50.0)
#: Items about attempts that the device does not have.
STALE: Final = Limit(5_000.0, 50_000.0)
#: Verbs that are not heard while too much was stale.
ABOUT_ATTEMPTS: Final = frozenset({b"FINISHED", b"STARTED", b"PROGRESS"})
#: Budgets that are remembered, one for each sender and kind; the one begun first goes first.
_MAX_KNOWN: Final = 20_000


class Budgets:
    """What each connection, or the key it proved, has left."""

    def __init__(self) -> None:
        #: `(who, verb)` → `[left, when]`.
        self._left: dict[tuple[str | bytes, bytes], list[float]] = {}
        #: `who` → what was dropped of it since `take_over` was called.
        self._over: dict[str | bytes, Counter[str]] = {}

    def allows(self, who: str | bytes, verb: bytes, size: int, mono: float) -> bool:
        """Whether a message is to be read; it is paid for then."""
        if verb in ABOUT_ATTEMPTS and not self._pays(who, b"stale", STALE, 0.0, mono):
            return self._refused(who, verb)
        if verb == b"FINISHED":
            return True
        limit = LIMITS.get(verb)
        if limit is None:
            verb, limit = b"unknown", UNKNOWN
        if self._pays(who, verb, limit, 1.0 + size / limit.bytes_a_unit, mono):
            return True
        return self._refused(who, verb)

    def blame(self, who: str | bytes, items: int, mono: float) -> None:
        """A message that was read was for nothing: so many attempts the device does not have."""
        self._pays(who, b"stale", STALE, float(items), mono)

    def take_over(self) -> dict[str | bytes, Counter[str]]:
        """What was dropped, by who sent it, since the last call."""
        found, self._over = self._over, {}
        return found

    def _refused(self, who: str | bytes, verb: bytes) -> bool:
        if who in self._over or len(self._over) < _MAX_KNOWN:
            self._over.setdefault(who, Counter())[verb.decode()] += 1
        return False

    def _pays(self, who: str | bytes, verb: bytes, limit: Limit, cost: float, mono: float) -> bool:
        """Whether something is left; then it is paid, if need be with what comes later."""
        key = (who, verb)
        account = self._left.get(key)
        if account is None:
            if not cost:
                return True
            if len(self._left) >= _MAX_KNOWN:
                del self._left[next(iter(self._left))]
            account = self._left[key] = [limit.at_once, mono]
        left = min(limit.at_once, account[0] + limit.a_second * max(0.0, mono - account[1]))
        if left > 0.0:
            account[0], account[1] = left - cost, mono
            return True
        account[0], account[1] = left, mono
        return False

"""How much one device may send: a budget for each kind of message, charged before it is read.

A message beyond its budget is dropped unread and counted; the loop reports who sent it (`Flooded`).
A budget is far above what a worker of this release needs, and whatever is dropped by mistake is
sent again (HELLO, HEARTBEAT, FINISHED) or made up for by the next (PROGRESS, STARTED). FINISHED has
no budget of its own: results come as fast as a device works. What is charged there is what is stale
or malformed (`blame`): a device that sends much about attempts that it does not have is not read
until that account is above zero again.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple


class Limit(NamedTuple):
    """A token bucket. A message costs one token, and more by its size."""

    #: Tokens that are added each second.
    per_second: float
    #: Tokens that it holds at most.
    burst: float
    #: A message costs one token more for each so many bytes.
    bytes_per_token: int = 16_384


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
#: For verbs that are none of the protocol.
UNKNOWN: Final = Limit(10.0, 50.0)
#: For items about attempts that the device does not have.
STALE: Final = Limit(5_000.0, 50_000.0)
#: Verbs that are dropped while the account of stale items is overdrawn.
ABOUT_ATTEMPTS: Final = frozenset({b"FINISHED", b"STARTED", b"PROGRESS"})
#: Accounts that are kept, one for each sender and verb; the oldest is forgotten first.
_MAX_KNOWN: Final = 20_000


class Budgets:
    """What each sender has left: a key that was proved, or a connection without one."""

    def __init__(self) -> None:
        #: `(who, verb)` → `[tokens left, monotonic time (s) of that]`.
        self._left: dict[tuple[str | bytes, bytes], list[float]] = {}
        #: `who` → what was dropped of it since `take_over` was called.
        self._over: dict[str | bytes, Counter[str]] = {}

    def allows(self, who: str | bytes, verb: bytes, size: int, mono: float) -> bool:
        """Charge a message of `size` bytes to its sender; return whether it is to be read."""
        if verb in ABOUT_ATTEMPTS and not self._pays(who, b"stale", STALE, 0.0, mono):
            return self._refused(who, verb)
        if verb == b"FINISHED":
            return True
        limit = LIMITS.get(verb)
        if limit is None:
            verb, limit = b"unknown", UNKNOWN
        if self._pays(who, verb, limit, 1.0 + size / limit.bytes_per_token, mono):
            return True
        return self._refused(who, verb)

    def blame(self, who: str | bytes, items: int, mono: float) -> None:
        """Charge a sender for items about attempts that it does not have."""
        self._pays(who, b"stale", STALE, float(items), mono)

    def take_over(self) -> dict[str | bytes, Counter[str]]:
        """Return how many messages of each sender were dropped since the last call, by verb."""
        found, self._over = self._over, {}
        return found

    def _refused(self, who: str | bytes, verb: bytes) -> bool:
        if who in self._over or len(self._over) < _MAX_KNOWN:
            self._over.setdefault(who, Counter())[verb.decode()] += 1
        return False

    def _pays(self, who: str | bytes, verb: bytes, limit: Limit, cost: float, mono: float) -> bool:
        """Charge `cost` if anything is left, which may overdraw; return whether it was charged."""
        key = (who, verb)
        account = self._left.get(key)
        if account is None:
            if not cost:
                return True
            if len(self._left) >= _MAX_KNOWN:
                del self._left[next(iter(self._left))]
            account = self._left[key] = [limit.burst, mono]
        left = min(limit.burst, account[0] + limit.per_second * max(0.0, mono - account[1]))
        if left > 0.0:
            account[0], account[1] = left - cost, mono
            return True
        account[0], account[1] = left, mono
        return False

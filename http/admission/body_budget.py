"""What clients have the server keep of their bodies, bounded before it is kept.

The server takes a body in before the application sees the request: in memory, and in a temporary
file from half a MiB on. So bodies are counted while they come in: those of strangers (whoever
submits by no right of his own) by address and together, and all together. What is beyond that is
read to its end without being kept, and answered with what to do.

Bodies are small mostly. Those are not counted, and no lock is taken for them: how many there are
at once is bounded by the number of connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable, RateLimitExceeded

if TYPE_CHECKING:
    from retire_cluster.api.admission.local_users import ClientConnection

#: A body up to this is not counted.
UNCOUNTED_BYTES: Final = 64 * 1024
#: Kept for one address without a key (an IPv6 network of 64 bits), for all of those, for everybody.
STRANGER_BYTES: Final = 8 * 1024 * 1024
STRANGERS_BYTES: Final = 32 * 1024 * 1024
ALL_BYTES: Final = 256 * 1024 * 1024
_RETRY_SECONDS: Final = 2.0
_Item = TypeVar("_Item")


class Sender(NamedTuple):
    """Whose body it is, by the headers of its request."""

    address: str
    stranger: bool


#: Tells whose body it is by the address, the headers of the request and the connection.
TellSender = Callable[[str, Mapping[str, str], "ClientConnection | None"], Sender]


def nobody_strange(
    address: str, _headers: Mapping[str, str], _connection: ClientConnection | None = None
) -> Sender:
    """For a server that has no callers with rights of their own."""
    return Sender(address, stranger=False)


class BodyBudget:
    """Counts the bytes of bodies that are kept. Safe to use from all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._all = self._strangers = 0
        self._each: dict[str, int] = {}

    @property
    def kept_bytes(self) -> int:
        """What is counted now."""
        return self._all

    def take(self, sender: Sender, size: int) -> ClusterError | None:
        """Count `size` more bytes; where there is no room, the error to answer with instead."""
        with self._lock:
            if sender.stranger:
                each = self._each.get(sender.address, 0) + size
                if each > STRANGER_BYTES or self._strangers + size > STRANGERS_BYTES:
                    whose = "this address" if each > STRANGER_BYTES else "callers without a key"
                    return RateLimitExceeded(
                        f"Too many large bodies of {whose} are on their way; send them one after"
                        " the other, or with an API key",
                        retry_after=_RETRY_SECONDS,
                    )
            if self._all + size > ALL_BYTES:
                return ClusterUnavailable(
                    "Too many large bodies are on their way here; send them again in a moment,"
                    " or in smaller batches",
                    retry_after=_RETRY_SECONDS,
                )
            self._all += size
            if sender.stranger:
                self._strangers += size
                self._each[sender.address] = each
        return None

    def give_back(self, sender: Sender, size: int) -> None:
        """They are not kept any more."""
        with self._lock:
            self._all -= size
            if sender.stranger:
                self._strangers -= size
                left = self._each.pop(sender.address, 0) - size
                if left > 0:
                    self._each[sender.address] = left


class OneByOne(Generic[_Item]):
    """Lets one in at a time, in order. Nobody waits in it: who comes next is told by who leaves."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._taken = False
        self._next: deque[_Item] = deque()

    def enter(self, item: _Item) -> bool:
        """Whether it is in at once; else it is given out by a later `leave`."""
        with self._lock:
            if self._taken:
                self._next.append(item)
                return False
            self._taken = True
            return True

    def leave(self) -> _Item | None:
        """Who is in now."""
        with self._lock:
            if self._next:
                return self._next.popleft()
            self._taken = False
            return None

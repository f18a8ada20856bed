"""Bound the bytes of request bodies that the server keeps, before it keeps them.

The server takes a body in before the application sees the request: in memory, and in a temporary
file from half a MiB on. So bodies are counted while they come in: those of strangers (whoever
submits by no right of his own) by address and together, and all together. What is beyond that is
read to its end without being kept, and answered with what to do.

Most bodies are small. Those are not counted, and no lock is taken for them: the number of
connections bounds how many there are at once.
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
#: Kept for one stranger's address (an IPv6 network of 64 bits), for all strangers, for everybody.
STRANGER_BYTES: Final = 8 * 1024 * 1024
STRANGERS_BYTES: Final = 32 * 1024 * 1024
ALL_BYTES: Final = 256 * 1024 * 1024
_RETRY_SECONDS: Final = 2.0
_Item = TypeVar("_Item")


class Sender(NamedTuple):
    """The sender of a body, as the headers of its request tell."""

    address: str
    stranger: bool


#: Tells the sender by address, headers of the request and connection.
TellSender = Callable[[str, Mapping[str, str], "ClientConnection | None"], Sender]


def nobody_strange(
    address: str, _headers: Mapping[str, str], _connection: ClientConnection | None = None
) -> Sender:
    """Tell that no sender is a stranger, for a server whose callers all have the same rights."""
    return Sender(address, stranger=False)


class BodyBudget:
    """Count the bytes of bodies that are kept. Safe to use from all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._all = self._strangers = 0
        self._each: dict[str, int] = {}

    @property
    def kept_bytes(self) -> int:
        """Return the bytes that are counted now."""
        return self._all

    def take(self, sender: Sender, size: int) -> ClusterError | None:
        """Count `size` more bytes; without room for them return the error to answer with."""
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
        """Count `size` bytes less, which are not kept any more."""
        with self._lock:
            self._all -= size
            if sender.stranger:
                self._strangers -= size
                left = self._each.pop(sender.address, 0) - size
                if left > 0:
                    self._each[sender.address] = left


class OneByOne(Generic[_Item]):
    """Let one item in at a time, in order, without blocking: `leave` says which is next."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._taken = False
        self._next: deque[_Item] = deque()

    def enter(self, item: _Item) -> bool:
        """Let `item` in and return True, or keep it for a later `leave`."""
        with self._lock:
            if self._taken:
                self._next.append(item)
                return False
            self._taken = True
            return True

    def leave(self) -> _Item | None:
        """Let the next item in and return it; None when nobody waits."""
        with self._lock:
            if self._next:
                return self._next.popleft()
            self._taken = False
            return None

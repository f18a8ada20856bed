"""The facade's way to the main node: an admin client behind a circuit breaker.

While the main node is silent every call would hold its thread for the full timeout; sixteen such
calls and not even `/health` is answered. So after silence only one call at a time is let through to
try again, the others are told at once. The first answer closes the circuit, whatever it says: a
main node that answers "not now" for one task or one turn is there for all other calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from retire_cluster.broker.client import NoAnswer, RawAnswer
from retire_cluster.schemas.errors import ClusterError

#: A main node that answered within this many seconds is trusted to be only slow.
_RECENTLY_SECONDS = 5.0
_PATIENT_SECONDS = 15.0
#: Operations that the facade asks and that change the cluster: unanswered, they may be done.
CHANGES: Final = frozenset(
    {
        "task.submit", "task.cancel", "task.cancel_many", "task.retry", "device.remove",
        "device.drain", "device.resume", "config.update", "config.reset", "token.create",
    }
)  # fmt: skip
#: What is true of a change that was asked for and not answered.
NOT_KNOWN: Final = (
    "Whether what was asked for has been done is not known: look before asking again, or ask again"
    " with the same Idempotency-Key."
)


class AdminCaller(Protocol):
    """What the facade needs of an admin client; `broker.client.AdminClient` is one."""

    timeout_seconds: float

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> RawAnswer:
        """Return the answer of operation `op`, its opaque parts unread. Raises a `ClusterError`."""

    def close(self) -> None:
        """Give back all sockets."""


class MainNodeLink:
    """Call the main node, and fail at once while it is known to be silent.

    :param client: calls its admin socket
    :param monotonic: clock in seconds
    """

    def __init__(
        self, client: AdminCaller, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._silent: NoAnswer | None = None
        self._trying = False
        self._answered_at = float("-inf")

    def __repr__(self) -> str:
        state = "silent" if self._silent is not None else "answering"
        return f"<MainNodeLink {state}, answered at {self._answered_at:.3f} mono>"

    def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        extra_seconds: float = 0.0,
        patient: bool = False,
    ) -> RawAnswer:
        """Return the operation's answer with its opaque parts unread.

        `extra_seconds` is what the operation itself may wait. A `patient` call gives a main node
        that answered a moment ago more time: a large commit on a slow disk is not silence. Raises
        the `ClusterError` of the answer, or `NoAnswer`.
        """
        trying = self._enter()
        started_at = self._monotonic()
        wait = self._client.timeout_seconds
        if patient and started_at - self._answered_at < _RECENTLY_SECONDS:
            wait = max(wait, _PATIENT_SECONDS)
        try:
            answer = self._client.call_raw(op, args, blobs, timeout_seconds=wait + extra_seconds)
        except NoAnswer as error:
            # Others were answered meanwhile: this operation is slow, the main node is not silent.
            if self._answered_at < started_at:
                with self._lock:
                    self._silent = error
            if error.sent and op in CHANGES:
                text, retry_after = f"{error.message}. {NOT_KNOWN}", error.retry_after
                raise NoAnswer(text, retry_after=retry_after, sent=True) from None
            raise
        except ClusterError:
            self._answered()
            raise
        else:
            self._answered()
            return answer
        finally:
            if trying:
                with self._lock:
                    self._trying = False

    def data(
        self, op: str, args: Mapping[str, Any] | None = None, *, extra_seconds: float = 0.0
    ) -> dict[str, Any]:
        """Return the data of an operation that has no opaque parts. Raises as `call`."""
        return self.call(op, args, extra_seconds=extra_seconds).data

    @property
    def reachable(self) -> bool:
        """Tell whether the last call was answered."""
        return self._silent is None

    def close(self) -> None:
        """Give back all sockets."""
        self._client.close()

    def _enter(self) -> bool:
        if self._silent is None:
            return False
        with self._lock:
            if self._silent is None:
                return False
            if self._trying:
                raise NoAnswer(self._silent.message, retry_after=1)
            self._trying = True
            return True

    def _answered(self) -> None:
        self._answered_at = self._monotonic()
        if self._silent is not None:
            with self._lock:
                self._silent = None

"""Bound the requests that wait: how many at once, and until when."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import falcon

from retire_cluster.api.admission.auth import Identity
from retire_cluster.api.admission.shutdown import Shutdown
from retire_cluster.schemas.errors import RateLimitExceeded, Unauthorized

#: A parked request looks this often whether the server was told to stop.
SLICE_SECONDS = 1.0
_A_WAIT_SECONDS = 0.25
#: From the first event on a stranger's poll waits so long for what comes with it: one answer, not
#: one each. Others wait for their own tasks so, one after the other, and are answered at once.
GATHER_SECONDS = 0.1
#: Answers without a wait that a client may have in a row, and how many come back a second.
AT_ONCE, AT_ONCE_A_SECOND = 30, 10
_CLIENTS_KEPT = 10_000
#: So often a known client may ask for what came after one event: he has several programs.
_ASKED_AGAIN, _CURSORS_KEPT = 8, 10_000


class WaitBudget:
    """The time that one request may still wait."""

    def __init__(
        self,
        shutdown: Shutdown,
        monotonic: Callable[[], float],
        seconds: float,
        still_valid: Callable[[], bool],
        *,
        known: bool,
    ) -> None:
        self._shutdown = shutdown
        self._still_valid = still_valid
        self._known = known
        self._monotonic = monotonic
        self._began = monotonic()
        self._deadline = self._began + seconds
        #: Whether the request has a place to wait.
        self.parked = seconds > 0

    def __repr__(self) -> str:
        left = self._deadline - self._monotonic()
        return f"<WaitBudget of {left:.1f} s, {'parked' if self.parked else 'no place'}>"

    @property
    def gather_seconds(self) -> float:
        """Return the seconds to wait from the first event to the answer."""
        return 0.0 if self._known else GATHER_SECONDS

    @property
    def at_once(self) -> bool:
        """Tell whether the request has not waited at all."""
        return self._monotonic() - self._began < GATHER_SECONDS / 2

    @property
    def used(self) -> bool:
        """Tell whether the request has waited for long enough to count as a wait."""
        return self._monotonic() - self._began >= _A_WAIT_SECONDS

    def slice(self) -> float:
        """Return the seconds to wait next; 0 when time, key or server have come to an end."""
        if self._shutdown.begun or not self._still_valid():
            return 0.0
        return round(min(SLICE_SECONDS, max(0.0, self._deadline - self._monotonic())), 3)


class _Buckets:
    """A token bucket a client, for answers without a wait.

    :param monotonic: clock in seconds
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        #: Client → tokens left, and when that was.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> bool:
        """Take a token of `client`; tell whether there was one."""
        now = self._monotonic()
        with self._lock:
            left, at = self._left.pop(client, (float(AT_ONCE), now))
            left = min(float(AT_ONCE), left + (now - at) * AT_ONCE_A_SECOND)
            taken = left >= 1
            self._left[client] = (left - 1 if taken else left, now)
            if len(self._left) > _CLIENTS_KEPT:
                self._left.popitem(last=False)
        return taken


class Parking:
    """Let requests wait on at most a quarter of the server's threads.

    Further ones are answered at once, so that who waits can never starve the rest of the API. Where
    authentication is on, clients without a key hold at most half of those places. Who asks again
    and again and never has to wait (there is no place, or always something new) is told to slow
    down: such requests cost no rate limit, and would be a flood.

    :param shutdown: tells when the server is to stop
    :param threads: of the server
    :param still_valid: tells whether a client's key has not been revoked meanwhile
    :param known: tells whether a client has a key, or may do everything
    :param reserved: whether half of the places are kept for clients with keys
    :param monotonic: clock in seconds
    """

    def __init__(
        self,
        shutdown: Shutdown,
        *,
        threads: int,
        still_valid: Callable[[Identity], bool],
        known: Callable[[Identity], bool],
        reserved: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shutdown = shutdown
        self._monotonic = monotonic
        self._still_valid = still_valid
        self._known = known
        places = max(1, threads // 4)
        self._places = threading.BoundedSemaphore(places)
        self._anonymous = threading.BoundedSemaphore(max(1, places // 2) if reserved else places)
        self._buckets = _Buckets(monotonic)
        self._lock = threading.Lock()
        #: How often a client asked for what came after an event.
        self._asked: OrderedDict[tuple[str, int], int] = OrderedDict()

    @contextmanager
    def park(self, req: falcon.Request, seconds: float) -> Iterator[WaitBudget]:
        """Hold a place while this request waits; without a place it may not wait.

        Raises `Unauthorized` when its key was revoked while it waited.
        """
        identity: Identity = req.context.identity
        # A server with one thread a process (gunicorn's default) cannot park anything.
        asked = seconds > 0 and bool(req.env.get("wsgi.multithread"))
        with ExitStack() as stack:
            got = asked and self._take_place(identity, stack)
            yield WaitBudget(
                self._shutdown,
                self._monotonic,
                seconds if got else 0.0,
                lambda: self._still_valid(identity),
                known=self._known(identity),
            )
            if got and not self._still_valid(identity):
                raise Unauthorized("The API key was revoked while this waited")

    def _take_place(self, identity: Identity, stack: ExitStack) -> bool:
        kinds = [self._places] if identity.key is not None else [self._anonymous, self._places]
        with ExitStack() as taken:
            for places in kinds:
                if not places.acquire(blocking=False):
                    return False
                taken.callback(places.release)
            stack.push(taken.pop_all())
        return True

    def count(self, req: falcon.Request, cursor: int | None = None) -> None:
        """Count an answer without a wait. Raises `RateLimitExceeded`.

        :param cursor: of a poll; a known client whose polls go forward asks as fast as his tasks
            end, and that is no flood
        """
        identity: Identity = req.context.identity
        if cursor is not None and self._known(identity) and self._goes_on(identity.client, cursor):
            return
        if not self._buckets.take(identity.client):
            raise RateLimitExceeded(
                "This client asks to wait again and again and is answered at once: there is no"
                " place to wait, or always something new; ask less often",
                retry_after=1,
            )

    def _goes_on(self, client: str, cursor: int) -> bool:
        with self._lock:
            times = self._asked.pop((client, cursor), 0) + 1
            self._asked[client, cursor] = times
            if len(self._asked) > _CURSORS_KEPT:
                self._asked.popitem(last=False)
        return times <= _ASKED_AGAIN

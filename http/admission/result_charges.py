"""Charge the rate limit for results that a client takes again without a wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import falcon

from retire_cluster.api.admission.rate_limit import RequestLimiter
from retire_cluster.schemas.errors import TaskNotFound

#: Results remembered as given out. Once a client's are forgotten, all that ended no later than the
#: newest of these counts as given out to it.
_REMEMBERED = 50_000
#: Clients for whom that time is kept.
_CLIENTS = 1_000


class _GivenOut(NamedTuple):
    """A result and who took it."""

    client: str
    task_id: str
    #: A task that was retried ends once more.
    completed_at: str


class ResultCharges:
    """Charge requests that would be free because they offer to wait, and did not have to.

    A wait holds one of few places, so it bounds itself. A result that is there is answered at once:
    it is free the first time that a client takes it, or a script that asks for it without end would
    never meet a limit.

    :param limiter: counts what is charged
    """

    def __init__(self, limiter: RequestLimiter) -> None:
        self._limiter = limiter
        self._lock = Lock()
        #: Those that were given out, the oldest first.
        self._given: OrderedDict[_GivenOut, None] = OrderedDict()
        #: Client → when the newest result ended that was given to it and is forgotten.
        self._forgotten: OrderedDict[str, str] = OrderedDict()

    def charge(
        self, req: falcon.Request, results: Iterable[Mapping[str, Any]], *, waited: bool
    ) -> None:
        """Charge for these results, which are about to be given out, unless they are free.

        Raises `RateLimitExceeded` where this is to be paid for and cannot be.
        """
        if not self._is_uncounted(req):
            return
        client = req.context.identity.client
        given = [_GivenOut(client, each["task_id"], each["completed_at"]) for each in results]
        if given and not self._are_new(client, given) and not waited:
            self._limiter.charge(req)

    @contextmanager
    def charging_absence(self, req: falcon.Request) -> Iterator[None]:
        """Charge a request inside which `TaskNotFound` is raised. Raises as `charge`."""
        try:
            yield
        except TaskNotFound:
            if self._is_uncounted(req):
                self._limiter.charge(req)
            raise

    def _is_uncounted(self, req: falcon.Request) -> bool:
        return self._limiter.enabled and req.context.standing is None

    def _are_new(self, client: str, results: Iterable[_GivenOut]) -> bool:
        """Tell whether any of them is given out for the first time, as far as is known."""
        with self._lock:
            limit = self._forgotten.get(client, "")
            # Times are all written in one form, so they follow each other as texts do.
            new = [one for one in results if one not in self._given and one.completed_at > limit]
            self._given.update(dict.fromkeys(new))
            while len(self._given) > _REMEMBERED:
                oldest, _ = self._given.popitem(last=False)
                forgotten = self._forgotten.get(oldest.client, "")
                self._forgotten[oldest.client] = max(oldest.completed_at, forgotten)
                self._forgotten.move_to_end(oldest.client)
            while len(self._forgotten) > _CLIENTS:
                self._forgotten.popitem(last=False)
        return bool(new)

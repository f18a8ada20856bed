"""Charge the rate limit for results that a client takes again without a wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

import falcon

from retire_cluster.api.admission.rate_limit import RequestLimiter
from retire_cluster.schemas.errors import TaskNotFound

#: Results remembered as given out. Once a client's are forgotten, all that ended no later than the
#: newest of these counts as given out to it.
_REMEMBERED = 50_000
#: Clients for whom that time is kept.
_CLIENTS = 1_000


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
        #: Client and when it ended, by client, task and when.
        self._given: OrderedDict[int, tuple[str, str]] = OrderedDict()
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
        # A task that was retried ends once more.
        keys = {
            hash((client, each["task_id"], each["completed_at"])): str(each["completed_at"])
            for each in results
        }
        if not self._are_new(client, keys) and keys and not waited:
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

    def _are_new(self, client: str, keys: Mapping[int, str]) -> bool:
        """Tell whether any of them is given out for the first time, as far as is known."""
        with self._lock:
            limit = self._forgotten.get(client, "")
            new = [key for key, ended in keys.items() if key not in self._given and ended > limit]
            self._given.update((key, (client, keys[key])) for key in new)
            while len(self._given) > _REMEMBERED:
                _, (owner, ended) = self._given.popitem(last=False)
                self._forgotten[owner] = max(ended, self._forgotten.get(owner, ""))
                self._forgotten.move_to_end(owner)
            while len(self._forgotten) > _CLIENTS:
                self._forgotten.popitem(last=False)
        return bool(new)

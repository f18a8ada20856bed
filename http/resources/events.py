"""Events: the long poll over the main node's cursor, and tickets for the stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import falcon

from retire_cluster.api import envelope, validation
from retire_cluster.api.cluster import GuardedCluster
from retire_cluster.api.drain import Drain
from retire_cluster.api.resources.base import Resource, answer
from retire_cluster.api.tickets import Tickets

#: A parked poll looks this often whether the server was told to stop.
SLICE_SECONDS = 1.0


class Events(Resource):
    """`GET /events`: what happened after a cursor, waiting for it if need be.

    Parked polls hold at most a quarter of the server's threads; further ones are answered at once,
    so that listeners can never starve the rest of the API.
    """

    def __init__(
        self,
        cluster: GuardedCluster,
        drain: Drain,
        *,
        threads: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._drain = drain
        self._monotonic = monotonic
        self._parking = threading.BoundedSemaphore(max(1, threads // 4))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Events after `since`, or none when `wait` seconds have passed."""
        args = dict(req.context.query)
        wait = float(args.pop("wait"))
        # A server with one thread a process (gunicorn's default) cannot park anything.
        may_park = wait > 0 and bool(req.env.get("wsgi.multithread"))
        if may_park and self._parking.acquire(blocking=False):
            try:
                data = self._poll(args, wait)
            finally:
                self._parking.release()
        else:
            data = self._poll(args, 0.0)
        answer(req, resp, data)

    def _poll(self, args: dict[str, Any], wait: float) -> dict[str, Any]:
        deadline = self._monotonic() + wait
        gap = False
        while True:
            left = min(SLICE_SECONDS, max(0.0, deadline - self._monotonic()))
            data = self._cluster.data(
                "events.poll", {**args, "wait_seconds": round(left, 3)}, extra_seconds=left
            )
            gap = gap or bool(data.get("gap"))
            done = self._drain.begun or self._monotonic() >= deadline
            if data["events"] or done:
                return {**data, "gap": gap}
            args = {**args, "since": data["next"]}


class EventTicket(Resource):
    """`POST /events/ticket`: lets a page that holds a key open `/ws`."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A ticket that is good for a minute."""
        validation.checked_body(req)
        ticket, expires_at = self._tickets.issue()
        answer(req, resp, {"ticket": ticket, "expires_at": envelope.utc(expires_at)})

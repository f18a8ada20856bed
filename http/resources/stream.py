"""`/ws`: the event log as a stream."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from retire_cluster.api.admission.auth import Authorizer
from retire_cluster.api.admission.peers import Origins
from retire_cluster.api.admission.tickets import Tickets
from retire_cluster.api.main_node.feed import (
    UPGRADE,
    EventFeed,
    EventFilter,
    Listener,
    Sink,
    Upgrade,
)
from retire_cluster.api.resources.base import Resource
from retire_cluster.api.serving.handshake import VERSION, UpgradeRequired, check, is_asked_for
from retire_cluster.schemas.errors import ClusterUnavailable, Forbidden

_INSTEAD = "poll GET /api/v1/events?since=N&wait=25 instead, it has the same events"


class StreamResource(Resource):
    """Serve `/ws`: a WebSocket that carries one JSON event a message."""

    def __init__(
        self, feed: EventFeed, authorizer: Authorizer, origins: Origins, tickets: Tickets
    ) -> None:
        self._feed = feed
        self._authorizer = authorizer
        self._origins = origins
        self._tickets = tickets

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Begin the stream (101). Raises `Forbidden`, `Unauthorized`, `UpgradeRequired` (426)."""
        query = dict(req.context.query)
        # Browsers ask nobody before they open a WebSocket across sites.
        if self._origins.is_foreign(req.env, through_proxy=req.context.identity.peer.through_proxy):
            raise Forbidden("Pages of other sites may not listen here; allow them by --cors-origin")
        identity = req.context.identity
        key_id = self._tickets.key_of(query.pop("ticket", ""))
        if key_id is not None:
            identity = self._authorizer.of_ticket(identity.peer, key_id)
        self._authorizer.check_reading(identity)
        # Told to whoever is refused: it says which version would have been taken.
        resp.set_header("Sec-WebSocket-Version", VERSION)
        if not is_asked_for(req.env):
            raise UpgradeRequired("Upgrade", f"this address speaks WebSocket only; {_INSTEAD}")
        upgrade: Upgrade | None = req.env.get(UPGRADE)
        if upgrade is None:
            raise ClusterUnavailable(f"This server cannot hold a WebSocket; {_INSTEAD}")
        check(req.env)
        # Settled here, so that what the client does next cannot happen before the stream begins.
        since = query.pop("since", None)
        begin = self._feed.now() if since is None else since
        # Events carry ids in lower case; a UUID means the same in any.
        wanted = EventFilter(**{**query, "task_id": query.get("task_id", "").lower()})

        def opened(sink: Sink) -> Callable[[], None]:
            listener = Listener(sink, wanted, begin, lambda: self._authorizer.still_valid(identity))
            self._feed.add(listener)
            return lambda: self._feed.remove(listener)

        upgrade(opened)
        resp.status = "101 Switching Protocols"

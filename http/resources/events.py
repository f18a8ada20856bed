"""Events: the long poll over the main node's cursor, and tickets for the stream."""

from __future__ import annotations

import falcon

from retire_cluster.api.admission.parking import Parking
from retire_cluster.api.admission.tickets import NO_KEY, Tickets
from retire_cluster.api.content import envelope, reading
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.resources.base import Resource, answer


class EventsResource(Resource):
    """Serve `GET /events`: what happened after a cursor, waiting for it if asked to."""

    def __init__(self, link: MainNodeLink, parking: Parking) -> None:
        self._link = link
        self._parking = parking

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the events after `since`, or none when `wait` seconds have passed."""
        args = dict(req.context.query)
        wait, cursor = float(args.pop("wait")), args.get("since")
        with self._parking.park(req, wait) as budget:
            gap = False
            while True:
                left = budget.slice()
                gather = min(left, budget.gather_seconds)
                waiting = {"wait_seconds": left, "gather_seconds": gather}
                data = self._link.data("events.poll", {**args, **waiting}, extra_seconds=left)
                gap = gap or bool(data.get("gap"))
                if data["events"] or not left:
                    break
                args["since"] = data["next"]
            if wait and budget.at_once:  # without a wait it costs a request
                self._parking.count(req, cursor)
        answer(req, resp, {**data, "gap": gap})


class EventTicketResource(Resource):
    """Serve `POST /events/ticket`: tickets by which a page that holds a key opens `/ws`."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make a ticket that is valid for a minute."""
        reading.checked_body(req)
        key = req.context.identity.key
        ticket, expires_at = self._tickets.issue(NO_KEY if key is None else key.key_id)
        answer(req, resp, {"ticket": ticket, "expires_at": envelope.utc(expires_at)})

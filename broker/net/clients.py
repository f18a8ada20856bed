"""The admin socket: frames of clients in, calls out; answers back.

What is malformed is counted, logged once a peer and answered with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.core.devices.versions import admin_refusal
from retire_cluster.broker.core.events import Now, Ticket
from retire_cluster.broker.facts import Facts
from retire_cluster.broker.net.channel import (
    MAX_CALL_ID,
    Channel,
    CountDropped,
    Socket,
    call_id_of,
    repeatable,
)
from retire_cluster.broker.net.intake import Intake
from retire_cluster.schemas.errors import ClusterError, Forbidden, ValidationError, to_wire
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Reject
from retire_cluster.schemas.protocol.wire import WireError


class Clients(Channel):
    """The admin socket.

    :param may_use: tells whether a key may still use it; None: the socket has no CURVE
    :param intake: bounds what the peers may send; None: nothing does
    """

    def __init__(
        self,
        socket: Socket,
        facts: Facts,
        may_use: Callable[[str], bool] | None = None,
        intake: Intake | None = None,
    ) -> None:
        super().__init__(socket, facts, keyed=may_use is not None, intake=intake)
        #: Asked for each message: a key may have been revoked since its handshake.
        self._may_use = may_use

    def read(self, limit: int, now: Now, count_dropped: CountDropped) -> Iterator[Call]:
        """Read at most `limit` messages and yield their calls; answer others with an error."""
        for _ in range(limit):
            got = self._receive()
            if got is None:
                return
            routing, (address, key, *_), frames = got
            if self._may_use is not None and not self._may_use(key or ""):
                count_dropped("revoked_key")
                self.refuse((routing, call_id_of(frames)), Forbidden("This key was revoked."))
                continue
            if frames and frames[0].startswith(wire.BUS):
                count_dropped("wrong_port")
                text = f"this is the admin socket; workers join port {self.facts.worker_port}"
                verb, header = Reject("", "wrong_port", text).write()
                self.put(routing, wire.encode(wire.BUS, verb, header))
                continue
            try:
                message = wire.decode(wire.ADMIN, frames)
            except WireError as error:
                self._drop(routing, address, str(error), count_dropped)
                self.refuse((routing, None), ValidationError("", str(error)))
                continue
            call = self._call(routing, message, now)
            if call is not None:
                yield call

    def _call(self, routing: bytes, message: wire.Message, now: Now) -> Call | None:
        header = message.header
        call_id, op, args = repeatable(header.get("id")), header.get("op"), header.get("args", {})
        ticket = (routing, call_id)
        theirs = header.get("protocol", 1)
        if theirs != wire.ADMIN_PROTOCOL:
            wrong: dict[str, Any] = {
                "id": call_id, "code": "WRONG_PROTOCOL", "status": 503, "details": {},
                "message": admin_refusal(theirs, self.facts.version),
            }  # fmt: skip
            self.put(routing, wire.encode(wire.ADMIN, b"ERROR", wrong))
            return None
        problem = None
        if message.verb != b"CALL":
            problem = ValidationError("", f"unknown verb {message.verb[:32]!r}: say CALL")
        elif call_id is None:
            text = f"must be a whole number or a text of at most {MAX_CALL_ID} characters"
            problem = ValidationError("id", text)
        elif not isinstance(op, str):
            problem = ValidationError("op", "must be the name of an operation")
        elif not isinstance(args, dict):
            problem = ValidationError("args", "must be an object")
        if problem is not None:
            self.refuse(ticket, problem)
            return None
        assert isinstance(op, str)
        return Call(ticket, op, args, message.blobs, now)

    def answer(self, ticket: Ticket, reply: Reply) -> None:
        """Answer a call; a client that has gone is no matter. Raises `JSONError`."""
        routing, call_id = ticket
        header = {
            "id": call_id,
            "data": reply.data,
            "blobs": [path for path, _ in reply.blobs],
        }
        texts = [text for _, text in reply.blobs]
        self.put(routing, wire.encode(wire.ADMIN, b"REPLY", header, texts))

    def refuse(self, ticket: Ticket, error: ClusterError) -> None:
        """Answer a call with an error."""
        routing, call_id = ticket
        self.put(routing, wire.encode(wire.ADMIN, b"ERROR", {"id": call_id, **to_wire(error)}))

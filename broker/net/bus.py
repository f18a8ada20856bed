"""The worker bus: frames of devices in, events out; messages back.

What is malformed is counted, logged once a peer and dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from retire_cluster.broker.core.devices.versions import GREETINGS, fits, refusal
from retire_cluster.broker.core.events import FromDevice, ResultsArrived
from retire_cluster.broker.facts import Facts
from retire_cluster.broker.net.budgets import Budgets
from retire_cluster.broker.net.channel import Channel, CountDropped, Socket, call_id_of
from retire_cluster.broker.net.intake import Intake
from retire_cluster.broker.net.misfits import Misfits
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Finished, read_from_device
from retire_cluster.schemas.protocol.wire import WireError

log = logging.getLogger("broker")

#: Bytes of messages beyond their budgets that one turn reads, and what each counts for beside them.
_WASTE_A_TURN = 2 * 1024 * 1024
_WASTE_A_MESSAGE = 16 * 1024
#: What is malformed counts as one stale item, and one more for each so many bytes.
_MALFORMED_BYTES_AN_ITEM = 16


class Bus(Channel):
    """The worker bus. See `Channel` for the parameters."""

    def __init__(
        self, socket: Socket, facts: Facts, *, keyed: bool = False, intake: Intake | None = None
    ) -> None:
        super().__init__(socket, facts, keyed=keyed, intake=intake)
        self._misfits = Misfits()
        self.budgets = Budgets()

    def read(
        self, limit: int, mono: float, count_dropped: CountDropped
    ) -> Iterator[FromDevice | ResultsArrived]:
        """Read at most `limit` messages and yield their events.

        What is malformed, or beyond a budget, is counted and skipped; after too much of it the
        rest is left for the next turn.
        """
        wasted = 0
        for _ in range(limit):
            if wasted > _WASTE_A_TURN:
                return  # others have their turn
            got = self._receive()
            if got is None:
                return
            routing, (address, key, *_), frames = got
            who, size = key or routing, sum(map(len, frames))
            if not self.budgets.allows(who, wire.verb_of(frames), size, mono):
                count_dropped("over_budget")
                wasted += size + _WASTE_A_MESSAGE
                continue
            if frames and frames[0].startswith(wire.ADMIN):
                self._wrong_port(routing, frames, count_dropped)
                continue
            try:
                found = wire.decode(wire.BUS, frames)
                if found.verb in GREETINGS and not fits(found.header):
                    self._turn_away(routing, address, found.header, count_dropped)
                    continue
                message = read_from_device(found.verb, found.header)
                if isinstance(message, Finished):
                    if len(found.blobs) != 2 * message.count:
                        raise WireError("FINISHED has two blobs an item")
                    yield ResultsArrived(routing, message, found.blobs, key)
                else:
                    yield FromDevice(routing, message, address, key)
                continue
            except WireError as error:
                self._drop(routing, address, str(error), count_dropped)
            except Exception as error:  # an error of ours, met with a stranger's message
                log.exception("a device's message could not be read")
                self._drop(routing, address, f"{type(error).__name__}: {error}", count_dropped)
            # Reading it was work for nothing, whatever its verb says.
            self.budgets.blame(who, 1 + size // _MALFORMED_BYTES_AN_ITEM, mono)
            wasted += size + _WASTE_A_MESSAGE

    def _turn_away(
        self, routing: bytes, address: str, header: dict[str, Any], count_dropped: CountDropped
    ) -> None:
        count_dropped("rejected_protocol")
        reject = refusal(header, self.facts.version)
        self._misfits.log(header, reject, address)
        verb, answer = reject.write()
        self.put(routing, wire.encode(wire.BUS, verb, answer))

    def discard(self, limit: int) -> None:
        """Read at most `limit` messages and forget them: devices send again what matters."""
        for _ in range(limit):
            if self._receive() is None:
                return

    def send(
        self,
        routing: bytes,
        verb: bytes,
        header: dict[str, Any],
        blobs: Sequence[bytes],
        count_dropped: CountDropped,
    ) -> None:
        """Send a message; one that cannot be sent is counted (leases make up for it)."""
        if not self.put(routing, wire.encode(wire.BUS, verb, header, blobs)):
            count_dropped("unsendable")

    def _wrong_port(self, routing: bytes, frames: list[bytes], count_dropped: CountDropped) -> None:
        count_dropped("wrong_port")
        header = {
            "id": call_id_of(frames),
            "code": "WRONG_PORT",
            "status": 400,
            "message": f"this is the worker bus; the admin socket is port {self.facts.admin_port}",
            "details": {"admin_port": self.facts.admin_port},
            "retry_after": None,
        }
        self.put(routing, wire.encode(wire.ADMIN, b"ERROR", header))

"""A worker on the main node's own machine, of the same user, needs no token: it lets itself in.

Whoever may read the key of the main node's tooling may do everything there; this only saves the
line to paste.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq

from retire_cluster.conf import curve, neighbours
from retire_cluster.conf.curve import ClientKeys, KeyFileError
from retire_cluster.node.link.credentials import Credentials
from retire_cluster.node.link.sockets import Address
from retire_cluster.schemas.protocol import wire

_ANSWER_MS = 5_000


class NotLetIn(Exception):
    """The main node here does not take this worker; the message says why and what helps."""


def let_in(
    folder: Path, address: Address, device_id: str, *, trial: bool = False
) -> Credentials | None:
    """The credentials of a device that the main node at `address` knows from now on.

    Of a trial nobody knows afterwards: its credentials are the tooling's own, for a handshake.
    None when no main node of this user listens there, or its bus is not encrypted. Raises
    `NotLetIn` with the main node's reason when it refuses, `OSError`.
    """
    wrong = neighbours.find(address.host, address.port, "admin_port")
    if wrong is not None:
        raise NotLetIn(
            f"{address} is the main node's admin socket; workers join port {wrong['worker_port']}"
        )
    main = neighbours.find(address.host, address.port, "worker_port")
    if main is None:
        return None
    try:
        keys = curve.client_keys(Path(main["data_dir"]) / curve.ADMIN_KEY)
    except KeyFileError:
        return None
    if keys is None:
        return None
    info = _call(keys, main["admin_port"], "broker.info", {})
    if info is None or not info.get("bus_encrypted"):
        return None
    pair = curve.new_pair()
    args = {"device_id": device_id, "public_key": pair.public, "trial": trial}
    if _call(keys, main["admin_port"], "device.authorise", args) is None:
        return None
    if trial:
        return Credentials(folder, keys, address, device_id=device_id, borrowed=True)
    # Kept only now: a key that the main node never heard of would be refused for good. When this
    # fails, the next start says another key, which replaces this one.
    own = ClientKeys(pair, keys.server)
    found = Credentials(folder, own, address, device_id=device_id, enrolled=True)
    found.keep()
    return found


def _call(keys: ClientKeys, port: int, op: str, args: dict[str, Any]) -> dict[str, Any] | None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
        curve.lock(socket, keys)
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.send_multipart(
            wire.encode(wire.ADMIN, b"CALL", {"id": 1, "op": op, "args": args}), zmq.NOBLOCK
        )
        if not socket.poll(_ANSWER_MS):
            return None
        message = wire.decode(wire.ADMIN, socket.recv_multipart())
    except (zmq.ZMQError, wire.WireError):
        return None
    finally:
        socket.close(0)
        context.term()
    if message.verb != b"REPLY":
        raise NotLetIn(str(message.header.get("message")))
    data = message.header.get("data")
    return data if isinstance(data, dict) else None

"""Whose body it is, told by the headers of its request."""

from __future__ import annotations

from collections.abc import Mapping

from retire_cluster.api.admission.auth import Authorizer, Identity, network_of, presented_key
from retire_cluster.api.admission.body_budget import Sender, TellSender
from retire_cluster.api.admission.local_users import ClientConnection
from retire_cluster.api.admission.peers import Peers


def sender_by(authorizer: Authorizer, peers: Peers) -> TellSender:
    """Tells senders by the address of a connection and waitress's headers of a request.

    A browser that signed in counts as a stranger here: who it is may have to be asked for, and no
    page sends bodies that are large.
    """

    def sender(
        address: str, headers: Mapping[str, str], connection: ClientConnection | None = None
    ) -> Sender:
        environ = {f"HTTP_{name}": value for name, value in headers.items()}
        peer = peers.of({"REMOTE_ADDR": address, **environ})
        presented = presented_key(environ) if authorizer.required else None
        key = authorizer.keys.find(presented) if presented is not None else None
        identity = Identity(peer, key, connection=connection)
        return Sender(network_of(peer.address), authorizer.is_stranger(identity))

    return sender

"""Tell the sender of a body by the headers of its request."""

from __future__ import annotations

from collections.abc import Mapping

from retire_cluster.api.admission.auth import Authorizer, Identity, network_of, presented_key
from retire_cluster.api.admission.body_budget import Sender, TellSender
from retire_cluster.api.admission.local_users import ClientConnection
from retire_cluster.api.admission.peers import Peers


def sender_by(authorizer: Authorizer, peers: Peers) -> TellSender:
    """Return a function that tells senders by a connection's address and a request's headers.

    A signed-in browser counts as a stranger here: only the main node may know its session, and no
    page sends large bodies.
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

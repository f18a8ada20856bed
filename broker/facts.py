"""What a main node's process knows of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from retire_cluster.broker.core.events import Now


@dataclass(frozen=True)
class Facts:
    """What a broker process knows of itself."""

    version: str
    pid: int
    host: str
    admin_port: int
    worker_port: int
    event_port: int
    started: Now
    #: Public key of the admin socket and the event feed; empty: they are not encrypted.
    server_key: str = ""
    worker_host: str = "127.0.0.1"
    #: Whether the worker bus has that key too.
    bus_encrypted: bool = False
    #: Tells this cluster from others to a browser.
    cluster_id: str = ""
    #: What facades sign dashboard sessions with.
    session_secret: bytes = field(default=b"", repr=False)

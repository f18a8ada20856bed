"""Issue and check short-lived tickets for `/ws`: pages send no header with a WebSocket."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable

LIFETIME_SECONDS = 60
#: Stands for the key of a client that has none, as long as it needs none.
NO_KEY = "-"


class Tickets:
    """Sign tickets and check them. Nothing is kept: a ticket carries its end and its key's id.

    A ticket is worth as much as the key it was issued for: whoever takes it checks that the key
    still is valid.

    :param clock: epoch seconds
    :param secret: signs them; default: random, so that tickets end with the process
    """

    def __init__(self, clock: Callable[[], float], secret: bytes | None = None) -> None:
        self._clock = clock
        self._secret = secret or secrets.token_bytes(32)

    def issue(self, key_id: str = NO_KEY) -> tuple[str, float]:
        """Return a new ticket for a key, and the epoch second at which it expires."""
        expires_at = int(self._clock()) + LIFETIME_SECONDS
        body = f"{expires_at}.{key_id}.{secrets.token_urlsafe(9)}"
        return f"{body}.{self._signature(body)}", float(expires_at)

    def key_of(self, ticket: str) -> str | None:
        """Return the id of the key a ticket stands for (`NO_KEY`: none); None for a bad ticket."""
        body, _, signature = ticket.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            return None
        expires_at, key_id, _ = body.split(".", 2)
        return key_id if int(expires_at) > self._clock() else None

    def _signature(self, body: str) -> str:
        digest = hmac.new(self._secret, body.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

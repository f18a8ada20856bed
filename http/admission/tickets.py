"""Short-lived tickets for `/ws`, for pages that cannot send a header with a WebSocket."""

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
    """Signs tickets and knows its own again. Nothing is kept: a ticket carries its end and its key.

    A ticket is worth what the key is worth for which it was made, so whoever takes it looks whether
    there still is such a key.

    :param clock: epoch seconds
    :param secret: what they are signed with; random, so that they end with the process
    """

    def __init__(self, clock: Callable[[], float], secret: bytes | None = None) -> None:
        self._clock = clock
        self._secret = secret or secrets.token_bytes(32)

    def issue(self, key_id: str = NO_KEY) -> tuple[str, float]:
        """A new ticket for a key, and the epoch second from which it is worth nothing."""
        expires_at = int(self._clock()) + LIFETIME_SECONDS
        body = f"{expires_at}.{key_id}.{secrets.token_urlsafe(9)}"
        return f"{body}.{self._signature(body)}", float(expires_at)

    def key_of(self, ticket: str) -> str | None:
        """The id of the key that one of ours stands for (`NO_KEY`: none); None: it is not good."""
        body, _, signature = ticket.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            return None
        expires_at, key_id, _ = body.split(".", 2)
        return key_id if int(expires_at) > self._clock() else None

    def _signature(self, body: str) -> str:
        digest = hmac.new(self._secret, body.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

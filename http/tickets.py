"""Short-lived tickets for `/ws`, for pages that cannot send a header with a WebSocket."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable

LIFETIME_SECONDS = 60


class Tickets:
    """Signs tickets and knows its own again. Nothing is kept: a ticket carries its end.

    :param clock: epoch seconds
    :param secret: what they are signed with; random, so that they end with the process
    """

    def __init__(self, clock: Callable[[], float], secret: bytes | None = None) -> None:
        self._clock = clock
        self._secret = secret or secrets.token_bytes(32)

    def issue(self) -> tuple[str, float]:
        """A new ticket, and the epoch second from which it is worth nothing."""
        expires_at = int(self._clock()) + LIFETIME_SECONDS
        body = f"{expires_at}.{secrets.token_urlsafe(9)}"
        return f"{body}.{self._signature(body)}", float(expires_at)

    def is_good(self, ticket: str) -> bool:
        """Whether it is one of ours and still good."""
        body, _, signature = ticket.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            return False
        return int(body.partition(".")[0]) > self._clock()

    def _signature(self, body: str) -> str:
        digest = hmac.new(self._secret, body.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

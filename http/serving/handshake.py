"""Check the opening handshake of a WebSocket (RFC 6455, 4.2).

The library's own errors do not say which header is meant.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from retire_cluster.schemas.errors import ValidationError

#: The only version of the protocol.
VERSION: Final = "13"
_KEY_BYTES: Final = 16


class UpgradeRequired(ValidationError):
    """A handshake of another version than the one that is spoken here."""

    status = 426


def tokens(value: str) -> list[str]:
    """Return the words of a header that is a list, in lower case."""
    return [word.strip().lower() for word in value.split(",")]


def is_asked_for(environ: Mapping[str, Any]) -> bool:
    """Tell whether a WSGI request asks to become a WebSocket."""
    return (
        environ.get("REQUEST_METHOD") == "GET"
        and environ.get("SERVER_PROTOCOL", "HTTP/1.1") != "HTTP/1.0"
        and environ.get("HTTP_UPGRADE", "").strip().lower() == "websocket"
        and "upgrade" in tokens(environ.get("HTTP_CONNECTION", ""))
    )


def check(environ: Mapping[str, Any]) -> None:
    """Check version and key of a request that asks to become a WebSocket.

    Raises `UpgradeRequired` for another version, `ValidationError` for what is no handshake.
    """
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip()
    if not version:
        raise ValidationError("Sec-WebSocket-Version", f"is missing; it has to be {VERSION}")
    if version != VERSION:
        raise UpgradeRequired("Sec-WebSocket-Version", f"must be {VERSION}")
    if not _is_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()):
        raise ValidationError(
            "Sec-WebSocket-Key", f"must be {_KEY_BYTES} random bytes in base64, and come once"
        )


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):  # not ASCII either
        return False

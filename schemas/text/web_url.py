"""Read the address of an `http_request`: alike at submission, at placement, on a device."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from retire_cluster.schemas.bounds import MAX_PORT

#: One search at C speed: a request may bring a thousand addresses of 8 KiB.
_ODD: Final = re.compile(r"[\x00-\x20\x7f\\]")


def split(url: str) -> SplitResult:
    """Split an address into its parts. Raises `ValueError` saying what is wrong with it."""
    if _ODD.search(url):
        raise ValueError("has a space, control character or backslash; percent-encode it")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("must start with http:// or https://")
    if not parts.hostname:
        raise ValueError("names no host")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"has a port that is no number from 1 to {MAX_PORT}") from None
    if port == 0:
        raise ValueError("has port 0, which cannot be reached")
    host_of(parts)
    return parts


def host_of(parts: SplitResult) -> str:
    """Return the host as it is looked up, in ASCII. Raises `ValueError` for no host name."""
    host = parts.hostname or ""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"has {host!r:.80}, which is no host name") from None

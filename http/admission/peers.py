"""Tell who a request comes from: the client's address, whether it is this machine, its origin.

A same-host proxy passes strangers off as loopback, and any client can write `X-Forwarded-For`. So
forwarded addresses count only from configured proxies, and a request that shows signs of having
been forwarded by anything else is never taken for one of this machine (docs/contract.md,
Authentication). Nor is one of a configured proxy that does not say whose it is.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: Parts of names of WSGI variables that show a request has been forwarded.
_FORWARDED = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP", "HTTP_X_FORWARDED_")
_PREFIX = re.compile(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._~-]+){1,20}", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Peer:
    """The client of a request."""

    #: Its address as text; empty where the server has none to tell (a local socket file).
    address: str
    #: Whether the client is a process of this machine.
    loopback: bool
    #: Whether the connection comes from a configured proxy.
    through_proxy: bool = False


@functools.lru_cache(maxsize=1_024)
def _address(text: str) -> _Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found


class Peers:
    """Find the peer of a request.

    :param trusted_proxies: addresses or networks whose `X-Forwarded-For` counts
    """

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted: list[_Network] = []
        for text in trusted_proxies:
            self._trusted.append(ipaddress.ip_network(text, strict=False))
        self._direct: dict[str, Peer] = {}

    def of(self, environ: Mapping[str, Any]) -> Peer:
        """Return the peer of a WSGI request."""
        remote = str(environ.get("REMOTE_ADDR") or "")
        # One text is searched faster than the names one by one; this is done for every request.
        names = " ".join(environ)
        if not any(name in names for name in _FORWARDED):
            return self._peer(remote)  # a proxy that adds no header speaks for nobody
        direct = _address(remote)
        if direct is None or not self._is_trusted(direct):
            return Peer(self._peer(remote).address, loopback=False)
        return self._through_proxies(environ, direct)

    def _peer(self, remote: str) -> Peer:
        known = self._direct.get(remote)
        if known is None:
            found = _address(remote)
            own = found is not None and found.is_loopback and not self._is_trusted(found)
            known = Peer(str(found or ""), own)
            if len(self._direct) > 10_000:
                self._direct.clear()
            self._direct[remote] = known
        return known

    def _through_proxies(self, environ: Mapping[str, Any], direct: _Address) -> Peer:
        """Walk the addresses that the proxies saw, from the last: the first not ours is the client.

        Where that is no address (`unknown`, nothing at all) the client is not known: limits count
        the last known proxy, and rights are a stranger's.
        """
        seen = direct
        for text in reversed(str(environ.get("HTTP_X_FORWARDED_FOR", "")).split(",")):
            hop = _address(_without_port(text.strip()))
            if hop is None:
                return Peer(str(seen), loopback=False, through_proxy=True)
            seen = hop
            if not self._is_trusted(hop):
                break
        return Peer(str(seen), seen.is_loopback, through_proxy=True)

    def _is_trusted(self, address: _Address) -> bool:
        return any(
            address.version == network.version and address in network for network in self._trusted
        )


def prefix_of(environ: Mapping[str, Any], peer: Peer) -> str:
    """Return the path (`/cluster`) that a configured proxy takes away before ours; mostly empty.

    `X-Forwarded-Prefix` counts from such a proxy only, and only as a plain path: it ends up in
    links and in a cookie.
    """
    if not peer.through_proxy:
        return ""
    text = str(environ.get("HTTP_X_FORWARDED_PREFIX", "")).strip().rstrip("/")
    return text if _PREFIX.fullmatch(text) else ""


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, port = text.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else text


class Hosts:
    """The names by which this API may be called: this machine's own, and addresses.

    A page of `evil.example` can have its name resolve to this machine and then counts as ours: its
    Origin and the Host it sends are equal. On a local network anyone may also answer for
    `evil.local` or plain `evil`. So a name has to be one of this machine's. An address cannot be
    made to lead elsewhere, and so is always good.

    :param allowed: further names
    :param own: gives this machine's names; asked about a name that is not known yet, because a
        machine may be renamed
    """

    def __init__(
        self, allowed: Iterable[str] = (), own: Callable[[], Collection[str]] = tuple
    ) -> None:
        self._allowed = frozenset(name.strip().lower().rstrip(".") for name in allowed)
        self._own = own

    def is_known(self, host: str) -> bool:
        """Tell whether the value of a Host header is one of them."""
        name = _without_port(host.strip().lower()).rstrip(".")
        return (
            # HTTP/1.0 needs no Host, and no browser leaves it out.
            name in ("", "localhost")
            or _address(name) is not None
            or name in self._allowed
            # Names that never leave this machine (RFC 6761).
            or name.endswith(".localhost")
            or name in self._own()
        )


class Origins:
    """The origins whose pages may use this API from a browser.

    :param allowed: origins such as `https://panel.example`, or `*`
    :param enabled: whether any CORS header is sent at all; when not, nothing foreign is allowed
    """

    def __init__(self, allowed: Iterable[str] = (), *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._allowed = frozenset(_normal(origin) for origin in allowed) if enabled else frozenset()
        self._any = enabled and "*" in self._allowed

    @property
    def varies(self) -> bool:
        """Tell whether answers differ by origin."""
        return bool(self._allowed) and not self._any

    def cors_value(self, origin: str | None) -> str | None:
        """Return the `Access-Control-Allow-Origin` for this origin; None where none is sent."""
        if not origin:
            return None
        if self._any:
            return "*"
        return origin if _normal(origin) in self._allowed else None

    def is_foreign(self, environ: Mapping[str, Any], *, through_proxy: bool = False) -> bool:
        """Tell whether a browser says that a page of another, not allowed, site asks."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and self.cors_value(origin) is not None:
            return False
        if environ.get("HTTP_SEC_FETCH_SITE", "").strip().lower() == "cross-site":
            return True
        return origin is not None and not _is_own(origin, environ, through_proxy)


def _normal(origin: str) -> str:
    origin = origin.strip().lower()
    scheme, _, authority = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return origin.removesuffix(f":{port}") if port and authority else origin


def _is_own(origin: str, environ: Mapping[str, Any], through_proxy: bool) -> bool:
    """Tell whether a page was served by us: its authority is the one this request was sent to."""
    scheme, _, authority = _normal(origin).partition("://")
    if scheme not in _DEFAULT_PORTS:
        return False
    hosts = [environ.get("HTTP_HOST", "")]
    if through_proxy:
        hosts.append(environ.get("HTTP_X_FORWARDED_HOST", ""))
    return authority in {
        _normal(f"{scheme}://{host}").partition("://")[2] for host in hosts if host
    }

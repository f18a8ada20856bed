"""Which addresses a task may reach: the guard against requests into the owner's own network.

A name is resolved once, every address it gives is judged, and the connection goes to an address
that was judged, so that a name which resolves differently a moment later gains nothing. Forms that
carry an IPv4 address inside an IPv6 one are judged by the address inside. The ranges are those of
IANA's special-purpose registries (RFC 6890 and its updates), written out because the standard
library's idea of "global" changes between Python versions.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple

from retire_cluster.node.tasks.base import Denied, TaskFailed

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address

_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
#: The only block of IPv6 that is routed publicly; all else is refused.
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32", "3fff::/20",  # documentation
        "2620:4f:8000::/48",  # AS112
    )
)  # fmt: skip
#: Of networks for documentation (RFC 5737, RFC 3849): nobody's.
_NOBODYS: dict[int, IPv4 | IPv6] = {
    4: ipaddress.IPv4Address("192.0.2.1"), 6: ipaddress.IPv6Address("2001:db8::1")
}  # fmt: skip
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")

Resolve = Callable[[str, int], list[str]]


class Endpoint(NamedTuple):
    """Where to connect for one request."""

    #: The name as the URL has it, for the Host header and the certificate.
    host: str
    #: The address that was judged.
    address: str
    port: int


def is_public(text: str) -> bool:
    """Whether an IP address, written in the usual form, may be reached by strangers' tasks."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return _is_public_6(address) if isinstance(address, IPv6) else _is_public_4(address)


def _is_public_4(address: IPv4) -> bool:
    return not any(address in network for network in _NOT_PUBLIC_4)


def _is_public_6(address: IPv6) -> bool:
    inside = _inside(address)
    if inside is not None:
        return _is_public_4(inside)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver. Raises `OSError`."""
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


def choose(
    host: str, port: int, *, private_allowed: bool, look_up: Resolve = resolve
) -> list[Endpoint]:
    """Where to connect for `host`, best first.

    Raises `Denied` when any of its addresses is not public and the owner did not allow those,
    `TaskFailed` when it has none.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = look_up(bare, port)
    except (OSError, UnicodeError) as error:
        raise TaskFailed(f"cannot find the address of {host}: {error}") from None
    if not found:
        raise TaskFailed(f"{host} has no address")
    if not private_allowed:
        _refuse_private(host, found)
        _refuse_own(host, found)
    return [Endpoint(host, address, port) for address in found]


def is_own(text: str) -> bool:
    """Whether an address is one of this device's, as its interfaces are at this moment.

    The system is asked: it lets a socket be bound to its own addresses only.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inside = _inside(address)
    if inside is not None and is_own(str(inside)):
        return True
    if not _binds(address):
        return False
    # Where anything can be bound to (Linux with `ip_nonlocal_bind`, Wine), that says nothing.
    return (
        not _binds(_NOBODYS[address.version]) or address in _of_interfaces() or _routes_to(address)
    )


def _binds(address: IPv4 | IPv6) -> bool:
    family = socket.AF_INET6 if isinstance(address, IPv6) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((str(address), 0))
    except OSError:
        return False
    return True


def _routes_to(address: IPv4 | IPv6) -> bool:
    """Whether what is sent there would come from there; nothing is sent."""
    family = socket.AF_INET6 if isinstance(address, IPv6) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.connect((str(address), 9))
            return ipaddress.ip_address(trial.getsockname()[0].partition("%")[0]) == address
    except (OSError, ValueError):
        return False


def _inside(address: IPv4 | IPv6) -> IPv4 | None:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, IPv4):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4(int(address) & 0xFFFF_FFFF)
    if address in _SIX_TO_FOUR:
        return IPv4((int(address) >> 80) & 0xFFFF_FFFF)
    return None


def _of_interfaces() -> set[IPv4 | IPv6]:
    """This device's addresses, as Linux lists them."""
    found: set[IPv4 | IPv6] = set()
    last = ""
    for line in _text("/proc/net/fib_trie").splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif words[:1] == ["/32"] and "LOCAL" in words:
            found.add(IPv4(last))
    for line in _text("/proc/net/if_inet6").splitlines():
        found.add(IPv6(int(line.split()[0], 16)))
    return found


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _refuse_own(host: str, addresses: Iterable[str]) -> None:
    for address in addresses:
        if is_own(address):
            raise Denied(
                f"{host} is at {address}, which is this device's own address; its owner can allow"
                " it by policy.private_addresses"
            )


def _refuse_private(host: str, addresses: Iterable[str]) -> None:
    for address in addresses:
        if not is_public(address):
            raise Denied(
                f"{host} is at {address}, which is not a public address; this device's owner can"
                " allow those by policy.private_addresses"
            )

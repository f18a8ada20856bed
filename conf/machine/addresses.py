"""This machine's addresses by interface, and which of them devices elsewhere reach it by.

The system's own list is asked (netlink on Linux, else psutil where it is installed, else the name
service and the routing table), so a network without a default route, or with IPv6 only, counts too.
Nothing is sent to anyone.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from retire_cluster.schemas.text.hosts import EVERYWHERE, is_link_local

#: Documentation addresses (RFC 5737, RFC 3849): asking for the way there asks for the default
#: route, and connecting a datagram socket sends nothing.
_ROUTE_TESTS = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
#: Bridges and cables of containers and virtual machines: nothing outside this machine is there.
_VIRTUAL = re.compile(
    r"(docker|podman|virbr|vmnet|vboxnet|lxcbr|lxdbr|cni|flannel|cali|veth)|br-[0-9a-f]{12}\Z"
)


class OwnAddress(NamedTuple):
    """An address of this machine; link-local IPv6 carries its zone."""

    interface: str
    address: str
    #: The interface is switched on and something is plugged in, as far as that is known.
    up: bool = True
    #: It is given up after hours (RFC 8981) or about to be.
    temporary: bool = False


def is_loopback(host: str) -> bool:
    """Tell whether what listens on `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@functools.lru_cache(maxsize=1_024)
def plain_address(text: str) -> str:
    """Return a peer's address as people know it, `::ffff:1.2.3.4` as IPv4; empty for no address."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def dial_host(bound: str) -> str:
    """Return the address by which this machine reaches what is bound to `bound`."""
    if bound in ("", "0.0.0.0", EVERYWHERE):
        return "127.0.0.1"
    return "::1" if bound == "::" else bound


def own_name() -> str:
    """Return this machine's name as the system has it, empty where it has none that is text."""
    try:
        name = socket.gethostname()
        name.encode("utf-8")
    except (OSError, UnicodeError):
        return ""
    return name


#: Endings of local networks, which nobody can register in the public DNS.
_LOCAL_ENDINGS = ("local", "lan", "home", "home.arpa", "internal", "localdomain")


@functools.lru_cache(maxsize=16)
def local_names(host_name: str, public: str = "") -> frozenset[str]:
    """Return the names, in lower case, by which a machine is called on its own network.

    They are its name, the first part of it, and that with the endings of local networks: `nas`,
    `nas.local`, `nas.lan` and the like.

    :param host_name: what the system calls it; empty where that is not known
    :param public: how devices reach it, where that was set; a name of the public DNS stands for
        itself only
    """
    found = set()
    for name in (host_name, public):
        plain = name.strip().lower().rstrip(".")
        first, dot, rest = plain.partition(".")
        if not first or plain_address(plain):
            continue
        found.add(plain)
        if name is host_name or not dot or rest in _LOCAL_ENDINGS:
            found |= {first, *(f"{first}.{ending}" for ending in _LOCAL_ENDINGS)}
    return frozenset(found)


def own_addresses() -> list[OwnAddress]:
    """Return every address of this machine but loopback's, in no particular order."""
    finders: tuple[Callable[[], Iterable[OwnAddress]], ...] = (
        *((_from_netlink,) if sys.platform == "linux" else ()),
        _from_psutil,
        _from_names,
    )
    for finder in finders:
        try:
            found = [own for own in finder() if _is_of_use(own.address)]
        except Exception:  # psutil and odd kernels fail in ways of their own
            continue
        if found:
            return list(dict.fromkeys(found))
    return []


def lan_addresses() -> list[str]:
    """Return the addresses by which devices may reach this machine, the likeliest first."""
    return ranked(own_addresses(), set(_by_default_route()))


def public_host(bound: str, named: str = "") -> str | None:
    """Return the host by which devices elsewhere reach what is bound to `bound`; None: they do not.

    :param named: the host that the settings name
    """
    if named:
        return named
    if bound not in ("", "0.0.0.0", "::", EVERYWHERE):
        return None if is_loopback(bound) else bound
    found = lan_addresses()
    if bound == "0.0.0.0":
        found = [address for address in found if ":" not in address]
    return next(iter(found), None)


def ranked(found: Iterable[OwnAddress], routed: Collection[str] = ()) -> list[str]:
    """Return addresses, the likeliest first, link-local ones last. Pure.

    :param routed: those that the default routes leave by
    """
    rows = list(found)
    outward = {own.interface for own in rows if own.address in routed}

    def rank(own: OwnAddress) -> tuple[bool, int, bool, bool, int, bool]:
        plain = ipaddress.ip_address(own.address.partition("%")[0])
        kind = (2 if plain.is_link_local else 0) + (plain.version == 6)
        return (
            not own.up,
            kind if kind > 1 else 0,
            bool(_VIRTUAL.match(own.interface)),
            own.interface not in outward,
            kind,
            own.temporary,
        )

    return list(dict.fromkeys(own.address for own in sorted(rows, key=rank)))


def zoned(host: str, interfaces: Collection[str] | None = None) -> str:
    """Return the host as this machine dials it, a link-local address with an interface of its own.

    The zone of a join line names the main node's end of the cable. With one interface here there is
    no question which one is meant. Raises `ValueError` when there are several.
    """
    if not is_link_local(host):
        return host
    address, _, zone = host.partition("%")
    if zone and zone in _interface_names():
        return host
    if interfaces is None:
        interfaces = {own.interface for own in own_addresses() if is_link_local(own.address)}
    if not interfaces or zone in interfaces:
        return host
    if len(interfaces) == 1:
        return f"{address}%{next(iter(interfaces))}"
    raise ValueError(
        f"{host} is a link-local address, and this device has several interfaces"
        f" ({', '.join(sorted(interfaces))}): use another address of the main node, or write"
        f" {address}%INTERFACE"
    )


def _interface_names() -> list[str]:
    with contextlib.suppress(OSError):
        return [word for index, name in socket.if_nameindex() for word in (name, str(index))]
    return []


def _is_of_use(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return not (found.is_loopback or found.is_unspecified or found.is_multicast)


def _by_default_route() -> Iterator[str]:
    for family, address in _ROUTE_TESTS:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            found: str = probe.getsockname()[0]
            if _is_of_use(found):
                yield found


def _from_psutil() -> Iterator[OwnAddress]:
    try:
        import psutil
    except ImportError:
        return
    states = psutil.net_if_stats()
    for interface, rows in psutil.net_if_addrs().items():
        state = states.get(interface)
        for row in rows:
            if row.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            # On Windows psutil names no zone: a link-local address without one reaches nothing.
            if not is_link_local(row.address) or "%" in row.address:
                yield OwnAddress(interface, row.address, state is None or state.isup)


def _from_names() -> Iterator[OwnAddress]:
    for address in _by_default_route():
        yield OwnAddress("", address)
    with contextlib.suppress(OSError, UnicodeError):
        for family, *_, where in socket.getaddrinfo(socket.gethostname(), None):
            if family in (socket.AF_INET, socket.AF_INET6):
                yield OwnAddress("", str(where[0]))


# --- Linux: rtnetlink(7), which needs neither /proc nor privileges -----------------------------

_RTM_GETADDR, _RTM_NEWADDR, _DONE, _ERROR = 22, 20, 3, 2
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_TEMPORARY, _FAILED, _DEPRECATED = 0x01, 0x08, 0x20
_SIOCGIFFLAGS, _UP, _RUNNING = 0x8913, 0x1, 0x40
_MOST_BYTES = 1 << 22


def _from_netlink() -> Iterator[OwnAddress]:
    if sys.platform != "linux":
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(2.0)
        length = _HEADER.size + _IFADDRMSG.size
        netlink.send(
            _HEADER.pack(length, _RTM_GETADDR, _DUMP, 1, 0) + _IFADDRMSG.pack(0, 0, 0, 0, 0)
        )
        taken = 0
        while taken < _MOST_BYTES:
            data = netlink.recv(1 << 16)
            taken += len(data) or _MOST_BYTES
            for kind, body in _messages(data):
                if kind in (_DONE, _ERROR):
                    return
                if kind == _RTM_NEWADDR:
                    yield from _read_address(body)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _read_address(body: bytes) -> Iterator[OwnAddress]:
    family, _, flags, _, index = _IFADDRMSG.unpack_from(body)
    values: dict[int, bytes] = {}
    at = _IFADDRMSG.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        values[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    if len(values.get(_IFA_FLAGS, b"")) == 4:
        flags = int.from_bytes(values[_IFA_FLAGS], sys.byteorder)
    if raw is None or family not in (socket.AF_INET, socket.AF_INET6) or flags & _FAILED:
        return
    address = socket.inet_ntop(family, raw)
    interface = socket.if_indextoname(index)
    if is_link_local(address):
        address = f"{address}%{interface}"
    yield OwnAddress(
        interface, address, _is_up(interface), bool(flags & (_TEMPORARY | _DEPRECATED))
    )


def _is_up(interface: str) -> bool:
    import fcntl

    request: Any = struct.pack("16sH22x", interface.encode(), 0)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_one:
        answer = fcntl.ioctl(any_one.fileno(), _SIOCGIFFLAGS, request)
        flags: int = struct.unpack_from("H", answer, 16)[0]
        return flags & (_UP | _RUNNING) == _UP | _RUNNING
    return True

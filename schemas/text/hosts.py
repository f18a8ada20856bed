"""Read hosts as people write them: alike in every flag, setting, body and join line.

A host is a name (`nas.lan`), an IPv4 address, or an IPv6 address with or without brackets and with
or without the zone that a link-local one needs (`fe80::1%br-lan`). Inside the program it has no
brackets; `bracketed` and `in_url` put them where a port follows.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from retire_cluster.schemas.bounds import MAX_PORT

#: Stands for every address of this machine, IPv4 and IPv6, in settings of what is listened on.
EVERYWHERE: Final = "*"
_UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})
FORM: Final = "a name (nas.lan), an IPv4 address (192.168.1.10) or an IPv6 address (fd00::10)"

_MAX_CHARACTERS: Final = 253
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?\Z")
_ZONE = re.compile(r"[A-Za-z0-9_.\-]{1,32}\Z")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_PORT = re.compile(r"[0-9]{1,5}\Z")


class HostError(ValueError):
    """A text that is no host; the message is one line that shows the right form."""


def read_host(text: str) -> str:
    """Read a host that devices or clients dial, into its plain form. Raises `HostError`."""
    host = read_bound(text)
    if host in _UNSPECIFIED or host == EVERYWHERE:
        raise HostError(f"{host} stands for every address of a machine; write one of them: {FORM}")
    return host


def read_bound(text: str) -> str:
    """Read a host that a socket listens on: also `*`, `0.0.0.0`, `::`. Raises `HostError`."""
    return EVERYWHERE if text.strip() == EVERYWHERE else _read(text)


def read_address(text: str, default_port: int) -> tuple[str, int]:
    """Read `HOST[:PORT]`; an IPv6 address needs brackets where a port follows.

    Raises `HostError`.
    """
    rest = text.strip().removeprefix("tcp://")
    host, port_text, colon = rest, "", ""
    if rest.startswith("["):
        inside, bracket, after = rest[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise HostError(f"{text!r:.120} is no HOST[:PORT], such as [fd00::10]:{default_port}")
        host, colon, port_text = f"[{inside}]", after[:1], after[1:]
    elif rest.count(":") == 1 and not _URL.match(rest):
        host, colon, port_text = rest.partition(":")
    found = read_host(host)
    if not colon:
        return found, default_port
    if not _PORT.match(port_text) or not 1 <= int(port_text) <= MAX_PORT:
        raise HostError(f"{port_text!r:.80} is no port from 1 to {MAX_PORT}")
    return found, int(port_text)


def bracketed(host: str) -> str:
    """Write a host as it stands before `:PORT`."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def in_url(host: str) -> str:
    """Write a host as it stands in a URL, with `%25` before a zone (RFC 6874)."""
    return bracketed(host.replace("%", "%25"))


def is_link_local(host: str) -> bool:
    """Tell whether a host is a link-local IPv6 address, which needs a zone to be dialled."""
    try:
        found = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return False
    return found.is_link_local


def _read(text: str) -> str:
    word = text.strip()
    if not word:
        raise HostError(f"is empty: write {FORM}")
    if _URL.match(word):
        inner = _URL.sub("", word).partition("/")[0].rpartition("@")[2]
        raise HostError(f"{word!r:.120} is a URL{_alone(inner)}")
    host = word
    if word.startswith("[") and word.endswith("]"):
        host = word[1:-1]
        if ":" not in host:
            raise _no_host(word)
    if ":" in host:
        return _read_ipv6(host, word)
    name = host.removesuffix(".")
    labels = name.split(".")
    if labels[-1].isdigit():  # a name cannot end so: it is an IPv4 address or a slip
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise _no_host(word) from None
    if not name.isascii():
        raise HostError(f"{word!r:.120} has letters that a host's name cannot have: write {FORM}")
    if len(name) > _MAX_CHARACTERS or not all(map(_LABEL.match, labels)):
        raise _no_host(word)
    return name


def _read_ipv6(host: str, word: str) -> str:
    address, percent, zone = host.partition("%")
    if re.match("25[^0-9]", zone):  # as URLs write it; Windows calls interfaces by numbers
        zone = zone[2:]
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        before, _, port = word.rpartition(":")
        if _PORT.match(port) and before:
            raise HostError(f"{word!r:.120} has a port{_alone(before)}") from None
        raise _no_host(word) from None
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    if percent and not _ZONE.match(zone):
        raise HostError(f"{word!r:.120}: after % comes the name of a network interface, such as"
                        " fe80::1%eth0")  # fmt: skip
    return f"{found}%{zone}" if percent else str(found)


def _alone(rest: str) -> str:
    """Say which host to write where `rest` holds one, else which forms there are."""
    candidate = rest
    if rest.count(":") == 1 or rest.startswith("["):
        before, _, port = rest.rpartition(":")
        candidate = before if _PORT.match(port) and before else rest
    try:
        return f": write the host alone, {_read(candidate)}"
    except HostError:
        return f": write {FORM}"


def _no_host(word: str) -> HostError:
    return HostError(f"{word!r:.120} is no host: write {FORM}")

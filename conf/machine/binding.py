"""Why a socket could not listen where it was told to, and what to do about it."""

from __future__ import annotations

import errno
import os
import socket

from retire_cluster.conf.machine.addresses import lan_addresses
from retire_cluster.schemas.text.hosts import bracketed

_SHOWN = 6


def _codes(*names: str) -> frozenset[int]:
    """Return error numbers by name; Windows' sockets have numbers of their own."""
    found = (getattr(errno, prefix + name, None) for name in names for prefix in ("E", "WSAE"))
    return frozenset(code for code in found if code is not None)


_IN_USE = _codes("ADDRINUSE")
_NOT_OURS = _codes("ADDRNOTAVAIL", "NODEV", "INVAL", "AFNOSUPPORT", "PROTONOSUPPORT")
_FORBIDDEN = _codes("ACCES", "PERM")


def why_not_listening(host: str, port: int, error: OSError | int, flag: str = "") -> str:
    """Return one line that names the address, what is wrong with it or the port, and the cure.

    :param error: what the system said, or its number
    :param flag: the flag that chooses another port; empty: there is none
    """
    code = error if isinstance(error, int) else error.errno
    other = f"choose another port ({flag} 0: any)".replace("( ", "(")
    where = f"cannot listen on {bracketed(host)}:{port}"
    if isinstance(error, socket.gaierror):
        return f"{where}: {host!r} is no name that this machine knows; {_ours()}"
    if code in _IN_USE:
        return f"{where}: another program uses that port: stop it or {other}"
    if code in _NOT_OURS:
        return f"{where}: {host} is not an address of this machine; {_ours()}"
    if code in _FORBIDDEN:
        low = "ports below 1024 are the system's" if 0 < port < 1024 else "the system forbids it"
        return f"{where}: {low}: {other}"
    told = error.strerror if isinstance(error, OSError) else None
    return f"{where}: {told or os.strerror(code or 0)}"


def _ours() -> str:
    found = ["127.0.0.1", *lan_addresses()]
    more = ", ..." if len(found) > _SHOWN else ""
    return f"it has {', '.join(found[:_SHOWN])}{more}; * is all of them"

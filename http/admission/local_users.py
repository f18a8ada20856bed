"""Tell which user's process is at the other end of a connection of this machine.

Loopback is reached by every user of a machine, and by the tasks of a worker that runs them as
another. So, while authentication is off, an address of this machine opens nothing by itself: the
kernel says whose socket it is (`socket_owner`, else `/proc/self/net/tcp`; Linux). A connection is
looked up once, and only when it asks for more than anybody may.

Where nobody can be asked (other systems, no `/proc`, a WSGI server that does not say which
connection a request came by) all of this machine counts as one user. A connection that the kernel
does not know any more counts as a stranger's: otherwise whoever closes at once after asking could
ask for anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from retire_cluster.api.admission import socket_owner

#: Name in a WSGI environ under which the server leaves its `Connection`.
CONNECTION: Final = "retire_cluster.connection"
_TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_LISTEN: Final = "0A"
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
#: Stands for a user without any rights; no user has this id.
UNKNOWN_USER: Final = -1


class ClientConnection:
    """One connection, by the addresses and ports of its two ends.

    :param peer: the client's address and port
    :param own: our address and port; the address is empty where it is not known
    :param sure: `own` is exact, so that a connection the kernel does not know has been closed
    """

    __slots__ = ("_looked_up", "_own", "_peer", "_sure", "_user")

    def __init__(self, peer: tuple[str, int], own: tuple[str, int], *, sure: bool = True) -> None:
        self._peer = peer
        self._own = own
        self._sure = sure
        self._looked_up = False
        self._user: int | None = None

    def __repr__(self) -> str:
        user = f"user {self._user}" if self._looked_up else "not looked up"
        return f"<ClientConnection {self._peer} to {self._own}, {user}>"

    def user(self) -> int | None:
        """Return the user id of the client's process, looked up once.

        `UNKNOWN_USER` when the connection has been closed, None when the kernel cannot be asked.
        """
        if not self._looked_up:
            self._user = self._look()
            self._looked_up = True
        return self._user

    def _look(self) -> int | None:
        if self._sure and self._own[0]:
            with contextlib.suppress(OSError, ValueError, OverflowError):
                found = socket_owner.find(self._peer, self._own)
                if found is not None and found[1]:
                    return found[0]
        # It is not there, or no process has it any more; the tables say whether they know us.
        return _look_up(self._peer, self._own, _rows(), sure=self._sure)


def connection_of(environ: Mapping[str, Any]) -> ClientConnection | None:
    """Return the connection of a WSGI request; None where the server does not tell."""
    found = environ.get(CONNECTION)
    if isinstance(found, ClientConnection):
        return found
    try:
        peer = str(environ["REMOTE_ADDR"]), int(environ["REMOTE_PORT"])
        return ClientConnection(peer, ("", int(environ["SERVER_PORT"])), sure=False)
    except (KeyError, ValueError):
        return None


class LocalUsers:
    """The users of this machine who may do everything without a key.

    :param own: their user ids; default: this process's own user, and root
    """

    def __init__(self, own: Collection[int] | None = None) -> None:
        effective = getattr(os, "geteuid", lambda: 0)()
        self._own = frozenset((effective, 0) if own is None else own)

    def may(self, connection: ClientConnection | None, *, through_proxy: bool) -> bool:
        """Tell whether a client of this machine is one of them, as far as that can be known.

        A proxy's client is not: the proxy says on which machine it is, and not who.
        """
        if connection is None:
            return True
        user = connection.user()
        return user is None or (user in self._own and not through_proxy)


def _rows() -> Iterator[list[str]]:
    for table in _TABLES:
        try:
            with table.open(encoding="ascii") as lines:
                next(lines, None)
                for line in lines:
                    yield line.split()
        except (OSError, ValueError):
            continue  # no such system, or no IPv6


def _look_up(
    peer: tuple[str, int], own: tuple[str, int], rows: Iterator[list[str]], *, sure: bool
) -> int | None:
    """Find in the kernel's tables the user of the socket from `peer` to `own`, as `user` does."""
    try:
        locals_ = {f"{host}:{peer[1]:04X}" for host in _spellings(peer[0])}
        hosts = _spellings(own[0]) if own[0] else None
    except (OSError, ValueError):
        return None
    port = f"{own[1]:04X}"
    listens = False
    users = set()
    for row in rows:
        if len(row) < 10:
            continue
        local, remote, state = row[1], row[2], row[3]
        remote_host, _, remote_port = remote.partition(":")
        if state == _LISTEN:
            listens = listens or local.partition(":")[2] == port
        elif local in locals_ and remote_port == port and (hosts is None or remote_host in hosts):
            # Without an inode no process has it any more, and the user is not said (proc(5)).
            users.add(int(row[7]) if row[9] != "0" else UNKNOWN_USER)
    if len(users) == 1:
        return users.pop()
    # We listen on that port; a table that does not know it says nothing about others either.
    return UNKNOWN_USER if users or (sure and listens) else None


def _spellings(address: str) -> tuple[str, ...]:
    """Write an address as the kernel's tables do, IPv4 also in its IPv6 form."""
    host = address.partition("%")[0]
    if ":" in host:
        raw = socket.inet_pton(socket.AF_INET6, host)
        plain = raw[12:] if raw.startswith(_MAPPED) else b""
    else:
        plain = socket.inet_pton(socket.AF_INET, host)
        raw = _MAPPED + plain
    return tuple(
        "".join(f"{word:08X}" for word in struct.unpack(f"={len(each) // 4}I", each))
        for each in (plain, raw)
        if each
    )

"""Ports for servers that cannot be given port 0: each is handed out once, to one process."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
from collections.abc import Iterator
from typing import Final

#: Below the range that systems take the ports of outgoing connections from. A process that dials a
#: dead port of that range again and again may end up connected to itself, and then the port's owner
#: cannot have it back; and any connection may take what was free a moment ago.
_FIRST: Final = 15_000
_LAST: Final = 31_000
#: Processes of one run that share the range: a slice for each.
_SLICES: Final = 16


def _order() -> Iterator[int]:
    """Yield the ports of this process's slice in any order: runs may stand side by side."""
    number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % _SLICES
    size = (_LAST - _FIRST) // _SLICES
    ports = list(range(_FIRST + number * size, _FIRST + (number + 1) * size))
    random.SystemRandom().shuffle(ports)
    while True:
        yield from ports


_ports: Final = _order()


def free_port() -> int:
    """Return a port that nobody listens on now, and that no other call in this run is given."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as probe:
            if os.name == "posix":  # elsewhere it would let two servers have one port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")

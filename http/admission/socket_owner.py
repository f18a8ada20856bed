"""Ask the kernel which user owns one TCP socket of this machine (sock_diag(7), Linux).

The tables in /proc hold every socket and are read as a whole: with some thousands of connections
that takes longer than a request.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import Final

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY, _REQUEST, _ERROR = 20, 1, 2
_HEADER: Final = struct.Struct("=IHHII")
#: Family, protocol, extensions, padding, states; ports in network order; addresses; interface,
#: and the cookie of a socket that is looked up by its ends only.
_QUESTION: Final = struct.Struct("=BBBxI2s2s16s16sIII")
_ANY: Final = 0xFFFF_FFFF
#: User id and inode in `struct inet_diag_msg`.
_OWNER: Final = struct.Struct("=II")
_OWNER_AT: Final = _HEADER.size + 64
_MAX_ANSWER_BYTES: Final = 4096


def find(local: tuple[str, int], remote: tuple[str, int]) -> tuple[int, int] | None:
    """Return user id and inode of the socket with these two ends; None when there is none.

    Raises `OSError` where the kernel cannot be asked.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "this system has no sock_diag")
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    ends = [socket.inet_pton(family, host.partition("%")[0]) for host in (local[0], remote[0])]
    body = _QUESTION.pack(
        family, socket.IPPROTO_TCP, 0, _ANY, local[1].to_bytes(2, "big"),
        remote[1].to_bytes(2, "big"), *ends, 0, _ANY, _ANY,
    )  # fmt: skip
    header = _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(header + body)
        answer = kernel.recv(_MAX_ANSWER_BYTES)
    if len(answer) < _HEADER.size + 4:
        raise OSError(errno.EPROTO, "the answer of sock_diag is too short")
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _ERROR:
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if code == errno.ENOENT:
            return None
        raise OSError(code, "sock_diag was refused")
    if kind != _BY_FAMILY or len(answer) < _OWNER_AT + _OWNER.size:
        raise OSError(errno.EPROTO, "the answer of sock_diag is none")
    user, inode = _OWNER.unpack_from(answer, _OWNER_AT)
    return user, inode

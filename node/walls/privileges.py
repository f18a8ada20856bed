"""What root may do that no permission grants: a root's worker's tasks keep less than containers."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from retire_cluster.node.system.process_tree import IS_LINUX

#: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE, SYS_CHROOT,
#: AUDIT_WRITE: what unpacking, installing and changing users need. The others change the machine,
#: raise limits, read the network's traffic (NET_RAW), leave powers in files (SETFCAP), or look into
#: other processes and past the walls around files.
_KEPT = frozenset((0, 1, 3, 4, 5, 6, 7, 10, 18, 29))
_PR_CAPBSET_DROP = 24
_VERSION_3 = 0x20080522
_LAST = Path("/proc/sys/kernel/cap_last_cap")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def give_up() -> None:
    """Give up, for the calling thread and what it starts, all that only root of a host needs.

    Do nothing for others than root. Raises `OSError`.
    """
    if not IS_LINUX or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_last() + 1):
        if number not in _KEPT:
            # Not allowed to who has lost them already.
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), ctypes.byref(sets)):
        raise OSError(ctypes.get_errno(), "capget")
    kept = sum(1 << number for number in _KEPT)
    for index, part in enumerate(sets):
        mask = kept >> (32 * index) & 0xFFFF_FFFF
        part.effective &= mask
        part.permitted &= mask
        part.inheritable &= mask
    if libc.capset(ctypes.byref(header), ctypes.byref(sets)):
        raise OSError(ctypes.get_errno(), "capset")


def _last() -> int:
    try:
        return min(63, int(_LAST.read_text("ascii")))
    except (OSError, ValueError):
        return 40

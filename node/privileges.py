"""What root may do that no file permission grants: tasks of a root's worker keep a container's."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from retire_cluster.node.proctree import IS_LINUX

#: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
#: SYS_CHROOT, AUDIT_WRITE, SETFCAP: the others change the machine, raise limits, or look into
#: other processes and past the walls around files.
_KEPT = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31))
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
    """Gives up, for the calling thread and what it starts, all that only root of a host needs.

    Raises `OSError`. Nothing for others than root.
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

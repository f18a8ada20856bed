"""Which boot of the machine this is: within one, the monotonic clock goes on over processes."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@cache
def boot_id() -> str:
    """Return a text that is the same for all processes of one boot, and never again.

    Where the system has none (only Linux and Android do), it is this process's own.
    """
    try:
        found = _BOOT_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        found = ""
    return found or f"process {secrets.token_hex(8)}"

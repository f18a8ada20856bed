"""How many files (and sockets) a process may have open."""

from __future__ import annotations

import contextlib


def allow(wanted: int) -> int | None:
    """Ask for this many open files; return how many are allowed now, None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
            soft = ceiling
    return None if soft == resource.RLIM_INFINITY else soft

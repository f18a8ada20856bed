"""Which Python this is, as functions that are sent elsewhere name it."""

from __future__ import annotations

import sys


def own_python() -> str:
    """Major and minor version; the bytecode of another implementation is another version."""
    name = "" if sys.implementation.name == "cpython" else sys.implementation.name
    return f"{name}{sys.version_info[0]}.{sys.version_info[1]}"

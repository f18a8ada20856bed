"""How a join string looks, for who hides one before any library is there to read it with. Pure.

`conf/curve.py` writes and reads them.
"""

from __future__ import annotations

from typing import Final

#: What a join string of this version begins with.
PREFIX: Final = "rc1."
#: Fewer characters after the dot are no join string of any version.
_LEAST_CHARACTERS: Final = 60


def looks_like_join(text: str) -> bool:
    """Tell whether a text means to be a join string, of whatever version."""
    head, dot, rest = text.strip().partition(".")
    return bool(dot) and head[:2] == "rc" and head[2:].isdigit() and len(rest) > _LEAST_CHARACTERS

"""The own task types that installed packages offer, as entry points. None of them is imported."""

from __future__ import annotations

import importlib.metadata
from typing import Any, NamedTuple

from retire_cluster.schemas.text.clean_text import clean

GROUP = "retire_cluster.task_types"


class EntryPoint(NamedTuple):
    """What a distribution says it offers."""

    name: str
    #: `module:attribute`.
    value: str
    distribution: str
    #: The distribution's, empty when it tells none.
    version: str = ""


def installed() -> list[EntryPoint]:
    """The entry points of the group, by distribution and name. Imports none of them."""
    found = importlib.metadata.entry_points(group=GROUP)
    points = (EntryPoint(entry.name, entry.value, *_origin(entry.dist)) for entry in found)
    return sorted(set(points), key=lambda point: (point.distribution, point.name, point.value))


def _origin(distribution: Any) -> tuple[str, str]:
    """A distribution's name and version; its metadata may be broken."""
    told = []
    for what in ("name", "version"):
        try:
            told.append(clean(str(getattr(distribution, what) or ""))[:100])
        except Exception:  # a missing file, a missing line: each Python says so in its own way
            told.append("")
    return told[0] or "?", told[1]

"""Describe which output of a task was cut, in one form from the device to the API.

`truncated` is null, or an object with one entry for each part that is not whole:
`{"stdout": {"total_bytes": 1000000, "kept_bytes": 262144, "missing": "middle"}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from retire_cluster.schemas.bounds import MAX_EXACT_INT, is_whole

#: What can be cut.
PARTS: Final = ("stdout", "stderr", "content", "result_data", "logs", "error_traceback")
#: Which piece of it is missing.
MISSING: Final = ("beginning", "middle", "end", "all")


class Cut(NamedTuple):
    """How much of one output is left."""

    #: Bytes that came (of a text: in UTF-8); None when nobody counted to the end.
    total_bytes: int | None
    kept_bytes: int
    #: One of `MISSING`.
    missing: str


def write(cuts: Mapping[str, Cut]) -> dict[str, dict[str, Any]] | None:
    """Return the JSON of these cuts; None when nothing was cut."""
    return {part: cut._asdict() for part, cut in cuts.items()} or None


def read(value: object) -> dict[str, Cut]:
    """Read JSON that somebody sent; leave out what does not fit."""
    found: dict[str, Cut] = {}
    if not isinstance(value, dict):
        return found
    for part in PARTS:
        row = value.get(part)
        if not isinstance(row, dict):
            continue
        total, kept, missing = row.get("total_bytes"), row.get("kept_bytes"), row.get("missing")
        if total is not None and not is_whole(total, 0, MAX_EXACT_INT):
            continue
        if is_whole(kept, 0, MAX_EXACT_INT) and isinstance(missing, str) and missing in MISSING:
            found[part] = Cut(total, kept, missing)
    return found


def words(part: str, cut: Cut) -> str:
    """Return a line for people: `content: 737,856 of 1,000,000 bytes are missing in the middle`."""
    where = {"beginning": "at the beginning", "middle": "in the middle", "end": "at the end"}
    if cut.total_bytes is None:
        return f"{part}: cut after {cut.kept_bytes:,} bytes"
    if cut.missing == "all":
        return f"{part}: all {cut.total_bytes:,} bytes are missing"
    gone = cut.total_bytes - cut.kept_bytes
    line = f"{part}: {gone:,} of {cut.total_bytes:,} bytes are missing {where[cut.missing]}"
    # The owner of the device decides how much of these is kept.
    return f"{line} (policy.output_limit_kb)" if part in ("stdout", "stderr") else line

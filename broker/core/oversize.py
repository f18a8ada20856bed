"""Results and details that are larger than the protocol allows are left out, and marked as cut."""

from __future__ import annotations

from collections.abc import Sequence

from retire_cluster.schemas.protocol.wire import MAX_DETAILS_BYTES, MAX_RESULT_BYTES
from retire_cluster.schemas.text import truncation
from retire_cluster.schemas.text.json_text import JSONError, dumps_clean, loads
from retire_cluster.schemas.text.truncation import Cut

_TEXTS = ("error_traceback", "logs")


def bounded(blobs: Sequence[bytes]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Return results and details as a device sent them, without what is too large."""
    results, details = blobs[::2], blobs[1::2]
    if max(map(len, details), default=0) > MAX_DETAILS_BYTES:
        details = [
            _left_out(b"", "logs", detail) if len(detail) > MAX_DETAILS_BYTES else detail
            for detail in details
        ]
    if max(map(len, results), default=0) > MAX_RESULT_BYTES:
        details = [
            _left_out(detail, "result_data", result) if len(result) > MAX_RESULT_BYTES else detail
            for result, detail in zip(results, details, strict=True)
        ]
        results = [b"" if len(result) > MAX_RESULT_BYTES else result for result in results]
    return results, details


def _left_out(details: bytes, part: str, blob: bytes) -> bytes:
    """Return details that say that a part is missing, and how large it was."""
    try:
        found = loads(details or b"{}")
    except JSONError:
        found = {}
    if not isinstance(found, dict):
        found = {}
    kept = {name: found[name] for name in _TEXTS if isinstance(found.get(name), str)}
    cuts = truncation.read(found.get("truncated"))
    cuts[part] = Cut(len(blob), 0, "all")
    return dumps_clean({**kept, "truncated": truncation.write(cuts)})

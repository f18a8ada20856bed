"""Limit the size of requests' bodies."""

from __future__ import annotations

from retire_cluster.schemas.errors import PayloadTooLarge
from retire_cluster.schemas.vocabulary import API

MAX_BODY_BYTES = 1024 * 1024
#: For a batch of whoever may submit by a right of his own; strangers' are as small as any body.
MAX_BATCH_BYTES = 16 * 1024 * 1024
BATCH_PATH = f"{API}/tasks/batch"


def body_limit(path: str) -> int:
    """Return how many bytes a body sent to `path` may have."""
    return MAX_BATCH_BYTES if path.rstrip("/") == BATCH_PATH else MAX_BODY_BYTES


def too_large(limit: int, *, stranger: bool = False) -> PayloadTooLarge:
    """Return the error for a body above its limit; `stranger`: a key would allow more."""
    cure = (
        " without an API key that may submit; send one (X-API-Key: KEY; without authentication:"
        " submit on the main node's machine), or several smaller batches"
        if stranger
        else ""
    )
    return PayloadTooLarge(
        f"The body must not be larger than {limit} bytes{cure}", details={"limit_bytes": limit}
    )

"""Standard input as a verb reads it whole."""

from __future__ import annotations

import sys

from retire_cluster.cli import streams
from retire_cluster.cli.payloads import why
from retire_cluster.schemas.errors import ValidationError


def read_whole(field: str) -> str:
    """Read all of standard input. Raises `ValidationError` that names `field`."""
    if streams.was_closed("stdin"):
        raise ValidationError(
            field, "standard input is closed (<&-); pipe something in, or name a file"
        )
    try:
        return sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(field, f"standard input cannot be read: {why(error)}") from None

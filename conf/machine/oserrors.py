"""What the system refused, with the path that it refused."""

from __future__ import annotations

import os


def naming(error: OSError, path: str | os.PathLike[str]) -> str:
    """Return `/the/file: Permission denied`, with the path that the system named, else `path`.

    Python names none where it has but a descriptor: a full disk, a broken one.
    """
    named = error.filename if isinstance(error.filename, str) else os.fspath(path)
    return f"{named}: {error.strerror or error}"

"""The user's home folder, and paths that begin with `~`.

A user id that no database knows, without HOME (a container, a service), has none: Python then
leaves the `~` where it is, and keys would go into a folder of that name. Here that is an error.
"""

from __future__ import annotations

import ntpath
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path


def home_folder(platform: str, environ: Mapping[str, str]) -> Path | None:
    """Return this user's home folder, None when it has none; a relative path counts as none."""
    isabs = ntpath.isabs if platform == "win32" else posixpath.isabs
    for found in (environ.get("HOME"), environ.get("USERPROFILE"), os.path.expanduser("~")):
        if found and (isabs(found) or os.path.isabs(found)):
            return Path(found)
    return None


def expanded(path: str) -> str:
    """Return the path with its leading `~` or `~USER` replaced.

    Raises `LookupError` with the text for a person where that user has no home.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        who = (
            "this user"
            if path[1:2] in ("", "/", os.sep)
            else f"user {path[1:].split('/')[0]!r:.60}"
        )
        raise LookupError(f"{path!r:.200}: {who} has no home folder here; write the whole path")
    return found

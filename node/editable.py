"""The files of a package that is installed in place (`pip install -e`): its code changes there.

Its metadata says nothing of that: whoever works on own task types saves a file and runs a task.
"""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Final

#: Of one package; what lies beyond is not looked at.
MAX_FILES: Final = 500
_MAX_DEPTH: Final = 6
_MAX_BYTES: Final = 64 * 1024


def sources(info: str) -> list[str]:
    """The Python files of the package with this metadata folder; none of one that was copied."""
    root = _root(os.path.join(info, "direct_url.json"))
    if not root:
        return []
    found: list[str] = []
    for folder in (root, os.path.join(root, "src")):
        for path in _modules(folder, 0):
            if len(found) >= MAX_FILES:
                return found
            found.append(path)
    return found


def _root(path: str) -> str:
    try:
        with open(path, "rb") as file:
            told = json.loads(file.read(_MAX_BYTES))
        if told["dir_info"]["editable"] is not True:
            return ""
        address = urllib.parse.urlsplit(told["url"])
        return urllib.request.url2pathname(address.path) if address.scheme == "file" else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def _modules(folder: str, depth: int) -> Iterator[str]:
    """Python files here, and in the packages here."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in entries:
        if entry.name.endswith(".py"):
            yield entry.path
        elif depth < _MAX_DEPTH and os.path.exists(os.path.join(entry.path, "__init__.py")):
            yield from _modules(entry.path, depth + 1)

"""The files of a package that is installed in place (`pip install -e`): its code changes there.

Its metadata says nothing of that: whoever works on own task types saves a file and runs a task.
"""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Final

#: Of one package; what lies beyond is not looked at.
MAX_FILES: Final = 500
_MAX_DEPTH: Final = 6
_MAX_BYTES: Final = 64 * 1024
_MAX_ENTRY_BYTES: Final = 256 * 1024
_INFO: Final = (".dist-info", ".egg-info")


def metadata(folders: Iterable[str], group: str) -> Iterator[str]:
    """The metadata folders, in these, of packages with entry points of a group."""
    for folder in dict.fromkeys(folders):
        try:
            names = sorted(name for name in os.listdir(folder or ".") if name.endswith(_INFO))
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder or ".", name)
            if _mentions(os.path.join(path, "entry_points.txt"), group):
                yield path


def roots(folders: Iterable[str], group: str) -> list[str]:
    """Where the packages with entry points of a group lie that are installed in place."""
    found = (_root(os.path.join(info, "direct_url.json")) for info in metadata(folders, group))
    return [root for root in found if os.path.isabs(root)]


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


def _mentions(path: str, group: str) -> bool:
    try:
        with open(path, "rb") as file:
            return group.encode() in file.read(_MAX_ENTRY_BYTES)
    except OSError:
        return False


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

"""Notices that a package with own task types was installed, replaced or removed.

Whoever runs `pip install -U` does not think of the worker: without a restart some of its tasks
would run the old version and some the new one. A look costs a few stat(2); only when one of them
differs are the packages read. What differs is believed once it stands still: pip needs a while, and
between two of its steps a package is not there.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from retire_cluster.node import editable
from retire_cluster.node.describing import OwnTypes
from retire_cluster.node.tasks import custom
from retire_cluster.node.tasks.custom import EntryPoint

log = logging.getLogger("retire_cluster.node")

#: Between two looks.
LOOK_SECONDS = 2.0
_INFO = (".dist-info", ".egg-info")
#: What an installer writes anew.
_FILES = ("", "METADATA", "PKG-INFO", "RECORD", "entry_points.txt")
_MAX_BYTES = 256 * 1024

_Stamp = tuple[int, int, int] | None


class _State(NamedTuple):
    """What is installed."""

    points: list[EntryPoint]
    #: Of the metadata of every package with own types, by path.
    stamps: dict[str, _Stamp]


class Installed:
    """What packages with own types are there, as far as this worker has taken note."""

    def __init__(self) -> None:
        """Takes what is there now as known."""
        self._folders = _stamps(sys.path)
        self._known = self._last = _read()

    def change(self) -> str:
        """What changed since, in words; empty when nothing did. For every `LOOK_SECONDS`."""
        folders = _stamps(sys.path)
        if folders == self._folders and _stamps(self._last.stamps) == self._last.stamps:
            still = True
        else:
            self._folders = folders
            found = _read()
            still = found == self._last
            self._last = found
        if not still or self._last == self._known:
            return ""
        before, self._known = self._known, self._last
        return _told(before.points, self._known.points)


class Watcher(threading.Thread):
    """Looks while the worker works, and describes what is new."""

    def __init__(
        self,
        installed: Installed,
        describe: Callable[[], OwnTypes],
        post: Callable[[OwnTypes, str], None],
    ) -> None:
        """`post` is called from this thread, with the types and what changed."""
        super().__init__(name="installed", daemon=True)
        self._installed = installed
        self._describe = describe
        self._post = post
        self._over = threading.Event()

    def run(self) -> None:
        """Until closed."""
        while not self._over.wait(LOOK_SECONDS):
            try:
                change = self._installed.change()
                if change:
                    self._post(self._describe(), change)
            except Exception:
                # Tasks go on with the types that are known.
                log.exception("the packages with own task types could not be looked at")

    def close(self) -> None:
        """Looks no more; does not wait for a description that is under way."""
        self._over.set()


def _read() -> _State:
    importlib.invalidate_caches()
    stamps: dict[str, _Stamp] = {}
    for folder in dict.fromkeys(sys.path):
        try:
            names = sorted(name for name in os.listdir(folder or ".") if name.endswith(_INFO))
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder or ".", name)
            if _has_types(os.path.join(path, "entry_points.txt")):
                stamps.update(_stamps(os.path.join(path, file) for file in _FILES))
                stamps.update(_stamps(editable.sources(path)))
    try:
        return _State(custom.installed(), stamps)
    except Exception:  # in the middle of an installation anything may be missing
        return _State([], stamps)


def _has_types(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return custom.GROUP.encode() in file.read(_MAX_BYTES)
    except OSError:
        return False


def _stamps(paths: Iterable[str]) -> dict[str, _Stamp]:
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path or ".")
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _told(before: list[EntryPoint], after: list[EntryPoint]) -> str:
    """What is another now, in words: `shop 1.0 is 1.1 now, tools 3 is gone`."""
    was = {point.distribution: point.version for point in before}
    now = {point.distribution: point.version for point in after}
    parts = []
    for name in sorted({*was, *now}):
        if name not in now:
            parts.append(f"{name} {was[name]} is gone")
        elif name not in was:
            parts.append(f"{name} {now[name]} is new")
        elif was[name] != now[name]:
            parts.append(f"{name} {was[name]} is {now[name]} now")
    return ", ".join(parts) or "the same versions with other files"

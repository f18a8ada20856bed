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
from collections.abc import Callable, Container, Iterable, Set
from typing import NamedTuple

from retire_cluster.node.device import editable_installs, entry_points
from retire_cluster.node.device.entry_points import EntryPoint
from retire_cluster.node.running.description import OwnTypes

log = logging.getLogger("retire_cluster.node")

#: Between two looks.
LOOK_SECONDS = 2.0
#: What an installer writes anew.
_FILES = ("", "METADATA", "PKG-INFO", "RECORD", "entry_points.txt")

_Stamp = tuple[int, int, int] | None


class _State(NamedTuple):
    """What is installed."""

    points: list[EntryPoint]
    #: Of the metadata of every package with own types, by path.
    stamps: dict[str, _Stamp]


class Installed:
    """What packages with own types are there, as far as this worker has taken note."""

    def __init__(self) -> None:
        """Take what is there now as known."""
        self._folders = _stamps(sys.path)
        self._known = self._before = self._last = _read()

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
        self._before, self._known = self._known, self._last
        return _told(self._before.points, self._known.points)

    def last_change(self, offered: Container[str]) -> str:
        """What `change` told last, but for what is there and is none of these distributions."""
        names = {point.distribution for point in self._known.points}
        idle = {name for name in names if name not in offered}
        return _told(self._before.points, self._known.points, idle)


class PackageWatcher(threading.Thread):
    """Looks while the worker works, and describes what is new."""

    def __init__(
        self,
        installed: Installed,
        describe: Callable[[], OwnTypes],
        post: Callable[[OwnTypes, str], None],
    ) -> None:
        """Take what to look at and whom to tell.

        :param describe: finds the own types of now
        :param post: called from this thread, with the types and what changed of those
        """
        super().__init__(name="installed", daemon=True)
        self._installed = installed
        self._describe = describe
        self._post = post
        self._over = threading.Event()

    def run(self) -> None:
        """Look until closed."""
        while not self._over.wait(LOOK_SECONDS):
            try:
                if self._installed.change():
                    own = self._describe()
                    offered = {kind.info.distribution for kind in own.types}
                    self._post(own, self._installed.last_change(offered))
            except Exception:
                # Tasks go on with the types that are known.
                log.exception("the packages with own task types could not be looked at")

    def close(self) -> None:
        """Look no more; do not wait for a description that is under way."""
        self._over.set()


def _read() -> _State:
    importlib.invalidate_caches()
    stamps: dict[str, _Stamp] = {}
    for path in editable_installs.metadata(sys.path, entry_points.GROUP):
        stamps.update(_stamps(os.path.join(path, file) for file in _FILES))
        stamps.update(_stamps(editable_installs.sources(path)))
    try:
        return _State(entry_points.installed(), stamps)
    except Exception:  # in the middle of an installation anything may be missing
        return _State([], stamps)


def _stamps(paths: Iterable[str]) -> dict[str, _Stamp]:
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path or ".")
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _told(before: list[EntryPoint], after: list[EntryPoint], idle: Set[str] = frozenset()) -> str:
    """What is another now, in words: `shop 1.0 is 1.1 now, tools 3 is gone`.

    :param idle: distributions of which nothing is offered
    """
    was = {point.distribution: point.version for point in before}
    now = {point.distribution: point.version for point in after}
    parts = []
    for name in sorted({*was, *now} - idle):
        if name not in now:
            parts.append(f"{name} {was[name]} is gone")
        elif name not in was:
            parts.append(f"{name} {now[name]} is new")
        elif was[name] != now[name]:
            parts.append(f"{name} {was[name]} is {now[name]} now")
    if not parts and idle and idle >= now.keys():
        return ""
    return ", ".join(parts) or "the same versions with other files"

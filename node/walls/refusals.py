"""Whether a wall may be why a program was refused a file, by the path in what it said of it.

A file's own modes refuse too, and no setting of ours opens what they close.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from retire_cluster.node.walls.landlock import READ, WRITE, Rule
from retire_cluster.node.walls.paths import is_below

#: What programs say of a file that is not theirs to use.
REFUSED = ("permission denied", "read-only file system", "operation not permitted")
WALL, OURS, NEITHER = "wall", "ours", ""
_QUOTED = re.compile(r"'([^']+)'|\"([^\"]+)\"|\u2018([^\u2019]+)\u2019")
_WHOLE = re.compile(r"(?<![\w.~-])/[^\s'\":,;\u2018\u2019]+")
#: `cat: `, `/bin/sh: 1: `, `bash: line 1: `: who says it.
_WHO = re.compile(r"^[^\s'\"]+: (?:(?:line )?\d+: )?")
#: The kernel's, where other rules hold than those of files.
_NO_FILES = ("/proc", "/sys")
_MAX_LINES = 200


def judge(said: str, rules: Iterable[Rule], ours: Sequence[str], folder: str) -> str:
    """`WALL`, `OURS` for files of the worker itself, or `NEITHER`.

    A line that names no file counts as a wall's.

    :param rules: those of the task, its own folder among them
    :param folder: that relative names begin in
    """
    opened = tuple(rules)
    found = set()
    for line in said.splitlines()[-_MAX_LINES:]:
        if any(words in line.lower() for words in REFUSED):
            names = [path for name in _names(line) if (path := _place(name, folder))]
            found |= {_of(path, opened, ours) for path in names} or {WALL}
    return WALL if WALL in found else OURS if OURS in found else NEITHER


def _names(line: str) -> list[str]:
    """The names of files in a line."""
    rest = _WHO.sub("", line, count=1)
    quoted = ["".join(parts) for parts in _QUOTED.findall(rest)]
    whole = quoted or _WHOLE.findall(rest)
    return whole or [rest.rpartition(": ")[0]]


def _place(name: str, folder: str) -> str:
    """Where a name leads; empty for a relative one that is not there."""
    if not name or "\0" in name:
        return ""
    path = os.path.join(folder, name)
    if not os.path.isabs(name) and not os.path.lexists(path):
        return ""
    return os.path.realpath(path)


def _of(path: str, rules: Sequence[Rule], ours: Sequence[str]) -> str:
    allowed = 0
    for rule in rules:
        if is_below(path, rule.path):
            allowed |= rule.allowed
    if allowed & WRITE == WRITE or any(is_below(path, place) for place in _NO_FILES):
        return NEITHER
    there = os.path.lexists(path)
    may_write = os.access(path if there else os.path.dirname(path), os.W_OK)
    if not may_write and (allowed & READ == READ or not (there and os.access(path, os.R_OK))):
        return NEITHER
    return OURS if any(is_below(path, place) for place in ours) else WALL

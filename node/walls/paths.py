"""Where paths lead, and what programs on `PATH` need beside the folder that they are in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_MAX_LINKS = 40
#: What programs in `X/bin` need of X.
_BESIDE = ("lib", "lib64", "libexec", "share")
#: In a user's `~/.local/share` lie keys and letters; these installers put programs there.
_INSTALLED = ("pipx/venvs", "uv/tools", "uv/python")
#: Of an environment or interpreter that is in a folder with other things.
_OF_PREFIX = ("bin", "include", "lib", "lib64", "pyvenv.cfg")
_MAX_BYTES = 64 * 1024


def is_below(path: str, folder: str) -> bool:
    """Whether a whole path is a folder, or in it; no link is followed."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def leads_through(path: str, folders: Sequence[str]) -> bool:
    """Whether a whole path, or a link on its way, is in one of these folders.

    Who may change those decides where it leads.
    """
    way = [name for name in reversed(os.path.abspath(path).split(os.sep)) if name]
    here, links = os.sep, 0
    while way:
        name = way.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        here = os.path.join(here, name)
        if any(is_below(here, folder) for folder in folders):
            return True
        try:
            target = os.readlink(here)
        except (OSError, ValueError):
            continue
        links += 1
        if links > _MAX_LINKS:
            return True
        here = os.sep if os.path.isabs(target) else os.path.dirname(here)
        way += [each for each in reversed(target.split(os.sep)) if each not in ("", ".")]
    return False


def homes(environ: Mapping[str, str]) -> list[str]:
    """This user's home folder and all above it, by their real paths: nothing opens one of them."""
    named = [environ.get("HOME", "")]
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        named.append(pwd.getpwuid(os.geteuid()).pw_dir)
    found = [Path(os.path.realpath(path)) for path in named if os.path.isabs(path)]
    return list(dict.fromkeys(str(each) for path in found for each in (path, *path.parents)))


def of_prefix(prefix: str, homes: Sequence[str]) -> list[str]:
    """A Python's prefix; of one that is a home folder, or holds one, what is Python's in it."""
    if os.path.realpath(prefix) not in homes:
        return [prefix]
    return [path for name in _OF_PREFIX if os.path.exists(path := os.path.join(prefix, name))]


def of_programs(
    environ: Mapping[str, str], homes: Sequence[str], changeable: Sequence[str]
) -> Iterator[str]:
    """The folders of `PATH`, and what is needed beside them by what they hold.

    :param changeable: what tasks may change, and so cannot be asked
    """
    for folder in environ.get("PATH", "").split(os.pathsep):
        if not os.path.isabs(folder) or os.path.realpath(folder) in homes:
            continue
        if leads_through(folder, changeable):
            continue
        yield folder
        for path in _beside(os.path.normpath(folder), homes, changeable):
            if os.path.exists(path) and os.path.realpath(path) not in homes:
                yield path


def _beside(folder: str, homes: Sequence[str], changeable: Sequence[str]) -> Iterator[str]:
    parent, name = os.path.split(folder)
    if os.path.realpath(parent) in homes:
        return
    if name == "shims":
        # Of pyenv, rbenv and their like: they look up which version is meant, and run it.
        yield parent
    elif name in ("bin", "sbin"):
        told = os.path.join(parent, "pyvenv.cfg")
        if os.path.isfile(told) and not leads_through(told, changeable):
            yield parent
            yield from _interpreter(told)
        elif os.path.basename(parent) == ".local":
            yield os.path.join(parent, "lib")
            yield from (os.path.join(parent, "share", each) for each in _INSTALLED)
        else:
            yield from (os.path.join(parent, each) for each in _BESIDE)


def _interpreter(told: str) -> Iterator[str]:
    """The prefix of the Python that an environment was made with."""
    with contextlib.suppress(OSError, UnicodeError), open(told, encoding="utf-8") as file:
        for line in file.read(_MAX_BYTES).splitlines():
            key, _, value = line.partition("=")
            value = value.strip()
            if key.strip() == "home" and os.path.isabs(value) and os.path.basename(value) == "bin":
                yield os.path.dirname(value)

"""Whose a folder or file is: one that somebody else made is not believed.

Whoever owns a data folder before its program is first started in it chose what is there: keys that
he knows, API keys of his own, a store. Modes do not show that, so the owner is looked at as well.
What root owns is good for everybody, for root could change everything anyway; but root itself does
not take over what another user planted.

Modes that are wrong on what is ours are mended instead: a task that runs as the same user can
change them even behind walls (Landlock has no right for that), and a refusal would end the cluster
for good. Whoever could read a key meanwhile may have it, which is told. Windows has its own rights:
nothing is looked at there.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

#: What only a folder has that was a data folder before: these are never made by others.
_USED = (Path("keys", "main.key"), Path("device.key"), Path("api-keys.json"), Path("cluster.db"))
_INNER = ("keys", "run")
_MOST_ENTRIES = 10_000
_log = logging.getLogger("files")


class Foreign(ValueError):
    """A folder or file belongs to somebody else; the text is one line with the cure."""


def check_owner(path: Path, found: os.stat_result) -> None:
    """Raise `Foreign` for what belongs neither to this user nor to root."""
    if os.name != "posix" or found.st_uid in (os.geteuid(), 0):
        return
    owner = _name(found.st_uid)
    me = _name(os.geteuid())
    raise Foreign(
        f"{path} belongs to {owner}, who may have chosen what is in it, and this runs as {me}: run"
        f" it as {owner}, or, if you know what is in it, take it over: chown -R {me} {path}"
    )


def check_folder(folder: Path) -> None:
    """Raise `Foreign` for a data folder of somebody else, or one that everybody may write to.

    One that is not there yet is fine. One of ours that was used before and that nobody else has put
    anything into is closed again, with a warning; so is what in it has lost its owner's rights.
    """
    try:
        found = folder.stat()
    except OSError:
        return  # whoever wants to use it is told
    check_owner(folder, found)
    if os.name != "posix":
        return
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == os.geteuid():
        if mode & 0o700 != 0o700 and (mode & 0o500 != 0o500 or _is_used(folder)):
            mode = _mend(folder, mode, mode | 0o700)
        if mode & 0o002 and _is_used(folder):
            _check_entries(folder)
            mode = _mend(folder, mode, 0o700)
        _mend_inside(folder)
    if mode & 0o002:
        raise Foreign(
            f"everybody on this machine may put files into the data folder {folder}; run: chmod"
            f" o-w {folder} (or name a folder of your own by --data-dir)"
        )


def mend_key(path: Path, found: os.stat_result) -> bool:
    """Make a key file of ours readable and writable by its owner alone; return whether it is now.

    The warning says what to do about a copy that somebody may have.
    """
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
        return False
    again = " and every device joined anew by a new line" if path.name == "main.key" else ""
    again = " and the device joined anew by a new line" if path.name == "device.key" else again
    copied = (
        f": whoever else is on this machine may have read it or changed it; to replace it, stop"
        f" what uses it, delete the file and start again; a new one is made{again}"
    )
    return _mend(path, mode, 0o600, copied if mode & 0o077 else "") == 0o600


def _is_used(folder: Path) -> bool:
    for name in _USED:
        try:
            if (folder / name).lstat().st_uid == os.geteuid():
                return True
        except PermissionError:  # of `keys`: who but us would keep us from our own folder
            return True
        except OSError:
            continue
    return False


def _check_entries(folder: Path) -> None:
    """Raise `Foreign` when something in a folder, or in `keys` and `run`, is another user's."""
    for place in (folder, *(folder / name for name in _INNER)):
        for entry in _entries(place):
            owner = entry.stat(follow_symlinks=False).st_uid
            if owner not in (os.geteuid(), 0):
                raise Foreign(
                    f"everybody on this machine could put files into the data folder {folder}, and"
                    f" {entry.path} belongs to {_name(owner)}: remove it, then run: chmod 700"
                    f" {folder}"
                )


def _mend_inside(folder: Path) -> None:
    """Give back what a task of the same user took from files and folders that are ours."""
    for place in (folder, *(folder / name for name in _INNER)):
        for entry in _entries(place):
            found = entry.stat(follow_symlinks=False)
            mode = stat.S_IMODE(found.st_mode)
            if found.st_uid != os.geteuid():
                continue
            if stat.S_ISREG(found.st_mode) and not mode & 0o400:
                _mend(Path(entry.path), mode, mode | 0o600)
            inner = place == folder and entry.name in _INNER and stat.S_ISDIR(found.st_mode)
            if inner and (mode & 0o700 != 0o700 or mode & 0o022):
                _mend(Path(entry.path), mode, 0o700)


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as found:
            return [entry for entry, _ in zip(found, range(_MOST_ENTRIES), strict=False)]
    except OSError:
        return []


def _mend(path: Path, mode: int, wanted: int, more: str = "") -> int:
    """Change a mode, with a warning; return the mode that the file has then."""
    try:
        path.chmod(wanted)
        now = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return mode
    if now == wanted:
        _log.warning("%s had the mode %04o and has %04o again%s", path, mode, wanted, more)
    return now


def _name(uid: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)

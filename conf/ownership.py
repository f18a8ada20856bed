"""Whose a folder or file is: one that somebody else made is not believed.

Whoever owns a data folder before its program is first started in it chose what is there: keys that
he knows, API keys of his own, a store. Modes do not show that, so the owner is looked at as well.
What root owns is good for everybody, for root could change everything anyway; but root itself does
not take over what another user planted. Windows has its own rights: nothing is looked at there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class Foreign(ValueError):
    """A folder or file belongs to somebody else; the text is one line with the cure."""


def check_owner(path: Path, found: os.stat_result) -> None:
    """Raises `Foreign` for what belongs neither to this user nor to root."""
    if os.name != "posix" or found.st_uid in (os.geteuid(), 0):
        return
    owner = _name(found.st_uid)
    me = _name(os.geteuid())
    raise Foreign(
        f"{path} belongs to {owner}, who may have chosen what is in it, and this runs as {me}: run"
        f" it as {owner}, or, if you know what is in it, take it over: chown -R {me} {path}"
    )


def check_folder(folder: Path) -> None:
    """Raises `Foreign` for a data folder of somebody else, or one that everybody may write to.

    One that is not there yet is fine.
    """
    try:
        found = folder.stat()
    except OSError:
        return  # whoever wants to use it is told
    check_owner(folder, found)
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o002:
        raise Foreign(
            f"everybody on this machine may put files into the data folder {folder}; run: chmod"
            f" o-w {folder} (or name a folder of your own by --data-dir)"
        )


def _name(uid: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)

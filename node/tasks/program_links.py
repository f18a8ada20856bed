"""Where a program leads that is only a link on the device's search path."""

from __future__ import annotations

import os

from retire_cluster.node.walls import enforcement


def leads_elsewhere(program: str, search_path: str) -> str:
    """What to add to the error of a program that could not be started; empty when it is no link.

    :param search_path: `PATH` of the worker: what is in other folders is nobody's to be told
    """
    folders = [folder for folder in search_path.split(os.pathsep) if os.path.isabs(folder)]
    if os.path.dirname(program):
        folders = [os.path.dirname(program)] if os.path.dirname(program) in folders else []
    for folder in folders:
        link = os.path.join(folder, os.path.basename(program))
        if not os.path.lexists(link):
            continue
        if not os.path.islink(link):
            return ""
        target = os.path.realpath(link)
        words = f": {link} is a link to {target}"
        present = os.path.exists(target)
        if not enforcement.current.files or (present and not os.access(target, os.X_OK)):
            return words
        # In bubblewrap it is not there for this process either.
        where = "where tasks do not reach" if present else "which tasks do not see, if it is there"
        return (
            f"{words}, {where}: this device's owner opens it by policy.folders with"
            f" {os.path.dirname(target)}, or the folder that the program is installed in"
        )
    return ""

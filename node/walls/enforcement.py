"""The walls of a task, put up in its own process or in the thread that starts its program.

The worker decides on them once (confinement.py) and tells each task process. What runs nothing of
its submitter's code (`python_eval`, `http_request`) needs none and pays for none.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from retire_cluster.node.walls import landlock, privileges, refusals
from retire_cluster.node.walls.landlock import Rule

T = TypeVar("T")

#: In the environment of a task process, as JSON, in as many parts as it takes: an owner may open a
#: folder that has thousands of others in it, and Linux takes 128 KiB for a variable.
VARIABLE = "RC_WALLS"
_PART_CHARACTERS = 100_000
_NOT_MOVED = "cross-device link"
_CLOSED = (
    "; tasks reach system folders and their own only ({}): this device's owner opens others by"
    " policy.folders (in the worker's settings file, or RETIRE_CLUSTER_POLICY_FOLDERS), or all by"
    " policy.sandbox = none"
)


@dataclass(frozen=True)
class Walls:
    """What a task of this worker is kept from."""

    #: Landlock's; none: it is not used.
    rules: tuple[Rule, ...] = ()
    #: Whether tasks may use TCP.
    network: bool = True
    #: For people; empty: no wall around files.
    files: str = ""
    #: Folders that no setting opens: the worker's.
    ours: tuple[str, ...] = ()

    def write(self) -> str:
        """These walls as text, for a task process."""
        rules = [[rule.path, rule.allowed] for rule in self.rules]
        return json.dumps({**vars(self), "rules": rules})

    def variables(self) -> dict[str, str]:
        """These walls as variables of a task process's environment."""
        text = self.write()
        starts = range(0, len(text), _PART_CHARACTERS)
        return {
            _variable(number): text[start : start + _PART_CHARACTERS]
            for number, start in enumerate(starts)
        }

    @classmethod
    def read(cls, text: str) -> Walls:
        """The walls in a text of `write`; none in an empty one."""
        if not text:
            return cls()
        found: dict[str, Any] = json.loads(text)
        found["rules"] = tuple(Rule(str(path), int(allowed)) for path, allowed in found["rules"])
        found["ours"] = tuple(map(str, found.get("ours", ())))
        return cls(**found)


#: Those of the tasks of this process.
current = Walls()
_scratch = ""


def learn(scratch: str) -> None:
    """Take what the worker has put into the environment, where tasks would see it.

    :param scratch: the folder that the tasks of this process have theirs in
    """
    global current, _scratch
    parts: list[str] = []
    while (part := os.environ.pop(_variable(len(parts)), None)) is not None:
        parts.append(part)
    current, _scratch = Walls.read("".join(parts)), scratch


def _variable(number: int) -> str:
    return f"{VARIABLE}_{number}" if number else VARIABLE


def enter(folder: str = "") -> None:
    """Put the walls up around the calling thread: for good, and for all that it starts.

    Raises `OSError` where they cannot be; nothing of a task may run then.

    :param folder: the task's own; without one that of all tasks of this process, for what runs
        before them: its temporary files go there
    """
    if current.files and not folder:
        os.environ["TMPDIR"] = _scratch
    if current.rules:
        own = Rule(folder or _scratch, landlock.WRITE)
        privileges.give_up()
        landlock.restrict((*current.rules, own), network=current.network)


def start(function: Callable[[], T], folder: str) -> T:
    """Call a function that starts a program, so that the program has the walls around it."""
    if not current.rules:
        return function()
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            enter(folder)
            found.append(function())
        except BaseException as error:  # handed to the thread that waits as it is
            failed.append(error)

    thread = threading.Thread(target=work, name="walled")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def hint(said: str, folder: str = "") -> str:
    """What to add to an error that a wall may be the reason of: how the owner opens it.

    :param folder: that names in it begin in; empty: the one that this process is in
    """
    if current.rules and _NOT_MOVED in said.lower() and landlock.abi() < landlock.MOVE_ABI:
        return (
            "; behind Landlock a kernel before Linux 5.19 moves and links no file from one folder"
            " to another: copy it, or this device's owner sets policy.sandbox = none"
        )
    if not current.files or not any(words in said.lower() for words in refusals.REFUSED):
        return ""
    # Bubblewrap's, which hides from us what the modes are.
    if current.rules and "read-only file system" not in said.lower():
        own = Rule(os.path.realpath(_scratch), landlock.WRITE)
        place = os.path.join(os.getcwd(), folder)
        found = refusals.judge(said, (*current.rules, own), current.ours, place)
        if found == refusals.OURS:
            return f"; no task reaches the worker's own files ({current.files})"
        if found == refusals.NEITHER:
            return ""
    return _CLOSED.format(current.files)


def hint_at(place: str) -> str:
    """What to add to an error whose reason is that a task may not look into a folder."""
    if not current.files or not place:
        return ""
    return f"; {place!r:.300} is not open to it{_CLOSED.format(current.files)}"

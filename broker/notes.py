"""What is noted of a device and a kind of task: records only, the rules are in passing_over.py
(who is left out, and for how long) and standing.py (who fails what others do).
"""

from __future__ import annotations

from typing import NamedTuple

from retire_cluster.schemas import needs


class Kind(NamedTuple):
    """Tasks that a device may be passed over for."""

    task_type: str
    #: What their payload needs (`schemas.needs`); empty: all tasks of the type.
    needs: str

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.task_type} ({needs.in_words(self.needs)})" if self.needs else self.task_type


class Note:
    """A device is passed over for a kind of task until a time (passing_over.py)."""

    __slots__ = ("active", "cause", "message", "seconds", "since_mono", "times", "until_mono")

    def __init__(
        self, cause: str, message: str, since_mono: float, seconds: float, times: int
    ) -> None:
        #: `not_here`, `policy_denied`, or `failing`.
        self.cause = cause
        #: As the device said it, or what was seen of it.
        self.message = message
        self.since_mono = since_mono
        self.seconds = seconds
        self.until_mono = since_mono + seconds
        #: How often in a row; each time lasts longer.
        self.times = times
        #: Over: kept only so that a next time lasts longer.
        self.active = True

    @property
    def words(self) -> str:
        """Why it is passed over, for people."""
        return self.message


class Record:
    """How a device does with a kind of task since it last did one well (standing.py)."""

    __slots__ = ("bad", "others_bad", "others_ok", "tasks")

    def __init__(self, others_ok: int, others_bad: int) -> None:
        #: Attempts that failed here.
        self.bad = 0
        #: Different tasks among them, the last few.
        self.tasks: list[int] = []
        #: What the whole cluster had done of the kind when this began.
        self.others_ok = others_ok
        self.others_bad = others_bad


class Tally:
    """How often a kind of task ended well and otherwise, since it first failed."""

    __slots__ = ("bad", "ok")

    def __init__(self) -> None:
        self.ok = 0
        self.bad = 0

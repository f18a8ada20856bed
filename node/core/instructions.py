"""What the session wants done, in order. Plain data: a shell performs it (link/agent.py)."""

from __future__ import annotations

from typing import NamedTuple

from retire_cluster.node.core.records import Attempt, Result
from retire_cluster.schemas.protocol.messages import AttemptKey, FromDevice


class Connect(NamedTuple):
    """Drop the socket, if there is one, and dial with a new one."""


class Send(NamedTuple):
    """Send this message. A heartbeat's metrics are filled in by the shell."""

    message: FromDevice
    #: The results and details of a FINISHED, two an item; otherwise empty.
    blobs: tuple[bytes, ...] = ()


class Run(NamedTuple):
    """Run these attempts as slots become free."""

    attempts: list[Attempt]


class Kill(NamedTuple):
    """End these attempts, their whole process trees."""

    keys: list[AttemptKey]
    #: One of the reasons in records.py.
    reason: str


class StoreResults(NamedTuple):
    """Store these results so that they outlive the process."""

    results: list[Result]


class ForgetResults(NamedTuple):
    """Drop these stored results: the main node has them, or nobody wants them."""

    keys: list[AttemptKey]


class Log(NamedTuple):
    """Write a line to the log."""

    #: `info`, `warning` or `error`.
    level: str
    text: str


class Exit(NamedTuple):
    """Leave with this exit code once everything that was to be sent is sent."""

    code: int


Instruction = Connect | Send | Run | Kill | StoreResults | ForgetResults | Log | Exit

"""What every task type shares: how a task fails, and what a running one may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from retire_cluster.schemas.text.truncation import Cut
from retire_cluster.schemas.vocabulary import Cause, Outcome

#: Bytes a text result may have before it is cut and listed in `truncated`.
MAX_OUTPUT_BYTES: Final = 256 * 1024
_NOTHING: Final[Mapping[str, Cut]] = MappingProxyType({})


class Success(NamedTuple):
    """What a task that succeeded returns."""

    result: Any
    #: What of it is not whole.
    cuts: Mapping[str, Cut] = _NOTHING


class TaskFailed(Exception):
    """A task did not succeed; `cause` decides whether it is tried again."""

    def __init__(
        self,
        message: str,
        *,
        cause: Cause = Cause.ERROR,
        outcome: Outcome = Outcome.FAILED,
        result: Any = None,
        cuts: Mapping[str, Cut] = _NOTHING,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.outcome = outcome
        #: What there is of a result, or None.
        self.result = result
        #: What of the result is not whole.
        self.cuts = cuts


class BadPayload(TaskFailed):
    """The payload cannot be used; it would fail again everywhere."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"payload.{field_name}: {reason}", cause=Cause.DETERMINISTIC)


class Hopeless(TaskFailed):
    """Trying again would fail again."""

    def __init__(self, message: str, *, result: Any = None) -> None:
        super().__init__(message, cause=Cause.DETERMINISTIC, result=result)


class Denied(TaskFailed):
    """This device's owner does not allow it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, cause=Cause.POLICY_DENIED)


class NotHere(TaskFailed):
    """This device lacks something that another may have: a program, a package."""

    def __init__(self, message: str) -> None:
        super().__init__(message, cause=Cause.NOT_HERE)


class TimedOut(TaskFailed):
    """The time given to the task is over."""

    def __init__(
        self, message: str, *, result: Any = None, cuts: Mapping[str, Cut] = _NOTHING
    ) -> None:
        super().__init__(
            message, cause=Cause.TIMEOUT, outcome=Outcome.TIMEOUT, result=result, cuts=cuts
        )


@dataclass(frozen=True)
class Limits:
    """What the device's owner grants a task; part of every request to a task process."""

    #: `command` may be one text for a shell.
    shell: bool = False
    #: `http_request` may reach private addresses.
    private_addresses: bool = False
    #: Bytes kept of each of stdout and stderr.
    output_bytes: int = MAX_OUTPUT_BYTES
    #: Bytes of memory of one process; 0: no limit.
    memory_bytes: int = 0
    #: Folders that `command` may be told to run in; empty: any.
    folders: Sequence[str] = ()
    #: Environment of what the task starts.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: The task's folder is its home and its place for temporary files.
    own_home: bool = False
    #: Its place for temporary files at least.
    own_temporary: bool = False

    def home(self, folder: str) -> dict[str, str]:
        """What the environment has on top for a task in this folder."""
        found = {"TMPDIR": folder} if self.own_temporary or self.own_home else {}
        return {**found, "HOME": folder} if self.own_home else found


class Context:
    """What a running task may ask of its device; the second argument of own task types."""

    def __init__(
        self,
        *,
        task_id: str,
        attempt: int,
        timeout_seconds: float,
        limits: Limits,
        tell: Callable[[float | None, str], None],
        write_log: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        #: The task's id, as the API shows it.
        self.task_id = task_id
        #: Which attempt this is, from 1.
        self.attempt = attempt
        #: Seconds the task may run.
        self.timeout_seconds = timeout_seconds
        self.limits = limits
        self._tell = tell
        self._write_log = write_log
        self._is_cancelled = is_cancelled

    @property
    def cancelled(self) -> bool:
        """Whether the task was cancelled; half a second later its process is killed."""
        return self._is_cancelled()

    def progress(self, percent: float | None, message: str = "") -> None:
        """Tell how far the task is: 0 to 100, or None when that cannot be said.

        Raises `ValueError` for a percent that is not finite.
        """
        if percent is not None:
            percent = float(percent)
            if not math.isfinite(percent):
                raise ValueError("percent must be a number from 0 to 100, or None")
            percent = min(100.0, max(0.0, percent))
        self._tell(percent, str(message)[:1000])

    def log(self, text: str) -> None:
        """Add a line to the task's logs; so do `print` and `logging`."""
        self._write_log(str(text))


def as_number(payload: Mapping[str, Any], name: str, low: float, high: float) -> float | int | None:
    """A number of the payload as it is, None when absent; raises `BadPayload`."""
    value = payload.get(name)
    if value is None and name not in payload:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadPayload(name, "must be a number")
    if not low <= value <= high:
        raise BadPayload(name, f"must be from {low:g} to {high:g}")
    return value


def as_text(payload: Mapping[str, Any], name: str) -> str | None:
    """A text of the payload, None when absent; raises `BadPayload`."""
    value = payload.get(name)
    if value is None and name not in payload:
        return None
    if not isinstance(value, str):
        raise BadPayload(name, "must be a text")
    return value


def as_text_map(payload: Mapping[str, Any], name: str) -> dict[str, str]:
    """An object of texts of the payload, empty when absent; raises `BadPayload`."""
    value = payload.get(name)
    if value is None and name not in payload:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise BadPayload(name, "must be an object of texts")
    return value


def no_strangers(payload: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a field that the type does not have: raises `BadPayload`."""
    for name in payload:
        if name not in known:
            raise BadPayload(name, f"unknown field; there are {', '.join(known) or 'none'}")

"""How many tasks callers without a right of their own may have: they must not occupy everybody.

Nothing of it costs those who have a key. A stranger's tasks carry his address at the end of their
document, so that a main node that was started again goes on counting them; those that ended fall
out at the next stranger's submission.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from retire_cluster.broker.core.model import Task, TaskSpec
from retire_cluster.schemas.errors import RateLimitExceeded
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.rights import SEND_A_KEY, START_WITH_KEYS
from retire_cluster.schemas.text.json_text import dumps

#: The argument `stranger` of `task.submit`.
STRANGER: Final[dict[str, Any]] = {
    "stranger": {
        "type": "dict",
        "schema": {
            #: His address, or network.
            "address": {
                "type": "string", "required": True, "maxlength": 100, "regex": r"[0-9A-Za-z.:/%]*",
            },
            "most": {"type": "strict_int", "required": True, "min": 0},
            "most_each": {"type": "strict_int", "required": True, "min": 0},
            #: Whether keys are asked for where he comes in: another cure helps then.
            "auth": {"type": "boolean", "required": True},
        },
    }
}  # fmt: skip
_MARK: Final = b',"stranger":"'
_RETRY_SECONDS: Final = 10.0


class Stranger(NamedTuple):
    """Who submits, and how many tasks may be waiting or running."""

    address: str
    #: Of all strangers together.
    most: int
    #: Of one address.
    most_each: int
    #: Whether the facade that he comes by asks for keys.
    auth: bool


def read(args: Mapping[str, Any]) -> Stranger | None:
    """Return the stranger of a submission, None for others. Raises `ValidationError`."""
    if "stranger" not in args:
        return None
    return Stranger(**validate(STRANGER, {"stranger": args["stranger"]})["stranger"])


def marked(specs: Sequence[TaskSpec], stranger: Stranger) -> list[TaskSpec]:
    """Return the specs marked as a stranger's; those that were one object stay one."""
    made = {id(spec): spec for spec in specs}
    made = {key: _marked(spec, stranger) for key, spec in made.items()}
    return [made[id(spec)] for spec in specs]


def _marked(spec: TaskSpec, stranger: Stranger) -> TaskSpec:
    # One object with one more field, the last: see `address_of`.
    document = spec.document[:-1] + _MARK[:-1] + dumps(stranger.address) + b"}"
    return dataclasses.replace(spec, document=document)


def address_of(document: bytes) -> str | None:
    """Return the stranger's address that a task's document ends with; None for others.

    A client's own objects end before it, so none of them can pass for it.
    """
    head, mark, tail = document.rpartition(_MARK)
    if not head or not mark or not tail.endswith(b'"}') or b'"' in tail[:-2]:
        return None
    return tail[:-2].decode("ascii", "replace")


class Strangers:
    """The tasks of strangers that have not ended."""

    def __init__(self) -> None:
        #: Task → address; None: not looked for since the start.
        self._tasks: dict[int, str] | None = None

    def make_room(self, tasks: Mapping[int, Task], stranger: Stranger, count: int) -> None:
        """Raise `RateLimitExceeded` where `count` more tasks would be too many.

        :param tasks: all that have not ended
        """
        if self._tasks is None:
            found = ((number, address_of(task.spec.document)) for number, task in tasks.items())
            self._tasks = {number: address for number, address in found if address is not None}
        else:
            self._tasks = {n: address for n, address in self._tasks.items() if n in tasks}
        own = sum(address == stranger.address for address in self._tasks.values())
        if len(self._tasks) + count > stranger.most:
            raise _too_many(
                len(self._tasks), "all callers", count, stranger.most, auth=stranger.auth
            )
        if own + count > stranger.most_each:
            raise _too_many(own, "this address", count, stranger.most_each, auth=stranger.auth)

    def add(self, numbers: Iterable[int], address: str) -> None:
        """Count tasks that were made for a stranger."""
        if self._tasks is not None:
            self._tasks.update(dict.fromkeys(numbers, address))


def _too_many(present: int, whose: str, count: int, most: int, *, auth: bool) -> RateLimitExceeded:
    cure = SEND_A_KEY if auth else START_WITH_KEYS
    return RateLimitExceeded(
        f"{present} tasks that {whose} submitted without a key are waiting or running, and"
        f" {count} more would be over the {most} that may; wait for them, or {cure}",
        details={"limit": most, "present": present, "scope": "submit"},
        retry_after=_RETRY_SECONDS,
    )

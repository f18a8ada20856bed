"""First step of a submission: arguments become specs, delays and an Idempotency-Key."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.broker.admin.calls import MAX_WAIT_SECONDS, Call
from retire_cluster.broker.admin.submission.batch import Submission
from retire_cluster.broker.core.model import TaskSpec
from retire_cluster.schemas.bounds import is_finite
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.requests import MAX_BATCH, TASK_FIELDS
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.text.json_text import JSONError, dumps
from retire_cluster.schemas.vocabulary import PRIORITY_BY_WORD

#: Submissions' common fields that were validated before, by their JSON text.
SPECS_KEPT: Final = 4_096
_ARGUMENTS: Final = frozenset(
    {
        "tasks", "task", "count", "owner", "idempotency_key", "fingerprint", "brief", "first_only",
        "stranger", "wait_seconds",
    }
)  # fmt: skip
#: What makes an Idempotency-Key.
_KEY: Final = frozenset({"owner", "idempotency_key", "fingerprint"})
_Read = tuple[TaskSpec, float]


class SpecCache:
    """Specs by the JSON text of their fields: the same fields need no second validation."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Read] = {}

    def read(self, fields: object, where: str) -> _Read:
        """Return the spec and delay (s) of one task's fields. Raises `ValidationError`."""
        try:
            text = dumps(fields)
        except JSONError as error:
            raise ValidationError(where, f"cannot be kept as JSON: {error}") from None
        found = self._known.get(text)
        if found is None:
            found = _spec(validate(TASK_FIELDS, fields, where=where))
            if len(self._known) >= SPECS_KEPT:
                self._known.clear()
            self._known[text] = found
        return found


def _spec(fields: dict[str, Any]) -> _Read:
    requirements = fields["requirements"]
    document = dumps({"requirements": requirements, "metadata": fields["metadata"]})
    spec = TaskSpec(
        task_type=fields["task_type"],
        priority=int(PRIORITY_BY_WORD[fields["priority"]]),
        timeout_seconds=requirements["timeout_seconds"],
        max_retries=requirements["max_retries"],
        document=document,
    )
    return spec, float(fields["delay_seconds"])


def read(call: Call, known: SpecCache) -> Submission:
    """Return the submission that a call asks for. Raises `ValidationError`."""
    # By hand: a schema for these few fields takes 4 µs a call, as long as the rest of this step.
    args = call.args
    seconds = args.get("wait_seconds", 0.0)
    if not is_finite(seconds) or not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ValidationError("wait_seconds", f"must be a number from 0 to {MAX_WAIT_SECONDS}")
    if not args.keys() <= _ARGUMENTS:
        raise ValidationError(min(args.keys() - _ARGUMENTS), "unknown field")
    forms = _forms(args, known)
    if len(forms) != len(call.blobs):
        raise ValidationError(
            "", f"{len(forms)} tasks need as many payloads, not {len(call.blobs)}"
        )
    specs, delays = zip(*forms, strict=True)
    return Submission(call, list(specs), delays, _idempotency(args), float(seconds))


def _forms(args: dict[str, Any], known: SpecCache) -> list[_Read]:
    if "task" in args:
        count = args.get("count", 1)
        if type(count) is not int or not 1 <= count <= MAX_BATCH:
            raise ValidationError("count", f"must be a whole number from 1 to {MAX_BATCH}")
        return [known.read(args["task"], "task")] * count
    tasks = args.get("tasks")
    if not isinstance(tasks, list) or not 1 <= len(tasks) <= MAX_BATCH:
        raise ValidationError("tasks", f"must be a list of 1 to {MAX_BATCH} tasks")
    return [known.read(fields, f"tasks.{index}") for index, fields in enumerate(tasks)]


def _idempotency(args: dict[str, Any]) -> tuple[str, str, str] | None:
    if _KEY.isdisjoint(args):
        return None
    names = ("owner", "idempotency_key", "fingerprint")
    given = tuple(args.get(name) for name in names)
    if given == (None, None, None):
        return None
    for name, value in zip(names, given, strict=True):
        if not isinstance(value, str) or not 1 <= len(value) <= 300:
            raise ValidationError(name, "must be a text of 1 to 300 characters")
    return given  # type: ignore[return-value]

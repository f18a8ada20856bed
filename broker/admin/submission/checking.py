"""Second step of a submission: may these tasks be taken, and do their payloads fit their types?"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.submission import strangers
from retire_cluster.broker.admin.submission.batch import Submission
from retire_cluster.broker.admin.submission.reading import SPECS_KEPT
from retire_cluster.broker.core.model import TaskSpec
from retire_cluster.schemas import needs
from retire_cluster.schemas.errors import PayloadTooLarge, QueueFull, ValidationError
from retire_cluster.schemas.protocol.wire import MAX_PAYLOAD_BYTES
from retire_cluster.schemas.rest.payload import check_builtin_payload, parse_json_object
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.json_text import dumps

#: Built-in types whose payload may set a limit of its own, within the task's.
_LIMITED: Final = frozenset({"command", "http_request"})


def check(admin: AdminContext, asked: Submission) -> Submission:
    """Return the submission with what its payloads need and who submits it.

    Raises a `ClusterError` for one that cannot be taken.
    """
    call = asked.call
    specs = asked.specs
    many = len(specs) > 1 or "tasks" in call.args
    for index, (spec, payload) in enumerate(zip(specs, call.blobs, strict=True)):
        document = _payload(admin, spec, payload, f"tasks.{index}" if many else "")
        if spec.task_type in needs.TYPES:
            specs[index] = _needing(spec, needs.of(spec.task_type, document))
    if admin.health.refusing:
        raise QueueFull(admin.health.refusing, retry_after=30)
    limit = admin.state.settings.scheduler.backlog_limit
    present = len(admin.state.tasks) + admin.batch.size
    if present + len(specs) > limit:
        raise QueueFull(
            f"{present} tasks are waiting or running; the limit is {limit}.", retry_after=5
        )
    stranger = strangers.read(call.args)
    if stranger is None:
        return asked
    admin.strangers.make_room(admin.state.tasks, stranger, len(specs))
    return asked._replace(specs=strangers.marked(specs, stranger), stranger=stranger.address)


@functools.lru_cache(maxsize=SPECS_KEPT)
def _needing(spec: TaskSpec, need: str) -> TaskSpec:
    """Return the spec of a task whose payload needs something of its device (needs.py)."""
    if not need:
        return spec
    # One object with one more field: it stays with the task, in memory and in the store.
    document = spec.document[:-1] + b',"needs":' + dumps(need) + b"}"
    return dataclasses.replace(spec, document=document)


def _payload(admin: AdminContext, spec: TaskSpec, payload: bytes, where: str) -> dict[str, Any]:
    """Return the payload's content. Raises a `ClusterError` for one that cannot be taken."""
    task_type = spec.task_type
    prefix = f"{where}." if where else ""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"The payload is {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are taken.",
            details={"field": f"{prefix}payload"},
        )
    try:
        document = parse_json_object(payload)
    except ValidationError as error:
        inner = f".{error.field}" if error.field else ""
        raise ValidationError(f"{prefix}payload{inner}", error.reason) from None
    if task_type in BUILTIN:
        check_builtin_payload(task_type, document, where=f"{prefix}payload")
        if task_type in _LIMITED and document.get("timeout", 0) > spec.timeout_seconds:
            raise ValidationError(
                f"{prefix}payload.timeout",
                f"is more than the {spec.timeout_seconds} s that the whole task may take; raise"
                " requirements.timeout_seconds instead (retire-cluster: --timeout-seconds)",
            )
        return document
    judged = admin.state.own_types.consensus(task_type)
    if judged is None:
        raise ValidationError(
            f"{prefix}task_type", f"no device of this cluster offers the task type {task_type!r}"
        )
    schema = judged.info.payload_schema
    if schema is not None:
        validate(schema, document, where=f"{prefix}payload")
    return document

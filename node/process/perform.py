"""One attempt, from a request to the reply about it, in whichever process runs it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from retire_cluster.node import tasks
from retire_cluster.node.process.replies import MAX_MESSAGE
from retire_cluster.node.system import resource_limits
from retire_cluster.node.tasks import exception_text, own_type
from retire_cluster.node.tasks.base import Context, Hopeless, Limits, Success, TaskFailed
from retire_cluster.node.tasks.bounded_output import Kept, fit, json_size, of_text
from retire_cluster.node.tasks.json_result import NotJson, to_json
from retire_cluster.node.tasks.own_type import Traced
from retire_cluster.schemas.protocol.wire import MAX_DETAILS_BYTES
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text import truncation
from retire_cluster.schemas.text.clean_text import clean, shorten
from retire_cluster.schemas.text.truncation import Cut
from retire_cluster.schemas.vocabulary import Cause, Outcome

#: Progress told more often than this is left out, so that a task cannot keep the worker busy.
MIN_PROGRESS_SECONDS = 0.05
#: A process is replaced after so many tasks of built-in types.
MAX_TASKS = 200
#: Bytes kept of what a task prints.
MAX_LOG_BYTES = 64 * 1024
MAX_TRACE_BYTES = 16_000
#: For the names and numbers around logs.
_LOGS_AROUND_BYTES = 512


def perform(
    header: Mapping[str, Any],
    payload: bytes,
    *,
    tell: Callable[[float | None, str], None],
    write_log: Callable[[str], None],
    is_cancelled: Callable[[], bool],
) -> tuple[dict[str, Any], bytes]:
    """Run the task of a request; the reply's header and the result's JSON text.

    Whatever the task raises becomes part of the reply.
    """
    task_type = str(header["task_type"])
    details: dict[str, Any] = {}
    cuts: dict[str, Cut] = {}
    try:
        context = Context(
            task_id=str(header["task_id"]),
            attempt=int(header["attempt"]),
            timeout_seconds=float(header["timeout_seconds"]),
            limits=Limits(**header["limits"]),
            tell=tell,
            write_log=write_log,
            is_cancelled=is_cancelled,
        )
        answer = _call(task_type, header, payload, context)
        data = to_json(answer.result)
        _say_cuts(details, answer.cuts)
        return reply(Outcome.SUCCESS, None, None, details), data
    except Traced as error:
        failure = error.failure
        _add_trace(details, cuts, error.trace)
    except TaskFailed as error:
        failure = error
    except NotJson as error:
        failure = Hopeless(str(error))
    except MemoryError:
        granted = resource_limits.hint("MemoryError")
        failure = TaskFailed(f"the task needed more memory than this device grants{granted}")
    except BaseException as error:  # a task must never end its process by raising
        failure = TaskFailed(exception_text.of(error))
        _add_trace(details, cuts, exception_text.trace(error))
    data = b""
    if failure.result is not None:
        # What a type's author gave may be anything.
        with contextlib.suppress(Exception):
            data = to_json(failure.result)
            cuts.update(failure.cuts)
    _say_cuts(details, cuts)
    return reply(failure.outcome, failure.cause, failure.message, details), data


def reply(
    outcome: Outcome, cause: Cause | None, message: str | None, details: dict[str, Any]
) -> dict[str, Any]:
    """The header that tells how an attempt ended."""
    return {
        "kind": "done",
        "outcome": outcome.value,
        "cause": None if cause is None else cause.value,
        "error_message": None if message is None else shorten(clean(str(message)), MAX_MESSAGE),
        "details": details,
    }


def add_logs(details: dict[str, Any], logs: Kept) -> None:
    """Put what a task printed into its details, as much of it as the protocol has room for.

    What the task itself put there in their place is dropped.
    """
    cuts = truncation.read(details.pop("truncated", None))
    cuts.pop("logs", None)
    details.pop("logs", None)
    if logs.total_bytes:
        room = MAX_DETAILS_BYTES - json_size(details) - _LOGS_AROUND_BYTES
        kept = fit({"logs": logs}, room)["logs"]
        if json_size(kept.text) <= room:
            details["logs"] = kept.text.replace("\0", "\ufffd")
        else:
            kept = Kept(b"", b"", logs.total_bytes)
        if kept.cut is not None:
            cuts["logs"] = kept.cut
    _say_cuts(details, cuts)


def _add_trace(details: dict[str, Any], cuts: dict[str, Cut], trace: str) -> None:
    kept = of_text(trace, MAX_TRACE_BYTES)
    details["error_traceback"] = kept.text
    if kept.cut is not None:
        cuts["error_traceback"] = kept.cut


def _say_cuts(details: dict[str, Any], cuts: Mapping[str, Cut]) -> None:
    if cuts:
        details["truncated"] = truncation.write(cuts)


def _call(task_type: str, header: Mapping[str, Any], payload: bytes, context: Context) -> Success:
    content = json.loads(payload or b"{}")
    if not isinstance(content, dict):
        raise Hopeless("payload: must be an object")
    if task_type not in BUILTIN or header.get("entry_point"):
        return own_type.run(str(header["entry_point"]), content, context)
    # Imported here: each loads libraries that tasks of the other types do not need.
    module = import_module(f"{tasks.__name__}.{task_type}")
    return cast(Success, module.run(content, context))

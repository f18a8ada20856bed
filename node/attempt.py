"""One attempt, from a request to the reply about it, in whichever process runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from retire_cluster.node.tasks import words
from retire_cluster.node.tasks.base import Answer, Context, Hopeless, Limits, TaskFailed
from retire_cluster.node.tasks.custom import Traced
from retire_cluster.node.tasks.jsonresult import NotJson, fit_texts, to_json
from retire_cluster.schemas.cleantext import clean, shorten
from retire_cluster.schemas.vocabulary import Cause, Outcome
from retire_cluster.schemas.wire import MAX_DETAILS_BYTES

#: Progress told more often than this is left out, so that a task cannot keep the worker busy.
MIN_PROGRESS_SECONDS = 0.05
MAX_MESSAGE = 4_000
#: Results with long texts: which fields may be cut to fit.
_LONG_TEXTS = {"command": ("stdout", "stderr"), "http_request": ("content",)}


def perform(
    header: Mapping[str, Any],
    payload: bytes,
    *,
    tell: Callable[[float | None, str], None],
    write_log: Callable[[str], None],
    is_cancelled: Callable[[], bool],
) -> tuple[dict[str, Any], bytes]:
    """Runs the task of a request; the reply's header and the result's JSON text.

    Whatever the task raises becomes part of the reply.
    """
    task_type = str(header["task_type"])
    details: dict[str, Any] = {}
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
        data, cut = _result_text(task_type, answer.result)
        if answer.truncated or cut:
            details["truncated"] = True
        return reply(Outcome.SUCCESS, None, None, details), data
    except Traced as error:
        failure = error.failure
        details["error_traceback"] = error.trace
    except TaskFailed as error:
        failure = error
    except NotJson as error:
        failure = Hopeless(str(error))
    except MemoryError:
        failure = TaskFailed("the task needed more memory than this device grants")
    except BaseException as error:  # a task must never end its process by raising
        failure = TaskFailed(words.of(error))
        details["error_traceback"] = words.trace(error)
    data = b""
    cut = failure.truncated
    if failure.result is not None:
        try:
            data, shortened = _result_text(task_type, failure.result)
            cut = cut or shortened
        except Exception:  # what a type's author gave may be anything
            data = b""
    if cut:
        details["truncated"] = True
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


def fit_details(details: dict[str, Any]) -> dict[str, Any]:
    """Logs and trace, cut to the protocol's limit: escapes can make them six times longer."""
    for name in ("logs", "error_traceback"):
        while (
            name in details
            and len(json.dumps(details, ensure_ascii=False).encode("utf-8", "replace"))
            > MAX_DETAILS_BYTES
        ):
            details[name] = details[name][len(details[name]) // 2 :]
            details["truncated"] = True
    return details


def _call(task_type: str, header: Mapping[str, Any], payload: bytes, context: Context) -> Answer:
    content = json.loads(payload or b"{}")
    if not isinstance(content, dict):
        raise Hopeless("payload: must be an object")
    if task_type == "python_eval":
        from retire_cluster.node.tasks import python_eval

        return python_eval.run(content, context)
    if task_type == "http_request":
        from retire_cluster.node.tasks import http_request

        return http_request.run(content, context)
    if task_type == "command":
        from retire_cluster.node.tasks import command

        return command.run(content, context)
    from retire_cluster.node.tasks import custom

    return custom.run(str(header["entry_point"]), content, context)


def _result_text(task_type: str, result: Any) -> tuple[bytes, bool]:
    names = _LONG_TEXTS.get(task_type)
    return (to_json(result), False) if names is None else fit_texts(result, names)

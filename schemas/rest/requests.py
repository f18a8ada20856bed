"""Every body and query of the REST API as a Cerberus schema: validation *and* OpenAPI read these.

The admin socket validates its arguments with the same ones. Bounds and defaults are those of
docs/contract.md, Task types, and docs/contract.md, Changing the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl

from retire_cluster.schemas.bounds import MAX_EXACT_INT, MAX_JSON_INT, MIN_JSON_INT
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.dialect import Schema, StrictValidator
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.vocabulary import (
    DEVICE_ID_PATTERN,
    PRIORITIES,
    PYTHON_PATTERN,
    TAG_PATTERN,
    TASK_TYPE_PATTERN,
    DeviceStatus,
    Platform,
    Role,
    TaskStatus,
)

MAX_BATCH: Final = 1_000
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_DELAY_SECONDS: Final = 30 * 86_400
MAX_PAGE: Final = 1_000_000_000
MAX_PAGE_SIZE: Final = StrictValidator.page_size_limit
#: A task's public id: a UUID in its canonical form.
TASK_ID_PATTERN: Final = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

_PLATFORMS: Final = [platform.value for platform in Platform]
_ROLES: Final = [role.value for role in Role]


def _described(text: str, **rules: Any) -> dict[str, Any]:
    return {**rules, "meta": {"description": text, **rules.get("meta", {})}}


_TAG: Final = {
    "type": "string",
    "regex": TAG_PATTERN,
    "meta": {"reason": "must be 1 to 64 letters, digits or _.:=- and begin with a letter or digit"},
}

REQUIREMENTS: Final[dict[str, Any]] = {
    "min_cpu_cores": _described(
        "Minimum CPU cores", type="strict_int", min=1, max=100_000, meta={"examples": [2]}
    ),
    "min_memory_gb": _described("Minimum memory in GB", type="finite", above=0, max=1e9),
    "min_storage_gb": _described("Minimum storage in GB", type="finite", above=0, max=1e9),
    "required_platform": _described("Required platform", type="string", allowed=_PLATFORMS),
    "required_python": _described(
        "Version of the Python that runs the worker, major and minor",
        type="string",
        regex=PYTHON_PATTERN,
        meta={"reason": "must be the version of a Python, as 3.11", "examples": ["3.11"]},
    ),
    "required_role": _described("Required device role", type="string", allowed=_ROLES),
    "required_tags": _described(
        "Required device tags, all of them", type="list", maxlength=50, schema=_TAG
    ),
    "gpu_required": _described("GPU required", type="boolean"),
    "internet_required": _described("Internet access required", type="boolean"),
    "timeout_seconds": _described(
        "Maximum execution time, counted from the moment the device starts",
        type="strict_int",
        min=1,
        max=86_400,
        default=300,
    ),
    "max_retries": _described(
        "Maximum retry attempts", type="strict_int", min=0, max=10, default=3
    ),
}

#: A submission without its payload: what the admin operation `task.submit` takes beside a blob.
TASK_FIELDS: Final[dict[str, Any]] = {
    "task_type": _described(
        "A built-in type or one that a device advertises",
        type="string",
        required=True,
        regex=TASK_TYPE_PATTERN,
        meta={"reason": "must be 1 to 100 characters of a-z 0-9 _ . -", "examples": ["echo"]},
    ),
    "priority": _described(
        "Higher ones go first", type="string", allowed=list(PRIORITIES), default="normal"
    ),
    "requirements": _described(
        "What a device must have", type="dict", schema=REQUIREMENTS, default={}
    ),
    "metadata": _described(
        "Anything of yours, kept with the task: at most 16 KiB of JSON",
        type="dict",
        max_bytes=MAX_METADATA_BYTES,
        default={},
    ),
    "delay_seconds": _described(
        "Waits so long, as `pending`, before it is queued",
        type="finite",
        min=0,
        max=MAX_DELAY_SECONDS,
        default=0,
    ),
}

TASK_SUBMISSION: Final[dict[str, Any]] = {
    **TASK_FIELDS,
    "payload": _described(
        "The task's input, at most 256 KiB of JSON nested at most 64 levels",
        type="dict",
        required=True,
        meta={"examples": [{"message": "Hello World"}]},
    ),
}

TASK_BATCH: Final[dict[str, Any]] = {
    "tasks": _described(
        "All of them or none are accepted",
        type="list",
        required=True,
        minlength=1,
        maxlength=MAX_BATCH,
        schema={"type": "dict", "schema": TASK_SUBMISSION},
    )
}

TASK_RESULTS: Final[dict[str, Any]] = {
    "task_ids": _described(
        "Tasks whose results are wanted",
        type="list",
        required=True,
        minlength=1,
        maxlength=MAX_BATCH,
        schema={"type": "string", "regex": TASK_ID_PATTERN, "meta": {"reason": "is not a task id"}},
    )
}

TASKS_CANCEL: Final[dict[str, Any]] = {
    "task_ids": {**TASK_RESULTS["task_ids"], "meta": {"description": "Tasks to cancel"}}
}

# --- queries -------------------------------------------------------------------------------------

_PAGE: Final[dict[str, Any]] = {
    "page": _described("Page number", type="strict_int", min=1, max=MAX_PAGE, default=1),
    "page_size": _described(
        f"Items per page; above {MAX_PAGE_SIZE} counts as {MAX_PAGE_SIZE}",
        type="strict_int",
        min=1,
        default=20,
        coerce="page_size",
    ),
}
_DEVICE_ID: Final = {
    "type": "string",
    "regex": DEVICE_ID_PATTERN,
    "meta": {"reason": "is not a device id"},
}
_TASK_ID: Final = {
    "type": "string",
    "regex": TASK_ID_PATTERN,
    "meta": {"reason": "is not a task id (a UUID)"},
}

DEVICE_LIST_QUERY: Final[dict[str, Any]] = {
    **_PAGE,
    "status": _described(
        "Filter by status", type="string", allowed=[*map(str, DeviceStatus), "all"], default="all"
    ),
    "role": _described("Filter by role", type="string", allowed=_ROLES),
    "platform": _described("Filter by platform", type="string", allowed=_PLATFORMS),
    "tags": _described(
        "Filter by tags, all must match; repeat it or separate with commas",
        type="list",
        maxlength=50,
        schema=_TAG,
    ),
}

TASK_LIST_QUERY: Final[dict[str, Any]] = {
    **_PAGE,
    "after": _described(
        "`pagination.next_cursor` of the page before; keeps deep lists cheap",
        type="string",
        regex=TASK_ID_PATTERN,
        meta={"reason": "is not a cursor of pagination.next_cursor"},
    ),
    "status": _described("Filter by status", type="string", allowed=list(map(str, TaskStatus))),
    "task_type": _described(
        "Filter by task type",
        type="string",
        regex=TASK_TYPE_PATTERN,
        meta={"reason": "must be 1 to 100 characters of a-z 0-9 _ . -"},
    ),
    "priority": _described("Filter by priority", type="string", allowed=list(PRIORITIES)),
    "device_id": _described("Filter by assigned device", **_DEVICE_ID),
}

EVENTS_QUERY: Final[dict[str, Any]] = {
    "since": _described(
        "Events after this id; without it, from now on",
        type="strict_int",
        min=0,
        max=MAX_EXACT_INT,
    ),
    "wait": _described(
        "Seconds to wait for an event when there is none yet",
        type="finite",
        min=0,
        max=60,
        default=0,
    ),
    "limit": _described("Events at most", type="strict_int", min=1, max=1_000, default=1_000),
    "type": _described(
        "Only events of this type",
        type="string",
        regex=r"[a-z_.]{1,50}",
        meta={"reason": "is not a type of event", "examples": ["task.success"]},
    ),
    "task_id": _described("Only events of this task", **_TASK_ID),
    "device_id": _described("Only events of this device", **_DEVICE_ID),
}

RESULT_QUERY: Final[dict[str, Any]] = {
    "wait": {
        **EVENTS_QUERY["wait"],
        "meta": {
            **EVENTS_QUERY["wait"]["meta"],
            "description": "Seconds to wait for the end of what has not ended; from 1 on the"
            " request costs no rate limit",
        },
    }
}

STREAM_QUERY: Final[dict[str, Any]] = {
    **{name: EVENTS_QUERY[name] for name in ("since", "type", "task_id", "device_id")},
    "ticket": _described(
        "A ticket of POST /api/v1/events/ticket, for pages that cannot send headers",
        type="string",
        maxlength=200,
    ),
}

#: For an endpoint that takes no query parameter.
NO_QUERY: Final[dict[str, Any]] = {}
#: For an endpoint whose body, if there is one, is an empty object.
NO_BODY: Final[dict[str, Any]] = {}

JOIN_TOKEN: Final[dict[str, Any]] = {
    "uses": _described(
        "How many devices may join with it", type="strict_int", min=1, max=1_000, default=1
    ),
    "age_seconds": _described(
        "Seconds until it is worth nothing",
        type="strict_int",
        min=60,
        max=30 * 86_400,
        default=3_600,
    ),
    "host": _described(
        "Where the devices reach the main node; without it, this machine's address",
        type="string",
        maxlength=300,
        check_with="host",
        meta={"examples": ["192.168.1.10", "nas.lan", "fd00::10"]},
    ),
    "note": _described("What it is for", type="string", maxlength=200, default=""),
}

# --- configuration -------------------------------------------------------------------------------

SERVER_CONFIG: Final[dict[str, Any]] = {
    "max_connections": _described(
        "Online devices at most", type="strict_int", min=1, max=100_000, meta={"examples": [100]}
    ),
}
#: Each field by itself: a change may name one of them, so that `timeout` is at least
#: `interval * max_missed` is checked on the settings that result (`conf.settings.Heartbeat`).
HEARTBEAT_CONFIG: Final[dict[str, Any]] = {
    "interval": _described(
        "Seconds between a device's heartbeats", type="finite", min=1, max=3_600
    ),
    "timeout": _described(
        "Seconds of silence until a device's running attempts are given to others; at least"
        " interval * max_missed",
        type="finite",
        min=1,
        max=86_400,
    ),
    "max_missed": _described(
        "Heartbeats missed until a device is offline", type="strict_int", min=1, max=100
    ),
}

# --- reading a query string ----------------------------------------------------------------------

_MAX_PARAMETERS: Final = 200
_WHOLE: Final = re.compile(r"-?[0-9]+", re.ASCII)
#: Longer texts of digits are beyond every bound; turning thousands of digits into a number is slow.
_DIGITS: Final = 20
_DECIMAL: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)


def split_query(query_string: str) -> list[tuple[str, str]]:
    """Split a raw query string, in order. Raises `ValidationError` where it is not UTF-8."""
    try:
        return parse_qsl(
            query_string,
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except UnicodeDecodeError:
        raise ValidationError("", "the query string is not UTF-8") from None
    except ValueError:
        raise ValidationError("", f"more than {_MAX_PARAMETERS} query parameters") from None


def parse_query(schema: Schema, params: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read query parameters as the typed values of `schema`, defaults filled in.

    Strict: numbers are ASCII digits only, nothing but lists may repeat, unknown names are errors.
    A list may repeat or be separated by commas; an empty text filter counts as not given. Raises
    `ValidationError` naming the parameter.
    """
    document: dict[str, Any] = {}
    for name, text in params:
        rules = schema.get(name, {})
        kind = rules.get("type")
        if kind == "list":
            items = [item.strip() for item in text.split(",")]
            document.setdefault(name, []).extend(item for item in items if item)
        elif name in document:
            raise ValidationError(name, "is given more than once")
        elif kind == "string" and not text:
            continue
        else:
            document[name] = _typed(kind, text)
    return validate(schema, document)


def _typed(kind: str | None, text: str) -> object:
    # What is not a number stays a text: the schema then says what it should have been.
    if kind == "strict_int" and _WHOLE.fullmatch(text):
        if len(text) > _DIGITS:
            return MIN_JSON_INT if text.startswith("-") else MAX_JSON_INT
        return max(MIN_JSON_INT, min(int(text), MAX_JSON_INT))
    if kind == "finite" and _DECIMAL.fullmatch(text):
        return float(text)
    return text

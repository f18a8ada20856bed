"""What helps against an error of the cluster, said to who typed the command."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

from retire_cluster.cli.target import Caller
from retire_cluster.schemas.errors import ClusterError, ValidationError
from retire_cluster.schemas.rest.requests import REQUIREMENTS

_BY_CODE: Final[Mapping[str, str]] = {
    "TASK_NOT_FOUND": "retire-cluster tasks ls shows the ids",
    "DEVICE_NOT_FOUND": "retire-cluster devices ls shows the ids",
    "NO_TASK_RESULT": "retire-cluster tasks wait ID waits for it, explain ID says why it waits",
}


def of(error: ClusterError, client: Caller) -> str:
    """Return what helps, in a few words; empty where there is nothing to add to the message."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    if not isinstance(error, ValidationError):
        return ""
    *_, field = error.field.split(".")
    if field == "task_type":
        return _near_type(error, client)
    if ".requirements." in f".{error.field}" and error.reason == "unknown field":
        return _near(field, list(REQUIREMENTS), "requirements")
    return ""


def _near_type(error: ValidationError, client: Caller) -> str:
    asked = re.search(r"'([^']*)'$", error.reason)
    try:
        known = client.call("task.types")["supported_types"]
    except ClusterError:
        return ""
    return _near(asked[1] if asked else "", [str(each) for each in known], "types")


def _near(asked: str, known: list[str], what: str) -> str:
    near: list[Any] = difflib.get_close_matches(asked, known, n=1)
    return f"did you mean {near[0]}?" if near else f"the {what}: {', '.join(sorted(known))}"

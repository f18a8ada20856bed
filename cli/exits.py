"""Exit codes of every command: part of the contract with scripts."""

from __future__ import annotations

from typing import Final

from retire_cluster.schemas.errors import ClusterError

OK: Final = 0
TASK_FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_ALLOWED: Final = 4
NOT_FOUND: Final = 5
INVALID: Final = 6
TIMED_OUT: Final = 7
RATE_LIMITED: Final = 8
INTERRUPTED: Final = 130

_BY_CODE: Final = {"QUEUE_FULL": RATE_LIMITED, "CLUSTER_UNAVAILABLE": UNREACHABLE}
_BY_STATUS: Final = {
    401: NOT_ALLOWED,
    403: NOT_ALLOWED,
    404: NOT_FOUND,
    429: RATE_LIMITED,
    503: UNREACHABLE,
}


def for_error(error: ClusterError) -> int:
    """Return the exit code that stands for an error of the cluster."""
    by_code = _BY_CODE.get(error.code)
    if by_code is not None:
        return by_code
    if error.status in _BY_STATUS:
        return _BY_STATUS[error.status]
    return INVALID if 400 <= error.status < 500 else TASK_FAILED


def for_task_status(status: str) -> int:
    """Return the exit code for a task that has ended with this status."""
    return OK if status == "success" else TASK_FAILED

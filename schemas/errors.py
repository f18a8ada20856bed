"""The errors that may reach a user, each with its REST code, HTTP status and details.

All derive from `ClusterError`; the admin socket carries
`code, status, message, details, retry_after`, the REST facade puts the same into the envelope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class ClusterError(Exception):
    """Something went wrong that a user can be told."""

    #: What a person reads when nothing more exact is said. Not the docstring: Python leaves
    #: those out under PYTHONOPTIMIZE=2.
    sentence: ClassVar[str] = "Something went wrong that a user can be told."
    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or self.sentence)
        self.message = message or self.sentence
        self.details: dict[str, Any] = dict(details or {})
        #: Seconds after which trying again makes sense, or None.
        self.retry_after = retry_after


class ValidationError(ClusterError):
    """The request is not valid."""

    sentence = "The request is not valid."
    code = "VALIDATION_ERROR"
    status = 400

    def __init__(
        self,
        field: str,
        reason: str,
        *,
        errors: Sequence[Mapping[str, str]] | None = None,
        message: str | None = None,
    ) -> None:
        listed = [dict(e) for e in errors] if errors else [{"field": field, "reason": reason}]
        super().__init__(
            message or (f"{field}: {reason}" if field else reason),
            details={"field": field, "reason": reason, "errors": listed},
        )
        #: Dotted path of the first offending field.
        self.field = field
        self.reason = reason


class NotFound(ClusterError):
    """There is no such resource."""

    sentence = "There is no such resource."
    code = "NOT_FOUND"
    status = 404


class DeviceNotFound(ClusterError):
    """There is no such device."""

    sentence = "There is no such device."
    code = "DEVICE_NOT_FOUND"
    status = 404


class TaskNotFound(ClusterError):
    """There is no such task."""

    sentence = "There is no such task."
    code = "TASK_NOT_FOUND"
    status = 404


class NoTaskResult(ClusterError):
    """The task has not finished; it has no result yet."""

    sentence = "The task has not finished; it has no result yet."
    code = "NO_TASK_RESULT"
    status = 404


class CannotCancelTask(ClusterError):
    """The task has already ended."""

    sentence = "The task has already ended."
    code = "CANNOT_CANCEL_TASK"
    status = 400


class CannotRetryTask(ClusterError):
    """Only a failed, timed-out or cancelled task can be retried."""

    sentence = "Only a failed, timed-out or cancelled task can be retried."
    code = "CANNOT_RETRY_TASK"
    status = 400


class TaskJustEnded(ClusterError):
    """The task ended just now and its outcome is still being written; try again."""

    sentence = "The task ended just now and its outcome is still being written; try again."
    code = "TASK_JUST_ENDED"
    status = 409


class IdempotencyConflict(ClusterError):
    """This Idempotency-Key was used with another body."""

    sentence = "This Idempotency-Key was used with another body."
    code = "IDEMPOTENCY_CONFLICT"
    status = 409


class Unauthorized(ClusterError):
    """Authentication required."""

    sentence = "Authentication required."
    code = "UNAUTHORIZED"
    status = 401


class Forbidden(ClusterError):
    """This is not allowed."""

    sentence = "This is not allowed."
    code = "FORBIDDEN"
    status = 403


class MethodNotAllowed(ClusterError):
    """This address does not answer that method."""

    sentence = "This address does not answer that method."
    code = "METHOD_NOT_ALLOWED"
    status = 405


class PayloadTooLarge(ClusterError):
    """The body or payload is too large."""

    sentence = "The body or payload is too large."
    code = "PAYLOAD_TOO_LARGE"
    status = 413


class UnsupportedMediaType(ClusterError):
    """Bodies are JSON: send Content-Type: application/json."""

    sentence = "Bodies are JSON: send Content-Type: application/json."
    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class RateLimitExceeded(ClusterError):
    """Too many requests."""

    sentence = "Too many requests."
    code = "RATE_LIMIT_EXCEEDED"
    status = 429


class QueueFull(ClusterError):
    """The cluster takes no more tasks now."""

    sentence = "The cluster takes no more tasks now."
    code = "QUEUE_FULL"
    status = 503


class ClusterUnavailable(ClusterError):
    """The main node does not answer."""

    sentence = "The main node does not answer."
    code = "CLUSTER_UNAVAILABLE"
    status = 503


class InternalError(ClusterError):
    """Something unexpected happened; the log has the details."""

    sentence = "Something unexpected happened; the log has the details."


def _leaves(cls: type[ClusterError]) -> dict[str, type[ClusterError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found.update(_leaves(sub))
    return found


#: The contract's code → the class that stands for it.
BY_CODE: dict[str, type[ClusterError]] = _leaves(ClusterError)


def to_wire(error: ClusterError) -> dict[str, Any]:
    """Return the fields of an admin `ERROR` header, without its correlation id."""
    return {
        "code": error.code,
        "status": error.status,
        "message": error.message,
        "details": error.details,
        "retry_after": error.retry_after,
    }


def from_wire(header: Mapping[str, Any]) -> ClusterError:
    """Return the error that an `ERROR` header describes; an unknown code: `InternalError`."""
    details = header.get("details") or {}
    message = str(header.get("message", ""))
    cls = BY_CODE.get(str(header.get("code")), InternalError)
    if cls is ValidationError:
        return ValidationError(
            str(details.get("field", "")),
            str(details.get("reason", message)),
            errors=details.get("errors"),
            message=message,
        )
    retry_after = header.get("retry_after")
    return cls(message, details=details, retry_after=retry_after)

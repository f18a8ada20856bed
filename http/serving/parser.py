"""Make waitress's request parser strict, and put its own errors into the envelope.

What waitress 3.0 lets through and this refuses (reproduced): Content-Length together with
Transfer-Encoding (two servers in a row may read two different requests from it), a missing or
doubled Host, a start line that makes the standard library raise. What it answers in plain text by
itself (400, 413, 431) goes out in the envelope.
"""

from __future__ import annotations

import logging
import math
import time
from http import HTTPStatus
from typing import Any, ClassVar

from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask
from waitress.utilities import RequestEntityTooLarge

from retire_cluster.api.admission.body_budget import UNCOUNTED_BYTES, BodyBudget, Sender, TellSender
from retire_cluster.api.admission.local_users import ClientConnection
from retire_cluster.api.content import envelope
from retire_cluster.api.content.bodies import MAX_BODY_BYTES, body_limit, too_large
from retire_cluster.schemas.errors import ClusterError, InternalError, ValidationError

MAX_HEADER_BYTES = 16 * 1024
#: A body too large for its path is read to its end up to here, so that the client sees the 413
#: instead of a reset connection.
MAX_SWALLOWED_BYTES = 64 * 1024 * 1024
_requests_log = logging.getLogger("api.requests")


class _NullBuffer:
    """A buffer that counts the bytes of a body and keeps none."""

    def __init__(self, length: int = 0) -> None:
        self._length = length

    def append(self, data: bytes) -> None:
        """Count `data` and drop it."""
        self._length += len(data)

    def __len__(self) -> int:
        return self._length

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


class StrictParser(HTTPRequestParser):  # type: ignore[misc]
    """Parse one request, with a limit for its body by path, sender and budget.

    :param adj: waitress's settings
    :param address: the client's
    :param sender: tells whose a large body is; None: nobody is a stranger
    :param budget: counts large bodies; None: they are not counted
    """

    error: Any
    content_length: int
    expect_continue: bool

    def __init__(
        self,
        adj: Any,
        address: str = "",
        sender: TellSender | None = None,
        budget: BodyBudget | None = None,
        connection: ClientConnection | None = None,
    ) -> None:
        super().__init__(adj)
        #: Monotonic seconds of the first byte.
        self.born = time.monotonic()
        #: The error that is answered instead of passing the request on; its body is dropped.
        self.refusal: ClusterError | None = None
        #: Whether to answer it only while no other large request is being answered.
        self.is_large = False
        #: Whether the body is refused while its client still waits to be asked for it.
        self._unasked = False
        self._body_limit = 0
        self._address = address
        self._connection = connection
        self._tell_sender = sender
        self._budget = budget
        self._sender: Sender | None = None
        #: Bytes taken from the budget.
        self._counted = 0

    def received(self, data: bytes) -> int:
        """Parse `data` and return how many bytes of it were used, as waitress asks for."""
        consumed: int = super().received(data)
        if self._unasked:
            self.completed = True
        elif self.error is None and self.refusal is None and self.headers_finished:
            size = len(self.body_rcv) if self.body_rcv is not None else 0
            if size > UNCOUNTED_BYTES:
                self._weigh(size)
        if self.refusal is not None and self.completed and self.error is None:
            self.error = RequestEntityTooLarge(str(self.refusal))
        return consumed

    def close(self) -> None:
        """Free the body, also in the budget."""
        super().close()
        self._forget()

    def parse_header(self, header_plus: bytes) -> None:
        """Read start line and headers. Raises `ParsingError` for what two readers may differ on."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # the standard library's URL parser
            raise ParsingError(f"Bad URI: {error}") from None
        self._body_limit = body_limit(self.path)
        if self.version == "1.0" and "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("Transfer-Encoding needs HTTP/1.1")
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Content-Length and Transfer-Encoding must not come together")
        host = self.headers.get("HOST")
        if host is None and self.version == "1.1":
            raise ParsingError("The Host header is missing")
        if host is not None and any(character in host for character in ", /\\?#@"):
            raise ParsingError("The Host header is not one host")
        if self.content_length == 0 and not self.chunked:
            # waitress would send 100 and then wait for a body that nobody announced.
            self.expect_continue = False
        if self.content_length > MAX_BODY_BYTES:
            self._know_sender()
        if self.content_length <= self._body_limit:
            return
        if self.expect_continue:
            self.expect_continue = False
            self._unasked = True
            self.refusal = self._too_large()
        elif self.content_length <= MAX_SWALLOWED_BYTES:
            # waitress would answer at once and close with the body unread.
            self.content_length = 0
            self._refuse(self._too_large())

    def _know_sender(self) -> Sender | None:
        if self._sender is None and self._tell_sender is not None:
            self._sender = self._tell_sender(self._address, self.headers, self._connection)
            if self._sender.stranger:
                self._body_limit = min(self._body_limit, MAX_BODY_BYTES)
        return self._sender

    def _weigh(self, size: int) -> None:
        """Refuse or count a body of which `size` bytes have come."""
        sender = self._know_sender()
        if size > self._body_limit:
            self._refuse(self._too_large())
            return
        self.is_large = size > MAX_BODY_BYTES
        if sender is not None and self._budget is not None:
            refusal = self._budget.take(sender, size - self._counted)
            if refusal is not None:
                self._refuse(refusal)
                return
            self._counted = size

    def _too_large(self) -> ClusterError:
        stranger = self._sender is not None and self._sender.stranger
        return too_large(
            self._body_limit, stranger=stranger and body_limit(self.path) > MAX_BODY_BYTES
        )

    def _refuse(self, refusal: ClusterError) -> None:
        """Have `refusal` answered once the body has been read, and keep nothing of the body."""
        self.refusal = refusal
        self.is_large = False
        kept = self.body_rcv.buf
        self.body_rcv.buf = _NullBuffer(len(self.body_rcv))
        kept.close()
        self._forget()

    def _forget(self) -> None:
        if self._counted and self._sender is not None and self._budget is not None:
            self._budget.give_back(self._sender, self._counted)
        self._counted = 0


class EnvelopeErrorTask(ErrorTask):  # type: ignore[misc]
    """Answer a request that never reached the application, in the envelope."""

    #: Statuses of waitress that are answered as they are; all others become 400.
    kept_statuses: ClassVar[frozenset[int]] = frozenset({400, 413, 431, 500})

    def execute(self) -> None:
        """Write the answer and close the connection: what follows on it cannot be trusted."""
        problem = self.request.error
        refusal: ClusterError | None = getattr(self.request, "refusal", None)
        if refusal is not None:
            status, reason = refusal.status, HTTPStatus(refusal.status).phrase
        else:
            status = problem.code if problem.code in self.kept_statuses else 400
            reason = problem.reason if problem.code == status else "Bad Request"
            refusal = self._error(status, str(problem.body))
        sent_id = self.request.headers.get("X_REQUEST_ID")
        request_id = envelope.request_id(sent_id)
        body = envelope.failure(refusal, now=time.time(), request_id=request_id)
        self.status = f"{status} {reason}"
        self.response_headers.extend(
            [
                ("Content-Type", envelope.JSON),
                ("X-Request-ID", request_id),
                ("X-Content-Type-Options", "nosniff"),
                ("Cache-Control", "no-store"),
            ]
        )
        if refusal.retry_after is not None:
            self.response_headers.append(("Retry-After", str(math.ceil(refusal.retry_after))))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)
        _requests_log.info(
            "Request refused",
            extra={
                "request_id": request_id,
                "method": str(getattr(self.request, "command", ""))[:20],
                "path": str(getattr(self.request, "path", ""))[:500],
                "status_code": status,
                "duration_ms": round((time.monotonic() - self.request.born) * 1000, 1),
            },
        )

    def _error(self, status: int, text: str) -> ClusterError:
        if status == 500:
            return InternalError()
        if status == 413:
            return too_large(body_limit(getattr(self.request, "path", "")))
        if status == 431:
            return ValidationError(
                "headers", f"the headers must not be larger than {MAX_HEADER_BYTES} bytes"
            )
        return ValidationError("", f"this is not a valid HTTP request: {text}")

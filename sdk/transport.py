"""Send requests to the facade, and again where that is safe and asked for.

A 429 was refused before anything happened, so it may always be tried again, and so may a
`TASK_JUST_ENDED` 409: a moment later the task's end is written down. A 503 or a broken
connection may have happened after the work was done: it is tried again only where doing the work
twice does no harm (reading, or a submission that carries an Idempotency-Key). Whoever is kept
waiting is told so once, as a warning of the logger `retire_cluster.sdk`: on stderr, unless the
program has a handler for it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final

from retire_cluster.schemas.errors import ClusterUnavailable
from retire_cluster.sdk.body import encode

_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
#: Pauses before a broken connection is tried again; a facade that answered before gets the rest.
_RECONNECT_SECONDS: Final = (0.2, 0.8)
_AGAIN_SECONDS: Final = 2.0
_DEFAULT_RETRY_AFTER_SECONDS: Final = 1.0
#: The header knows whole seconds only; an end is written down within one turn of the main node.
_JUST_ENDED_SECONDS: Final = 0.1
#: A wait that ends within this many seconds of one that was told is part of it.
_ONE_NOTICE_SECONDS: Final = 60.0
#: Where the interface is, on the facade that answers.
_PATH: Final = "/api/v1"
#: The facade's code for an address without anything, and what other programs' answers become.
_NO_SUCH_ADDRESS: Final = ("NOT_FOUND", "INTERNAL_ERROR")
log = logging.getLogger("retire_cluster.sdk")


@dataclass(frozen=True)
class Response:
    """An answer of the facade."""

    status: int
    #: The JSON document.
    body: dict[str, Any]
    retry_after_seconds: float | None = None


class Transport:
    """Send requests to one base address.

    :param timeout_seconds: longest silence of the facade within one exchange
    :param retry_seconds: longest time spent on trying again after 503, or while a facade that
        answered before is silent
    :param limit_seconds: longest wait for the rate limit; default: `retry_seconds`
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float = 30.0,
        retry_seconds: float = 90.0,
        limit_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: http://HOST:PORT/api/v1 is required, not {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.retry_seconds = retry_seconds
        self.limit_seconds = retry_seconds if limit_seconds is None else limit_seconds
        self._clock = clock
        self._pause = pause
        self._notices = _Notices(clock)
        #: Whether the facade answered before: then silence is a pause, not a wrong address.
        self._has_answered = False
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        # A proxy of the environment cannot reach this machine's own addresses.
        handlers = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(*handlers)

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        repeatable: bool | None = None,
        timeout_seconds: float | None = None,
        retry_seconds: float | None = None,
    ) -> Response:
        """Send and return the answer, an error's too.

        Raises `ClusterUnavailable` when no answer comes, `ValidationError`, before anything is
        sent, for a body that is no JSON.

        :param repeatable: whether doing it twice does no harm; default: for GET only
        :param retry_seconds: longest time spent on trying again, for any reason
        """
        request = self._request(method, path, headers, query, body)
        safe = method == "GET" if repeatable is None else repeatable
        began = self._clock()
        patience = self.retry_seconds if retry_seconds is None else retry_seconds
        limit_patience = self.limit_seconds if retry_seconds is None else retry_seconds
        pauses = self._pauses()
        while True:
            try:
                response = self._exchange(request, timeout_seconds or self.timeout_seconds)
            except (OSError, http.client.HTTPException) as error:
                pause = next(pauses, None) if safe else None
                late = pause is not None and self._clock() + pause > began + patience
                if pause is None or (late and pause >= _AGAIN_SECONDS):
                    raise ClusterUnavailable(
                        f"no answer from {self.base_url}: {_reason(error)}; is it running?"
                        " (retire-cluster up, or retire-cluster-api)"
                    ) from error
                if pause >= _AGAIN_SECONDS:
                    self._notices.away(self.base_url, _reason(error), patience)
                self._pause(pause)
                continue
            self._has_answered = True
            limited = response.status == 429
            just_ended = response.body.get("error_code") == "TASK_JUST_ENDED"
            if not limited and not just_ended and not (response.status == 503 and safe):
                self._notices.answered()
                self._name_the_path(response)
                return response
            wait = response.retry_after_seconds
            if wait is None:
                wait = _DEFAULT_RETRY_AFTER_SECONDS
            if self._clock() + wait > began + (limit_patience if limited else patience):
                return response
            if limited:
                self._notices.limited(wait)
            elif just_ended:
                wait = min(wait, _JUST_ENDED_SECONDS)
            elif self._clock() - began >= _AGAIN_SECONDS or wait > _AGAIN_SECONDS:
                self._notices.away(self.base_url, str(response.body.get("message")), patience)
            self._pause(wait)

    def _name_the_path(self, response: Response) -> None:
        """Add to a 404 that the base address lacks the interface's path, where it does."""
        here = response.status == 404 and response.body.get("error_code") in _NO_SUCH_ADDRESS
        if here and not self.base_url.endswith(_PATH):
            message = response.body.get("message")
            response.body["message"] = (
                f"{message}; base_url {self.base_url} does not end in {_PATH}:"
                f" is it {self.base_url}{_PATH}?"
            )

    def _pauses(self) -> Iterator[float]:
        later = itertools.repeat(_AGAIN_SECONDS) if self._has_answered else ()
        return itertools.chain(_RECONNECT_SECONDS, later)

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        query: Mapping[str, Any] | None,
        body: Any,
    ) -> urllib.request.Request:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        text = f"?{urllib.parse.urlencode(given, doseq=True)}" if given else ""
        data = None if body is None else encode(body)
        return urllib.request.Request(
            f"{self.base_url}{path}{text}", data=data, headers=dict(headers), method=method
        )

    def _exchange(self, request: urllib.request.Request, timeout_seconds: float) -> Response:
        try:
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                return _read_response(answer.status, answer.headers, answer.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                return _read_response(error.code, error.headers, error.read(_MAX_ANSWER_BYTES))


class _Notices:
    """Log once a wait that the caller is kept waiting. Used from all threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._limit_until = float("-inf")
        self._is_away = False

    def limited(self, wait_seconds: float) -> None:
        """Log that the rate limit is used up for `wait_seconds`."""
        until = self._clock() + wait_seconds
        with self._lock:
            if until <= self._limit_until + _ONE_NOTICE_SECONDS:
                return
            self._limit_until = until
        log.warning(
            "the cluster's rate limit is used up: waiting %d s, until %s, then going on",
            round(wait_seconds),
            time.strftime("%H:%M:%S", time.localtime(time.time() + wait_seconds)),
        )

    def away(self, base_url: str, reason: str, patience_seconds: float) -> None:
        """Log that a facade that answered before does not answer."""
        with self._lock:
            if self._is_away:
                return
            self._is_away = True
        log.warning(
            "the cluster at %s does not answer (%s): trying again for up to %d s",
            base_url,
            reason,
            round(patience_seconds),
        )

    def answered(self) -> None:
        """Note that the facade answers (again)."""
        if self._is_away:
            with self._lock:
                self._is_away = False


def _read_response(status: int, headers: Message, raw: bytes) -> Response:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):  # not ours: a proxy, or another program on that port
        body = {
            "status": "error",
            "message": f"the answer (HTTP {status}) is no JSON object",
            "error_code": "INTERNAL_ERROR",
            "error_details": {"body": raw[:200].decode("utf-8", "replace")},
        }
    return Response(status, body, _seconds(headers.get("Retry-After")))


def _seconds(text: str | None) -> float | None:
    try:
        found = max(0.0, float(text)) if text else None
    except ValueError:  # a date: the facade never sends one, a proxy may
        return None
    return found if found is None or found < float("inf") else None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)

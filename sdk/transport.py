"""One HTTP exchange with the facade, tried again where that is safe and asked for.

A 429 was refused before anything happened, so it may always be tried again. A 503 or a broken
connection may have happened after the work was done: it is tried again only where doing the work
twice does no harm (reading, or a submission that carries an Idempotency-Key).
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final

from retire_cluster.schemas.errors import ClusterUnavailable

_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
#: Pauses before a broken connection is tried again.
_RECONNECT_SECONDS: Final = (0.2, 0.8)
_DEFAULT_RETRY_AFTER_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Reply:
    """What the facade answered."""

    status: int
    #: The JSON document.
    body: dict[str, Any]
    retry_after_seconds: float | None = None


class Transport:
    """Sends requests to one base address.

    :param timeout_seconds: longest silence of the facade within one exchange
    :param retry_seconds: longest time spent on trying again because of 429 and 503
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float = 30.0,
        retry_seconds: float = 90.0,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: http://HOST:PORT/api/v1 is required, not {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.retry_seconds = retry_seconds
        self._clock = clock
        self._pause = pause
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
    ) -> Reply:
        """Send and return the answer, an error's too.

        Raises `ClusterUnavailable` when no answer comes, `ValueError` for a body that is no JSON.

        :param repeatable: doing it twice does no harm; default: it is a GET
        """
        request = self._request(method, path, headers, query, body)
        safe = method == "GET" if repeatable is None else repeatable
        give_up = self._clock() + self.retry_seconds
        pauses = iter(_RECONNECT_SECONDS)
        while True:
            try:
                reply = self._exchange(request, timeout_seconds or self.timeout_seconds)
            except (OSError, http.client.HTTPException) as error:
                pause = next(pauses, None) if safe else None
                if pause is None:
                    raise ClusterUnavailable(
                        f"no answer from {self.base_url}: {_reason(error)}; is it running?"
                        " (retire-cluster up, or retire-cluster-api)"
                    ) from error
                self._pause(pause)
                continue
            if reply.status != 429 and not (reply.status == 503 and safe):
                return reply
            wait = reply.retry_after_seconds
            if wait is None:
                wait = _DEFAULT_RETRY_AFTER_SECONDS
            if self._clock() + wait > give_up:
                return reply
            self._pause(wait)

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
        data = None if body is None else json.dumps(body, allow_nan=False).encode("utf-8")
        return urllib.request.Request(
            f"{self.base_url}{path}{text}", data=data, headers=dict(headers), method=method
        )

    def _exchange(self, request: urllib.request.Request, timeout_seconds: float) -> Reply:
        try:
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                return _reply(answer.status, answer.headers, answer.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                return _reply(error.code, error.headers, error.read(_MAX_ANSWER_BYTES))


def _reply(status: int, headers: Message, raw: bytes) -> Reply:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):  # not ours: a proxy, or another program on that port
        body = {
            "status": "error",
            "message": f"the answer (HTTP {status}) is no JSON object",
            "error_code": "INTERNAL_ERROR",
            "error_details": {"body": raw[:200].decode("utf-8", "replace")},
        }
    return Reply(status, body, _seconds(headers.get("Retry-After")))


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date: the facade never sends one, a proxy may
        return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)

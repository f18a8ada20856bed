"""Check every request before its resource, and finish every answer after it.

Before: request id, host, origin, key, rate limit, right, query. After: headers, statistics, log.
Errors of any kind become the envelope of an error here.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import falcon
from falcon.constants import COMBINED_METHODS

from retire_cluster.api.admission.auth import CHALLENGE, Authorizer, Identity
from retire_cluster.api.admission.peers import Hosts, Origins, Peers
from retire_cluster.api.admission.rate_limit import RequestLimiter, Standing
from retire_cluster.api.admission.sessions import set_cookie
from retire_cluster.api.content import envelope
from retire_cluster.api.main_node.link import NOT_KNOWN
from retire_cluster.api.main_node.stats import HttpStats, Reporter
from retire_cluster.schemas.errors import (
    ClusterError,
    ClusterUnavailable,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
    ValidationError,
)
from retire_cluster.schemas.rest.endpoints import API, ENDPOINTS, Endpoint
from retire_cluster.schemas.rest.requests import parse_query, split_query

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
_CHANGING = frozenset({"POST", "PUT", "DELETE", "PATCH"})
_UNLIMITED = frozenset({row.path for row in ENDPOINTS.values() if row.unlimited})
_LOCAL = frozenset(row.path for row in ENDPOINTS.values() if not row.needs_cluster)
_REQUEST_HEADERS = "Content-Type, X-API-Key, Authorization, X-Request-ID, Idempotency-Key"
_EXPOSED = (
    "X-Request-ID, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After,"
    " Idempotent-Replayed"
)
_TASKS, _RESULTS = f"{API}/tasks/", ("/result", "/results")
#: From a wait of so many seconds on a request for results costs no rate limit.
FREE_WAIT_SECONDS = 1.0
_WAIT = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?", re.ASCII)
_REMEMBERED_QUERIES = 1000
_log = logging.getLogger("api")
_requests_log = logging.getLogger("api.requests")


class AdmissionMiddleware:
    """Do what is the same for all endpoints, as Falcon middleware.

    :param hosts: the names this API may be called by; None: by any
    :param clock: epoch seconds, for timestamps
    :param monotonic: seconds, for durations
    """

    def __init__(
        self,
        *,
        authorizer: Authorizer,
        peers: Peers,
        origins: Origins,
        hosts: Hosts | None,
        limiter: RequestLimiter,
        stats: HttpStats,
        reporter: Reporter | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._authorizer = authorizer
        self._peers = peers
        self._origins = origins
        self._hosts = hosts
        self._limiter = limiter
        self._stats = stats
        self._reporter = reporter
        self._clock = clock
        self._monotonic = monotonic
        self._queries: dict[tuple[str, str], Mapping[str, Any]] = {}

    # --- before the responder ---

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Find who asks and from where; count the request. Raises a `ClusterError`."""
        context = req.context
        context.started = self._monotonic()
        context.clock = self._clock
        context.request_id = envelope.request_id(req.env.get("HTTP_X_REQUEST_ID"))
        context.endpoint = None
        context.standing = None
        if self._reporter is not None:
            self._reporter.ensure_running()
        peer = self._peers.of(req.env)
        if req.method not in COMBINED_METHODS:  # those the router answers, and says what is allowed
            raise falcon.HTTPMethodNotAllowed(METHODS)
        if self._hosts is not None and not self._hosts.is_known(req.env.get("HTTP_HOST", "")):
            raise ValidationError(
                "Host",
                "is not a name of this API (DNS rebinding); add it to allowed_hosts, or turn"
                " authentication on",
            )
        if req.method in _CHANGING and self._origins.is_foreign(
            req.env, through_proxy=peer.through_proxy
        ):
            raise Forbidden(
                "Pages of other sites may not change anything here; allow theirs by --cors-origin"
            )
        if req.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in req.env:
            self._preflight(req, resp)
            return
        # The dashboard's files need no key.
        context.identity = (
            Identity(peer, None)
            if _is_dashboard(req.path)
            else self._authorizer.of_request(peer, req.env)
        )
        if self._limiter.enabled and req.method != "OPTIONS" and _is_limited(req):
            self._count(req)

    def process_resource(
        self, req: falcon.Request, _resp: falcon.Response, _resource: object, _params: Any
    ) -> None:
        """Check the right and the query. Raises `Unauthorized`, `Forbidden`, `ValidationError`."""
        method = "GET" if req.method == "HEAD" else req.method
        endpoint: Endpoint | None = ENDPOINTS.get((method, req.uri_template or ""))
        req.context.endpoint = endpoint
        if endpoint is None:
            return
        self._authorizer.check(req.context.identity, endpoint)
        req.context.query = self._query(endpoint, req.query_string)

    # --- after it ---

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, _resource: object, _succeeded: bool
    ) -> None:
        """Add the common headers; count and log the request."""
        context = req.context
        resp.set_header("X-Request-ID", context.request_id)
        resp.set_header("X-Content-Type-Options", "nosniff")
        if "cache-control" not in resp.headers:
            resp.set_header("Cache-Control", "no-store")
        standing: Standing | None = context.standing
        if standing is not None:
            resp.set_headers(standing.headers())
        identity: Identity | None = getattr(context, "identity", None)
        if identity is not None and identity.bad_cookie:
            set_cookie(req, resp, identity.bad_cookie, "")
        self._add_cors(req, resp)
        status = resp.status_code
        seconds = self._monotonic() - context.started
        self._stats.observe(
            req.method if req.method in METHODS else "other",
            req.uri_template or "unmatched",
            status,
            seconds,
        )
        _requests_log.info(
            "Request processed",
            extra={
                "request_id": context.request_id,
                "method": req.method[:20],
                "path": req.path[:500],
                "status_code": status,
                "duration_ms": round(seconds * 1000, 1),
            },
        )

    def _query(self, endpoint: Endpoint, text: str) -> Mapping[str, Any]:
        """Read the query as typed values. Requests share them: clients repeat their queries."""
        key = (endpoint.operation_id, text)
        found = self._queries.get(key)
        if found is None:
            found = parse_query(endpoint.query, split_query(text))
            if len(self._queries) >= _REMEMBERED_QUERIES:
                self._queries.clear()
            self._queries[key] = found
        return found

    def _count(self, req: falcon.Request) -> None:
        try:
            self._limiter.charge(req)
        except ClusterUnavailable:
            if _plain(req.path) not in _LOCAL:
                raise

    def _preflight(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.status = falcon.HTTP_204
        if self._origins.cors_value(req.env.get("HTTP_ORIGIN")) is not None:
            resp.set_header("Access-Control-Allow-Methods", ", ".join(METHODS))
            resp.set_header("Access-Control-Allow-Headers", _REQUEST_HEADERS)
            resp.set_header("Access-Control-Max-Age", "600")
        resp.complete = True

    def _add_cors(self, req: falcon.Request, resp: falcon.Response) -> None:
        if self._origins.varies:
            resp.append_header("Vary", "Origin")
        allowed = self._origins.cors_value(req.env.get("HTTP_ORIGIN"))
        if allowed is not None:
            resp.set_header("Access-Control-Allow-Origin", allowed)
            resp.set_header("Access-Control-Expose-Headers", _EXPOSED)


def _plain(path: str) -> str:
    return path.rstrip("/") or "/"


def _is_limited(req: falcon.Request) -> bool:
    path = _plain(req.path)
    if path in _UNLIMITED or _is_dashboard(req.path):
        return False
    return not (path.startswith(_TASKS) and path.endswith(_RESULTS) and waits(req.query_string))


def waits(query: str) -> bool:
    """Tell whether a query asks for a wait long enough to cost no rate limit."""
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name == "wait" and _WAIT.fullmatch(value):
            return float(value) >= FREE_WAIT_SECONDS
    return False


def _is_dashboard(path: str) -> bool:
    return path == "/ui" or path.startswith("/ui/")


# --- errors --------------------------------------------------------------------------------------

_BY_STATUS: dict[int, type[ClusterError]] = {
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    413: PayloadTooLarge,
    415: UnsupportedMediaType,
    503: ClusterUnavailable,
}


def answer_error(req: falcon.Request, resp: falcon.Response, error: ClusterError) -> None:
    """Write `error` as the answer."""
    resp.status = falcon.code_to_http_status(error.status)
    resp.content_type = envelope.JSON
    resp.text = None
    resp.data = envelope.failure(error, now=req.context.clock(), request_id=req.context.request_id)
    # Code and field only: a message may repeat what the client sent.
    _log.debug(
        "Request refused",
        extra={
            "request_id": req.context.request_id,
            "error_code": error.code,
            "field": str(error.details.get("field", ""))[:200],
        },
    )
    if error.retry_after is not None or error.status == 503:
        resp.set_header("Retry-After", str(max(1, math.ceil(error.retry_after or 1))))
    if error.status == 401:
        resp.set_header("WWW-Authenticate", CHALLENGE)


def on_cluster_error(
    req: falcon.Request, resp: falcon.Response, error: ClusterError, _params: Any
) -> None:
    """Answer an error that a user can be told."""
    answer_error(req, resp, error)


def on_http_error(
    req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: Any
) -> None:
    """Answer Falcon's own errors (no route, no such method, unreadable header) in our words."""
    cls = _BY_STATUS.get(error.status_code)
    if isinstance(error, falcon.HTTPRouteNotFound):
        answer_error(req, resp, NotFound("There is nothing at this address"))
    elif isinstance(error, falcon.HTTPMethodNotAllowed):
        answer_error(req, resp, MethodNotAllowed(f"{req.method[:20]} is not possible here"))
        resp.set_headers(error.headers or {})
    elif cls is not None:
        answer_error(req, resp, cls(error.description or error.title))
    elif error.status_code < 500:
        answer_error(req, resp, ValidationError("", error.description or error.title or "invalid"))
    else:
        on_exception(req, resp, error, params)


def on_exception(
    req: falcon.Request, resp: falcon.Response, error: Exception, _params: Any
) -> None:
    """Log a fault of ours with its trace; answer only the id to find it by."""
    _log.error(
        "Request failed: %s",
        type(error).__name__,
        exc_info=error,
        extra={"request_id": req.context.request_id, "path": req.path[:500]},
    )
    told = InternalError()
    if req.method not in ("GET", "HEAD", "OPTIONS"):
        # The main node may have done it before something here failed.
        told = InternalError(f"{told.message} {NOT_KNOWN}")
    answer_error(req, resp, told)

"""`http_request`: one request over HTTP, by urllib3, to public addresses only.

No proxy environment, no cookies, no hidden retries; every redirect is checked like a new request.
An answer of 4xx or 5xx is still an answer: the task succeeded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from retire_cluster.node.tasks import http_addresses
from retire_cluster.node.tasks.base import (
    BadPayload,
    Context,
    Hopeless,
    Success,
    TaskFailed,
    TimedOut,
    as_number,
    as_text,
    as_text_map,
    no_strangers,
)
from retire_cluster.node.tasks.bounded_output import Kept, cuts, fit, json_size
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES
from retire_cluster.schemas.task_types import BUILTIN, HTTP_METHODS
from retire_cluster.schemas.text import web_url

if TYPE_CHECKING:
    import urllib3
    from urllib3 import BaseHTTPResponse

INFO = BUILTIN["http_request"]
DEFAULT_TIMEOUT_SECONDS = 30
MAX_TIMEOUT_SECONDS = 3_600
MAX_REDIRECTS = 5
MAX_CONTENT_BYTES = 512 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Headers that describe the connection are ours; a task's would contradict them.
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "host", "upgrade", "te"})
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def is_repeatable(payload: Mapping[str, Any]) -> bool:
    """Whether sending it twice does no harm: GET and HEAD."""
    return payload.get("method", "GET") in ("GET", "HEAD")


def check(payload: Mapping[str, Any]) -> None:
    """Refuse a payload that cannot be used: raises `BadPayload`."""
    no_strangers(payload, INFO.payload_schema or {})
    url = as_text(payload, "url")
    if not url:
        raise BadPayload("url", "is required")
    try:
        web_url.split(url)
    except ValueError as error:
        raise BadPayload("url", str(error)) from None
    method = payload.get("method", "GET")
    if method not in HTTP_METHODS:
        raise BadPayload("method", f"must be one of {', '.join(HTTP_METHODS)}")
    for name, value in as_text_map(payload, "headers").items():
        if not name or not set(name) <= _TOKEN:
            raise BadPayload("headers", f"{name!r:.80} is no header name")
        if name.lower() in _OURS:
            raise BadPayload("headers", f"{name} is set by the device")
        if any(char in value for char in "\r\n\0") or not _is_latin1(value):
            raise BadPayload("headers", f"the value of {name} has characters a header cannot have")
    data = payload.get("data", "")
    if not isinstance(data, (str, dict)):
        raise BadPayload("data", "must be an object or a text")
    as_number(payload, "timeout", 0.1, MAX_TIMEOUT_SECONDS)


def run(payload: Mapping[str, Any], context: Context) -> Success:
    """The answer as `{"status_code", "headers", "content", "url"}`.

    Raises `TimedOut` when the whole of it takes longer than the payload's `timeout`, `TaskFailed`
    for a connection that fails, `Hopeless` for an address that cannot work, `Denied` for a refused
    one.
    """
    check(payload)
    seconds = float(payload.get("timeout", DEFAULT_TIMEOUT_SECONDS))
    box: list[Success | BaseException] = []

    def work() -> None:
        try:
            box.append(_follow(payload, context.limits.private_addresses, seconds))
        except BaseException as error:  # handed to the waiting thread as it is
            box.append(error)

    # A resolver or a server that drips bytes cannot be interrupted; it can be left behind.
    thread = threading.Thread(target=work, name="http_request", daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise TimedOut(f"no complete answer within {seconds:g} s")
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def _follow(payload: Mapping[str, Any], private_allowed: bool, seconds: float) -> Success:
    url, method = payload["url"], payload.get("method", "GET")
    headers, body = _headers_and_body(payload)
    for _ in range(MAX_REDIRECTS + 1):
        answer = _once(method, url, headers, body, private_allowed, seconds)
        status = answer.result["status_code"]
        location = _header(answer.result["headers"], "location")
        if status not in _REDIRECTS or not location:
            return answer
        target = urljoin(url.partition("#")[0], location.replace(" ", "%20"))
        try:
            after = web_url.split(target)
        except ValueError as error:
            raise Hopeless(f"a redirect leads to {_place(target)!r:.200}, which {error}") from None
        if _origin(web_url.split(url)) != _origin(after):
            headers = {k: v for k, v in headers.items() if k.lower() not in _CREDENTIALS}
        if status == 303 or (status in (301, 302) and method == "POST"):
            method = method if method == "HEAD" else "GET"
            body = None
            headers = {k: v for k, v in headers.items() if not k.lower().startswith("content-")}
        url = target
    raise TaskFailed(f"more than {MAX_REDIRECTS} redirects, the last one to {_place(url)}")


def _once(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    private_allowed: bool,
    seconds: float,
) -> Success:
    import urllib3

    parts = web_url.split(url)
    host, port = web_url.host_of(parts), _origin(parts)[2]
    sent = _headers_to_send(parts, headers)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # The caller's deadline comes first, so that it decides what the task is told.
    timeout = urllib3.Timeout(connect=min(seconds, 10.0), read=seconds + 5.0)
    failure: Exception | None = None
    for endpoint in http_addresses.choose(host, port, private_allowed=private_allowed):
        try:
            with _pool(parts.scheme, endpoint, timeout) as pool:
                answer = pool.urlopen(
                    method,
                    path,
                    body=body,
                    headers=sent,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    assert_same_host=False,
                )
                return _read(answer, url)
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.ConnectTimeoutError,
        ) as error:
            failure = error  # the next address may answer
        except urllib3.exceptions.HTTPError as error:
            raise TaskFailed(f"{method} {_place(url)} failed: {_words(error)}") from None
        except (ValueError, UnicodeError) as error:
            raise Hopeless(f"payload.url: cannot be used: {error}") from None
    raise TaskFailed(f"cannot connect to {_place(url)}: {_words(failure)}")


def _pool(
    scheme: str, endpoint: http_addresses.Endpoint, timeout: urllib3.Timeout
) -> urllib3.HTTPConnectionPool:
    """A pool that connects to the address that was judged and believes only the name's key."""
    import urllib3

    address, port, host = endpoint.address, endpoint.port, endpoint.host
    if scheme == "http":
        return urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    return urllib3.HTTPSConnectionPool(
        address, port, timeout=timeout, server_hostname=host, assert_hostname=host
    )


def _read(answer: BaseHTTPResponse, url: str) -> Success:
    content = bytearray()
    while len(content) <= MAX_CONTENT_BYTES:
        part = answer.read(65_536, decode_content=True)
        if not part:
            break
        content += part
    headers = {name: answer.headers[name] for name in answer.headers}
    result = {
        "status_code": answer.status, "headers": headers, "content": "", "url": _shown(url),
    }  # fmt: skip
    room = MAX_RESULT_BYTES - json_size(result)
    kept = fit({"content": _kept(bytes(content), headers)}, room)
    return Success({**result, "content": kept["content"].text}, cuts(kept))


def _kept(content: bytes, headers: Mapping[str, str]) -> Kept:
    """The beginning of a content of which more than the limit was read only when it is longer."""
    charset = _charset(headers)
    total: int | None = len(content)
    if len(content) > MAX_CONTENT_BYTES:
        length = _header(headers, "content-length")
        plain = not _header(headers, "content-encoding") and charset == "utf-8"
        said = int(length) if plain and length.isdecimal() and len(length) < 16 else 0
        # An honest server's word: the content itself is not read to its end for the count's sake.
        total = said if said >= len(content) else None
    if charset != "utf-8":
        whole = len(content) == total
        content = _decode(content[:MAX_CONTENT_BYTES], charset).encode("utf-8", "replace")
        return Kept(content, b"", len(content) if whole else None)
    kept = Kept(content, b"", total)
    return kept if len(content) == total else kept.smaller(MAX_CONTENT_BYTES)


def _charset(headers: Mapping[str, str]) -> str:
    kind = _header(headers, "content-type")
    charset = "utf-8"
    for part in kind.split(";")[1:]:
        name, _, value = part.strip().partition("=")
        if name.lower() == "charset":
            charset = value.strip().strip("\"'").lower()
    return "utf-8" if charset in ("utf8", "us-ascii") else charset


def _decode(content: bytes, charset: str) -> str:
    try:
        return content.decode(charset, "replace")
    except (LookupError, ValueError):
        return content.decode("utf-8", "replace")


def _headers_and_body(payload: Mapping[str, Any]) -> tuple[dict[str, str], bytes | None]:
    headers = dict(payload.get("headers") or {})
    data = payload.get("data")
    if data is None:
        return headers, None
    if isinstance(data, str):
        return headers, data.encode("utf-8", "surrogatepass")
    if not _header(headers, "content-type"):
        headers["Content-Type"] = "application/json"
    return headers, json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _headers_to_send(parts: SplitResult, headers: Mapping[str, str]) -> dict[str, str]:
    import urllib3

    host = web_url.host_of(parts)
    name = f"[{host}]" if ":" in host else host
    sent = {"Host": f"{name}:{parts.port}" if parts.port else name, **headers}
    if not _header(sent, "user-agent"):
        sent["User-Agent"] = "retire-cluster"
    if parts.username is not None and not _header(sent, "authorization"):
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        sent["Authorization"] = urllib3.make_headers(basic_auth=login)["authorization"]
    return sent


def _header(headers: Mapping[str, str], wanted: str) -> str:
    return next((value for name, value in headers.items() if name.lower() == wanted), "")


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return (parts.scheme, parts.hostname, port)


def _shown(url: str) -> str:
    """The URL without user and password: it goes into results."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return parts.geturl()


def _place(url: str) -> str:
    """The URL for messages: also without its query, which may hold a secret."""
    try:
        return _shown(url.partition("#")[0].partition("?")[0])
    except ValueError:
        return "an address that is none"


def _words(error: BaseException | None) -> str:
    text = str(getattr(error, "reason", None) or error)
    return text.rpartition(": ")[2] if "object at 0x" in text else text


def _is_latin1(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True

"""Make and read the cookies of browsers that are signed in to the dashboard.

A cookie goes to every port of a host, so it never holds a key and its name is this cluster's own:
two clusters on one host, signed in side by side, do not see each other's. It holds the key's id and
an end, signed with a secret of the main node that all facade processes ask it for. A session is as
good as its key: it ends when the key is revoked, and after `SESSION_SECONDS`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

import falcon

from retire_cluster.api.admission.peers import prefix_of
from retire_cluster.api.main_node.link import MainNodeLink

SESSION_SECONDS: Final = 7 * 86_400
PREFIX: Final = "retire_cluster_"
#: A cookie that does not fit has the main node asked again whose it is, at most this often.
_ASK_AGAIN_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Signed:
    """A session cookie of this cluster that a request brought."""

    #: Id of the key it stands for; None when it is not, or no longer, valid.
    key_id: str | None
    #: Name of the cookie.
    name: str


@dataclass(frozen=True)
class _Signer:
    name: str
    secret: bytes

    def signature(self, body: str) -> str:
        digest = hmac.new(self.secret, body.encode("latin-1", "replace"), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Sessions:
    """Issue and read session cookies.

    :param link: to the main node, which knows the secret
    :param clock: epoch seconds
    :param monotonic: seconds
    """

    def __init__(
        self,
        link: MainNodeLink,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._clock = clock
        self._monotonic = monotonic
        self._signer: _Signer | None = None
        self._asked_at = float("-inf")

    def issue(self, key_id: str) -> tuple[str, str]:
        """Return name and value of a new session's cookie. Raises `ClusterUnavailable`."""
        signer = self._ask()
        end = int(self._clock()) + SESSION_SECONDS
        body = f"{key_id}.{end}.{secrets.token_urlsafe(9)}"
        return signer.name, f"{body}.{signer.signature(body)}"

    def name(self) -> str:
        """Return the name of this cluster's cookie. Raises `ClusterUnavailable`."""
        return (self._signer or self._ask()).name

    def read(self, environ: Mapping[str, Any]) -> Signed | None:
        """Read a request's cookie; None when it has none of this cluster.

        Raises `ClusterUnavailable` when only the main node could tell.
        """
        header = str(environ.get("HTTP_COOKIE", ""))
        if PREFIX not in header:
            return None
        # SameSite=Strict lets pages of other ports of this host send the cookie too; their browser
        # says so here. What changes something has had its Origin checked (admission/middleware.py).
        site = str(environ.get("HTTP_SEC_FETCH_SITE", "none")).strip().lower()
        if site not in ("same-origin", "none"):
            return None
        signer = self._signer or self._ask()
        found = self._look(header, signer)
        if (found is None or found.key_id is None) and self._may_ask():
            # Another main node, or a new key of it, may have taken the place of the one known.
            found = self._look(header, self._ask())
        return found

    def _look(self, header: str, signer: _Signer) -> Signed | None:
        found = None
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == signer.name and value:
                found = Signed(self._key_id(signer, value), name)
                if found.key_id is not None:
                    break
        return found

    def _key_id(self, signer: _Signer, value: str) -> str | None:
        body, _, signature = value.rpartition(".")
        good = signer.signature(body).encode()
        if not hmac.compare_digest(signature.encode("latin-1", "replace"), good):
            return None
        key_id, end, _ = body.split(".", 2)
        return key_id if int(end) > self._clock() else None

    def _may_ask(self) -> bool:
        return self._monotonic() - self._asked_at >= _ASK_AGAIN_SECONDS

    def _ask(self) -> _Signer:
        data = self._link.data("facade.identity")
        self._asked_at = self._monotonic()
        secret = binascii.unhexlify(str(data["session_secret"]))
        self._signer = _Signer(PREFIX + str(data["cluster_id"]), secret)
        return self._signer


def set_cookie(req: falcon.Request, resp: falcon.Response, name: str, value: str) -> None:
    """Have the browser keep a session's cookie; forget it when the value is empty."""
    # Falcon leaves out a Max-Age of 0, so forgetting goes by the date.
    past = None if value else datetime(1970, 1, 1, tzinfo=timezone.utc)
    peer = req.context.identity.peer
    forwarded = req.get_header("X-Forwarded-Proto", default="") if peer.through_proxy else ""
    resp.set_cookie(
        name,
        value,
        expires=past,
        max_age=SESSION_SECONDS if value else None,
        path=f"{prefix_of(req.env, peer)}/",
        secure=req.scheme == "https" or forwarded.strip().lower() == "https",
        http_only=True,
        same_site="Strict",
    )

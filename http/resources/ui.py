"""The dashboard at `/ui/`: its files, and signing in and out.

The files are read once, with their compressed twins and tags, and cost no rate limit and no key:
there is nothing in them but the program. What the pages show, they ask the API for.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Final

import falcon

from retire_cluster.api.admission.auth import OTHER_USER, Authorizer, Identity
from retire_cluster.api.admission.local_users import connection_of
from retire_cluster.api.admission.sessions import Sessions, set_cookie
from retire_cluster.api.content import reading
from retire_cluster.api.content.negotiation import accepts, has
from retire_cluster.api.resources.base import Resource, answer
from retire_cluster.schemas.errors import NotFound, Unauthorized
from retire_cluster.schemas.rest.dialect import Schema
from retire_cluster.schemas.rest.validation import validate

PACKAGE: Final = "retire_cluster.api.ui"
INDEX: Final = "index.html"
#: Nothing from elsewhere, nothing inline, no page around it.
POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
    " object-src 'none'"
)
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_LOGIN: Final[Schema] = {
    "key": {"type": "string", "required": True, "minlength": 1, "maxlength": 1000}
}

#: Whole lines of comment, which a browser need not be sent.
_COMMENT = re.compile(rb"^[ \t]*(?://[^\n]*|/\*(?:[^*]|\*(?!/))*\*/[ \t]*)\r?\n", re.MULTILINE)


@dataclass(frozen=True)
class StaticFile:
    """One file, ready to be sent."""

    content_type: str
    raw: bytes
    packed: bytes
    tag: str


def load_files() -> dict[str, StaticFile]:
    """Read all files of the dashboard, by name."""
    found = {}
    for entry in files(PACKAGE).iterdir():
        content_type = _TYPES.get(PurePosixPath(entry.name).suffix)
        if content_type is not None:
            raw = entry.read_bytes()
            if entry.name.endswith((".js", ".css")):
                raw = _COMMENT.sub(b"", raw)
            tag = hashlib.sha256(raw).hexdigest()[:20]
            packed = gzip.compress(raw, mtime=0)
            found[entry.name] = StaticFile(content_type, raw, packed, tag)
    return found


class DashboardFilesResource(Resource):
    """Serve `/ui/` and the files beside it."""

    def __init__(self) -> None:
        self._files = load_files()

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str = INDEX) -> None:
        """Answer the file, or 304 when the browser has it. Redirect `/ui` to `/ui/`."""
        if req.env.get("PATH_INFO", "").endswith("/ui"):
            # Relative, so that it also holds behind a proxy that adds a prefix.
            resp.status = falcon.HTTP_308
            resp.set_header("Location", "ui/")
            return
        file = self._files.get(name)
        if file is None:
            raise NotFound("The dashboard has no such file")
        packed = accepts(req.get_header("Accept-Encoding", default=""), "gzip")
        tag = f'"{file.tag}{"-gz" if packed else ""}"'
        resp.set_headers(
            {
                "ETag": tag,
                # Kept, but asked for again: an upgrade shows at once, and asking costs a 304.
                "Cache-Control": "no-cache",
                "Vary": "Accept-Encoding",
                "Content-Security-Policy": POLICY,
                "Referrer-Policy": "same-origin",
            }
        )
        if has(req.get_header("If-None-Match", default=""), tag):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = file.content_type
        resp.data = file.packed if packed else file.raw
        if packed:
            resp.set_header("Content-Encoding", "gzip")


class SessionResource(Resource):
    """Serve `/ui/session`, `/ui/login`, `/ui/logout`: who a browser is, by its cookie."""

    def __init__(self, authorizer: Authorizer, sessions: Sessions, version: str) -> None:
        self._authorizer = authorizer
        self._sessions = sessions
        self._version = version

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer what this browser may do, so that the page offers nothing else."""
        identity = self._authorizer.of_request(req.context.identity.peer, req.env)
        if identity.unknown is not None:
            raise identity.unknown
        req.context.identity = identity
        answer(req, resp, self._facts(identity))

    def on_post_login(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Exchange a valid key for a session cookie. Raises `Unauthorized` for another."""
        key = validate(_LOGIN, reading.json_body(req))["key"].strip()
        identity = self._authorizer.identify(req.context.identity.peer, key)
        if self._authorizer.required:
            if identity.key is None:
                raise Unauthorized("This API key is not valid")
            set_cookie(req, resp, *self._sessions.issue(identity.key.key_id))
        answer(req, resp, self._facts(self._of(req, identity)), message="Signed in")

    def on_post_logout(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Have the browser forget its cookie."""
        if self._authorizer.required:
            set_cookie(req, resp, self._sessions.name(), "")
        identity = self._of(req, Identity(req.context.identity.peer, None))
        answer(req, resp, self._facts(identity), message="Signed out")

    @staticmethod
    def _of(req: falcon.Request, identity: Identity) -> Identity:
        """Add the connection it came by to a client's identity."""
        return replace(identity, connection=connection_of(req.env))

    def _facts(self, identity: Identity) -> dict[str, Any]:
        other = self._authorizer.is_other_user(identity)
        if self._authorizer.required:
            scopes = list(identity.key.scopes) if identity.key else []
        else:
            scopes = ["admin"] if self._authorizer.is_owner(identity) else []
        return {
            "version": self._version,
            "auth_required": self._authorizer.required,
            "auth_reads": self._authorizer.reads,
            "signed_in": identity.key is not None,
            "scopes": scopes,
            "notice": f"You can only look here: {OTHER_USER}." if other else "",
        }

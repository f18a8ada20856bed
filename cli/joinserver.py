"""Serves `/join.py` and wheels to devices that have nothing yet: static, read-only, no secrets.

It listens where the worker bus does, apart from the REST API, so that a device can fetch its
installer without the API being opened to the network.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from retire_cluster.api.drain import Drain
from retire_cluster.api.waitress_server import FacadeServer, Patience
from retire_cluster.cli import wheel
from retire_cluster.schemas.hosts import in_url

_WHEEL_NAME = re.compile(r"[A-Za-z0-9_.+\-]{1,200}\.whl\Z")
_SCRIPT = Path(__file__).with_name("join_script.py")
#: A home's devices, not the public; an installer that is under way when we stop is run again.
_PATIENCE = Patience(connections=100, drain_seconds=1.0)
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class JoinServer:
    """The files, and the thread that serves them.

    :param host: address to listen on
    :param port: port; another one is taken when it is in use
    :param name: address by which devices reach this machine
    :param kept: folder of wheels for devices without internet
    Raises `OSError` when it cannot listen, `FileNotFoundError` when the wheel cannot be made.
    """

    def __init__(self, host: str, port: int, name: str, kept: Path) -> None:
        self._kept = kept
        self._wheel_name, self._wheel = wheel.build()
        try:
            self._server = self._listen(host, port)
        except OSError:
            self._server = self._listen(host, 0)
        self.port = self._server.port
        self.script = script(
            f"http://{in_url(name)}:{self.port}",
            self._wheel_name,
            hashlib.sha256(self._wheel).hexdigest(),
        )
        self.sha256 = hashlib.sha256(self.script).hexdigest()
        self._thread = threading.Thread(target=self._server.serve, name="join server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, having let what is under way finish for a moment."""
        self._server.stop()
        self._thread.join(5)

    def _listen(self, host: str, port: int) -> FacadeServer:
        return FacadeServer(self._answer, host, port, drain=Drain(), threads=2, patience=_PATIENCE)

    def _answer(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        found = self._file(path) if environ.get("REQUEST_METHOD") in ("GET", "HEAD") else None
        if found is None:
            kind, body, status = "text/plain", b"Nothing is here.\n", "404 Not Found"
        else:
            (kind, body), status = found, "200 OK"
        start(
            status,
            [
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("X-Content-Type-Options", "nosniff"),
                ("Cache-Control", "no-store"),
            ],
        )
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    def _file(self, path: str) -> tuple[str, bytes] | None:
        if path == "/join.py":
            return "text/x-python; charset=utf-8", self.script
        if path == "/wheels/":
            names = [self._wheel_name, *self._names()]
            links = "\n".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in names)
            return "text/html; charset=utf-8", f"<!doctype html>\n{links}\n".encode()
        name = path.removeprefix("/wheels/")
        if name == self._wheel_name:
            return "application/zip", self._wheel
        if path.startswith("/wheels/") and name in self._names():
            try:
                return "application/zip", (self._kept / name).read_bytes()
            except OSError:
                return None
        return None

    def _names(self) -> list[str]:
        try:
            return sorted(p.name for p in self._kept.iterdir() if _WHEEL_NAME.match(p.name))
        except OSError:
            return []


def script(base: str, wheel_name: str, sha256: str) -> bytes:
    """`/join.py` with what it has to know."""
    text = _SCRIPT.read_text("utf-8")
    for name, value in (("BASE", base), ("WHEEL", wheel_name), ("SHA256", sha256)):
        text = text.replace(f'\n{name} = ""\n', f"\n{name} = {value!r}\n", 1)
    return text.encode("utf-8")

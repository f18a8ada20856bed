"""Serves `/join.py` and wheels to devices that have nothing yet: static, read-only, no secrets.

It listens where the worker bus does, apart from the REST API, so that a device can fetch its
installer without the API being opened to the network.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from retire_cluster.api.admission.shutdown import Shutdown
from retire_cluster.api.serving.waitress_server import FacadeServer, SlowClientLimits
from retire_cluster.cli.joining import wheel
from retire_cluster.schemas.text.hosts import in_url

_WHEEL_NAME = re.compile(r"[A-Za-z0-9_.+\-]{1,200}\.whl\Z")
_SCRIPT = Path(__file__).with_name("join_script.py")
#: What a device may take from a package index (tests/supply_chain.py makes it).
_LOCK = Path(__file__).with_name("device.lock")
_SCRIPTS_KEPT = 100
_PART_BYTES = 1024 * 1024
#: A home's devices, not the public; an installer that is under way when we stop is run again.
_PATIENCE = SlowClientLimits(connections=100, drain_seconds=1.0)
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
        self._name = name
        self._wheel_name, self._wheel = wheel.build()
        #: What was kept when it was last looked at: name → size, time, digest.
        self._known: dict[str, tuple[int, int, str]] = {}
        #: Scripts by the digests that pasted lines ask for.
        self._scripts: dict[str, bytes] = {}
        try:
            self._server = self._listen(host, port)
        except OSError:
            self._server = self._listen(host, 0)
        self.port = self._server.port
        self.refresh()
        self._thread = threading.Thread(target=self._server.serve, name="join server", daemon=True)
        self._thread.start()

    def refresh(self) -> bool:
        """Look which wheels are kept now; return whether new lines get another script than before.

        A line that was given out goes on to get its own script, as long as this server lives.
        """
        known = {}
        for name, found in self._files():
            stamp = (found.st_size, found.st_mtime_ns)
            before = self._known.get(name)
            try:
                digest = before[2] if before and before[:2] == stamp else self._digest(name)
            except OSError:
                continue
            known[name] = (*stamp, digest)
        if self._scripts and known == self._known:
            return False
        self._known = known
        self.script = script(
            f"http://{in_url(self._name)}:{self.port}",
            self._wheel_name,
            hashlib.sha256(self._wheel).hexdigest(),
            {name: digest for name, (_, _, digest) in sorted(known.items())},
        )
        self.sha256 = hashlib.sha256(self.script).hexdigest()
        while len(self._scripts) >= _SCRIPTS_KEPT:
            del self._scripts[next(iter(self._scripts))]
        self._scripts[self.sha256] = self.script
        return True

    def close(self) -> None:
        """Stop listening, having let what is under way finish for a moment."""
        self._server.stop()
        self._thread.join(5)

    def _listen(self, host: str, port: int) -> FacadeServer:
        return FacadeServer(
            self._answer, host, port, shutdown=Shutdown(), threads=2, patience=_PATIENCE
        )

    def _answer(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        asked = environ.get("QUERY_STRING", "")
        found = (
            self._file(path, asked) if environ.get("REQUEST_METHOD") in ("GET", "HEAD") else None
        )
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

    def _file(self, path: str, asked: str) -> tuple[str, bytes] | None:
        if path == "/join.py":
            return "text/x-python; charset=utf-8", self._scripts.get(asked, self.script)
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
        return sorted(name for name, _ in self._files())

    def _files(self) -> list[tuple[str, os.stat_result]]:
        try:
            with os.scandir(self._kept) as entries:
                wheels = [entry for entry in entries if _WHEEL_NAME.match(entry.name)]
                return [(entry.name, entry.stat()) for entry in wheels if entry.is_file()]
        except OSError:
            return []  # no folder, or a file that went meanwhile: the next look finds the others

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with (self._kept / name).open("rb") as file:
            while part := file.read(_PART_BYTES):
                digest.update(part)
        return digest.hexdigest()


def script(base: str, wheel_name: str, sha256: str, kept: Mapping[str, str]) -> bytes:
    """Return `/join.py` with what it has to know.

    :param kept: wheels that this main node keeps, and their digests
    """
    text = _SCRIPT.read_text("utf-8")
    lock = _LOCK.read_text("utf-8")
    listed = "".join(f"\n    {name!r}: {digest!r}," for name, digest in kept.items())
    for name, empty, value in (
        ("BASE", '""', repr(base)),
        ("WHEEL", '""', repr(wheel_name)),
        ("SHA256", '""', repr(sha256)),
        ("KEPT: Dict[str, str]", "{}", f"{{{listed}\n}}"),
        ("LOCK", '""', f'r"""{lock}"""'),
    ):
        before = f"\n{name} = {empty}\n"
        if before not in text:
            raise ValueError(f"join_script.py has no {name}")
        text = text.replace(before, f"\n{name} = {value}\n", 1)
    return text.encode("utf-8")

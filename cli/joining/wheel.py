"""This installation as a wheel, made in memory: what a new device installs is what runs here."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

#: Packages below `retire_cluster`, as pyproject.toml lists them.
PACKAGES = ("broker", "node", "api", "cli", "sdk", "schemas", "conf")
_NAME = "retire_cluster"
_FIXED_TIME = (2020, 1, 1, 0, 0, 0)
_LEFT_OUT = frozenset({"__pycache__"})


def build() -> tuple[str, bytes]:
    """Return file name and content; the same installation always gives the same bytes.

    Raises `FileNotFoundError` when a package of it cannot be found.
    """
    found = distribution("retire-cluster")
    info = f"{_NAME}-{found.version}.dist-info"
    files = {name: path.read_bytes() for name, path in _sources()}
    # A checkout's own record of itself calls it PKG-INFO.
    metadata = found.read_text("METADATA") or found.read_text("PKG-INFO")
    files[f"{info}/METADATA"] = _text(metadata, "metadata")
    files[f"{info}/entry_points.txt"] = _text(found.read_text("entry_points.txt"), "entry points")
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: retire-cluster\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    rows = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    record = f"{info}/RECORD"
    files[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _FIXED_TIME), files[name], zipfile.ZIP_DEFLATED)
    return f"{_NAME}-{found.version}-py3-none-any.whl", packed.getvalue()


def _sources() -> list[tuple[str, Path]]:
    found = []
    for package in PACKAGES:
        spec = find_spec(f"{_NAME}.{package}")
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not places:
            raise FileNotFoundError(f"the package {_NAME}.{package} cannot be found")
        root = Path(places[0])
        for path in sorted(root.rglob("*")):
            parts = path.relative_to(root).parts
            if path.is_file() and not _LEFT_OUT.intersection(parts):
                found.append(("/".join((_NAME, package, *parts)), path))
    return found


def _text(text: str | None, what: str) -> bytes:
    if text is None:
        raise FileNotFoundError(f"the {what} of this installation cannot be found")
    return text.encode("utf-8")


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode("ascii").rstrip("=")

"""What this project is made of: the lock file with hashes, a list for scanners, known holes.

    python tests/supply_chain.py lock     requirements.lock from requirements.txt (asks the index)
    python tests/supply_chain.py sbom     CycloneDX JSON of requirements.lock on stdout
    python tests/supply_chain.py audit    pip-audit on requirements.lock (asks an advisory service)

`audit` exits 1 when a hole is known, 0 when none is; when no advisory service can be reached it
says so and exits 0, so that a closed network is no red build.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

ROOT = Path(__file__).resolve().parent.parent
PINS, LOCK = ROOT / "requirements.txt", ROOT / "requirements.lock"
#: What `up` needs; everything else is for work on the code.
RUN_EXTRAS = ("api", "worker")
#: What a device may get from a package index, by the hashes that its installer brings along.
DEVICE_LOCK = ROOT / "cli" / "joining" / "device.lock"
DEVICE = frozenset({"pyzmq", "simpleeval", "urllib3", "tomli", "psutil", "orjson", "cloudpickle"})
_HEAD = """\
# requirements.txt with the SHA-256 of every file that may be installed, by
# python tests/supply_chain.py lock
"""
RUN_MARK, DEVELOPMENT_MARK = "# --- run ---\n", "# --- development ---\n"


class Locked(NamedTuple):
    """One pinned package."""

    name: str
    version: str
    #: Environment marker, or empty.
    marker: str
    sha256: tuple[str, ...]


def read_lock(text: str) -> list[Locked]:
    """Return the packages of a lock file."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words, *hashes = line.split("--hash=sha256:")
        pin, _, marker = words.partition(";")
        name, version = pin.strip().split("==")
        digests = tuple(digest.strip() for digest in hashes)
        found.append(Locked(name, version, marker.strip(), digests))
    return found


def write_lock(packages: Sequence[Locked], run: frozenset[str]) -> str:
    """Return the text of a lock file; `run`: canonical names of what `up` needs."""
    parts = [_HEAD]
    for mark, wanted in ((RUN_MARK, True), (DEVELOPMENT_MARK, False)):
        parts.append(mark)
        for one in packages:
            if (canonicalize_name(one.name) in run) is wanted:
                marker = f" ; {one.marker}" if one.marker else ""
                lines = [f"{one.name}=={one.version}{marker}"]
                lines += [f"    --hash=sha256:{digest}" for digest in sorted(one.sha256)]
                parts.append(" \\\n".join(lines) + "\n")
    return "".join(parts)


def write_device_lock(packages: Sequence[Locked]) -> str:
    """Return the text of the lock that installers of devices bring along, without comments."""
    wanted = [one for one in packages if canonicalize_name(one.name) in DEVICE]
    text = write_lock(wanted, DEVICE)
    return "".join(line for line in text.splitlines(keepends=True) if line[:1] != "#")


def run_closure(pinned: frozenset[str]) -> frozenset[str]:
    """Return the pinned packages that `up` may need, on any system; from what is installed."""
    found = {"setuptools"}  # builds the project itself
    waiting = [("retire-cluster", extra) for extra in ("", *RUN_EXTRAS)]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system or Python
        for line in lines:
            requirement = Requirement(line)
            marker = str(requirement.marker or "")
            asked = re.search(r"""extra == ['"]([^'"]+)""", marker)
            if (asked[1] if asked else "") != extra:
                continue
            needed = canonicalize_name(requirement.name)
            if needed in pinned:
                found.add(needed)
                waiting += [(needed, inner) for inner in ("", *requirement.extras)]
    return frozenset(found)


def lock() -> int:
    """Write requirements.lock and the devices' lock anew; return the exit code."""
    pins = read_lock(PINS.read_text("utf-8"))
    packages = [one._replace(sha256=tuple(_hashes(one.name, one.version))) for one in pins]
    names = frozenset(canonicalize_name(one.name) for one in pins)
    LOCK.write_text(write_lock(packages, run_closure(names)), "utf-8")
    DEVICE_LOCK.write_text(write_device_lock(packages), "utf-8")
    print(f"{LOCK.name}: {len(packages)} packages")
    return 0


def _hashes(name: str, version: str) -> Iterator[str]:
    # The index that pip is set up for, found where pip keeps it: no address belongs here.
    from pip._internal.models.index import PyPI

    request = urllib.request.Request(
        f"{PyPI.simple_url}/{canonicalize_name(name)}/",
        headers={"Accept": "application/vnd.pypi.simple.v1+json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    for file in files:
        try:
            if file["filename"].endswith(".whl"):
                found = parse_wheel_filename(file["filename"])[1]
            else:
                found = parse_sdist_filename(file["filename"])[1]
        except (InvalidWheelFilename, InvalidSdistFilename):
            continue
        if str(found) == version and not file.get("yanked"):
            yield file["hashes"]["sha256"]


def sbom(packages: Sequence[Locked]) -> dict[str, Any]:
    """Return a CycloneDX 1.5 document of the packages; the same lock gives the same document."""
    identity = ";".join(f"{one.name}=={one.version}{one.marker}" for one in packages)
    components = []
    for one in packages:
        name = canonicalize_name(one.name)
        purl = f"pkg:pypi/{name}@{one.version}"
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": purl + (f"#{one.marker}" if one.marker else ""),
            "name": name,
            "version": one.version,
            "purl": purl,
            "hashes": [{"alg": "SHA-256", "content": digest} for digest in one.sha256],
        }
        if one.marker:
            component["properties"] = [{"name": "environment-marker", "value": one.marker}]
        components.append(component)
    version = importlib.metadata.version("retire-cluster")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "retire-cluster", "version": version}
        },
        "components": components,
    }


def audit(requirements: Path = LOCK) -> int:
    """Print the known holes of what is locked; the module's text says what is returned."""
    with tempfile.TemporaryDirectory() as name:
        python = Path(name) / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        for command in (
            [sys.executable, "-m", "venv", name],
            [str(python), "-m", "pip", "install", "--quiet", "--quiet", "pip-audit"],
        ):
            if subprocess.run(command, check=False, capture_output=True).returncode:
                print("audit: pip-audit could not be installed; nothing was checked")
                return 0
        done = subprocess.run(
            [
                str(python), "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format",
                "json", "--progress-spinner", "off", "--timeout", "20", "-r", str(requirements),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    lines, code = judge(done.stdout)
    print("\n".join(lines))
    return code


def judge(report: str) -> tuple[list[str], int]:
    """Return what pip-audit's JSON says, in lines, and the exit code.

    A package that the service does not know counts as not checked, never as sound.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return ["audit: no advisory service answered; nothing was checked"], 0
    checked = [package for package in packages if "vulns" in package]
    lines = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        + (", ".join(hole["fix_versions"]) or "no version yet")
        for package in checked
        for hole in package["vulns"]
    ]
    code = 1 if lines else 0
    lines.append(
        f"audit: {len(checked)} of {len(packages)} packages are known to the advisory service,"
        f" {len(lines)} known holes"
    )
    return lines, code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["lock", "sbom", "audit"])
    what = parser.parse_args(argv).what
    if what == "sbom":
        json.dump(sbom(read_lock(LOCK.read_text("utf-8"))), sys.stdout, indent=1)
        print()
        return 0
    return lock() if what == "lock" else audit()


if __name__ == "__main__":
    sys.exit(main())

"""`retire-cluster version`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.output import Output, facts
from retire_cluster.cli.session import verb_parser

LIBRARIES = (
    "pyzmq", "simpleeval", "urllib3", "falcon", "waitress", "orjson", "Cerberus", "APScheduler",
    "prometheus-client", "wsproto", "psutil",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser("version", "Versions of this installation.")
    parser.add_argument("--json", action="store_true", help="print the envelope of the REST API")
    args = parser.parse_args(argv)
    data: dict[str, Any] = {
        "version": installed("retire-cluster") or "unknown",
        "python": platform.python_version(),
        "libraries": {name: installed(name) for name in LIBRARIES},
    }
    output = Output.standard(as_json=args.json)
    rows = [(name, data[name]) for name in ("version", "python")]
    rows += data["libraries"].items()
    output.data(data, facts(rows, output.style))
    return exits.OK


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

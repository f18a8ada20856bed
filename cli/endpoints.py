"""Where the processes of this machine's cluster are: `endpoints.json` and the `run` files.

The broker and the facade each write `DATA_DIR/run/*.json` once they are bound; `up` reads those and
writes `DATA_DIR/endpoints.json`, which scripts and tooling read. A file whose process has gone
tells nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retire_cluster.conf.machine.processes import is_same, pid_exists, started
from retire_cluster.node.system import process_tree


@dataclass(frozen=True)
class MainEndpoints:
    """The broker's process and ports."""

    pid: int
    admin_port: int
    worker_port: int
    event_port: int
    #: Its public key; empty: its sockets are not encrypted.
    server_key: str = ""
    #: The worker bus takes devices by their CURVE keys only.
    bus_encrypted: bool = False


@dataclass(frozen=True)
class ApiEndpoint:
    """The facade's process and address."""

    pid: int
    host: str
    port: int


@dataclass(frozen=True)
class WorkerEntry:
    """A local worker's process and folder."""

    device_id: str
    pid: int
    data_dir: str


def endpoints_path(data_dir: Path) -> Path:
    """Return the file that says where everything listens."""
    return data_dir / "endpoints.json"


def run_path(data_dir: Path, name: str) -> Path:
    """Return the file that process `name` (`main` or `api`) writes when it is bound."""
    return data_dir / "run" / f"{name}.json"


def read_main(document: Mapping[str, Any] | None) -> MainEndpoints | None:
    """Return the broker's entry, or None when it is not well-formed."""
    numbers = _numbers(document, ("pid", "admin_port", "worker_port", "event_port"))
    if not numbers or document is None:
        return None
    server_key = document.get("server_key")
    encrypted = document.get("bus_encrypted") is True
    return MainEndpoints(
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3],
        server_key if isinstance(server_key, str) else "",
        encrypted,
    )


def read_api(document: Mapping[str, Any] | None) -> ApiEndpoint | None:
    """Return the facade's entry, or None when it is not well-formed."""
    numbers = _numbers(document, ("pid", "port"))
    host = document.get("host") if document else None
    if not numbers or not isinstance(host, str):
        return None
    return ApiEndpoint(numbers[0], host, numbers[1])


def running_main(data_dir: Path) -> tuple[MainEndpoints, Path] | None:
    """Return the broker that runs with this data folder and the file that says so, or None."""
    path = run_path(data_dir, "main")
    document = read_json(path)
    main = read_main(document)
    if main is not None and document and _is_still(main.pid, document.get("started")):
        return main, path
    path = endpoints_path(data_dir)
    document = read_json(path)
    main = read_main(document.get("main")) if document else None
    if main is not None and _is_still(main.pid, _starts(data_dir).get(str(main.pid))):
        return main, path
    return None


def running_api(data_dir: Path) -> ApiEndpoint | None:
    """Return the facade that `up` runs with this data folder, or None."""
    document = read_json(endpoints_path(data_dir))
    api = read_api(document.get("api")) if document else None
    if api is None or not _is_still(api.pid, _starts(data_dir).get(str(api.pid))):
        return None
    return api


def _is_still(pid: int, began: object) -> bool:
    """Tell whether a process that a file names runs, and is not another of the same number."""
    return pid_alive(pid) and is_same(pid, began)


def _starts(data_dir: Path) -> dict[str, Any]:
    return read_json(run_path(data_dir, "started")) or {}


def endpoints_document(
    main: MainEndpoints | None, api: ApiEndpoint | None, workers: Sequence[WorkerEntry]
) -> dict[str, Any]:
    """Return the content of `endpoints.json`."""
    return {
        "main": _ports(main) if main else None,
        "api": asdict(api) if api else None,
        "workers": [asdict(worker) for worker in workers],
    }


def write_endpoints(data_dir: Path, document: Mapping[str, Any]) -> None:
    """Write `endpoints.json`, and beside it when each process that it names began.

    So no later process of the same number is taken for one of them. Raises `OSError`.
    """
    pids = [entry["pid"] for entry in _entries(document)]
    starts = {str(pid): began for pid in pids if (began := started(pid))}
    write_json(run_path(data_dir, "started"), starts)
    write_json(endpoints_path(data_dir), document)


def _ports(main: MainEndpoints) -> dict[str, int]:
    return {
        "pid": main.pid,
        "admin_port": main.admin_port,
        "worker_port": main.worker_port,
        "event_port": main.event_port,
    }


def _entries(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    workers = document.get("workers")
    entries = [document.get("main"), document.get("api")]
    entries += workers if isinstance(workers, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def recorded_processes(data_dir: Path) -> list[tuple[int, object]]:
    """Return every process that `endpoints.json` names, and when it began."""
    document = read_json(endpoints_path(data_dir))
    if not document:
        return []
    starts = _starts(data_dir)
    pids = [entry.get("pid") for entry in _entries(document)]
    return [(pid, starts.get(str(pid))) for pid in pids if type(pid) is int and pid > 0]


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object from a file, or None where there is none."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a file in one step, so that no reader sees half of it. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    try:
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def pid_alive(pid: int) -> bool:
    """Tell whether a process with this id runs (not: has ended and waits to be collected)."""
    if not pid_exists(pid):
        return False
    if not process_tree.IS_LINUX:
        return True
    found = process_tree.find(pid)
    return found is None or found.state not in ("Z", "X")


def is_ours(pid: int, began: object = None) -> bool:
    """Tell whether a live process looks like one of this product's; True where that cannot be seen.

    `began`: what was noted of its start, see `conf.machine.processes.is_same`.
    """
    if not pid_alive(pid) or not is_same(pid, began):
        return False
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return b"retire" in command


def _numbers(document: Mapping[str, Any] | None, names: Sequence[str]) -> list[int] | None:
    values = [document.get(name) for name in names] if document else []
    found = [value for value in values if type(value) is int and value > 0]
    return found if len(found) == len(names) else None

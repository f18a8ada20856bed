"""A number of a process is believed only as long as it is the same process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.endpoints import (
    ApiEndpoint,
    MainEndpoints,
    endpoints_document,
    is_ours,
    recorded_processes,
    run_path,
    running_api,
    running_main,
    write_endpoints,
    write_json,
)
from retire_cluster.conf import joining, neighbours
from retire_cluster.conf.machine import processes
from retire_cluster.conf.machine.processes import is_same, started


@pytest.fixture
def other() -> Iterator[int]:
    """Another living process: whoever has the number now."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.communicate()


def test_a_process_is_known_by_when_it_began(other: int) -> None:
    mine = started(os.getpid())
    assert mine
    assert mine == started(os.getpid())
    assert started(other) not in ("", mine)
    assert is_same(os.getpid(), mine)
    assert not is_same(other, mine)


def test_ps_tells_it_where_there_is_no_proc(other: int) -> None:
    if not os.path.exists("/bin/ps"):
        pytest.skip("there is no ps")
    found = processes._started_by_ps(other)
    assert found
    assert found == processes._started_by_ps(other)
    assert processes._started_by_ps(2**22 + 1) == ""


@pytest.mark.parametrize("noted", [None, "", 5, {}])
def test_where_nothing_was_noted_the_number_has_to_do(noted: object, other: int) -> None:
    assert is_same(other, noted)


def test_a_process_that_has_gone_is_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True)  # fmt: skip
    pid = int(done.stdout)
    assert started(pid) == ""
    assert not is_same(pid, None)
    assert not is_same(pid, "any")


# --- files that name processes: one left by a process of another time ----------------------------


def _join_file(folder: Path, pid: int, began: str) -> Callable[[], object]:
    write_json(
        joining.path_of(folder), {"pid": pid, "started": began, "port": 8084, "sha256": "0" * 64}
    )
    return lambda: joining.find(folder)


def _run_file(folder: Path, pid: int, began: str) -> Callable[[], object]:
    ports = {"admin_port": 8080, "worker_port": 8082, "event_port": 8083}
    write_json(run_path(folder, "main"), {"pid": pid, "started": began, **ports})
    return lambda: running_main(folder)


def _endpoints(folder: Path, pid: int, began: str) -> None:
    main, api = MainEndpoints(pid, 8080, 8082, 8083), ApiEndpoint(pid, "127.0.0.1", 8081)
    write_endpoints(folder, endpoints_document(main, api, []))
    kept = run_path(folder, "started")
    assert json.loads(kept.read_text()) == {str(pid): started(pid)}
    kept.write_text(json.dumps({str(pid): began}))


def _endpoints_main(folder: Path, pid: int, began: str) -> Callable[[], object]:
    _endpoints(folder, pid, began)
    return lambda: running_main(folder)


def _endpoints_api(folder: Path, pid: int, began: str) -> Callable[[], object]:
    _endpoints(folder, pid, began)
    return lambda: running_api(folder)


def _earlier_up(folder: Path, pid: int, began: str) -> Callable[[], object]:
    _endpoints(folder, pid, began)
    # Of what `up` waits for at its start; the command line of this Python does not matter here.
    return lambda: any(is_same(*each) for each in recorded_processes(folder)) or None


def _neighbour(folder: Path, pid: int, began: str) -> Callable[[], object]:
    path = neighbours.announce(folder, pid=pid, admin_port=8080, worker_port=8082, encrypted=True)
    assert path is not None
    document = json.loads(path.read_text())
    assert document["started"] == started(pid)
    path.write_text(json.dumps({**document, "started": began}))
    return lambda: neighbours.find("127.0.0.1", 8080, "admin_port")


FILES = [_join_file, _run_file, _endpoints_main, _endpoints_api, _earlier_up, _neighbour]


@pytest.mark.parametrize("write", FILES)
def test_a_stale_file_whose_number_is_used_again_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int, write: Any
) -> None:
    for name in ("HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    # A process of that number wrote it and is gone; `other` has the number now.
    assert write(tmp_path, other, started(os.getpid()))() is None
    assert write(tmp_path, other, started(other))() is not None


def test_up_does_not_wait_for_a_stranger_that_has_an_earlier_ones_number() -> None:
    mine = os.getpid()
    assert not is_ours(mine, "of another time")

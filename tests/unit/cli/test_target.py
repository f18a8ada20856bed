"""Which main node the tooling asks, and what it says when nobody answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from retire_cluster.cli.endpoints import (
    ApiEndpoint,
    MainEndpoints,
    WorkerEntry,
    endpoints_document,
    endpoints_path,
    pid_alive,
    read_api,
    read_json,
    read_main,
    recorded_processes,
    run_path,
    running_main,
    write_json,
)
from retire_cluster.cli.target import Target, find_target
from retire_cluster.conf import ports
from retire_cluster.conf.machine.locks import FolderLock, FolderLocked
from retire_cluster.schemas.errors import ClusterUnavailable
from retire_cluster.schemas.text.hosts import read_address

MAIN = {"pid": os.getpid(), "admin_port": 5001, "worker_port": 5002, "event_port": 5003}


def found(
    tmp_path: Path,
    environ: dict[str, str] | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
) -> Target:
    return find_target(
        host=host, port=port, data_dir=str(tmp_path), config=None, environ=environ or {}
    )


def dead_pid() -> int:
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_flag_wins_over_everything(tmp_path: Path) -> None:
    write_json(run_path(tmp_path, "main"), MAIN)
    target = found(tmp_path, {"RETIRE_CLUSTER_CLUSTER_PORT": "7"}, port=9)
    assert (target.host, target.port) == ("127.0.0.1", 9)
    assert target.source == "flag --cluster-port"


def test_the_environment_wins_over_this_machines_cluster(tmp_path: Path) -> None:
    write_json(run_path(tmp_path, "main"), MAIN)
    environ = {"RETIRE_CLUSTER_CLUSTER_HOST": "pi.local", "RETIRE_CLUSTER_CLUSTER_PORT": "7"}
    target = found(tmp_path, environ)
    assert (target.host, target.port) == ("pi.local", 7)
    assert target.source == "RETIRE_CLUSTER_CLUSTER_HOST and RETIRE_CLUSTER_CLUSTER_PORT"


def test_the_broker_of_the_data_folder_is_found_by_its_run_file(tmp_path: Path) -> None:
    write_json(run_path(tmp_path, "main"), MAIN)
    target = found(tmp_path)
    assert target.port == 5001
    assert target.source == str(run_path(tmp_path, "main"))


def test_the_broker_of_the_data_folder_is_found_by_endpoints(tmp_path: Path) -> None:
    write_json(endpoints_path(tmp_path), {"main": MAIN, "api": None, "workers": []})
    assert found(tmp_path).source == str(endpoints_path(tmp_path))


def test_a_file_whose_process_has_gone_tells_nothing(tmp_path: Path) -> None:
    write_json(run_path(tmp_path, "main"), {**MAIN, "pid": dead_pid()})
    target = found(tmp_path)
    assert target.port == 8080
    assert "the default" in target.source
    assert str(tmp_path) in target.source


def test_an_unreachable_broker_is_told_with_address_source_and_next_command(
    tmp_path: Path,
) -> None:
    target = found(tmp_path, {"RETIRE_CLUSTER_CLUSTER_PORT": "7777"})
    error = target.unreachable(ClusterUnavailable("the main node at 127.0.0.1:7777 did not ..."))
    assert "127.0.0.1:7777" in error.message
    assert "RETIRE_CLUSTER_CLUSTER_PORT" in error.message
    assert "retire-cluster up" in error.message
    assert error.details["address"] == "127.0.0.1:7777"


def test_a_broker_elsewhere_is_not_cured_by_starting_one_here(tmp_path: Path) -> None:
    target = found(tmp_path, host="192.0.2.7")
    assert (
        target.next_command == "retire-cluster doctor --cluster-host 192.0.2.7 --cluster-port 8080"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pi", ("pi", 8080)),
        ("pi:9", ("pi", 9)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("[::1]:9", ("::1", 9)),
        ("[::1]", ("::1", 8080)),
        ("fe80::1", ("fe80::1", 8080)),
    ],
)
def test_addresses_are_split(text: str, expected: tuple[str, int]) -> None:
    assert read_address(text, ports.ADMIN) == expected


@pytest.mark.parametrize(
    "text", ["", ":9", "pi:", "pi:x", "pi:0", "pi:65536", "[::1]x", "pi:\uff19"]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|port|HOST|empty"):
        read_address(text, ports.ADMIN)


def test_endpoints_have_the_contracts_form(tmp_path: Path) -> None:
    document = endpoints_document(
        MainEndpoints(1, 8080, 8082, 8083),
        ApiEndpoint(2, "127.0.0.1", 8081),
        [WorkerEntry("pc-local-1", 3, "/data/workers/1")],
    )
    assert document == {
        "main": {"pid": 1, "admin_port": 8080, "worker_port": 8082, "event_port": 8083},
        "api": {"pid": 2, "host": "127.0.0.1", "port": 8081},
        "workers": [{"device_id": "pc-local-1", "pid": 3, "data_dir": "/data/workers/1"}],
    }
    write_json(endpoints_path(tmp_path), document)
    assert recorded_processes(tmp_path) == [(1, None), (2, None), (3, None)]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": "1"}', '{"pid": true}'])
def test_a_damaged_file_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    path = run_path(tmp_path, "main")
    path.parent.mkdir()
    path.write_text(text)
    assert read_main(read_json(path)) is None
    assert read_api(read_json(path)) is None
    assert running_main(tmp_path) is None


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = endpoints_path(tmp_path)
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(tmp_path) == ["endpoints.json"]


def test_processes_are_told_from_those_that_have_gone() -> None:
    assert pid_alive(os.getpid())
    assert not pid_alive(dead_pid())
    assert not pid_alive(0)


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "up.lock"
    with (
        FolderLock(path, "retire-cluster up"),
        pytest.raises(FolderLocked, match=rf"already runs .*process {os.getpid()}"),
        FolderLock(path, "retire-cluster up"),
    ):
        pass
    with FolderLock(path, "retire-cluster up"):
        pass

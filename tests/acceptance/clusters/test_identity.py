"""A device has one identity, in one place: what joined once comes back, by real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.clusters.test_join import line, worker
from tests.acceptance.kit import Cluster, run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("identity"), "--no-rate-limit", "--workers", "0")
    try:
        yield found
    finally:
        assert found.close() == 0


def revoked_line(cluster: Cluster) -> str:
    data = ("--data-dir", str(cluster.data_dir))
    word = line(cluster, "--note", "over")
    listed = json.loads(run("token", "ls", "--json", *data).stdout)["data"]
    for token in listed:
        if token["note"] == "over":
            assert run("token", "revoke", token["token_id"], *data).returncode == 0
    return word


def test_a_main_node_joined_at_a_new_address_is_dialled_there_without_the_flag(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    port = cluster.endpoints()["main"]["worker_port"]
    with worker(folder, "--join", line(cluster), after="joined "):
        pass
    with worker(folder, "--join", f"localhost:{port}", after="joined "):
        pass
    with worker(folder, after="joined ") as said:
        assert f"dials localhost:{port}" in said()


def test_a_new_address_that_leads_nowhere_is_not_remembered(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "slip"
    port = cluster.endpoints()["main"]["worker_port"]
    with worker(folder, "--join", line(cluster), after="joined "):
        pass
    with worker(folder, "--join", "127.0.0.1:1", after="dials 127.0.0.1:1"):
        pass
    with worker(folder, after="joined ") as said:
        assert f"dials 127.0.0.1:{port}" in said()


def test_a_first_start_with_a_dead_line_does_not_spoil_the_next_ones(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "late"
    done = run("worker", "--join", revoked_line(cluster), "--data-dir", str(folder))
    assert done.returncode == 2
    assert "refuses the join token" in done.stderr
    word = line(cluster)
    with worker(folder, "--join", word, "--device-id", "late-1", after="joined "):
        cluster.rest.await_online("late-1")
    # Neither the name of the first attempt nor its key is left over.
    with worker(folder, after="joined ") as said:
        assert "device late-1 " in said()
        cluster.rest.await_online("late-1")


def test_a_dead_line_of_another_cluster_leaves_the_device_in_its_own(
    cluster: Cluster, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path / "loyal"
    with worker(folder, "--join", line(cluster), "--device-id", "loyal", after="joined "):
        pass
    other = Cluster(tmp_path_factory.mktemp("other"), "--no-rate-limit", "--workers", "0")
    try:
        done = run("worker", "--join", revoked_line(other), "--data-dir", str(folder))
        assert done.returncode == 2
    finally:
        other.close()
    with worker(folder, after="joined ") as said:
        assert "device loyal " in said()


def test_another_name_later_needs_a_new_line_and_is_kept_from_then_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "renamed"
    with worker(folder, "--join", line(cluster), after="joined ") as said:
        first = said().partition("device ")[2].partition(" ")[0]
    done = run("worker", "--device-id", "kitchen", "--data-dir", str(folder))
    assert done.returncode == 2
    assert f"known as {first} to its main node" in done.stderr
    assert "retire-cluster token create" in done.stderr
    with worker(folder, after="joined ") as said:
        assert f"device {first} " in said()
    word = line(cluster)
    with worker(folder, "--join", word, "--device-id", "kitchen", after="joined "):
        cluster.rest.await_online("kitchen")
    with worker(folder, after="joined ") as said:
        assert "device kitchen " in said()

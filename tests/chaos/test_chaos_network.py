"""Bad networks between devices and main node, and between facade and main node."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from retire_cluster.schemas.errors import ClusterError
from tests.chaos.proxy import DOWN, UP, Proxy
from tests.chaos.rig import Rig, eventually


@pytest.fixture
def link(cluster: Rig) -> Iterator[Proxy]:
    """A way to the worker bus that can be spoiled."""
    proxy = Proxy(cluster.bus_port)
    yield proxy
    proxy.close()


def test_a_result_that_was_under_way_for_longer_than_the_lease_is_refused(
    cluster: Rig, link: Proxy
) -> None:
    cluster.start_device("far", port=link.port)
    cluster.await_online("far")
    (task,) = cluster.submit("sleep", {"duration": 0.5})
    eventually(lambda: cluster.status(task) == "running", "it runs far away")
    link.held.add(UP)
    cluster.start_device("near")
    (row,) = cluster.finish([task], 20)
    assert (row["status"], row["worker_device_id"]) == ("success", "near")
    before = sum(cluster.dropped().values())
    link.held.clear()
    eventually(lambda: sum(cluster.dropped().values()) > before, "the late result is counted")
    assert cluster.finish([task]) == [row]


@pytest.mark.parametrize("way", [UP, DOWN])
def test_a_link_that_is_dead_one_way_is_noticed_by_the_side_that_hears_nothing(
    cluster: Rig, link: Proxy, way: str
) -> None:
    cluster.start_device("far", port=link.port)
    cluster.await_online("far")
    link.swallowed.add(way)
    if way == UP:
        eventually(lambda: "far" not in cluster.online(), "the main node calls it offline", 10)
    else:
        before = link.connections
        eventually(lambda: link.connections > before, "the device dials again", 15)
    link.swallowed.clear()
    cluster.await_online("far")
    (row,) = cluster.finish(cluster.submit("echo", {"heard": way}), 20)
    assert row["result_data"] == {"echo": {"heard": way}}


def test_work_gets_through_links_that_delay_cut_and_reset(cluster: Rig, link: Proxy) -> None:
    link.delay_seconds = {UP: 0.02, DOWN: 0.02}
    link.cuts = 0.02
    for name in ("one", "two"):
        cluster.start_device(name, port=link.port)
    cluster.await_online("one", "two")
    tasks: list[str] = []
    until = time.monotonic() + 6.0
    while time.monotonic() < until:
        requirements = {"max_retries": 10}
        tasks += cluster.submit("echo", {"n": len(tasks)}, 20, requirements=requirements)
        tasks += cluster.submit("sleep", {"duration": 0.05}, 2, requirements=requirements)
        time.sleep(0.3)
        link.reset_all()
    link.cuts = 0.0
    rows = cluster.finish(tasks, 40)
    assert {row["status"] for row in rows} == {"success"}


def test_flipped_bits_stop_neither_side_and_lose_nothing(cluster: Rig, link: Proxy) -> None:
    # Without encryption a flipped bit inside a payload cannot be told from another payload, so
    # contents are not looked at here; CURVE authenticates every frame.
    link.flips = {UP: 0.2, DOWN: 0.2}
    device = cluster.start_device("noisy", port=link.port)
    tasks: list[str] = []
    # On a busy machine less goes through in six seconds: until enough has been damaged.
    until, last = time.monotonic() + 6.0, time.monotonic() + 40.0
    while time.monotonic() < until or (link.flipped <= 10 and time.monotonic() < last):
        tasks += cluster.submit("echo", {"text": "x" * 200}, 20, requirements={"max_retries": 10})
        if device.poll() is not None:  # told, in garbled words, that it is not wanted
            device = cluster.start_device("noisy", port=link.port)
        time.sleep(0.1)
    assert link.flipped > 10
    link.flips = {UP: 0.0, DOWN: 0.0}
    device.kill()
    cluster.start_device("noisy", port=link.port)
    rows = cluster.finish(tasks, 40)
    assert len(rows) == len(tasks)
    assert cluster.broker is not None
    assert cluster.broker.poll() is None


def test_the_facade_answers_503_while_its_link_is_dead_and_recovers_by_itself(
    cluster: Rig,
) -> None:
    proxy = Proxy(cluster.admin_port)
    try:
        cluster.start_api(cluster_port=proxy.port)
        eventually(lambda: _status(cluster) == 200, "the facade is there")
        for fault in (UP, DOWN):
            proxy.swallowed.add(fault)
            began = time.monotonic()
            assert _status(cluster) == 503
            assert time.monotonic() - began < 4.0
            proxy.swallowed.clear()
            eventually(lambda: _status(cluster) == 200, "it recovers", 10)
        proxy.reset_all()
        eventually(lambda: _status(cluster) == 200, "it recovers from a reset", 10)
        proxy.flips = {UP: 0.3, DOWN: 0.3}
        for _ in range(60):
            assert _status(cluster) in (200, 400, 404, 503)
        proxy.flips = {UP: 0.0, DOWN: 0.0}
        eventually(lambda: _status(cluster) == 200, "it recovers from noise", 15)
    finally:
        proxy.close()


def _status(cluster: Rig) -> int:
    try:
        return cluster.http("GET", "/api/v1/tasks/statistics")[0]
    except OSError:
        return 0


def test_a_client_behind_a_bad_link_gets_an_error_and_never_another_calls_answer(
    cluster: Rig,
) -> None:
    proxy = Proxy(cluster.admin_port)
    client = cluster.client(0.5, proxy.port)
    try:
        assert client.call("broker.info")["admin_port"] == cluster.admin_port
        proxy.delay_seconds = {UP: 0.0, DOWN: 1.0}
        with pytest.raises(ClusterError):
            client.call("task.statistics")
        proxy.delay_seconds = {UP: 0.0, DOWN: 0.0}
        eventually(lambda: _asks(client), "it is answered again", 10)
    finally:
        proxy.close()


def _asks(client: object) -> bool:
    try:
        return "components" in client.call("health")  # type: ignore[attr-defined]
    except ClusterError:
        return False

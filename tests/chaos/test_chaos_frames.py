"""Broken messages never end the main node, never become an internal error, never fill memory."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable

import zmq

from tests.chaos import fuzz
from tests.chaos.rig import Rig

MakeRig = Callable[..., Rig]


def test_twenty_thousand_broken_messages_change_nothing_for_others(make_rig: MakeRig) -> None:
    cluster = make_rig(settings=fuzz.SETTINGS)
    cluster.start_broker()
    found = fuzz.fuzz(cluster, 20_000, seed=7)
    assert found.alive, cluster.log_of("broker")[-2000:]
    assert not found.internal, found.internal[:3]
    assert '"level": "ERROR"' not in cluster.log_of("broker")
    assert found.rss_growth_mb < 20
    cluster.admin.call("config.reset")
    cluster.start_device("honest")
    cluster.await_online("honest")


def test_bytes_that_are_no_zeromq_and_many_idle_connections_do_no_harm(cluster: Rig) -> None:
    rng = random.Random(3)
    for port in (cluster.bus_port, cluster.admin_port, cluster.event_port):
        fuzz.raw_bytes(port, rng, 60)
    idle = [socket.create_connection(("127.0.0.1", cluster.bus_port), 5) for _ in range(300)]
    try:
        cluster.start_device("honest")
        cluster.await_online("honest")
        (row,) = cluster.finish(cluster.submit("echo", {"still": "here"}))
        assert row["status"] == "success"
    finally:
        for one in idle:
            one.close()


def test_a_device_that_claims_impossible_capabilities_does_not_break_the_totals(
    cluster: Rig,
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    device = context.socket(zmq.DEALER)
    device.setsockopt(zmq.LINGER, 0)
    device.connect(f"tcp://127.0.0.1:{cluster.bus_port}")
    try:
        messages = fuzz.bus_messages(random.Random(1))
        hello = next(frames for frames in messages if frames[1] == b"HELLO")
        header = json.loads(hello[2])
        header["capabilities"] = {"cpu_count": 1e308, "memory_total_gb": 1e308}
        device.send_multipart([*hello[:2], json.dumps(header).encode(), *hello[3:]])
        assert device.poll(5000)
        for op in ("device.summary", "cluster.status", "cluster.metrics", "metrics"):
            assert cluster.admin.call(op)
        assert cluster.admin.call("device.summary")["resource_totals"]["cpu_cores"] == 0
    finally:
        device.close(0)
        context.term()

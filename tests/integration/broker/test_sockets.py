"""A real main node on loopback and devices made of one bare DEALER each."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.broker.client import AdminClient
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from tests.integration.main_kit import (
    PATIENCE_SECONDS,
    MainNode,
    RawDevice,
    eventually,
    settings_for,
)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


def stored_status(node: MainNode, number: int) -> str | None:
    """A task's outcome as another reader of the file sees it."""
    db = sqlite3.connect(f"file:{node.settings.data_dir / 'cluster.db'}?mode=ro", uri=True)
    try:
        row = db.execute("select status from outcomes where task = ?", (number,)).fetchone()
        return None if row is None else str(row[0])
    finally:
        db.close()


# --- one task ------------------------------------------------------------------------------------


def test_a_task_goes_from_submission_to_result(main_node: MainNode) -> None:
    device = main_node.device()
    (task_id,) = main_node.submit(b'{"duration":1}')
    key, assigned_id, task_type, payload = device.next_task()
    assert (assigned_id, task_type, payload) == (task_id, "sleep", b'{"duration":1}')
    device.started(key)
    eventually(lambda: main_node.status(task_id) == "running", "running")
    batch = device.finished(key, result=b'{"slept_for":1}', details=b'{"logs":"zzz"}')
    assert device.expect(msg.FinishedAck).batch == batch
    # The acknowledgement comes after the commit.
    assert stored_status(main_node, key[0]) == "success"
    found = main_node.call("task.result", task_id=task_id)
    assert (found["result_data"], found["logs"]) == ({"slept_for": 1}, "zzz")
    assert found["worker_device_id"] == "box"


def test_a_submission_is_stored_before_it_is_answered(main_node: MainNode) -> None:
    main_node.submit(count=3)
    db = sqlite3.connect(main_node.settings.data_dir / "cluster.db")
    assert db.execute("select count(*) from tasks").fetchone() == (3,)
    db.close()


def test_large_payloads_are_read_from_the_store_and_batches_split(main_node: MainNode) -> None:
    device = main_node.device(slots=48)
    payload = b'{"a":"' + b"x" * 250_000 + b'"}'
    ids = main_node.submit(payload, 48, task_type="echo")
    tasks = [device.next_task() for _ in ids]
    assert {task[1] for task in tasks} == set(ids)
    assert {task[3] for task in tasks} == {payload}


def test_a_cancelled_task_is_killed_on_its_device(main_node: MainNode) -> None:
    device = main_node.device()
    (task_id,) = main_node.submit()
    key = device.next_task()[0]
    assert main_node.call("task.cancel", task_id=task_id)["status"] == "cancelled"
    assert device.expect(msg.Cancel) == msg.Cancel(device.session, (key,), "cancelled")
    device.finished(key, outcome="cancelled")
    device.expect(msg.FinishedAck)
    assert main_node.status(task_id) == "cancelled"
    with pytest.raises(errors.CannotCancelTask):
        main_node.call("task.cancel", task_id=task_id)


def test_a_failed_task_is_retried_and_then_by_hand(main_node: MainNode) -> None:
    device = main_node.device()
    (task_id,) = main_node.submit(requirements={"max_retries": 1})
    for _ in range(2):
        device.finished(device.next_task()[0], outcome="failed", cause="error")
    eventually(lambda: main_node.status(task_id) == "failed", "failed")
    main_node.call("task.retry", task_id=task_id)
    device.finished(device.next_task()[0])
    eventually(lambda: main_node.status(task_id) == "success", "success")
    attempts = main_node.call("task.get", task_id=task_id)["attempts"]
    assert [one["status"] for one in attempts] == ["failed", "failed", "success"]


def test_a_silent_devices_work_goes_to_another(tmp_path: Path) -> None:
    quick = {"interval": 1.0, "max_missed": 1, "timeout": 1.0}
    node = MainNode(settings_for(tmp_path, heartbeat=quick))
    try:
        silent = node.device("silent")
        (task_id,) = node.submit()
        first = silent.next_task()[0]
        silent.started(first)
        other = node.socket("other")
        other.join()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not other.assigned and time.monotonic() < deadline:
            other.send(msg.Heartbeat(other.session, 1, config_version=1))
            other.pump(0.1)
        second = other.next_task()[0]
        assert second[:2] == (first[0], 2)
        # The zombie wakes up: its result is not taken.
        silent.finished(first, result=b'"stale"')
        other.finished(second, result=b'"fresh"')
        eventually(lambda: node.status(task_id) == "success", "success")
        assert node.call("task.result", task_id=task_id)["result_data"] == "fresh"
    finally:
        node.stop()


# --- calls that wait -----------------------------------------------------------------------------


def test_a_wait_is_answered_when_its_tasks_have_ended(main_node: MainNode) -> None:
    device = main_node.device(slots=2)
    ids = main_node.submit(count=2)
    found: list[dict[str, Any]] = []
    args = {"task_ids": ids, "timeout_seconds": 30}
    waiter = threading.Thread(target=lambda: found.append(main_node.client.call("task.wait", args)))
    waiter.start()
    first, second = device.next_task()[0], device.next_task()[0]
    device.finished(first)
    device.expect(msg.FinishedAck)
    assert not found
    device.finished(second)
    waiter.join(PATIENCE_SECONDS)
    assert [one["status"] for one in found[0]["results"]] == ["success", "success"]
    assert found[0]["unfinished"] == []


def test_a_wait_for_what_has_ended_is_answered_at_once(main_node: MainNode) -> None:
    (task_id,) = main_node.submit()
    main_node.call("task.cancel", task_id=task_id)
    began = time.monotonic()
    found = main_node.call("task.wait", task_ids=[task_id], timeout_seconds=50)
    assert found["results"][0]["status"] == "cancelled"
    assert time.monotonic() - began < 25


def test_a_wait_ends_with_its_time(main_node: MainNode) -> None:
    ids = main_node.submit(count=2)
    found = main_node.call("task.wait", task_ids=ids, timeout_seconds=0.2)
    assert (found["results"], found["unfinished"]) == ([], ids)
    assert main_node.call("task.wait", task_ids=ids, timeout_seconds=0)["unfinished"] == ids


def test_a_poll_is_parked_until_something_happens(main_node: MainNode) -> None:
    cursor = main_node.call("events.poll")["next"]
    found: list[dict[str, Any]] = []
    args = {"since": cursor, "wait_seconds": 30, "type": "task"}
    waiter = threading.Thread(
        target=lambda: found.append(main_node.client.call("events.poll", args))
    )
    waiter.start()
    main_node.device()  # not what is waited for
    (task_id,) = main_node.submit()
    waiter.join(PATIENCE_SECONDS)
    assert found[0]["events"][0]["task_id"] == task_id
    assert (
        main_node.call("events.poll", since=cursor, wait_seconds=0, limit=1)["next"] == cursor + 1
    )
    last = main_node.call("events.poll")["next"]
    assert main_node.call("events.poll", since=last, wait_seconds=0.2)["events"] == []


def test_a_ping_goes_over_the_bus_and_back(main_node: MainNode) -> None:
    device = main_node.device()
    found: list[dict[str, Any]] = []
    args = {"device_id": "box", "timeout_seconds": 10}
    asker = threading.Thread(
        target=lambda: found.append(main_node.client.call("device.ping", args))
    )
    asker.start()
    device.send(msg.Pong(device.session, device.expect(msg.Ping).nonce))
    asker.join(PATIENCE_SECONDS)
    assert found[0]["ping_successful"] is True
    assert 0 < found[0]["response_time_ms"] < 10_000
    silent = main_node.call("device.ping", device_id="box", timeout_seconds=0.1)
    assert (silent["ping_successful"], silent["response_time_ms"]) == (False, None)
    assert silent["duration_ms"] >= 100


def test_answers_come_in_any_order_each_with_its_own_id(main_node: MainNode) -> None:
    raw = RawDevice(main_node.facts.admin_port, tag=wire.ADMIN)
    (task_id,) = main_node.submit()
    wait = {
        "id": "slow",
        "op": "task.wait",
        "args": {"task_ids": [task_id], "timeout_seconds": 0.3},
    }
    raw.socket.send_multipart(wire.encode(wire.ADMIN, b"CALL", wait))
    for number in (7, "text"):
        call = {"id": number, "op": "health"}
        raw.socket.send_multipart(wire.encode(wire.ADMIN, b"CALL", call))
    found = [raw.read() for _ in range(3)]
    assert [one.header["id"] for one in found if one is not None] == [7, "text", "slow"]
    raw.close()


# --- devices -------------------------------------------------------------------------------------


def test_heartbeats_are_acknowledged_and_configuration_pushed(main_node: MainNode) -> None:
    device = main_node.device()
    device.send(msg.Heartbeat(device.session, 5, {"cpu_percent": 3.5}, config_version=1))
    assert device.expect(msg.HeartbeatAck) == msg.HeartbeatAck(device.session, 5, 1)
    main_node.call("config.update", section="heartbeat", values={"interval": 7})
    config = device.expect(msg.Config).config
    assert (config.version, config.interval) == (2, 7)
    found = main_node.call("device.get", device_id="box")
    assert found["metrics"]["cpu_percent"] == 3.5
    assert found["ip_address"] == "127.0.0.1"


def test_a_second_process_with_the_same_id_is_refused_while_the_first_answers(
    main_node: MainNode,
) -> None:
    first, second = main_node.device(), main_node.socket()
    second.hello()
    first.send(msg.Pong(first.session, first.expect(msg.Ping).nonce))
    assert second.expect(msg.Reject).code == "duplicate"
    second.hello()
    first.expect(msg.Ping)
    # Nobody answers this time.
    second.expect(msg.Welcome)


def test_a_removed_device_is_refused_until_it_is_readmitted(main_node: MainNode) -> None:
    device = main_node.device()
    main_node.call("device.remove", device_id="box")
    assert device.expect(msg.Reject).code == "removed"
    device.hello()
    assert device.expect(msg.Reject).code == "removed"
    main_node.call("device.readmit", device_id="box")
    device.join()


def test_a_device_that_says_goodbye_gives_its_work_back(main_node: MainNode) -> None:
    device = main_node.device()
    (task_id,) = main_node.submit()
    device.next_task()
    device.send(msg.Goodbye(device.session, "bye"))
    eventually(lambda: main_node.status(task_id) == "queued", "queued")
    reason = main_node.call("task.status", task_id=task_id)["queued_reason"]
    assert reason["rejected"] == {"offline": 1}


def test_a_drained_device_gets_nothing(main_node: MainNode) -> None:
    device = main_node.device()
    main_node.call("device.drain", device_id="box")
    device.expect(msg.Drain)
    (task_id,) = main_node.submit()
    main_node.call("device.resume", device_id="box")
    device.expect(msg.Resume)
    assert device.next_task()[1] == task_id


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 on this machine")
def test_the_sockets_may_be_on_ipv6(tmp_path: Path) -> None:
    server = {"host": "::1", "worker_host": "::1", "event_host": "::1"}
    node = MainNode(settings_for(tmp_path, server=server))
    client = AdminClient("::1", node.facts.admin_port, timeout_seconds=PATIENCE_SECONDS)
    try:
        assert client.call("broker.info")["host"] == "::1"
    finally:
        client.close()
        node.stop()


# --- the event feed ------------------------------------------------------------------------------


def test_the_feed_tells_subscribers_what_the_log_has(main_node: MainNode) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    feed = context.socket(zmq.SUB)
    feed.setsockopt(zmq.LINGER, 0)
    feed.setsockopt(zmq.SUBSCRIBE, b"RCE1")
    feed.connect(f"tcp://127.0.0.1:{main_node.facts.event_port}")
    seen: list[dict[str, Any]] = []

    def heard() -> bool:
        (task_id,) = main_node.submit()
        while feed.poll(50):
            tag, kind, body = feed.recv_multipart()
            rows = json.loads(body)
            assert tag == b"RCE1"
            assert {row["type"] for row in rows} == {kind.decode()}
            seen.extend(rows)
        return any(row.get("task_id") == task_id for row in seen)

    eventually(heard, "an event of the feed")
    ids = [row["id"] for row in seen]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    log = main_node.call("events.poll", since=ids[0] - 1)["events"]
    assert log[: len(seen)] == seen
    feed.close(0)
    context.term()


# --- a refusal is an answer ----------------------------------------------------------------------


def test_a_call_that_is_answered_unavailable_keeps_its_connection_and_the_breaker_shut() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.RCVTIMEO, int(PATIENCE_SECONDS * 1000))
    port = router.bind_to_random_port("tcp://127.0.0.1")
    callers = []

    def serve() -> None:
        for _ in range(4):
            identity, *frames = router.recv_multipart()
            callers.append(identity)
            header = wire.decode(wire.ADMIN, frames).header
            if header["op"] == "task.retry":
                refused = errors.to_wire(errors.ClusterUnavailable("this one not now"))
                answer = wire.encode(wire.ADMIN, b"ERROR", {"id": header["id"], **refused}, ())
            else:
                answer = wire.encode(wire.ADMIN, b"REPLY", {"id": header["id"], "data": {}}, ())
            router.send_multipart([identity, *answer])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    guarded = MainNodeLink(AdminClient("127.0.0.1", port, timeout_seconds=PATIENCE_SECONDS))
    try:
        for _ in range(2):
            with pytest.raises(errors.ClusterUnavailable, match="this one not now"):
                guarded.call("task.retry", {})
            assert guarded.reachable
            assert guarded.data("health") == {}
        thread.join(PATIENCE_SECONDS)
        assert len(callers) == 4
        assert len(set(callers)) == 1, "the refusal cost the connection"
    finally:
        guarded.close()
        router.close(0)
        context.term()

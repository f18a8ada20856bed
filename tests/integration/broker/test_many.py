"""A main node on loopback with many tasks, many calls, a slow disk."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from retire_cluster.broker.client import AdminClient
from retire_cluster.broker.core.transitions import TRANSITIONS
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus
from tests.integration.main_kit import PATIENCE_SECONDS, MainNode, RawDevice

# --- many ----------------------------------------------------------------------------------------


def test_the_admin_socket_answers_while_ten_thousand_tasks_are_submitted(
    main_node: MainNode,
) -> None:
    done = threading.Event()
    slowest = [0.0]
    answered = Counter[str]()

    def ask() -> None:
        with_own_socket = AdminClient(port=main_node.facts.admin_port, timeout_seconds=10)
        while not done.is_set():
            began = time.monotonic()
            with_own_socket.call("health")
            slowest[0] = max(slowest[0], time.monotonic() - began)
            answered["health"] += 1
        with_own_socket.close()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(20):
            main_node.submit(count=500, task_type="echo", requirements={"required_tags": ["no"]})
    finally:
        done.set()
        asker.join(PATIENCE_SECONDS)
    assert answered["health"] >= 10
    assert slowest[0] < 5
    assert main_node.call("cluster.status")["tasks"]["queued"] == 10_000
    print(f"slowest answer {slowest[0] * 1000:.1f} ms of {answered['health']}")


def test_two_hundred_mixed_tasks_run_only_where_allowed_urgent_first_and_by_the_table(
    main_node: MainNode,
) -> None:
    rng = random.Random(11)
    cursor = main_node.call("events.poll")["next"]
    kinds: list[dict[str, Any]] = [
        {"task_type": "echo"},
        {"task_type": "sleep", "requirements": {"required_role": "mobile"}},
        {"task_type": "sleep", "requirements": {"required_tags": ["gpu"]}},
        {"task_type": "command", "requirements": {"min_cpu_cores": 8}},
        {"task_type": "sleep", "requirements": {"required_platform": "linux"}},
    ]
    allowed = [
        {"phone", "server", "laptop"}, {"phone"}, {"server", "laptop"}, {"server"},
        {"server", "laptop"},
    ]  # fmt: skip
    where: dict[str, set[str]] = {}
    urgency: dict[str, str] = {}
    tasks, places, payloads = [], [], []
    for _ in range(200):
        kind = rng.randrange(len(kinds))
        priority = rng.choice(["low", "normal", "high", "urgent"])
        tasks.append({**kinds[kind], "priority": priority})
        places.append(allowed[kind])
        payloads.append(b'{"command":["true"]}' if kind == 3 else b"{}")
    # The types are known before any device takes work.
    shy = main_node.device("laptop", accepting=False, tags=("gpu",), slots=2)
    ids = main_node.client.call("task.submit", {"tasks": tasks}, payloads)["task_ids"]
    for task_id, task, place in zip(ids, tasks, places, strict=True):
        where[task_id], urgency[task_id] = place, task["priority"]
    phone = main_node.device(
        "phone", role="mobile", platform="android", slots=1, capabilities={"cpu_count": 4}
    )
    server = main_node.device("server", tags=("gpu",), slots=3, capabilities={"cpu_count": 16})
    shy.send(msg.Heartbeat(shy.session, 1, accepting=True, config_version=1))
    order: dict[str, list[str]] = {}
    ended = 0
    until = time.monotonic() + 60
    while ended < 200 and time.monotonic() < until:
        for device in (phone, server, shy):
            device.pump(0.005)
            for key, task_id, _, _ in device.assigned:
                order.setdefault(device.device_id, []).append(task_id)
                assert device.device_id in where[task_id]
                device.started(key)
                device.finished(key)
                ended += 1
            device.assigned.clear()
    assert ended == 200
    waited = main_node.call("task.wait", task_ids=ids, timeout_seconds=20)
    assert {one["status"] for one in waited["results"]} == {"success"}
    ranks = {"urgent": 0, "high": 1, "normal": 2, "low": 3}
    # Each requirement class by itself was served strictly by priority.
    mobile = [t for t in order["phone"] if where[t] == {"phone"}]
    assert [ranks[urgency[t]] for t in mobile] == sorted(ranks[urgency[t]] for t in mobile)
    only_server = [t for t in order["server"] if where[t] == {"server"}]
    found = [ranks[urgency[t]] for t in only_server]
    assert found == sorted(found)
    check_events(main_node, cursor, set(ids))


def check_events(node: MainNode, cursor: int, ids: set[str]) -> None:
    """Every transition in the feed is one of the table's, and each task ended once."""
    ways: dict[str | None, set[str]] = {}
    for (state, what), target in TRANSITIONS.items():
        if what != "damage":
            ways.setdefault(state.value if state else None, set()).add(target.value)
    states: dict[str, str | None] = dict.fromkeys(ids)
    ends = Counter[str]()
    while True:
        page = node.call("events.poll", since=cursor, type="task")
        assert page["gap"] is False
        for event in page["events"]:
            state = event["type"].partition(".")[2]
            if state == "progress":
                continue
            task_id = event["task_id"]
            assert event["data"]["from"] == states[task_id]
            assert state in ways[states[task_id]]
            states[task_id] = state
            ends[task_id] += TaskStatus(state) in TERMINAL
        if not page["events"]:
            break
        cursor = page["next"]
    assert set(ends.values()) == {1}
    assert set(ends) == ids


# --- many at once --------------------------------------------------------------------------------


def test_submissions_that_wait_for_a_slow_disk_share_its_next_commit(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = main_node.broker._store
    commit, commits = store.commit, []

    def slow_commit(writes: Sequence[Any]) -> None:
        commits.append(len(writes))
        time.sleep(0.3)
        commit(writes)

    monkeypatch.setattr(store, "commit", slow_commit)
    raw = RawDevice(main_node.facts.admin_port, tag=wire.ADMIN)
    key = {"owner": "me", "idempotency_key": "k", "fingerprint": "f"}
    for number in range(40):
        args = {"task": {"task_type": "sleep"}, "brief": True, **(key if number > 37 else {})}
        if number == 20:
            args["colour"] = "red"
        frames = wire.encode(
            wire.ADMIN, b"CALL", {"id": number, "op": "task.submit", "args": args}, [b"{}"]
        )
        raw.socket.send_multipart(wire.fold(frames) if number % 2 else frames)
    found = {}
    for _ in range(40):
        answer = raw.read()
        assert answer is not None
        found[answer.header["id"]] = answer
    raw.close()
    assert found.pop(20).header["details"]["field"] == "colour"
    ids = {number: one.header["data"]["task_ids"] for number, one in found.items()}
    assert found[39].header["data"]["replayed"]
    assert ids.pop(39) == ids[38]
    assert len({one for (one,) in ids.values()}) == 38
    assert all(main_node.status(one) == "queued" for (one,) in ids.values())
    assert len(commits) <= 6, "the first, and those that gathered meanwhile"

"""The broker when its store or its own rules fail: clients are told, devices keep their work."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any

import pytest

from retire_cluster.broker.core.devices import event_throttle
from retire_cluster.broker.core.evidence import EventFailed
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import Held
from tests.integration.main_kit import PATIENCE_SECONDS, MainNode, eventually


def let_writes(node: MainNode, allowed: bool) -> None:
    """Have SQLite refuse every write of the broker's connection, or take them again."""
    store = node.broker._store
    assert isinstance(store, SQLiteStore)
    store._db.execute(f"pragma query_only = {'off' if allowed else 'on'}")


def flip(node: MainNode, statement: str) -> None:
    """Change the file behind the broker's back."""
    db = sqlite3.connect(node.settings.data_dir / "cluster.db", timeout=PATIENCE_SECONDS)
    db.execute(statement)
    db.commit()
    db.close()


def epoch(node: MainNode) -> int:
    return int(node.call("broker.info")["epoch"])


class Caller(threading.Thread):
    """One admin call that is answered later, with data or an error."""

    def __init__(self, node: MainNode, op: str, **args: Any) -> None:
        super().__init__(name=op)
        self.node, self.op, self.args = node, op, args
        self.answer: dict[str, Any] | errors.ClusterError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.node.client.call(self.op, self.args)
        except errors.ClusterError as error:
            self.answer = error

    def wait(self) -> Any:
        self.join(PATIENCE_SECONDS)
        return self.answer


def test_while_the_store_refuses_writes_everybody_is_told_and_then_work_goes_on(
    main_node: MainNode,
) -> None:
    device = main_node.device(slots=2)
    first, second = main_node.submit(count=2)
    running, done = device.next_task()[0], device.next_task()[0]
    device.started(running)
    eventually(lambda: main_node.status(first) == "running", "running")
    parked = [
        Caller(main_node, "task.wait", task_ids=[first], timeout_seconds=50),
        Caller(main_node, "events.poll", wait_seconds=50, type="config"),
        Caller(main_node, "device.ping", device_id="box", timeout_seconds=9),
    ]
    device.expect(msg.Ping)
    state = main_node.broker.state
    eventually(lambda: state.waits.all and main_node.broker._admin.polls, "parked calls")
    before = epoch(main_node)
    let_writes(main_node, False)
    with pytest.raises(errors.ClusterUnavailable, match="readonly") as caught:
        main_node.submit()
    assert caught.value.retry_after == 5
    for caller in parked:
        assert isinstance(caller.wait(), errors.ClusterUnavailable), caller.op
    with pytest.raises(errors.ClusterUnavailable):
        main_node.call("health")
    # A result that comes now is not acknowledged.
    device.finished(done)
    assert device.read(0.5) is None
    let_writes(main_node, True)

    def works() -> bool:
        try:
            return bool(main_node.call("health"))
        except errors.ClusterUnavailable:
            return False

    eventually(works, "recovery")
    assert epoch(main_node) > before
    device.send(msg.Heartbeat(device.session, 1, config_version=1))
    assert device.expect(msg.Reject).code == "register"
    instance = f"{device.device_id} {id(device)}"
    welcome = device.join(
        slots=2, instance=instance, held=(Held(running, True, 1.0),), unsent=(done,)
    )
    assert set(welcome.keep) == {running, done}
    device.finished(done)
    device.finished(running)
    for task_id in (first, second):
        found = main_node.call("task.wait", task_ids=[task_id], timeout_seconds=20)
        assert [one["status"] for one in found["results"]] == ["success"]
        assert len(main_node.call("task.get", task_id=task_id)["attempts"]) == 1


def test_a_rule_that_fails_costs_a_turn_and_not_the_broker(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "broker")
    device = main_node.device()
    (task_id,) = main_node.submit()
    key = device.next_task()[0]
    before = epoch(main_node)

    def fail(*args: object) -> None:
        raise ZeroDivisionError("a rule has a bug")

    monkeypatch.setattr(event_throttle, "log_progress", fail)
    device.send(msg.Progress(device.session, (msg.ProgressItem(key, 1.0, "x"),)))
    eventually(lambda: main_node.broker.state.epoch > before, "a state read anew")
    monkeypatch.undo()
    (told,) = [one.exc_info for one in caplog.records if "a turn failed" in one.message]
    assert told is not None
    assert isinstance(told[1], EventFailed)
    assert isinstance(told[1].__cause__, ZeroDivisionError)
    assert [line.split(": ")[1].split()[0] for line in told[1].history] == [
        "task.queued", "task.assigned",
    ]  # fmt: skip
    eventually(lambda: "the state is read anew, clients are served again" in caplog.text, "a line")
    assert "the store works" not in caplog.text, "it never failed"
    device.send(msg.Heartbeat(device.session, 1, config_version=1))
    assert device.expect(msg.Reject).code == "register"
    device.join(held=(Held(key, True, 1.0),))
    device.finished(key)
    eventually(lambda: main_node.status(task_id) == "success", "success")


def test_an_operation_that_fails_is_an_internal_error_and_no_more(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    main_node.submit()

    def fail(*args: object) -> None:
        raise ZeroDivisionError("an operation has a bug")

    monkeypatch.setattr("retire_cluster.broker.admin.figures.resource_totals", fail)
    before = epoch(main_node)
    with pytest.raises(errors.InternalError) as caught:
        main_node.call("cluster.status")
    assert "bug" not in caught.value.message
    assert epoch(main_node) == before
    # One that changes something may have left half of it: the state is read anew.
    monkeypatch.setattr("retire_cluster.broker.admin.cluster.merge_section", fail)
    with pytest.raises(errors.InternalError):
        main_node.call("config.update", section="heartbeat", values={"interval": 4})
    eventually(lambda: main_node.broker.state.epoch > before, "a state read anew")
    monkeypatch.undo()
    eventually(lambda: not main_node.broker._stall.reason, "the end of the trouble")
    assert main_node.call("cluster.status")["tasks"]["queued"] == 1


def test_a_flipped_byte_of_a_result_is_told_and_never_shown(main_node: MainNode) -> None:
    device = main_node.device()
    (task_id,) = main_node.submit()
    device.finished(device.next_task()[0], result=b'{"answer":42}')
    device.expect(msg.FinishedAck)
    statement = """update outcomes set result = cast('{"answer":43}' as blob)"""
    flip(main_node, statement)
    # What it committed itself a moment ago it still knows.
    assert main_node.call("task.result", task_id=task_id)["result_data"] == {"answer": 42}
    main_node.stop()  # the fixture's own stop finds nothing left
    flip(main_node, statement)
    again = MainNode(main_node.settings)
    try:
        waited = again.call("task.wait", task_ids=[task_id], timeout_seconds=0)
        assert 43 not in [one["result_data"] for one in waited["results"]]
        found = again.call("task.result", task_id=task_id)
        assert found["result_data"] is None
        assert "damaged" in found["error_message"]
        assert again.call("health")
    finally:
        again.stop()


def test_a_flipped_byte_of_a_payload_never_reaches_a_device(main_node: MainNode) -> None:
    large = b'{"duration":1,"note":"' + b"x" * 5_000 + b'"}'
    (bad,) = main_node.submit(large, task_type="echo")
    flip(main_node, "update tasks set payload = replace(payload, 'xxx', 'yyy')")
    device = main_node.device()
    eventually(lambda: main_node.status(bad) == "failed", "failed")
    found = main_node.call("task.result", task_id=bad)
    assert "damaged" in found["error_message"]
    (good,) = main_node.submit(task_type="echo")
    assert device.next_task()[1] == good


def test_a_stop_keeps_the_counters_of_devices(main_node: MainNode) -> None:
    device = main_node.device()
    device.send(msg.Heartbeat(device.session, 1, {"cpu_percent": 9.0}, config_version=1))
    device.expect(msg.HeartbeatAck)
    main_node.stop()  # the fixture's own stop finds nothing left
    again = MainNode(main_node.settings)
    try:
        found = again.call("device.get", device_id="box")
        assert (found["total_heartbeats"], found["metrics"]["cpu_percent"]) == (1, 9.0)
    finally:
        again.stop()

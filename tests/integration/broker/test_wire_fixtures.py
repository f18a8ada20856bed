"""Recorded bytes of each release, replayed: an old worker on today's main node, and the reverse.

A release of today's protocol is served; one of another is refused with a reason, at once, and both
sides say in one line what to do.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from retire_cluster.schemas.protocol.wire import PROTOCOL
from tests.integration.main_kit import PATIENCE_SECONDS, MainNode, eventually
from tests.integration.main_kit import main_node as main_node
from tests.integration.node_kit import Start
from tests.integration.node_kit import start as start
from tests.wire.codec import Frozen, read, write
from tests.wire.fixtures import Recording, misses, releases

RELEASES = releases()


def same_protocol() -> list[str]:
    """Releases that today's programs have to serve."""
    return [name for name in RELEASES if Recording(name).protocol == PROTOCOL]


def test_this_version_is_among_the_recorded_ones() -> None:
    assert same_protocol(), "no recording of today's protocol: python -m tests.wire.record"


# --- a recorded worker on today's main node ------------------------------------------------------


class OldWorker:
    """Speaks with recorded messages; only ids that the main node gave are filled in."""

    def __init__(self, port: int, recording: Recording) -> None:
        self.recording = recording
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.session = "recorded session"
        self.batch = 100
        self._heard: list[Frozen] = []

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()

    def say(self, verb: str, blobs: list[bytes] | None = None, **changes: Any) -> None:
        message = self.recording.one("device", verb, **{"session": self.session, **changes})
        if blobs is not None:
            message = message._replace(blobs=blobs)
        self.socket.send_multipart(write(message))

    def hear(self, verb: str) -> Frozen:
        """The next message of a kind, which has all that the recorded one had."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            for index, message in enumerate(self._heard):
                if message.verb == verb:
                    del self._heard[: index + 1]
                    assert not misses(self.recording.one("main", verb), message)
                    return message
            if self.socket.poll(100):
                self._heard.append(read(self.socket.recv_multipart()))
        raise AssertionError(f"no {verb}; heard {[one.verb for one in self._heard]}")

    def take(self) -> tuple[list[int], bytes]:
        """The key of the next assignment, and its payload."""
        assign = self.hear("ASSIGN")
        (group,) = assign.header["groups"]
        (recorded,) = self.recording.one("main", "ASSIGN").header["groups"]
        assert len(group) == len(recorded)
        _, _, tasks, attempts, _ = group
        key = [tasks[0], attempts[0], assign.header["token"], assign.header["epoch"]]
        return key, assign.blobs[0]

    def finish(self, key: list[int], outcome: str) -> None:
        """A recorded end of an attempt, for this key; until it is acknowledged."""
        self.batch += 1
        recorded = next(
            one
            for one in self.recording.all("device", "FINISHED")
            if one.header["groups"][0][2] == outcome
        )
        (group,) = recorded.header["groups"]
        task, attempt, token, epoch = key
        filled = [token, epoch, *group[2:5], [task], [attempt], group[7]]
        header = {**recorded.header, "session": self.session, "batch": self.batch}
        self.socket.send_multipart(write(recorded._replace(header={**header, "groups": [filled]})))
        assert self.hear("FINISHED_ACK").header["batch"] == self.batch


@pytest.fixture
def old_worker(main_node: MainNode) -> Iterator[Callable[[str], OldWorker]]:
    made: list[OldWorker] = []

    def make(release: str) -> OldWorker:
        made.append(OldWorker(main_node.facts.worker_port, Recording(release)))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def _await_running(node: MainNode, task_id: str) -> None:
    eventually(lambda: node.status(task_id) == "running", "running")


@pytest.mark.parametrize("release", same_protocol())
def test_a_recorded_worker_is_served_by_todays_main_node(
    main_node: MainNode, old_worker: Callable[[str], OldWorker], release: str
) -> None:
    worker = old_worker(release)
    worker.say("HELLO")
    worker.hear("WELCOME")
    worker.say("HEARTBEAT", beat=1, config_version=1)
    assert worker.hear("HEARTBEAT_ACK").header["beat"] == 1
    ends = {"success": "success", "failed": "failed", "timeout": "timeout"}
    for outcome, status in ends.items():
        limits = {"max_retries": 0}
        (task_id,) = main_node.submit(b'{"duration": 5}', requirements=limits)
        key, payload = worker.take()
        assert json.loads(payload) == {"duration": 5}
        worker.say("STARTED", items=[key])
        _await_running(main_node, task_id)
        worker.finish(key, outcome)
        assert main_node.status(task_id) == status
    (task_id,) = main_node.submit(b'{"duration": 5}')
    key, _ = worker.take()
    worker.say("STARTED", items=[key])
    _await_running(main_node, task_id)
    main_node.call("task.cancel", task_id=task_id)
    assert worker.hear("CANCEL").header["items"] == [key]
    worker.finish(key, "cancelled")
    main_node.call("config.update", section="heartbeat", values={"interval": 7})
    version = worker.hear("CONFIG").header["version"]
    worker.say("CONFIG_ACK", version=version)
    eventually(lambda: main_node.broker.state.devices["box"].config.version == version, "ACK")
    main_node.call("device.drain", device_id="box")
    worker.hear("DRAIN")
    main_node.call("device.resume", device_id="box")
    worker.hear("RESUME")
    worker.say("DRAIN")
    eventually(lambda: not main_node.broker.state.devices["box"].ready, "a drained device")
    worker.say("GOODBYE")
    eventually(lambda: not main_node.broker.state.devices["box"].online, "a device that went")
    dropped = main_node.call("metrics")["dropped_messages"]
    # What a cancelled attempt ends with comes too late to count.
    assert set(dropped) == {"stale_attempt"}, f"something of {release} was not understood"


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1, None, "2"])
@pytest.mark.parametrize("shape", ["as today", "unreadable"])
def test_a_worker_of_another_protocol_is_refused_with_the_cure_whatever_it_says(
    main_node: MainNode,
    old_worker: Callable[[str], OldWorker],
    caplog: pytest.LogCaptureFixture,
    protocol: object,
    shape: str,
) -> None:
    worker = old_worker(same_protocol()[0])
    header: dict[str, Any] = {"protocol": protocol, "session": "s", "device_id": "attic"}
    if shape == "as today":
        header = {**worker.recording.one("device", "HELLO").header, **header}
    header["version"] = "9.9.9"
    for _ in range(3):
        worker.socket.send_multipart(write(Frozen("HELLO", header, [])))
        assert worker.socket.poll(int(PATIENCE_SECONDS * 1000)), "no answer"
        answer = read(worker.socket.recv_multipart())
        assert (answer.verb, answer.header["code"]) == ("REJECT", "protocol")
        assert (answer.header["session"], answer.header["protocol"]) == ("s", PROTOCOL)
        newer = isinstance(protocol, int) and protocol > PROTOCOL
        cure = "update this main node" if newer else "update the worker on attic"
        assert cure in answer.header["message"]
        assert "9.9.9" in answer.header["message"]
    assert "attic" not in main_node.broker.state.devices
    told = [one.getMessage() for one in caplog.records if "update" in one.getMessage()]
    assert len(told) == 1, "it is logged once"
    assert main_node.call("metrics")["dropped_messages"]["rejected_protocol"] == 3


# --- today's worker at a recorded main node ------------------------------------------------------


class OldMain:
    """A ROUTER that speaks with recorded messages."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.recording = Recording(same_protocol()[0])
        self.peer, self.session = b"", ""
        self._heard: list[Frozen] = []

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()

    def say(self, verb: str, **changes: Any) -> Frozen:
        message = self.recording.one("main", verb, **{"session": self.session, **changes})
        self.socket.send_multipart([self.peer, *write(message)])
        return message

    def pump(self, milliseconds: int = 100) -> None:
        """Take in what is there; heartbeats are answered."""
        if not self.socket.poll(milliseconds):
            return
        self.peer, *frames = self.socket.recv_multipart()
        message = read(frames)
        if message.verb == "HEARTBEAT":
            beat = message.header["beat"]
            self.say("HEARTBEAT_ACK", beat=beat, config_version=message.header["config_version"])
        self._heard.append(message)

    def hear(self, verb: str, wanted: Callable[[Frozen], bool] = lambda _: True) -> Frozen:
        """The next message of a kind, which has all that the recorded one had."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            for index, message in enumerate(self._heard):
                if message.verb == verb and wanted(message):
                    del self._heard[: index + 1]
                    assert not misses(self.recording.one("device", verb), message)
                    return message
            self.pump()
        raise AssertionError(f"no {verb}; heard {[one.verb for one in self._heard]}")


@pytest.fixture
def bus() -> Iterator[OldMain]:
    """What `start` lets its workers join."""
    found = OldMain()
    yield found
    found.close()


@pytest.mark.parametrize("release", same_protocol())
def test_todays_worker_serves_a_recorded_main_node(
    bus: OldMain, start: Start, release: str
) -> None:
    bus.recording = Recording(release)
    start("--device-id", "box")
    bus.session = bus.hear("HELLO").header["session"]
    bus.say("WELCOME")
    bus.hear("HEARTBEAT")
    for assign in bus.recording.all("main", "ASSIGN")[:2]:  # echo, and an expression that fails
        recorded = next(
            one
            for one in bus.recording.all("device", "FINISHED")
            if one.header["groups"][0][5] == assign.header["groups"][0][2]
        )
        header = {**assign.header, "session": bus.session}
        bus.socket.send_multipart([bus.peer, *write(assign._replace(header=header))])
        found = bus.hear("FINISHED")
        (was,), (now,) = recorded.header["groups"], found.header["groups"]
        assert (len(was), was[:7]) == (len(now), now[:7])
        assert found.blobs[0] == recorded.blobs[0]
        assert set(json.loads(recorded.blobs[1] or b"{}")) <= set(
            json.loads(found.blobs[1] or b"{}")
        )
        bus.say("FINISHED_ACK", batch=found.header["batch"])
    sleeping = bus.recording.all("main", "ASSIGN")[-1]
    header = {**sleeping.header, "session": bus.session}
    bus.socket.send_multipart([bus.peer, *write(sleeping._replace(header=header))])
    (key,) = bus.hear("STARTED").header["items"]
    bus.say("CANCEL", items=[key])
    assert bus.hear("FINISHED").header["groups"][0][2] == "cancelled"
    version = bus.say("CONFIG").header["version"]
    assert bus.hear("CONFIG_ACK").header["version"] == version
    nonce = bus.say("PING").header["nonce"]
    assert bus.hear("PONG").header["nonce"] == nonce
    bus.say("DRAIN")
    bus.hear("HEARTBEAT", lambda one: one.header["accepting"] is False)
    bus.say("RESUME")
    bus.hear("HEARTBEAT", lambda one: one.header["accepting"] is True)


def _reject(protocol: int | None) -> Frozen:
    header = {
        "session": "", "code": "protocol", "message": "update the worker on attic",
        "retry_after_seconds": None, "protocol": protocol,
    }  # fmt: skip
    return Frozen("REJECT", header, [])


@pytest.mark.parametrize("protocol", [None, PROTOCOL + 1])
def test_a_worker_that_is_too_old_ends_once_with_the_reason(
    bus: OldMain, start: Start, protocol: int | None
) -> None:
    process: subprocess.Popen[str] = start()
    hello = bus.hear("HELLO")
    assert hello.header["protocol"] == PROTOCOL
    bus.socket.send_multipart([bus.peer, *write(_reject(protocol))])
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert said.count("update the worker on attic") == 1


def test_a_worker_that_is_newer_than_its_main_node_waits_for_it_and_does_not_spin(
    bus: OldMain, start: Start, tmp_path: Path
) -> None:
    process: subprocess.Popen[str] = start()
    bus.hear("HELLO")
    bus.socket.send_multipart([bus.peer, *write(_reject(PROTOCOL - 1))])
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        bus.pump()
    assert not bus._heard, "it said HELLO again at once"
    assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert said.count("update the worker on attic") == 1
    assert "trying again every 60 s" in said

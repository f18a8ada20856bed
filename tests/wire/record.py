"""Record today's wire as the fixture of this version: `python -m tests.wire.record`.

A real main node and a real worker process talk through a recorder that notes every byte. Run it
after a change of the wire (`tests/unit/schemas/protocol/test_wire_shape.py` says when). It refuses
a change that a peer of the recorded shape could not live with, unless `wire.PROTOCOL` was raised;
`--unreleased` records all the same: nothing of the old shape has been released.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zmq

from tests.integration.main_kit import MainNode, settings_for
from tests.wire.codec import read
from tests.wire.fixtures import FOLDER, write
from tests.wire.shape import compare, shape

_PATIENCE_SECONDS = 60.0


class Recorder(threading.Thread):
    """Passes one worker's messages on to the main node and back; keeps them all."""

    def __init__(self, port: int) -> None:
        super().__init__(name="recorder", daemon=True)
        self.rows: list[tuple[str, list[bytes]]] = []
        self.over = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._back: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for socket in (self._front, self._back):
            socket.setsockopt(zmq.LINGER, 0)
        self.port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self._back.connect(f"tcp://127.0.0.1:{port}")

    def run(self) -> None:
        worker = b""
        while not self.over.is_set():
            if self._front.poll(20):
                worker, *frames = self._front.recv_multipart()
                self.rows.append(("device", frames))
                self._back.send_multipart(frames)
            while worker and self._back.poll(0):
                frames = self._back.recv_multipart()
                self.rows.append(("main", frames))
                self._front.send_multipart([worker, *frames])
        self._front.close()
        self._back.close()
        self._context.term()

    def await_verb(self, side: str, verb: str, count: int = 1) -> None:
        """Until so many messages of a kind went by."""

        def went_by() -> bool:
            return [read(frames).verb for by, frames in list(self.rows) if by == side].count(
                verb
            ) >= count

        _await(went_by, f"{side} {verb}")


def _await(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.02)


def converse(folder: Path) -> list[tuple[str, list[bytes]]]:
    """What a main node and a worker say to each other about all there is."""
    (folder / "main").mkdir()
    node = MainNode(settings_for(folder / "main", server={"curve": False}))
    recorder = Recorder(node.facts.worker_port)
    recorder.start()
    worker = subprocess.Popen(
        [
            sys.executable, "-m", "retire_cluster.node", "--join", f"127.0.0.1:{recorder.port}",
            "--data-dir", str(folder / "worker"), "--device-id", "box", "--slots", "2",
            "--allow", "command", "--allow-root", "--tag", "recorded",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        recorder.await_verb("main", "WELCOME")
        _tasks(node, recorder)
        node.call("config.update", section="heartbeat", values={"interval": 1})
        recorder.await_verb("device", "CONFIG_ACK")
        node.call("device.ping", device_id="box", timeout_seconds=9)
        node.call("device.drain", device_id="box")
        recorder.await_verb("main", "DRAIN")
        node.call("device.resume", device_id="box")
        recorder.await_verb("main", "RESUME")
        recorder.await_verb("main", "HEARTBEAT_ACK", 3)
        worker.terminate()
        recorder.await_verb("device", "GOODBYE")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(20)
        worker.kill()
        recorder.over.set()
        recorder.join()
        node.stop()
    return recorder.rows


def _tasks(node: MainNode, recorder: Recorder) -> None:
    def ended(payload: Any, **task: Any) -> None:
        (task_id,) = node.submit(json.dumps(payload).encode(), **task)
        found = node.call("task.wait", task_ids=[task_id], timeout_seconds=50)
        assert found["results"], f"{task} did not end"

    ended({"n": 1}, task_type="echo")
    ended({"expression": "1/0"}, task_type="python_eval")
    ended({"command": ["sh", "-c", "echo out; echo err >&2"]}, task_type="command")
    limit = {"timeout_seconds": 1, "max_retries": 0}
    ended({"duration": 60}, task_type="sleep", requirements=limit)
    (task_id,) = node.submit(b'{"duration": 60}', task_type="sleep")
    _await(lambda: node.status(task_id) == "running", "a running task")
    node.call("task.cancel", task_id=task_id)
    recorder.await_verb("main", "CANCEL")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unreleased", action="store_true")
    asked = parser.parse_args()
    folder = FOLDER / version("retire-cluster")
    today, path = shape(), folder / "shape.json"
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        breaking, _ = compare(before, today)
        if breaking and before["protocol"] == today["protocol"] and not asked.unreleased:
            listed = "\n  ".join(breaking)
            sys.exit(
                f"a peer of the recorded shape cannot live with this:\n  {listed}\nraise"
                " wire.PROTOCOL (or give --unreleased, if that shape was never released)"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        rows = converse(Path(place))
    write(folder / "conversation.jsonl", rows)
    path.write_text(json.dumps(today, indent=1, sort_keys=True) + "\n", "utf-8")
    print(f"recorded {len(rows)} messages into {folder}")


if __name__ == "__main__":
    main()

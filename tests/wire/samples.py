"""One message of each kind with every field in use: what tests of the wire are made of."""

from __future__ import annotations

from typing import Any

from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import HeartbeatConfig, Held
from retire_cluster.schemas.task_types import BUILTIN

KEY = (7, 1, 2**53 - 1, 3)
CONFIG = HeartbeatConfig(2, 5.0, 30.0, 3)
FROM_DEVICE: list[Any] = [
    msg.Hello(
        wire.PROTOCOL, "box", "i", "s", "1", "worker", "linux", "h", ("a", "b"), 2,
        {"cpu_count": 4}, tuple(BUILTIN.values()), (Held(KEY, True, 1.5),), (KEY,), False, 12.0,
        ("task type x (m:f): no",), ("files: none",), True,
    ),
    msg.Heartbeat(
        "s", 1, {"cpu_percent": 1.0}, (Held(KEY, False, 0.0),), False, "hot", 2.5, 3, "e"
    ),
    msg.Heartbeat("s", 2),
    msg.Started("s", (KEY, KEY)),
    msg.Progress("s", (msg.ProgressItem(KEY, None, "x"), msg.ProgressItem(KEY, 99.5, ""))),
    msg.Finished.of("s", 4, (
        msg.FinishedItem(KEY, "failed", 0.5, "error", "why"),
        msg.FinishedItem(KEY, "success", 0.0, None, None),
    )),
    msg.Enrol("s", "box", "x" * 40),
    msg.ConfigAck("s", 1),
    msg.Pong("s", 2**48),
    msg.Drain("s", "why"),
    msg.Goodbye("s", "why"),
]  # fmt: skip
FROM_BROKER: list[Any] = [
    msg.Welcome("s", 3, (KEY,), (KEY, KEY), CONFIG, ("task type x is left out",)),
    msg.Reject("s", "register", "say HELLO", 10.0),
    msg.Reject("", "wrong_port", "there"),
    msg.Reject("s", "protocol", "update", None, 2),
    msg.Enrolled("s", "box"),
    msg.HeartbeatAck("s", 1, 2),
    msg.Assign.of("s", (msg.AssignItem(KEY, 1_700_000_000_000, "echo", 300),)),
    msg.FinishedAck("s", 1),
    msg.Cancel("s", (KEY,), "timeout"),
    msg.Abandon("s", (KEY,)),
    msg.Config("s", CONFIG),
    msg.Ping("s", 5),
    msg.Drain("s", "why"),
    msg.Resume("s"),
]

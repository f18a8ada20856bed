"""Drives a session without sockets."""

from __future__ import annotations

from itertools import count
from typing import Any

from retire_cluster.node.core import events, records
from retire_cluster.node.core.connection import Phase
from retire_cluster.node.core.instructions import Instruction, Send
from retire_cluster.node.core.records import Result
from retire_cluster.node.core.session import Randomness, Session
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import (
    AssignItem,
    AttemptKey,
    HeartbeatConfig,
    TypeInfo,
)

CONFIG = HeartbeatConfig(version=1, interval=5.0, timeout=30.0, max_missed=3)
ME = records.Introduction(
    device_id="d1",
    instance="i1",
    version="1",
    role="worker",
    platform="linux",
    hostname="h",
    tags=("linux",),
    slots=2,
    task_types=(TypeInfo("echo", instant=True),),
)


def key(number: int, epoch: int = 7) -> AttemptKey:
    return (number, 1, 10, epoch)


def success(number: int, data: bytes = b"{}") -> Result:
    return Result(key(number), "success", 0.1, None, None, data, b"")


class Driver:
    """A session, the time, and everything it ever wanted done."""

    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        numbers = count(1)
        self.session = Session(
            ME,
            now=self.now,
            randomness=Randomness(lambda: 0.5, lambda: f"s{next(numbers)}"),
            repeatable=lambda task_type, payload: task_type != "command",
            **options,
        )
        self.all: list[Instruction] = []

    def __call__(self, event: events.Event) -> list[Instruction]:
        out = self.session.handle(event, self.now)
        self.all += out
        return out

    def phase(self) -> Phase:
        return self.session.phase

    def receive(self, message: messages.FromBroker, *blobs: bytes) -> list[Instruction]:
        return self(events.Received(message, list(blobs)))

    def tick(self, seconds: float = 0.0) -> list[Instruction]:
        self.now += seconds
        return self(events.Tick())

    def welcome(
        self,
        keep: tuple[AttemptKey, ...] = (),
        abandon: tuple[AttemptKey, ...] = (),
        epoch: int = 7,
    ) -> list[Instruction]:
        session = self.session.session
        return self.receive(messages.Welcome(session, epoch, keep, abandon, CONFIG))

    def join(self) -> Driver:
        self(events.Opened())
        self(events.LinkUp())
        self.welcome()
        self.tick()
        return self

    def assign(self, *numbers: int, task_type: str = "sleep") -> list[Instruction]:
        items = tuple(AssignItem(key(n), n, task_type, 60) for n in numbers)
        return self.receive(
            messages.Assign.of(self.session.session, items), *(b"{}" for _ in items)
        )

    def ack(self) -> list[Instruction]:
        beat = sent(self.all, messages.Heartbeat)[-1].beat
        return self.receive(messages.HeartbeatAck(self.session.session, beat, 1))


def sent(out: list[Instruction], kind: type) -> list[Any]:
    return [i.message for i in out if isinstance(i, Send) and isinstance(i.message, kind)]


def only(out: list[Instruction], kind: type) -> list[Any]:
    return [i for i in out if isinstance(i, kind)]

"""Every message of the worker bus: which record a verb is, in each direction (docs/protocol.md).

Reading is strict: a header that does not fit raises `WireError` naming the field, so nothing
malformed reaches the state machine. Writing gives `(verb, header)` for `wire.encode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from retire_cluster.schemas.protocol.batches import Assign as Assign
from retire_cluster.schemas.protocol.batches import AssignItem as AssignItem
from retire_cluster.schemas.protocol.batches import Finished as Finished
from retire_cluster.schemas.protocol.batches import FinishedItem as FinishedItem
from retire_cluster.schemas.protocol.fields import AttemptKey as AttemptKey
from retire_cluster.schemas.protocol.fields import Header
from retire_cluster.schemas.protocol.from_device import MAX_WALLS as MAX_WALLS
from retire_cluster.schemas.protocol.from_device import ConfigAck as ConfigAck
from retire_cluster.schemas.protocol.from_device import Enrol as Enrol
from retire_cluster.schemas.protocol.from_device import Goodbye as Goodbye
from retire_cluster.schemas.protocol.from_device import Heartbeat as Heartbeat
from retire_cluster.schemas.protocol.from_device import Hello as Hello
from retire_cluster.schemas.protocol.from_device import Pong as Pong
from retire_cluster.schemas.protocol.from_device import Progress as Progress
from retire_cluster.schemas.protocol.from_device import Started as Started
from retire_cluster.schemas.protocol.from_main_node import Abandon as Abandon
from retire_cluster.schemas.protocol.from_main_node import Cancel as Cancel
from retire_cluster.schemas.protocol.from_main_node import Config as Config
from retire_cluster.schemas.protocol.from_main_node import Enrolled as Enrolled
from retire_cluster.schemas.protocol.from_main_node import FinishedAck as FinishedAck
from retire_cluster.schemas.protocol.from_main_node import HeartbeatAck as HeartbeatAck
from retire_cluster.schemas.protocol.from_main_node import Ping as Ping
from retire_cluster.schemas.protocol.from_main_node import Reject as Reject
from retire_cluster.schemas.protocol.from_main_node import Resume as Resume
from retire_cluster.schemas.protocol.from_main_node import Welcome as Welcome
from retire_cluster.schemas.protocol.parts import (
    DRAINED_BY_ADMINISTRATOR as DRAINED_BY_ADMINISTRATOR,
)
from retire_cluster.schemas.protocol.parts import MAX_LEFT_OUT as MAX_LEFT_OUT
from retire_cluster.schemas.protocol.parts import Drain as Drain
from retire_cluster.schemas.protocol.parts import HeartbeatConfig as HeartbeatConfig
from retire_cluster.schemas.protocol.parts import Held as Held
from retire_cluster.schemas.protocol.parts import ProgressItem as ProgressItem
from retire_cluster.schemas.protocol.parts import TypeInfo as TypeInfo
from retire_cluster.schemas.protocol.parts import first_left_out as first_left_out
from retire_cluster.schemas.protocol.parts import write_held as write_held
from retire_cluster.schemas.protocol.wire import WireError

FromDevice = (
    Hello | Enrol | Heartbeat | Started | Progress | Finished | ConfigAck | Pong | Drain | Goodbye
)
FromBroker = (
    Welcome | Reject | HeartbeatAck | Assign | FinishedAck | Cancel | Abandon | Config | Ping
    | Drain | Resume | Enrolled
)  # fmt: skip

_M = TypeVar("_M")
_FROM_DEVICE: dict[bytes, Callable[[Header], FromDevice]] = {
    cls.verb: cls.read
    for cls in (
        Hello,
        Enrol,
        Heartbeat,
        Started,
        Progress,
        Finished,
        ConfigAck,
        Pong,
        Drain,
        Goodbye,
    )
}
_FROM_BROKER: dict[bytes, Callable[[Header], FromBroker]] = {
    cls.verb: cls.read
    for cls in (
        Welcome, Reject, HeartbeatAck, Assign, FinishedAck, Cancel, Abandon, Config, Ping, Drain,
        Resume, Enrolled,
    )
}  # fmt: skip


def read_from_device(verb: bytes, header: Header) -> FromDevice:
    """Read a device's message. Raises `WireError` naming the verb or the field."""
    return _read(_FROM_DEVICE, verb, header)


def read_from_broker(verb: bytes, header: Header) -> FromBroker:
    """Read a message of the main node. Raises `WireError` naming the verb or the field."""
    return _read(_FROM_BROKER, verb, header)


def _read(table: Mapping[bytes, Callable[[Header], _M]], verb: bytes, header: Header) -> _M:
    reader = table.get(verb)
    if reader is None:
        raise WireError(f"unknown verb {verb[:32]!r}")
    return reader(header)

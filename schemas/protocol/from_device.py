"""The messages that a device sends, one frozen record a verb (docs/protocol.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from retire_cluster.schemas.protocol.fields import (
    AttemptKey,
    Header,
    attempt_key,
    attempt_keys,
    flag,
    mapping,
    number,
    rows,
    text,
    texts,
    whole,
)
from retire_cluster.schemas.protocol.parts import (
    DRAINED_BY_ADMINISTRATOR,
    MAX_LEFT_OUT,
    BusMessage,
    Held,
    ProgressItem,
    TypeInfo,
    read_held,
    read_task_types,
    write_held,
)
from retire_cluster.schemas.protocol.wire import PROTOCOL, WireError

#: How many kinds of confinement (`Hello.walls`) a device may name.
MAX_WALLS: Final = 8


@dataclass(frozen=True)
class Hello(BusMessage):
    """Introduce a device and begin its session."""

    verb = b"HELLO"
    protocol: int
    device_id: str
    instance: str
    session: str
    version: str
    role: str
    platform: str
    hostname: str
    tags: tuple[str, ...]
    slots: int
    capabilities: dict[str, Any]
    task_types: tuple[TypeInfo, ...]
    held: tuple[Held, ...] = ()
    unsent: tuple[AttemptKey, ...] = ()
    accepting: bool = True
    uptime_seconds: float = 0.0
    #: Own task types that the device has and does not offer, each with the reason.
    left_out: tuple[str, ...] = ()
    #: What the device keeps tasks from, and by what: `files: Landlock`.
    walls: tuple[str, ...] = ()
    #: A trial run: the answer is the same, but no session begins and nothing is kept.
    trial: bool = False

    def write(self) -> tuple[bytes, dict[str, Any]]:
        header = dict(vars(self))
        header["task_types"] = [asdict(info) for info in self.task_types]
        header["held"] = [write_held(held) for held in self.held]
        return self.verb, header

    @classmethod
    def read(cls, header: Header) -> Hello:
        return cls(
            protocol=whole(header, "protocol", low=1, high=1000),
            device_id=text(header, "device_id", limit=200),
            instance=text(header, "instance", limit=100),
            session=text(header, "session", limit=100),
            version=text(header, "version", default="", limit=50),
            role=text(header, "role", limit=50),
            platform=text(header, "platform", limit=50),
            hostname=text(header, "hostname", default="", limit=255),
            tags=texts(header, "tags"),
            slots=whole(header, "slots", low=1, high=1024),
            capabilities=mapping(header, "capabilities"),
            task_types=read_task_types(header),
            held=read_held(header, "held"),
            unsent=attempt_keys(header, "unsent"),
            accepting=flag(header, "accepting", True),
            uptime_seconds=number(header.get("uptime_seconds", 0), "uptime_seconds"),
            left_out=texts(header, "left_out", MAX_LEFT_OUT),
            walls=texts(header, "walls", MAX_WALLS),
            trial=flag(header, "trial", False),
        )


@dataclass(frozen=True)
class Enrol(BusMessage):
    """Ask, with a join token, that the device be known by its own key from now on."""

    verb = b"ENROL"
    session: str
    device_id: str
    #: The device's CURVE key as Z85.
    public_key: str
    protocol: int = PROTOCOL

    @classmethod
    def read(cls, header: Header) -> Enrol:
        return cls(
            session=text(header, "session", limit=100),
            device_id=text(header, "device_id", limit=200),
            public_key=text(header, "public_key", limit=100),
            protocol=whole(header, "protocol", low=1, high=1000),
        )


@dataclass(frozen=True)
class Heartbeat(BusMessage):
    """Tell that the device lives, what it holds and how it is."""

    verb = b"HEARTBEAT"
    session: str
    beat: int
    metrics: dict[str, Any] = field(default_factory=dict)
    #: All attempts that are held, or None when the list would be too long.
    held: tuple[Held, ...] | None = None
    accepting: bool = True
    not_accepting_reason: str = ""
    rtt_ms: float | None = None
    config_version: int = 0
    last_error: str = ""

    @property
    def obeys_administrator(self) -> bool:
        """Tell whether the device takes no work because an administrator drained it."""
        return self.not_accepting_reason == DRAINED_BY_ADMINISTRATOR

    def write(self) -> tuple[bytes, dict[str, Any]]:
        header = dict(vars(self))
        if self.held is not None:
            header["held"] = [write_held(held) for held in self.held]
        return self.verb, header

    @classmethod
    def read(cls, header: Header) -> Heartbeat:
        rtt_ms = header.get("rtt_ms")
        return cls(
            session=text(header, "session", limit=100),
            beat=whole(header, "beat"),
            metrics=mapping(header, "metrics"),
            held=None if header.get("held") is None else read_held(header, "held"),
            accepting=flag(header, "accepting", True),
            not_accepting_reason=text(header, "not_accepting_reason", default="", limit=500),
            rtt_ms=None if rtt_ms is None else number(rtt_ms, "rtt_ms"),
            config_version=whole(header, "config_version") if "config_version" in header else 0,
            last_error=text(header, "last_error", default="", limit=1000),
        )


@dataclass(frozen=True)
class Started(BusMessage):
    """Report attempts that began to run."""

    verb = b"STARTED"
    session: str
    items: tuple[AttemptKey, ...]

    @classmethod
    def read(cls, header: Header) -> Started:
        return cls(text(header, "session", limit=100), attempt_keys(header, "items"))


@dataclass(frozen=True)
class Progress(BusMessage):
    """Report how far attempts are."""

    verb = b"PROGRESS"
    session: str
    items: tuple[ProgressItem, ...]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        items = [[*item.key, item.percent, item.message] for item in self.items]
        return self.verb, {"session": self.session, "items": items}

    @classmethod
    def read(cls, header: Header) -> Progress:
        items = []
        for row in rows(header, "items"):
            key = attempt_key(row, 6, "items")
            percent = None if row[4] is None else number(row[4], "percent", high=100)
            if not isinstance(row[5], str):
                raise WireError("items.message: a text is required")
            items.append(ProgressItem(key, percent, row[5][:1000]))
        return cls(text(header, "session", limit=100), tuple(items))


@dataclass(frozen=True)
class ConfigAck(BusMessage):
    """Confirm that the device applied a configuration."""

    verb = b"CONFIG_ACK"
    session: str
    version: int

    @classmethod
    def read(cls, header: Header) -> ConfigAck:
        return cls(text(header, "session", limit=100), whole(header, "version"))


@dataclass(frozen=True)
class Pong(BusMessage):
    """Answer a PING with its nonce."""

    verb = b"PONG"
    session: str
    nonce: int

    @classmethod
    def read(cls, header: Header) -> Pong:
        return cls(text(header, "session", limit=100), whole(header, "nonce"))


@dataclass(frozen=True)
class Goodbye(BusMessage):
    """End the session: the device stops, and gives up what it holds."""

    verb = b"GOODBYE"
    session: str
    reason: str = ""

    @classmethod
    def read(cls, header: Header) -> Goodbye:
        return cls(
            text(header, "session", limit=100), text(header, "reason", default="", limit=500)
        )

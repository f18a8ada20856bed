"""The messages that the main node sends, one frozen record a verb (docs/protocol.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from retire_cluster.schemas.protocol.fields import (
    AttemptKey,
    Header,
    attempt_keys,
    mapping,
    number,
    text,
    texts,
    whole,
)
from retire_cluster.schemas.protocol.parts import MAX_LEFT_OUT, BusMessage, HeartbeatConfig
from retire_cluster.schemas.protocol.wire import WireError


@dataclass(frozen=True)
class Welcome(BusMessage):
    """Register the device; `keep` and `abandon` settle which attempts it still holds."""

    verb = b"WELCOME"
    session: str
    epoch: int
    keep: tuple[AttemptKey, ...]
    abandon: tuple[AttemptKey, ...]
    config: HeartbeatConfig
    #: Offered task types that the main node does not take, each with the reason.
    left_out: tuple[str, ...] = ()

    def write(self) -> tuple[bytes, dict[str, Any]]:
        header = dict(vars(self))
        header["config"] = asdict(self.config)
        return self.verb, header

    @classmethod
    def read(cls, header: Header) -> Welcome:
        return cls(
            session=text(header, "session", limit=100),
            epoch=whole(header, "epoch"),
            keep=attempt_keys(header, "keep"),
            abandon=attempt_keys(header, "abandon"),
            config=HeartbeatConfig.read(mapping(header, "config")),
            left_out=texts(header, "left_out", MAX_LEFT_OUT),
        )


@dataclass(frozen=True)
class Enrolled(BusMessage):
    """Confirm a device's key: it reconnects with that key and needs no token again."""

    verb = b"ENROLLED"
    session: str
    device_id: str

    @classmethod
    def read(cls, header: Header) -> Enrolled:
        return cls(text(header, "session", limit=100), text(header, "device_id", limit=200))


@dataclass(frozen=True)
class Reject(BusMessage):
    """Refuse a message; `code` says what the device has to do next."""

    verb = b"REJECT"
    session: str
    code: str
    message: str
    retry_after_seconds: float | None = None
    #: Version that the main node speaks, where the code is `protocol`.
    protocol: int | None = None

    @classmethod
    def read(cls, header: Header) -> Reject:
        wait = header.get("retry_after_seconds")
        protocol = header.get("protocol")
        return cls(
            session=text(header, "session", default="", limit=100),
            code=text(header, "code", limit=50),
            message=text(header, "message", default=""),
            retry_after_seconds=None if wait is None else number(wait, "retry_after_seconds"),
            protocol=None if protocol is None else whole(header, "protocol"),
        )


@dataclass(frozen=True)
class HeartbeatAck(BusMessage):
    """Acknowledge a heartbeat."""

    verb = b"HEARTBEAT_ACK"
    session: str
    beat: int
    config_version: int

    @classmethod
    def read(cls, header: Header) -> HeartbeatAck:
        return cls(
            text(header, "session", limit=100),
            whole(header, "beat"),
            whole(header, "config_version"),
        )


@dataclass(frozen=True)
class FinishedAck(BusMessage):
    """Acknowledge a FINISHED batch, committed or stale: the device forgets it."""

    verb = b"FINISHED_ACK"
    session: str
    batch: int

    @classmethod
    def read(cls, header: Header) -> FinishedAck:
        return cls(text(header, "session", limit=100), whole(header, "batch"))


@dataclass(frozen=True)
class Cancel(BusMessage):
    """Have attempts killed and reported as FINISHED with `reason` as outcome."""

    verb = b"CANCEL"
    session: str
    items: tuple[AttemptKey, ...]
    reason: str

    @classmethod
    def read(cls, header: Header) -> Cancel:
        reason = text(header, "reason", limit=50)
        if reason not in ("cancelled", "timeout"):
            raise WireError("reason: cancelled or timeout is required")
        return cls(text(header, "session", limit=100), attempt_keys(header, "items"), reason)


@dataclass(frozen=True)
class Abandon(BusMessage):
    """Take attempts from the device: it kills them and reports nothing."""

    verb = b"ABANDON"
    session: str
    items: tuple[AttemptKey, ...]

    @classmethod
    def read(cls, header: Header) -> Abandon:
        return cls(text(header, "session", limit=100), attempt_keys(header, "items"))


@dataclass(frozen=True)
class Config(BusMessage):
    """Give the device new liveness settings."""

    verb = b"CONFIG"
    session: str
    config: HeartbeatConfig

    def write(self) -> tuple[bytes, dict[str, Any]]:
        return self.verb, {"session": self.session, **asdict(self.config)}

    @classmethod
    def read(cls, header: Header) -> Config:
        return cls(text(header, "session", limit=100), HeartbeatConfig.read(header))


@dataclass(frozen=True)
class Ping(BusMessage):
    """Ask for a PONG at once."""

    verb = b"PING"
    session: str
    nonce: int

    @classmethod
    def read(cls, header: Header) -> Ping:
        return cls(text(header, "session", limit=100), whole(header, "nonce"))


@dataclass(frozen=True)
class Resume(BusMessage):
    """Have the device accept work again after a DRAIN."""

    verb = b"RESUME"
    session: str

    @classmethod
    def read(cls, header: Header) -> Resume:
        return cls(text(header, "session", limit=100))

"""One frozen record per verb of the worker bus (docs/protocol.md), to and from headers.

Reading is strict: a header that does not fit raises `WireError` naming the field, so nothing
malformed reaches the state machine. Writing gives `(verb, header)` for `wire.encode`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from retire_cluster.schemas.needs import read_allows
from retire_cluster.schemas.protocol.batches import Assign as Assign
from retire_cluster.schemas.protocol.batches import AssignItem as AssignItem
from retire_cluster.schemas.protocol.batches import Finished as Finished
from retire_cluster.schemas.protocol.batches import FinishedItem as FinishedItem
from retire_cluster.schemas.protocol.fields import AttemptKey as AttemptKey
from retire_cluster.schemas.protocol.fields import (
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
from retire_cluster.schemas.protocol.wire import PROTOCOL, WireError


class Held(NamedTuple):
    """An attempt that a device has and has not finished."""

    key: AttemptKey
    started: bool
    elapsed_seconds: float


def _held(header: Header, name: str) -> tuple[Held, ...]:
    found = []
    for row in rows(header, name):
        key = attempt_key(row, 6, name)
        if not isinstance(row[4], bool):
            raise WireError(f"{name}: started is true or false")
        found.append(Held(key, row[4], number(row[5], f"{name}.elapsed_seconds")))
    return tuple(found)


class ProgressItem(NamedTuple):
    """How far one attempt is."""

    key: AttemptKey
    #: 0 to 100, or None when unknown.
    percent: float | None
    message: str


@dataclass(frozen=True)
class TypeInfo:
    """A task type as a device advertises it."""

    name: str
    description: str = ""
    #: Cerberus-dialect schema of the payload's fields, or None for any object.
    payload_schema: dict[str, Any] | None = None
    repeatable: bool = False
    instant: bool = False
    #: What of it the device's owner allows (`schemas.needs`), as far as he tells.
    allows: dict[str, Any] = field(default_factory=dict)
    #: Name and version of the package an own type comes from.
    distribution: str = ""
    distribution_version: str = ""

    @classmethod
    def read(cls, row: object) -> TypeInfo:
        """From a `task_types` entry of HELLO; raises `WireError`."""
        if not isinstance(row, dict):
            raise WireError("task_types: each entry is an object")
        schema = row.get("payload_schema")
        if schema is not None and not isinstance(schema, dict):
            raise WireError("task_types.payload_schema: an object or null is required")
        return cls(
            name=text(row, "name", limit=100),
            description=text(row, "description", default="", limit=1000),
            payload_schema=schema,
            repeatable=flag(row, "repeatable", False),
            instant=flag(row, "instant", False),
            allows=read_allows(row.get("allows")),
            distribution=text(row, "distribution", default="", limit=100),
            distribution_version=text(row, "distribution_version", default="", limit=100),
        )


def _task_types(header: Header) -> tuple[TypeInfo, ...]:
    """Those that can be read: one that cannot must not keep its device out."""
    found = []
    for row in rows(header, "task_types")[:500]:
        with contextlib.suppress(WireError):
            found.append(TypeInfo.read(row))
    return tuple(found)


class _Verb:
    verb: ClassVar[bytes]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        """The verb and header for `wire.encode`."""
        return self.verb, dict(vars(self))


#: Kinds of walls that a device may tell of.
MAX_WALLS: Final = 8
#: Types that are named as left out; of more, only their number is told.
MAX_LEFT_OUT: Final = 50


def first_left_out(reasons: Sequence[str]) -> tuple[str, ...]:
    """As many of the reasons as a message takes, and how many more there are."""
    if len(reasons) <= MAX_LEFT_OUT:
        return tuple(reasons)
    return (*reasons[: MAX_LEFT_OUT - 1], f"and {len(reasons) - MAX_LEFT_OUT + 1} more")


@dataclass(frozen=True)
class Hello(_Verb):
    """A device introduces itself; it starts a session."""

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
    #: Own types that it does not offer, each with the reason.
    left_out: tuple[str, ...] = ()
    #: What it keeps tasks from, and by what: `files: Landlock`.
    walls: tuple[str, ...] = ()
    #: It only asks what it would be told: no session begins, and nothing of it is kept.
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
            task_types=_task_types(header),
            held=_held(header, "held"),
            unsent=attempt_keys(header, "unsent"),
            accepting=flag(header, "accepting", True),
            uptime_seconds=number(header.get("uptime_seconds", 0), "uptime_seconds"),
            left_out=texts(header, "left_out", MAX_LEFT_OUT),
            walls=texts(header, "walls", MAX_WALLS),
            trial=flag(header, "trial", False),
        )


@dataclass(frozen=True)
class Enrol(_Verb):
    """A device that was given a join token asks to be known by its own key from now on."""

    verb = b"ENROL"
    session: str
    device_id: str
    #: Z85.
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
class Heartbeat(_Verb):
    """A device lives."""

    verb = b"HEARTBEAT"
    session: str
    beat: int
    metrics: dict[str, Any] = field(default_factory=dict)
    #: Everything held, or None when the list would be too long.
    held: tuple[Held, ...] | None = None
    accepting: bool = True
    not_accepting_reason: str = ""
    rtt_ms: float | None = None
    config_version: int = 0
    last_error: str = ""

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
            held=None if header.get("held") is None else _held(header, "held"),
            accepting=flag(header, "accepting", True),
            not_accepting_reason=text(header, "not_accepting_reason", default="", limit=500),
            rtt_ms=None if rtt_ms is None else number(rtt_ms, "rtt_ms"),
            config_version=whole(header, "config_version") if "config_version" in header else 0,
            last_error=text(header, "last_error", default="", limit=1000),
        )


@dataclass(frozen=True)
class Started(_Verb):
    """Attempts began to run."""

    verb = b"STARTED"
    session: str
    items: tuple[AttemptKey, ...]

    @classmethod
    def read(cls, header: Header) -> Started:
        return cls(text(header, "session", limit=100), attempt_keys(header, "items"))


@dataclass(frozen=True)
class Progress(_Verb):
    """Attempts tell how far they are."""

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
class ConfigAck(_Verb):
    """A device applied a configuration."""

    verb = b"CONFIG_ACK"
    session: str
    version: int

    @classmethod
    def read(cls, header: Header) -> ConfigAck:
        return cls(text(header, "session", limit=100), whole(header, "version"))


@dataclass(frozen=True)
class Pong(_Verb):
    """The answer to a PING."""

    verb = b"PONG"
    session: str
    nonce: int

    @classmethod
    def read(cls, header: Header) -> Pong:
        return cls(text(header, "session", limit=100), whole(header, "nonce"))


@dataclass(frozen=True)
class Drain(_Verb):
    """Take nothing new from now on (either direction)."""

    verb = b"DRAIN"
    session: str
    reason: str = ""

    @classmethod
    def read(cls, header: Header) -> Drain:
        return cls(
            text(header, "session", limit=100), text(header, "reason", default="", limit=500)
        )


@dataclass(frozen=True)
class Goodbye(_Verb):
    """The device goes; what it holds is given up."""

    verb = b"GOODBYE"
    session: str
    reason: str = ""

    @classmethod
    def read(cls, header: Header) -> Goodbye:
        return cls(
            text(header, "session", limit=100), text(header, "reason", default="", limit=500)
        )


@dataclass(frozen=True)
class HeartbeatConfig:
    """The liveness settings a device works by."""

    version: int
    #: Seconds between heartbeats.
    interval: float
    #: Seconds without one until attempts are given to others (the lease).
    timeout: float
    #: Heartbeats missed until the device counts as offline.
    max_missed: int

    @classmethod
    def read(cls, header: Header) -> HeartbeatConfig:
        return cls(
            version=whole(header, "version"),
            interval=number(header.get("interval"), "interval", low=0.01, high=86_400),
            timeout=number(header.get("timeout"), "timeout", low=0.02, high=864_000),
            max_missed=whole(header, "max_missed", low=1, high=10_000),
        )


@dataclass(frozen=True)
class Welcome(_Verb):
    """The device is registered; `keep` and `abandon` settle what it said it holds."""

    verb = b"WELCOME"
    session: str
    epoch: int
    keep: tuple[AttemptKey, ...]
    abandon: tuple[AttemptKey, ...]
    config: HeartbeatConfig
    #: Of the types it offers, those that the main node does not take, each with the reason.
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
class Enrolled(_Verb):
    """The device's key is known: it comes back with it, and needs no token again."""

    verb = b"ENROLLED"
    session: str
    device_id: str

    @classmethod
    def read(cls, header: Header) -> Enrolled:
        return cls(text(header, "session", limit=100), text(header, "device_id", limit=200))


@dataclass(frozen=True)
class Reject(_Verb):
    """The broker refuses a message; `code` says what the device does next."""

    verb = b"REJECT"
    session: str
    code: str
    message: str
    retry_after_seconds: float | None = None
    #: The main node's, where the code is `protocol`.
    protocol: int | None = None

    @classmethod
    def read(cls, header: Header) -> Reject:
        wait = header.get("retry_after_seconds")
        spoken = header.get("protocol")
        return cls(
            session=text(header, "session", default="", limit=100),
            code=text(header, "code", limit=50),
            message=text(header, "message", default=""),
            retry_after_seconds=None if wait is None else number(wait, "retry_after_seconds"),
            protocol=None if spoken is None else whole(header, "protocol"),
        )


@dataclass(frozen=True)
class HeartbeatAck(_Verb):
    """The broker heard a heartbeat."""

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
class FinishedAck(_Verb):
    """A FINISHED batch is committed (or stale): the device forgets it."""

    verb = b"FINISHED_ACK"
    session: str
    batch: int

    @classmethod
    def read(cls, header: Header) -> FinishedAck:
        return cls(text(header, "session", limit=100), whole(header, "batch"))


@dataclass(frozen=True)
class Cancel(_Verb):
    """Kill these attempts and report them finished with `reason` as outcome."""

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
class Abandon(_Verb):
    """These attempts belong to the device no longer: kill them, send nothing."""

    verb = b"ABANDON"
    session: str
    items: tuple[AttemptKey, ...]

    @classmethod
    def read(cls, header: Header) -> Abandon:
        return cls(text(header, "session", limit=100), attempt_keys(header, "items"))


@dataclass(frozen=True)
class Config(_Verb):
    """New liveness settings."""

    verb = b"CONFIG"
    session: str
    config: HeartbeatConfig

    def write(self) -> tuple[bytes, dict[str, Any]]:
        return self.verb, {"session": self.session, **asdict(self.config)}

    @classmethod
    def read(cls, header: Header) -> Config:
        return cls(text(header, "session", limit=100), HeartbeatConfig.read(header))


@dataclass(frozen=True)
class Ping(_Verb):
    """Answer at once with PONG."""

    verb = b"PING"
    session: str
    nonce: int

    @classmethod
    def read(cls, header: Header) -> Ping:
        return cls(text(header, "session", limit=100), whole(header, "nonce"))


@dataclass(frozen=True)
class Resume(_Verb):
    """Accept work again after a DRAIN."""

    verb = b"RESUME"
    session: str

    @classmethod
    def read(cls, header: Header) -> Resume:
        return cls(text(header, "session", limit=100))


def write_held(held: Held) -> list[object]:
    """A `held` row: `[task, attempt, token, epoch, started, elapsed_seconds]`."""
    return [*held.key, held.started, round(held.elapsed_seconds, 3)]


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
    """The record of a device's message; raises `WireError` naming verb or field."""
    return _read(_FROM_DEVICE, verb, header)


def read_from_broker(verb: bytes, header: Header) -> FromBroker:
    """The record of the broker's message; raises `WireError` naming verb or field."""
    return _read(_FROM_BROKER, verb, header)


def _read(table: Mapping[bytes, Callable[[Header], _M]], verb: bytes, header: Header) -> _M:
    reader = table.get(verb)
    if reader is None:
        raise WireError(f"unknown verb {verb[:32]!r}")
    return reader(header)

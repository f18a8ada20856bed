"""One frozen record per verb of the worker bus (docs/protocol.md), to and from headers.

Reading is strict: a header that does not fit raises `WireError` naming the field, so nothing
malformed reaches the state machine. Writing gives `(verb, header)` for `wire.encode`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

from retire_cluster.schemas.vocabulary import Cause, Outcome
from retire_cluster.schemas.wire import WireError

Header = Mapping[str, Any]
#: `(task, attempt, token, epoch)`: the name of one attempt under one lease.
Key = tuple[int, int, int, int]

MAX_ITEMS = 20_000
MAX_TEXT = 4_096
_MAX_INT = 2**53


def _text(header: Header, name: str, *, default: str | None = None, limit: int = MAX_TEXT) -> str:
    value = header.get(name, default)
    if not isinstance(value, str):
        raise WireError(f"{name}: a text is required")
    return value[:limit]


def _int(header: Header, name: str, *, low: int = 0, high: int = _MAX_INT) -> int:
    value = header.get(name)
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"{name}: a whole number from {low} to {high} is required")
    return value


def _number(value: object, name: str, *, low: float = 0.0, high: float = 1e12) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WireError(f"{name}: a number is required")
    if not math.isfinite(value) or not low <= value <= high:
        raise WireError(f"{name}: a number from {low:g} to {high:g} is required")
    return float(value)


def _bool(header: Header, name: str, default: bool) -> bool:
    value = header.get(name, default)
    if not isinstance(value, bool):
        raise WireError(f"{name}: true or false is required")
    return value


def _mapping(header: Header, name: str) -> dict[str, Any]:
    value = header.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WireError(f"{name}: an object is required")
    return value


def _rows(header: Header, name: str) -> list[Any]:
    value = header.get(name, [])
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise WireError(f"{name}: a list of at most {MAX_ITEMS} items is required")
    return value


def _row_key(row: object, size: int, name: str) -> Key:
    if not isinstance(row, (list, tuple)) or len(row) != size:
        raise WireError(f"{name}: each item has {size} fields")
    task, attempt, token, epoch = row[0], row[1], row[2], row[3]
    if not (type(task) is type(attempt) is type(token) is type(epoch) is int):
        raise WireError(f"{name}: an attempt's key is four whole numbers")
    if task < 1 or attempt < 1 or token < 0 or epoch < 0 or max(task, token, epoch) > _MAX_INT:
        raise WireError(f"{name}: an attempt's key is out of range")
    return (task, attempt, token, epoch)


def _keys(header: Header, name: str) -> tuple[Key, ...]:
    return tuple(_row_key(row, 4, name) for row in _rows(header, name))


def _texts(header: Header, name: str, limit: int = 200) -> tuple[str, ...]:
    rows = _rows(header, name)
    if len(rows) > limit or not all(isinstance(row, str) for row in rows):
        raise WireError(f"{name}: a list of at most {limit} texts is required")
    return tuple(rows)


class Held(NamedTuple):
    """An attempt that a device has and has not finished."""

    key: Key
    started: bool
    elapsed_seconds: float


def _held(header: Header, name: str) -> tuple[Held, ...]:
    found = []
    for row in _rows(header, name):
        key = _row_key(row, 6, name)
        if not isinstance(row[4], bool):
            raise WireError(f"{name}: started is true or false")
        found.append(Held(key, row[4], _number(row[5], f"{name}.elapsed_seconds")))
    return tuple(found)


class FinishedItem(NamedTuple):
    """How one attempt ended, as its device says."""

    key: Key
    outcome: str
    execution_seconds: float
    cause: str | None
    error_message: str | None


class ProgressItem(NamedTuple):
    """How far one attempt is."""

    key: Key
    #: 0 to 100, or None when unknown.
    percent: float | None
    message: str


class AssignItem(NamedTuple):
    """One attempt to run; its payload is the blob at the same position."""

    key: Key
    task_id: str
    task_type: str
    timeout_seconds: int


@dataclass(frozen=True)
class TypeInfo:
    """A task type as a device advertises it."""

    name: str
    description: str = ""
    #: Cerberus-dialect schema of the payload's fields, or None for any object.
    payload_schema: dict[str, Any] | None = None
    repeatable: bool = False
    instant: bool = False

    @classmethod
    def read(cls, row: object) -> TypeInfo:
        """From a `task_types` entry of HELLO; raises `WireError`."""
        if not isinstance(row, dict):
            raise WireError("task_types: each entry is an object")
        schema = row.get("payload_schema")
        if schema is not None and not isinstance(schema, dict):
            raise WireError("task_types.payload_schema: an object or null is required")
        return cls(
            name=_text(row, "name", limit=100),
            description=_text(row, "description", default="", limit=1000),
            payload_schema=schema,
            repeatable=_bool(row, "repeatable", False),
            instant=_bool(row, "instant", False),
        )


class _Verb:
    verb: ClassVar[bytes]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        """The verb and header for `wire.encode`."""
        return self.verb, dict(vars(self))


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
    unsent: tuple[Key, ...] = ()
    accepting: bool = True
    uptime_seconds: float = 0.0

    def write(self) -> tuple[bytes, dict[str, Any]]:
        header = dict(vars(self))
        header["task_types"] = [asdict(info) for info in self.task_types]
        header["held"] = [write_held(held) for held in self.held]
        return self.verb, header

    @classmethod
    def read(cls, header: Header) -> Hello:
        return cls(
            protocol=_int(header, "protocol", low=1, high=1000),
            device_id=_text(header, "device_id", limit=200),
            instance=_text(header, "instance", limit=100),
            session=_text(header, "session", limit=100),
            version=_text(header, "version", default="", limit=50),
            role=_text(header, "role", limit=50),
            platform=_text(header, "platform", limit=50),
            hostname=_text(header, "hostname", default="", limit=255),
            tags=_texts(header, "tags"),
            slots=_int(header, "slots", low=1, high=1024),
            capabilities=_mapping(header, "capabilities"),
            task_types=tuple(TypeInfo.read(row) for row in _rows(header, "task_types")[:500]),
            held=_held(header, "held"),
            unsent=_keys(header, "unsent"),
            accepting=_bool(header, "accepting", True),
            uptime_seconds=_number(header.get("uptime_seconds", 0), "uptime_seconds"),
        )


@dataclass(frozen=True)
class Enrol(_Verb):
    """A device that was given a join token asks to be known by its own key from now on."""

    verb = b"ENROL"
    session: str
    device_id: str
    #: Z85.
    public_key: str

    @classmethod
    def read(cls, header: Header) -> Enrol:
        return cls(
            session=_text(header, "session", limit=100),
            device_id=_text(header, "device_id", limit=200),
            public_key=_text(header, "public_key", limit=100),
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
            session=_text(header, "session", limit=100),
            beat=_int(header, "beat"),
            metrics=_mapping(header, "metrics"),
            held=None if header.get("held") is None else _held(header, "held"),
            accepting=_bool(header, "accepting", True),
            not_accepting_reason=_text(header, "not_accepting_reason", default="", limit=500),
            rtt_ms=None if rtt_ms is None else _number(rtt_ms, "rtt_ms"),
            config_version=_int(header, "config_version") if "config_version" in header else 0,
            last_error=_text(header, "last_error", default="", limit=1000),
        )


@dataclass(frozen=True)
class Started(_Verb):
    """Attempts began to run."""

    verb = b"STARTED"
    session: str
    items: tuple[Key, ...]

    @classmethod
    def read(cls, header: Header) -> Started:
        return cls(_text(header, "session", limit=100), _keys(header, "items"))


@dataclass(frozen=True)
class Progress(_Verb):
    """Attempts tell how far they are."""

    verb = b"PROGRESS"
    session: str
    items: tuple[ProgressItem, ...]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        rows = [[*item.key, item.percent, item.message] for item in self.items]
        return self.verb, {"session": self.session, "items": rows}

    @classmethod
    def read(cls, header: Header) -> Progress:
        items = []
        for row in _rows(header, "items"):
            key = _row_key(row, 6, "items")
            percent = None if row[4] is None else _number(row[4], "percent", high=100)
            if not isinstance(row[5], str):
                raise WireError("items.message: a text is required")
            items.append(ProgressItem(key, percent, row[5][:1000]))
        return cls(_text(header, "session", limit=100), tuple(items))


_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_CAUSES = frozenset(cause.value for cause in Cause)


@dataclass(frozen=True)
class Finished(_Verb):
    """Attempts ended; two blobs an item: `result_data` and `details`, either may be empty."""

    verb = b"FINISHED"
    session: str
    batch: int
    items: tuple[FinishedItem, ...]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        rows = [[*item.key, *item[1:]] for item in self.items]
        return self.verb, {"session": self.session, "batch": self.batch, "items": rows}

    @classmethod
    def read(cls, header: Header) -> Finished:
        items = []
        for row in _rows(header, "items"):
            key = _row_key(row, 8, "items")
            outcome, seconds, cause, message = row[4:]
            if not isinstance(outcome, str) or outcome not in _OUTCOMES:
                raise WireError("items.outcome: not an outcome of the protocol")
            if cause is not None and (not isinstance(cause, str) or cause not in _CAUSES):
                raise WireError("items.cause: not a cause of the protocol")
            if message is not None and not isinstance(message, str):
                raise WireError("items.error_message: a text or null is required")
            seconds = _number(seconds, "items.execution_seconds")
            items.append(FinishedItem(key, outcome, seconds, cause, message))
        return cls(_text(header, "session", limit=100), _int(header, "batch"), tuple(items))


@dataclass(frozen=True)
class ConfigAck(_Verb):
    """A device applied a configuration."""

    verb = b"CONFIG_ACK"
    session: str
    version: int

    @classmethod
    def read(cls, header: Header) -> ConfigAck:
        return cls(_text(header, "session", limit=100), _int(header, "version"))


@dataclass(frozen=True)
class Pong(_Verb):
    """The answer to a PING."""

    verb = b"PONG"
    session: str
    nonce: int

    @classmethod
    def read(cls, header: Header) -> Pong:
        return cls(_text(header, "session", limit=100), _int(header, "nonce"))


@dataclass(frozen=True)
class Drain(_Verb):
    """Take nothing new from now on (either direction)."""

    verb = b"DRAIN"
    session: str
    reason: str = ""

    @classmethod
    def read(cls, header: Header) -> Drain:
        return cls(
            _text(header, "session", limit=100), _text(header, "reason", default="", limit=500)
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
            _text(header, "session", limit=100), _text(header, "reason", default="", limit=500)
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
            version=_int(header, "version"),
            interval=_number(header.get("interval"), "interval", low=0.01, high=86_400),
            timeout=_number(header.get("timeout"), "timeout", low=0.02, high=864_000),
            max_missed=_int(header, "max_missed", low=1, high=10_000),
        )


@dataclass(frozen=True)
class Welcome(_Verb):
    """The device is registered; `keep` and `abandon` settle what it said it holds."""

    verb = b"WELCOME"
    session: str
    epoch: int
    keep: tuple[Key, ...]
    abandon: tuple[Key, ...]
    config: HeartbeatConfig

    def write(self) -> tuple[bytes, dict[str, Any]]:
        header = dict(vars(self))
        header["config"] = asdict(self.config)
        return self.verb, header

    @classmethod
    def read(cls, header: Header) -> Welcome:
        return cls(
            session=_text(header, "session", limit=100),
            epoch=_int(header, "epoch"),
            keep=_keys(header, "keep"),
            abandon=_keys(header, "abandon"),
            config=HeartbeatConfig.read(_mapping(header, "config")),
        )


@dataclass(frozen=True)
class Enrolled(_Verb):
    """The device's key is known: it comes back with it, and needs no token again."""

    verb = b"ENROLLED"
    session: str
    device_id: str

    @classmethod
    def read(cls, header: Header) -> Enrolled:
        return cls(_text(header, "session", limit=100), _text(header, "device_id", limit=200))


@dataclass(frozen=True)
class Reject(_Verb):
    """The broker refuses a message; `code` says what the device does next."""

    verb = b"REJECT"
    session: str
    code: str
    message: str
    retry_after_seconds: float | None = None

    @classmethod
    def read(cls, header: Header) -> Reject:
        wait = header.get("retry_after_seconds")
        return cls(
            session=_text(header, "session", default="", limit=100),
            code=_text(header, "code", limit=50),
            message=_text(header, "message", default=""),
            retry_after_seconds=None if wait is None else _number(wait, "retry_after_seconds"),
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
            _text(header, "session", limit=100),
            _int(header, "beat"),
            _int(header, "config_version"),
        )


@dataclass(frozen=True)
class Assign(_Verb):
    """Attempts to run; one payload blob an item."""

    verb = b"ASSIGN"
    session: str
    items: tuple[AssignItem, ...]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        rows = [[*item.key, *item[1:]] for item in self.items]
        return self.verb, {"session": self.session, "items": rows}

    @classmethod
    def read(cls, header: Header) -> Assign:
        items = []
        for row in _rows(header, "items"):
            key = _row_key(row, 7, "items")
            task_id, task_type, timeout_seconds = row[4:]
            if not isinstance(task_id, str) or not isinstance(task_type, str):
                raise WireError("items: task_id and task_type are texts")
            if type(timeout_seconds) is not int or timeout_seconds < 1:
                raise WireError("items.timeout_seconds: a whole number from 1 is required")
            items.append(AssignItem(key, task_id, task_type, timeout_seconds))
        return cls(_text(header, "session", limit=100), tuple(items))


@dataclass(frozen=True)
class FinishedAck(_Verb):
    """A FINISHED batch is committed (or stale): the device forgets it."""

    verb = b"FINISHED_ACK"
    session: str
    batch: int

    @classmethod
    def read(cls, header: Header) -> FinishedAck:
        return cls(_text(header, "session", limit=100), _int(header, "batch"))


@dataclass(frozen=True)
class Cancel(_Verb):
    """Kill these attempts and report them finished with `reason` as outcome."""

    verb = b"CANCEL"
    session: str
    items: tuple[Key, ...]
    reason: str

    @classmethod
    def read(cls, header: Header) -> Cancel:
        reason = _text(header, "reason", limit=50)
        if reason not in ("cancelled", "timeout"):
            raise WireError("reason: cancelled or timeout is required")
        return cls(_text(header, "session", limit=100), _keys(header, "items"), reason)


@dataclass(frozen=True)
class Abandon(_Verb):
    """These attempts belong to the device no longer: kill them, send nothing."""

    verb = b"ABANDON"
    session: str
    items: tuple[Key, ...]

    @classmethod
    def read(cls, header: Header) -> Abandon:
        return cls(_text(header, "session", limit=100), _keys(header, "items"))


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
        return cls(_text(header, "session", limit=100), HeartbeatConfig.read(header))


@dataclass(frozen=True)
class Ping(_Verb):
    """Answer at once with PONG."""

    verb = b"PING"
    session: str
    nonce: int

    @classmethod
    def read(cls, header: Header) -> Ping:
        return cls(_text(header, "session", limit=100), _int(header, "nonce"))


@dataclass(frozen=True)
class Resume(_Verb):
    """Accept work again after a DRAIN."""

    verb = b"RESUME"
    session: str

    @classmethod
    def read(cls, header: Header) -> Resume:
        return cls(_text(header, "session", limit=100))


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

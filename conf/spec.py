"""What is known of one setting: default, environment name, bounds, mutability, secrecy, help.

A section is a frozen dataclass whose fields are made by `setting()`. Reading a value from the
environment, from TOML, from a flag or from a REST body all end in the same checks here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from retire_cluster.schemas.bounds import is_finite, is_whole
from retire_cluster.schemas.text.hosts import HostError, read_bound, read_host

ENVIRONMENT_PREFIX = "RETIRE_CLUSTER_"

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}\Z")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class SettingsError(ValueError):
    """A setting cannot be used; the text is one line that names it, its source and the cure."""

    def __init__(self, field: str, reason: str, source: str = "") -> None:
        #: Dotted name of the setting (`heartbeat.timeout`) or of the environment variable.
        self.field = field
        #: What is wrong and what would be right.
        self.reason = reason
        #: Where the value came from, for people: `environment`, a file's name, `command line`.
        self.source = source
        super().__init__(f"{field}: {reason} (from {source})" if source else f"{field}: {reason}")


class Problem(NamedTuple):
    """One thing wrong with one field of a section."""

    #: Its name in the section.
    field: str
    #: What would be right.
    reason: str


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of one setting beside its value."""

    #: Section it lives in, `heartbeat`.
    section: str
    #: Field and TOML key, `interval`.
    name: str
    #: Annotation as written: `int`, `float`, `bool`, `str` or `tuple[str, ...]`.
    kind: str
    #: Its value when nobody sets it.
    default: Any
    #: Name of the environment variable that sets it.
    env: str
    #: What people read of it.
    help: str
    #: Bounds of a number, both inclusive; None: there is none.
    low: float | None
    high: float | None
    #: The only values that it may have; empty: any of its kind.
    choices: tuple[str, ...]
    #: May be changed while the cluster runs, by `PUT /config/<section>`.
    mutable: bool
    #: Never shown or logged.
    secret: bool
    #: What separates the items of a list in the environment variable.
    separator: str
    #: `host`: it is dialled, `bound`: it is listened on; empty: any text.
    form: str

    @property
    def dotted(self) -> str:
        """`section.name`, the way messages and flags call it."""
        return f"{self.section}.{self.name}"

    @property
    def expected(self) -> str:
        """What a good value looks like, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {
            "int": "an integer",
            "float": "a number",
            "bool": "true or false",
            "str": "text without control characters",
        }.get(self.kind, "a list of texts")
        if self.low is not None and self.high is not None:
            return f"{words} from {self.low:.15g} to {self.high:.15g}"
        return words


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word people know from argparse
    *,
    env: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    mutable: bool = False,
    secret: bool = False,
    separator: str = ",",
    form: str = "",
) -> Any:
    """Return a dataclass field that carries everything known of one setting.

    `env` replaces the usual `RETIRE_CLUSTER_<SECTION>_<FIELD>`; `low` and `high` are inclusive.
    """
    facts = {
        "env": env,
        "help": help,
        "low": low,
        "high": high,
        "choices": choices,
        "mutable": mutable,
        "secret": secret,
        "separator": separator,
        "form": form,
    }
    return field(default=default, repr=not secret, metadata=facts)


class Section:
    """Base of the sections; making one whose values are wrong raises `SettingsError`."""

    __slots__ = ()
    #: The section's name in TOML, in `/config` and in environment variables.
    section: ClassVar[str]

    def __post_init__(self) -> None:
        for problem in self.problems():
            raise SettingsError(f"{self.section}.{problem.field}", problem.reason)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with single fields or, when nothing is, between them."""
        single = False
        for spec in specs(type(self)):
            reason = wrong_with(spec, getattr(self, spec.name))
            if reason:
                single = True
                yield Problem(spec.name, reason)
        if not single:
            yield from self.conflicts()

    def conflicts(self) -> Iterator[Problem]:
        """Yield what breaks a rule between fields; asked only when each is good by itself."""
        yield from ()


def specs(section: type[Section]) -> tuple[Spec, ...]:
    """Return the settings of a section, in the order they were written."""
    name = section.section
    return tuple(
        Spec(
            section=name,
            name=item.name,
            kind=str(item.type),
            default=item.default,
            **{
                **item.metadata,
                "env": item.metadata["env"]
                or f"{ENVIRONMENT_PREFIX}{name.upper()}_{item.name.upper()}",
            },
        )
        for item in fields(section)  # type: ignore[arg-type]  # every section is a dataclass
    )


def wrong_with(spec: Spec, value: object) -> str:
    """Say why `value` cannot be this setting, or the empty text when it can."""
    good = {
        "int": lambda: is_whole(value),
        "float": lambda: is_finite(value),
        "bool": lambda: isinstance(value, bool),
        "str": lambda: isinstance(value, str) and not _CONTROL.search(value),
    }.get(spec.kind, lambda: _is_texts(value))()
    if good and spec.choices:
        good = value in spec.choices
    if good and is_finite(value):
        good = (spec.low is None or value >= spec.low) and (spec.high is None or value <= spec.high)
    if good and spec.form and (value or spec.default):
        return _wrong_host(spec, str(value))
    if good:
        return ""
    return (
        f"must be {spec.expected}" if spec.secret else f"must be {spec.expected}, not {value!r:.80}"
    )


def from_document(spec: Spec, value: object) -> Any:
    """Return a TOML, JSON or flag value as the setting holds it; lists become tuples.

    Anything else is passed on as it is, for `wrong_with` to judge.
    """
    if spec.kind.startswith("tuple") and isinstance(value, (list, tuple)):
        return tuple(value)
    if spec.form and isinstance(value, str):
        with contextlib.suppress(HostError):
            return _HOST_FORMS[spec.form](value)
    return value


def from_text(spec: Spec, text: str) -> Any:
    """Return an environment variable's text as a value; unreadable text comes back as it is."""
    text = text.strip()
    if spec.kind == "bool":
        word = text.lower()
        return True if word in _TRUE else False if word in _FALSE else text
    if spec.kind in ("int", "float") and _INTEGER.match(text):
        return int(text)
    if spec.kind == "float" and _NUMBER.match(text):
        return float(text)
    if spec.kind.startswith("tuple"):
        return tuple(part.strip() for part in text.split(spec.separator) if part.strip())
    return from_document(spec, text)


_HOST_FORMS = {"host": read_host, "bound": read_bound}


def _wrong_host(spec: Spec, value: str) -> str:
    try:
        _HOST_FORMS[spec.form](value)
    except HostError as error:
        return str(error)
    return ""


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, str) and item and not _CONTROL.search(item) for item in value
    )

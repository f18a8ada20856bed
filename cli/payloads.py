"""From words typed in a shell to a task: payload, requirements, metadata. Pure."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final

from retire_cluster.schemas.bounds import MAX_JSON_INT, MIN_JSON_INT
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.vocabulary import PRIORITIES

_LIST_REQUIREMENTS = frozenset({"required_tags"})
_TEXT_REQUIREMENTS = frozenset({"required_platform", "required_python", "required_role"})
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a task is to be run, beside its type and payload."""
    parser.add_argument("--priority", choices=PRIORITIES, default="normal")
    parser.add_argument(
        "--requirement", "--require", action="append", default=[], metavar="k=v",
        help="what the device must have, or timeout_seconds, max_retries; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--timeout-seconds", type=int, metavar="N",
        help="how long a device may work on it (300): --require timeout_seconds=N",
    )  # fmt: skip
    parser.add_argument(
        "--retries", type=int, metavar="N",
        help="how often it is tried again when it fails (3): --require max_retries=N",
    )  # fmt: skip
    parser.add_argument(
        "--delay", "--in", type=seconds_of, default=0.0, metavar="TIME", dest="delay",
        help="start it so much later: seconds, or 5m, 2h, 1d",
    )  # fmt: skip


def task_from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the common fields of tasks that a command line describes. Raises `ValidationError`."""
    requirements = requirements_from_words(args.requirement)
    shortcuts = (
        ("timeout_seconds", args.timeout_seconds, "--timeout-seconds"),
        ("max_retries", args.retries, "--retries"),
    )
    for name, value, flag in shortcuts:
        if value is None:
            continue
        if name in requirements:
            raise ValidationError(flag, f"says the same as --require {name}; give one of them")
        requirements[name] = value
    check_sendable(args.task_type, "TYPE")
    check_sendable(requirements, "requirements")
    task = {
        "task_type": args.task_type,
        "priority": args.priority,
        "requirements": requirements,
    }
    return {**task, "delay_seconds": args.delay} if args.delay else task


def seconds_of(text: str) -> float:
    """Return the seconds of a time as typed: `90`, `5m`, `1h30m`, `2d`.

    Raises `argparse.ArgumentTypeError`.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give seconds, or 5m, 2h, 1d")
    return float(sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts))


def payload_from_words(task_type: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the payload that `name=value` words describe.

    A value is read as JSON where it is JSON (`3`, `true`, `["a"]`) and as text elsewhere; a field
    that the built-in type declares as text stays text. `name:=JSON` must be JSON.

    Raises `ValidationError` naming the word that is wrong.
    """
    payload: dict[str, Any] = {}
    for word in words:
        name, text = read_pair(word, "payload")
        if name.endswith(":"):
            name = name[:-1]
            payload[name] = read_json(text, f"payload.{name}")
        elif _is_text(task_type, name):
            payload[name] = text
        else:
            payload[name] = read_value(text)
    check_sendable(payload, "payload")
    return payload


def read_pair(text: str, field: str) -> tuple[str, str]:
    """Split `name=value` and return both. Raises `ValidationError` naming `field`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValidationError(field, f"{text!r} is not of the form name=value")
    return name, value


def read_value(text: str) -> Any:
    """Return a value as typed: JSON where it is JSON, the text itself where it is not."""
    try:
        return read_json(text, "")
    except ValidationError:
        return text


def read_json_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object of a text. Raises `ValidationError` naming `where` it came from."""
    value = read_json(text, where)
    if not isinstance(value, dict):
        raise ValidationError(where, "a JSON object is required")
    check_sendable(value, where)
    return value


def check_sendable(value: Any, where: str) -> None:
    """Raise `ValidationError` naming `where` and the field whose value no JSON can carry.

    That is text that is not Unicode, as a byte that is no UTF-8 becomes, and a number beyond 64
    bits.
    """
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        path, item = left.pop()
        wrong = _unsendable(item)
        if wrong:
            raise ValidationError(where, f"{path}: {wrong}" if path else wrong)
        if isinstance(item, dict):
            dot = f"{path}." if path else ""
            for name in item:
                if _SURROGATE.search(name):
                    raise ValidationError(where, f"the name {dot}{name}: {_unsendable(name)}")
            left += [(f"{dot}{name}", inner) for name, inner in reversed(item.items())]
        elif isinstance(item, list):
            inner = [(f"{path}[{number}]", each) for number, each in enumerate(item)]
            left += reversed(inner)


def _unsendable(item: Any) -> str:
    """Return what is wrong with one value, and the cure; empty when nothing is."""
    if isinstance(item, str):
        found = _SURROGATE.search(item)
        if found is None:
            return ""
        return (
            f"character {found.start() + 1} is not valid Unicode ({ascii(found[0])[1:-1]});"
            " write the text in UTF-8, or bytes as base64"
        )
    if isinstance(item, int) and not MIN_JSON_INT <= item <= MAX_JSON_INT:
        return "the number is beyond 64 bits; write it as text, in quotes"
    if isinstance(item, float) and not math.isfinite(item):
        return "the number is beyond what 64 bits hold; write it as text, in quotes"
    return ""


def read_json(text: str, where: str) -> Any:
    """Return the value of a JSON text without NaN. Raises `ValidationError` naming `where`."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValidationError(where, f"is not JSON: {error}") from None


def why(error: OSError | UnicodeDecodeError) -> str:
    """Say why a file cannot be read, in plain words."""
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"line {line} is no UTF-8 text (byte {error.start}); convert it to UTF-8"
    return error.strerror or str(error)


def requirements_from_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the requirements that `name=value` words describe; `required_tags=a,b` is a list."""
    found: dict[str, Any] = {}
    for word in words:
        name, text = read_pair(word, "requirements")
        if name in _LIST_REQUIREMENTS and not text.startswith("["):
            found[name] = [*found.get(name, []), *filter(None, text.split(","))]
        elif name in _TEXT_REQUIREMENTS:
            found[name] = text
        else:
            found[name] = read_value(text)
    return found


def _is_text(task_type: str, name: str) -> bool:
    info = BUILTIN.get(task_type)
    schema = (info.payload_schema if info else None) or {}
    return bool(schema.get(name, {}).get("type") == "string")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")

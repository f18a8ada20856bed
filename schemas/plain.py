"""Write Python values as JSON and read them back, exactly: arguments and results of functions.

What JSON has is written as it is: None, booleans, integers of 64 bits, finite numbers, texts,
lists, and dicts whose names are texts. Everything else is an object with one name of its own,
`{"$py": TYPE, "value": …}`; a dict that has that name itself is written as pairs. Only exact types
are taken: what a subclass adds would be lost without a word.

Reading never runs anything of whoever wrote, and makes nothing larger than what was written: a
document of a stranger becomes a value or `BadPlain`.
"""

from __future__ import annotations

import binascii
import datetime as dt
import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from retire_cluster.schemas import arrays

TAG: Final = "$py"
_VALUE: Final = "value"
#: Levels of the JSON document; a payload and a result have a few more around it, and 64 at most.
MAX_DEPTH: Final = 56
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
#: Bits of a fraction's parts: reducing larger ones takes too long.
_FRACTION_BITS: Final = 1 << 16
#: Of a set's members or a dict's keys that have one hash.
_MAX_COLLISIONS: Final = 1_000
_LONE: Final = re.compile("[\ud800-\udfff]")
_PLAIN_TYPES: Final = frozenset({type(None), bool})


class NotPlain(ValueError):
    """A value that cannot be written: `where` it is in the whole, and its type by name."""

    def __init__(self, where: str, what: str, cure: str = "") -> None:
        super().__init__(f"{where} is {what}{'; ' if cure else ''}{cure}")
        self.where = where
        self.what = what


class TooLarge(NotPlain):
    """A value that takes more bytes than there is room for."""


class BadPlain(ValueError):
    """A document that `encode` does not write; the message says what is wrong with it."""


class NoNumpy(BadPlain):
    """A document that holds an array where NumPy is not installed."""


def encode(value: Any, name: str = "value", *, limit_bytes: int | None = None) -> Any:
    """Turn a value into what JSON has.

    Raises `NotPlain`, and `TooLarge` beyond about `limit_bytes`.

    :param name: what the whole is called in an error
    """
    return _Encoder(name, limit_bytes).encode(value, 0)


def decode(document: Any) -> Any:
    """Return the value that `encode` wrote. Raises `BadPlain`."""
    try:
        return _decode(document, 0)
    except BadPlain:
        raise
    except arrays.NoNumpy as error:
        raise NoNumpy(str(error)) from None
    except Exception as error:  # numbers out of range, what cannot be hashed, an odd date
        raise BadPlain(f"{type(error).__name__}: {error}"[:300]) from None


class _Encoder:
    def __init__(self, name: str, limit_bytes: int | None) -> None:
        self._path: list[str] = [name]
        self._limit = limit_bytes
        self._size = 0

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self._grow(8)
        if kind is str:
            return self._text(value)
        if kind is int:
            return value if _LOWEST <= value <= _HIGHEST else self._tagged("int", hex(value))
        if kind is float:
            return value if math.isfinite(value) else self._tagged("float", repr(value))
        if kind in _PLAIN_TYPES:
            return value
        if depth >= MAX_DEPTH:
            raise NotPlain(self._where(), f"nested deeper than {MAX_DEPTH} levels")
        if kind is list:
            return self._list(value, depth)
        if kind is dict:
            return self._dict(value, depth)
        if kind in (tuple, set, frozenset):
            return {TAG: kind.__name__, _VALUE: self._list(value, depth + 1)}
        write = _WRITERS.get(kind)
        if write is not None:
            return self._written(kind.__name__, write(value), depth, value)
        array = arrays.kind(value)
        if array:
            return self._array(array, value)
        raise NotPlain(self._where(), _named(kind), _cure(value))

    def _grow(self, count: int) -> None:
        self._size += count
        if self._limit is not None and self._size > self._limit:
            raise TooLarge(
                self._path[0],
                f"larger than {self._limit} bytes as JSON",
                "store it elsewhere and return where it is",
            )

    def _text(self, value: str) -> Any:
        self._grow(len(value))
        if value.isascii() or not _LONE.search(value):
            return value
        return self._tagged("str", _base64(value.encode("utf-8", "surrogatepass")))

    def _tagged(self, kind: str, text: str) -> dict[str, Any]:
        self._grow(len(text))
        return {TAG: kind, _VALUE: text}

    def _list(self, items: Iterable[Any], depth: int) -> list[Any]:
        found = []
        self._path.append("")
        for index, item in enumerate(items):
            self._path[-1] = f"[{index}]"
            found.append(self.encode(item, depth + 1))
        self._path.pop()
        return found

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        self._path.append("")
        found: dict[str, Any] = {}
        plain = TAG not in value
        for key, item in value.items():
            if not plain:
                break
            if type(key) is not str or (not key.isascii() and _LONE.search(key)):
                plain = False
                break
            self._path[-1] = f"[{key!r:.60}]"
            self._grow(len(key))
            found[key] = self.encode(item, depth + 1)
        if plain:
            self._path.pop()
            return found
        pairs = []
        for key, item in value.items():
            self._path[-1] = f"'s key {key!r:.60}" if type(key) is not str else f"[{key!r:.60}]"
            first = self.encode(key, depth + 3)
            self._path[-1] = f"[{key!r:.60}]"
            pairs.append([first, self.encode(item, depth + 3)])
        self._path.pop()
        return {TAG: "dict", _VALUE: pairs}

    def _written(self, name: str, written: Any, depth: int, value: Any) -> dict[str, Any]:
        if written is None:
            raise NotPlain(self._where(), _named(type(value)), _cure(value))
        if isinstance(written, str):
            return self._tagged(name, written)
        return {TAG: name, _VALUE: self._list(written, depth + 1)}

    def _array(self, kind: str, value: Any) -> dict[str, Any]:
        self._grow(arrays.size(value))
        try:
            return {TAG: kind, _VALUE: arrays.write(value)}
        except arrays.BadArray as error:
            raise NotPlain(self._where(), str(error), "return numbers or texts") from None

    def _where(self) -> str:
        return "".join(self._path)[:300]


def _named(kind: type) -> str:
    module = kind.__module__
    name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    return f"of type {name}"


def _cure(value: object) -> str:
    name = type(value).__name__
    if name in ("generator", "async_generator", "map", "filter", "zip"):
        return "make a list of it: list(…)"
    for kind in (str, int, float, bytes, list, dict, tuple, set):
        if isinstance(value, kind):
            return f"make a plain {kind.__name__} of it: {kind.__name__}(…)"
    return ""


def _base64(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _zone(value: dt.datetime | dt.time) -> Any:
    """Return a time's zone as None, offset or name; False for one that cannot be written."""
    zone = value.tzinfo
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None)
        return [offset.days, offset.seconds, offset.microseconds]
    key = getattr(zone, "key", None)
    is_zone = type(zone).__module__.startswith("zoneinfo") or type(zone).__name__ == "ZoneInfo"
    return key if is_zone and type(key) is str else False


def _timed(value: dt.datetime | dt.time) -> list[Any] | None:
    zone = _zone(value)
    if zone is False:
        return None
    return [value.replace(tzinfo=None).isoformat(), value.fold, zone]


def _fraction(value: Fraction) -> list[int] | None:
    parts = (value.numerator, value.denominator)
    return None if max(map(int.bit_length, parts)) > _FRACTION_BITS else list(parts)


#: Type → its texts and numbers, None for a value that cannot be written.
_WRITERS: Final[dict[type, Callable[[Any], Any]]] = {
    bytes: _base64,
    bytearray: _base64,
    complex: lambda value: [value.real, value.imag],
    range: lambda value: [value.start, value.stop, value.step],
    dt.datetime: _timed,
    dt.time: _timed,
    dt.date: lambda value: value.isoformat(),
    dt.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    Decimal: str,
    Fraction: _fraction,
    uuid.UUID: lambda value: value.hex,
}


def _decode(document: Any, depth: int) -> Any:
    if depth > MAX_DEPTH + 8:
        raise BadPlain("it is nested too deep")
    kind = type(document)
    if kind is list:
        return [_decode(item, depth + 1) for item in document]
    if kind is not dict:
        return document
    name = document.get(TAG)
    if name is None and TAG not in document:
        return {key: _decode(item, depth + 1) for key, item in document.items()}
    read = _READERS.get(name) if isinstance(name, str) else None
    if read is None or document.keys() != {TAG, _VALUE}:
        raise BadPlain(f"there is no type {name!r:.60}")
    value = document[_VALUE]
    if name in _SCALARS:
        return read(value)
    if not isinstance(value, list):
        raise BadPlain(f"a {name} is not a list")
    return read([_decode(item, depth + 2) for item in value])


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise BadPlain("a text is missing")
    return value


def _whole(*values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise BadPlain("a whole number is missing")
    return values


def _bytes_of(value: Any) -> bytes:
    return binascii.a2b_base64(_text_of(value))


def _big(value: Any) -> int:
    return int(_text_of(value), 16)


def _not_finite(value: Any) -> float:
    if value not in ("nan", "inf", "-inf"):
        raise BadPlain("no such float")
    return float(value)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if not all(type(pair) is list and len(pair) == 2 for pair in items):
        raise BadPlain("a dict's pairs are missing")
    _hashed([pair[0] for pair in items])
    return dict(items)


def _hashed(items: list[Any]) -> list[Any]:
    """The members of a set or keys of a dict: not chosen so that each is compared with all."""
    alike = max(Counter(map(hash, items)).values()) if len(items) > _MAX_COLLISIONS else 0
    if alike > _MAX_COLLISIONS:
        raise BadPlain(f"more than {_MAX_COLLISIONS} members or keys have one hash")
    return items


def _complex(items: list[Any]) -> complex:
    real, imaginary = items
    if type(real) is not float or type(imaginary) is not float:
        raise BadPlain("a complex number's parts are missing")
    return complex(real, imaginary)


def _read_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, list):
        return dt.timezone(dt.timedelta(*_whole(*zone[:3])))
    import zoneinfo  # its files are read, and seldom needed

    return zoneinfo.ZoneInfo(_text_of(zone))


def _datetime(items: list[Any]) -> dt.datetime:
    text, fold, zone = items
    found = dt.datetime.fromisoformat(_text_of(text))
    return found.replace(fold=_whole(fold)[0], tzinfo=_read_zone(zone))


def _time(items: list[Any]) -> dt.time:
    text, fold, zone = items
    found = dt.time.fromisoformat(_text_of(text))
    return found.replace(fold=_whole(fold)[0], tzinfo=_read_zone(zone))


def _read_fraction(items: list[Any]) -> Fraction:
    parts = _whole(*items)
    if len(parts) != 2 or max(map(int.bit_length, parts)) > _FRACTION_BITS:
        raise BadPlain("no fraction, or a very long one")
    return Fraction(*parts)


def _range(items: list[Any]) -> range:
    start, stop, step = _whole(*items)
    return range(start, stop, step)


#: Types whose value is no list of values.
_SCALARS: Final = frozenset(
    {
        "int", "float", "str", "bytes", "bytearray", "date", "Decimal", "UUID", "ndarray", "numpy",
    }
)  # fmt: skip
_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "int": _big,
    "float": _not_finite,
    "str": lambda value: _bytes_of(value).decode("utf-8", "surrogatepass"),
    "bytes": _bytes_of,
    "bytearray": lambda value: bytearray(_bytes_of(value)),
    "tuple": tuple,
    "set": lambda items: set(_hashed(items)),
    "frozenset": lambda items: frozenset(_hashed(items)),
    "dict": _pairs,
    "complex": _complex,
    "range": _range,
    "datetime": _datetime,
    "time": _time,
    "date": lambda value: dt.date.fromisoformat(_text_of(value)),
    "timedelta": lambda items: dt.timedelta(*_whole(*items[:3])),
    "Decimal": lambda value: Decimal(_text_of(value)),
    "Fraction": _read_fraction,
    "UUID": lambda value: uuid.UUID(hex=_text_of(value)),
    "ndarray": lambda value: arrays.read(value, scalar=False),
    "numpy": lambda value: arrays.read(value, scalar=True),
}

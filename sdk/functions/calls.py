"""Calls as payloads of `python_call`: by name, as text or as a pickle, whichever fits first."""

from __future__ import annotations

import binascii
import functools
import hashlib
import json
import marshal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

from retire_cluster.schemas import plain
from retire_cluster.schemas.interpreter import own_python
from retire_cluster.schemas.protocol.wire import MAX_PAYLOAD_BYTES
from retire_cluster.schemas.task_types import CALL_FORMS
from retire_cluster.schemas.text.clean_text import plain as plain_text
from retire_cluster.sdk.functions import source
from retire_cluster.sdk.functions.origin import is_own, reference
from retire_cluster.sdk.functions.pickling import CannotSend, Pickler
from retire_cluster.sdk.functions.source import NotText, Text

AUTO: Final = "auto"
#: Functions whose texts are kept.
_KEPT: Final = 32
#: Characters of a function's name in a payload (schemas/task_types.py).
_MAX_NAME: Final = 500


class TooLarge(CannotSend):
    """A call that is larger than a payload may be."""


class Sent(NamedTuple):
    """A call as it is submitted."""

    payload: dict[str, Any]
    #: Bytes as JSON.
    size: int
    #: The version of Python that it needs, or empty.
    python: str


class Calls:
    """Write calls as payloads of `python_call`.

    :param form: `auto`, or the one form that is wanted
    :param modules: modules of the user's that go along by value, beside those of his project
    :param pickled: results are to be pickles
    """

    def __init__(
        self,
        form: str = AUTO,
        modules: Iterable[ModuleType | str] = (),
        *,
        pickled: bool = False,
        retry_errors: bool = False,
    ) -> None:
        if form != AUTO and form not in CALL_FORMS:
            raise ValueError(f"form: must be one of {', '.join((AUTO, *CALL_FORMS))}, not {form!r}")
        self._form = form
        self._pickler = Pickler(modules)
        self._more: dict[str, Any] = {}
        if pickled:
            self._more["result"] = "pickle"
        if retry_errors:
            self._more["retry_errors"] = True
        #: Texts, or why there is none, by the function's number; with it, so that it stays.
        self._texts: dict[int, tuple[Any, Text | NotText]] = {}

    def one(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Sent:
        """Write a call. Raises `CannotSend`, and `TooLarge` naming the largest argument."""
        return self._write(function, tuple(args), dict(kwargs), each=False)

    def many(self, function: Callable[..., Any], calls: Sequence[Sequence[Any]]) -> Sent:
        """Write one payload of a call for each of these lists of arguments. Raises as `one`."""
        return self._write(function, [tuple(args) for args in calls], {}, each=True)

    def _write(self, function: Any, args: Any, kwargs: dict[str, Any], *, each: bool) -> Sent:
        if not callable(function):
            raise TypeError(f"what is to be called is of type {type(function).__name__}")
        head = {"name": _name(function), "python": own_python(), **self._more}
        if each:
            head["each"] = True
        written = None
        if self._form != "cloudpickle":
            try:
                written = {**self._named(function), **_arguments(args, kwargs, each=each)}
            except (NotText, plain.NotPlain) as error:
                if self._form != AUTO:
                    raise CannotSend(
                        f"{_name(function)} cannot be sent as {self._form}: {error}"
                    ) from None
        bound = "result" in self._more
        if written is None:
            bound = True
            call = self._pickler.dumps(function, args, kwargs)
            text = binascii.b2a_base64(call, newline=False).decode("ascii")
            written = {"form": "cloudpickle", "call": text, "digest": _digest(function)}
        payload = {**written, **head}
        size = len(json.dumps(payload))
        if size > MAX_PAYLOAD_BYTES:
            if each and len(args) > 1:  # whoever can halves them
                raise TooLarge(f"{len(args)} calls of {_name(function)} have {size} bytes together")
            raise TooLarge(self._too_large(size, function, args[0] if each else args, kwargs))
        return Sent(payload, size, own_python() if bound else "")

    def _named(self, function: Any) -> dict[str, Any]:
        """Write the function by name or as text. Raises `NotText`."""
        name = reference(function)
        called = name or getattr(function, "__name__", None)
        if isinstance(called, str) and len(called) > _MAX_NAME:
            raise NotText(f"its name has more than {_MAX_NAME} characters")
        if name is not None and self._form == "reference":
            return {"form": "reference", "function": name}
        if self._form == "reference":
            raise NotText("it is not found by the name of its module")
        module = getattr(function, "__module__", None) or ""
        if name is not None and self._form == AUTO and not self._pickler.holds(module):
            home = sys.modules[module]
            if not is_own(home):
                return {"form": "reference", "function": name}
        text = self._text(function)
        return {
            "form": "source", "source": text.text, "function": text.name,
            "digest": hashlib.sha256(text.text.encode()).hexdigest()[:12],
        }  # fmt: skip

    def _text(self, function: Any) -> Text:
        function_, found = self._texts.get(id(function), (None, None))
        if function_ is not function or (isinstance(found, Text) and not found.holds(function)):
            found = None
        if found is None:
            try:
                found = source.of(function)
            except NotText as error:
                found = error
            if len(self._texts) >= _KEPT:
                del self._texts[next(iter(self._texts))]
            self._texts[id(function)] = (function, found)
        if isinstance(found, NotText):
            raise found
        return found

    def _too_large(self, size: int, function: Any, args: Any, kwargs: Mapping[str, Any]) -> str:
        named = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
        named += [(f"argument {name}", value) for name, value in kwargs.items()]
        named.append(("the function with what it uses", function))
        sizes = [(self._pickler.size(value), name) for name, value in named]
        largest = max(sizes, default=(0, ""), key=lambda one: one[0])
        return (
            f"the call of {_name(function)} has {size} bytes, and at most {MAX_PAYLOAD_BYTES}"
            f" (256 KiB) go with a task; the largest part is {largest[1]} ({largest[0]} bytes):"
            " let the function fetch it from where all devices reach it"
        )


def _arguments(args: Any, kwargs: Mapping[str, Any], *, each: bool) -> dict[str, Any]:
    room = MAX_PAYLOAD_BYTES
    if each:
        return {"args": [_listed(one, f"item {number}: ") for number, one in enumerate(args)]}
    found: dict[str, Any] = {"args": _listed(args, "")} if args else {}
    if kwargs:
        for name in kwargs:
            if not isinstance(plain.encode(name), str):
                raise plain.NotPlain(f"the name of argument {name!a:.60}", "not Unicode")
        found["kwargs"] = {
            name: plain.encode(value, f"argument {name}", limit_bytes=8 * room)
            for name, value in kwargs.items()
        }
    return found


def _listed(args: Sequence[Any], where: str) -> list[Any]:
    return [
        plain.encode(value, f"{where}argument {number}", limit_bytes=8 * MAX_PAYLOAD_BYTES)
        for number, value in enumerate(args, 1)
    ]


def _name(function: Any) -> str:
    if isinstance(function, functools.partial):
        return _name(function.func)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return plain_text(str(name))[:200]


def _digest(function: Any) -> str:
    """Return a digest of a function's code; empty for what has none of its own."""
    code = getattr(function, "__code__", None)
    try:
        return "" if code is None else hashlib.sha256(marshal.dumps(code)).hexdigest()[:12]
    except ValueError:
        return ""

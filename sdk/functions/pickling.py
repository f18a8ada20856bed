"""Pickles of functions and what they use, by cloudpickle; what cannot be sent is named."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Final

from retire_cluster.sdk.functions.origin import OwnModules

#: What is by value is cloudpickle's, and one for the whole program.
_LOCK: Final = threading.Lock()
_OWN: Final = OwnModules()
_MAX_PROBES: Final = 200
_MAX_DEPTH: Final = 8


class CannotSend(TypeError):
    """A call that cannot be sent; the message names the part that cannot, and the cure."""


class Pickler:
    """Pickle values, with the user's own modules by value.

    :param modules: further modules, or their names, that go by value
    """

    def __init__(self, modules: Iterable[ModuleType | str] = ()) -> None:
        self._more = [
            importlib.import_module(one) if isinstance(one, str) else one for one in modules
        ]

    def holds(self, name: str) -> bool:
        """Tell whether a module was named to go by value."""
        return any(f"{name}.".startswith(f"{one.__name__}.") for one in self._more)

    def dumps(self, function: Any, args: Any, kwargs: Any) -> bytes:
        """Pickle a call. Raises `CannotSend`."""
        try:
            return self._dumps((function, args, kwargs))
        except ImportError:
            raise CannotSend(
                "cloudpickle is not installed here, which this call needs: pip install cloudpickle"
            ) from None
        except Exception as error:
            raise CannotSend(self._culprit(error, function, args, kwargs)) from error

    def size(self, value: Any) -> int:
        """Return the bytes of a value's pickle; 0 for one that has none."""
        try:
            return len(self._dumps(value))
        except Exception:
            return 0

    def _dumps(self, value: Any) -> bytes:
        cloudpickle: Any = importlib.import_module("cloudpickle")
        with _LOCK:
            added = []
            known = cloudpickle.list_registry_pickle_by_value()
            try:
                for module in [*_OWN.now(), *self._more]:
                    if module.__name__ not in known:
                        cloudpickle.register_pickle_by_value(module)
                        added.append(module)
                        known.add(module.__name__)
                dumped: bytes = cloudpickle.dumps(value)
                return dumped
            finally:
                for module in added:
                    cloudpickle.unregister_pickle_by_value(module)

    def _culprit(self, error: Exception, function: Any, args: Any, kwargs: Any) -> str:
        self._probes = 0
        name = getattr(function, "__qualname__", None) or type(function).__name__
        parts = [(f"function {name}", function)]
        parts += [(f"argument {number}", value) for number, value in enumerate(args, 1)]
        parts += [(f"argument {key}", value) for key, value in kwargs.items()]
        for where, value in parts:
            found = self._find(where, value, 0)
            if found:
                return f"{found} cannot be sent: {error}"
        return f"the call cannot be sent: {type(error).__name__}: {error}"

    def _find(self, where: str, value: Any, depth: int) -> str:
        """Name the innermost part that cannot be pickled; empty when all can."""
        self._probes += 1
        if self._probes > _MAX_PROBES:
            return ""
        try:
            self._dumps(value)
        except Exception:
            pass
        else:
            return ""
        if depth < _MAX_DEPTH:
            for name, inner in _parts(value):
                found = self._find(where + name, inner, depth + 1)
                if found:
                    return found
        kind = type(value)
        return f"{where} (of type {kind.__module__}.{kind.__qualname__})"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r:.40}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif hasattr(value, "__self__") and hasattr(value, "__func__"):
        yield ".__self__", value.__self__
    elif hasattr(value, "__code__"):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            yield f"'s {name}", getattr(cell, "cell_contents", None)
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f"'s {name}", value.__globals__[name]
        for number, default in enumerate(value.__defaults__ or ()):
            yield f"'s default {number}", default
    else:
        for name, item in dict(getattr(value, "__dict__", {})).items():
            yield f".{name}", item

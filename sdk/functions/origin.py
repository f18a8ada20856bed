"""Where modules come from: what is installed travels by name, what is the user's own by value."""

from __future__ import annotations

import os
import sys
import sysconfig
from types import ModuleType
from typing import Any, Final

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
#: Its own modules are on every device.
_OURS: Final = "retire_cluster"
_STANDARD: Final = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    if path
)


def is_own(module: Any) -> bool:
    """Tell whether a module is part of the user's own project: neither Python's nor installed."""
    name = getattr(module, "__name__", None)
    if not isinstance(module, ModuleType) or not isinstance(name, str) or name == "__main__":
        return False
    top = name.partition(".")[0]
    if top == _OURS or top in sys.stdlib_module_names:
        return False
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith((".py", ".pyc")):
        return False  # built in, a namespace, or compiled: it has no value to send
    file = os.path.realpath(file)
    return not file.startswith(_STANDARD) and _INSTALLED.isdisjoint(file.split(os.sep))


class OwnModules:
    """The modules of the user's project that are imported now."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, bool]] = {}
        self._count = 0
        self._found: list[ModuleType] = []

    def now(self) -> list[ModuleType]:
        """Return all of them."""
        if len(sys.modules) != self._count:
            self._count = len(sys.modules)
            self._found = [
                module for name, module in list(sys.modules.items()) if self._look(name, module)
            ]
        return self._found

    def _look(self, name: str, module: Any) -> bool:
        known = self._known.get(name)
        if known is None or known[0] != id(module):
            known = self._known[name] = (id(module), is_own(module))
        return known[1]


def reference(thing: Any) -> str | None:
    """Return `module:name`, by which a function or class of an installed module is found."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    home = sys.modules.get(module)
    found: Any = home
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if home is not None and found is thing else None

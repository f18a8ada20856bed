"""A function as text, where its text is all there is to it.

Text runs on every Python, a pickle's bytecode on one. It is taken only where compiling it gives the
very function: the file may have changed since, a decorator or a notebook may have made another one.
What it uses of its module comes as lines above it: installed modules, what they have, and numbers
and texts. Anything else it uses, a closure, a variable, another function, and it is not taken.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dis
import inspect
import math
import sys
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from retire_cluster.sdk.functions.origin import is_own, reference

_WRITES: Final = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", *_WRITES})
_MAX_LINES: Final = 2_000


class NotText(Exception):
    """Why a function cannot be sent as text."""


class Text(NamedTuple):
    """A function's text, with what it uses of its module."""

    text: str
    name: str
    code: CodeType
    #: Global names with the values that the text stands for.
    used: dict[str, Any]

    def holds(self, function: Any) -> bool:
        """Tell whether the text still is that of `function`."""
        names = getattr(function, "__globals__", {})
        return getattr(function, "__code__", None) is self.code and all(
            names.get(name, self) is value for name, value in self.used.items()
        )


def of(function: Any) -> Text:
    """Raises `NotText`."""
    if type(function) is not FunctionType:
        raise NotText(f"{type(function).__name__} is no function of Python's")
    if function.__name__ == "<lambda>":
        raise NotText("a lambda has no text of its own")
    if function.__closure__:
        raise NotText(f"it uses {', '.join(function.__code__.co_freevars)} of the function around")
    if vars(function):
        raise NotText("it has attributes, or is wrapped in another")
    try:
        lines, _ = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise NotText(f"its text is not to be had: {error}") from None
    body = textwrap.dedent("".join(lines[:_MAX_LINES]))
    definition = _definition(body)
    _check_defaults(definition, function)
    above, used = _above(function)
    text = "".join(["from __future__ import annotations\n", *above, body])
    if not _same(_compiled(text, function.__name__), function.__code__):
        raise NotText("its text has changed, or is not what runs")
    return Text(text, function.__name__, function.__code__, used)


def _definition(body: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    try:
        statements = ast.parse(body).body
    except (SyntaxError, ValueError):
        raise NotText("its text cannot be read by itself") from None
    found = statements[0] if len(statements) == 1 else None
    if not isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise NotText("its text is more than one function")
    if found.decorator_list:
        raise NotText("it is decorated")
    return found


def _check_defaults(
    definition: ast.FunctionDef | ast.AsyncFunctionDef, function: FunctionType
) -> None:
    written = [*definition.args.defaults, *filter(None, definition.args.kw_defaults)]
    kept = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    try:
        values = [ast.literal_eval(each) for each in written]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise NotText("a default is computed") from None
    if [(type(one), repr(one)) for one in values] != [(type(one), repr(one)) for one in kept]:
        raise NotText("its defaults have changed")


def _above(function: FunctionType) -> tuple[list[str], dict[str, Any]]:
    """Return the lines that define what the function uses, and these values by name."""
    lines, used = [], {}
    names = function.__globals__
    for name in dict.fromkeys(_global_names(function.__code__)):
        if name not in names:
            if hasattr(builtins, name):
                continue
            raise NotText(f"there is no {name}")
        value = names[name]
        if value is not function:
            lines.append(_line(name, value))
        used[name] = value
    return lines, used


def _line(name: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        if value.__name__ == "__main__" or is_own(value):
            raise NotText(f"it uses the module {name}")
        if sys.modules.get(value.__name__) is value:
            return f"import {value.__name__} as {name}\n"
    elif (
        value is None
        or type(value) in (bool, int, str, bytes)
        or (type(value) is float and math.isfinite(value))
    ):
        return f"{name} = {value!r}\n"
    else:
        found = reference(value)
        if found is not None and not is_own(sys.modules[value.__module__]):
            module, _, path = found.partition(":")
            if "." not in path:
                return f"from {module} import {path} as {name}\n"
    raise NotText(f"it uses {name}")


def _global_names(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in _READS:
            if step.opname in _WRITES:
                raise NotText(f"it changes the global {step.argval}")
            if step.opname == "LOAD_NAME" and step.argval in ("__name__", "__module__"):
                continue  # of a class in it
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _compiled(text: str, name: str) -> CodeType | None:
    flags = __future__.annotations.compiler_flag
    try:
        module = compile(text, "<text>", "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return next(
        (one for one in module.co_consts if isinstance(one, CodeType) and one.co_name == name), None
    )


def _same(one: object, other: object) -> bool:
    """Tell whether two pieces of code do the same."""
    if not isinstance(one, CodeType) or not isinstance(other, CodeType):
        return type(one) is type(other) and repr(one) == repr(other)
    return (
        _shape(one) == _shape(other)
        and len(one.co_consts) == len(other.co_consts)
        and all(map(_same, one.co_consts, other.co_consts))
    )


def _shape(code: CodeType) -> tuple[Any, ...]:
    # Not those of `from __future__`, which are higher, nor whether it stands in another function.
    flags = code.co_flags & 0xFFF & ~inspect.CO_NESTED
    return (
        code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_name, flags,
    )  # fmt: skip

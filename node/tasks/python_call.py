"""`python_call`: a Python function of whoever may submit. Off until the device's owner allows it.

It runs as an own type does: in a process forked for this one call, behind the walls, which ends
with it, so that nothing one function leaves behind is there for the next. A function comes in one
of three forms: named where it is installed (`reference`), as its text (`source`), or as a pickle of
`(function, args, kwargs)` (`cloudpickle`), which holds bytecode: another version of Python would
crash on it, and refuses it. Arguments and results are plain values (`schemas.plain`); a result is
pickled only for who asked for that, who then trusts this device.
"""

from __future__ import annotations

import binascii
import importlib
import inspect
import linecache
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple, cast

from retire_cluster.node.system import resource_limits
from retire_cluster.node.tasks import exception_text
from retire_cluster.node.tasks.base import (
    BadPayload,
    Context,
    Hopeless,
    NotHere,
    TaskFailed,
    no_strangers,
)
from retire_cluster.node.tasks.own_type import Traced
from retire_cluster.node.walls import enforcement
from retire_cluster.schemas.interpreter import own_python
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES
from retire_cluster.schemas.task_types import BUILTIN, CALL_FORMS

INFO = BUILTIN["python_call"]
ENTRY_POINT: Final = "retire_cluster.node.tasks.python_call:call"
#: What `--test` runs.
SAMPLE: Final = {"form": "reference", "function": "math:factorial", "args": [5]}
#: In an error message: the function came from another version of Python.
MISMATCH: Final = "PYTHON_MISMATCH"
#: The module that a function sent as text finds itself in.
MODULE: Final = "retire_cluster_function"
#: For the names around a result.
_AROUND_BYTES: Final = 4_096
_NEEDS: Final = {
    "reference": ("function",),
    "source": ("source", "function"),
    "cloudpickle": ("call", "python"),
}


def check(payload: Mapping[str, Any]) -> None:
    """Refuse a payload that cannot be used: raises `BadPayload`."""
    no_strangers(payload, INFO.payload_schema or {})
    form = payload.get("form")
    if form not in CALL_FORMS:
        raise BadPayload("form", f"must be one of {', '.join(CALL_FORMS)}")
    for name in _NEEDS[form]:
        if not isinstance(payload.get(name), str) or not payload[name]:
            raise BadPayload(name, f"is required with the form {form}, and a text")
    for name in {"function", "source", "call"} - {*_NEEDS[form]}:
        if name in payload:
            raise BadPayload(name, f"does not go with the form {form}")
    if form == "cloudpickle" and not payload.keys().isdisjoint(("args", "kwargs")):
        raise BadPayload("args", "does not go with the form cloudpickle: the pickle holds them")
    if form == "reference" and not all(payload["function"].partition(":")[::2]):
        raise BadPayload("function", "must be module:name")
    args = payload.get("args", [])
    if not isinstance(args, list) or not isinstance(payload.get("kwargs", {}), dict):
        raise BadPayload("args", "must be a list, and kwargs an object")
    each = payload.get("each") is True
    if each and not all(isinstance(one, list) for one in args):
        raise BadPayload("args", "must be a list of lists with each")
    if payload.get("result", "plain") not in ("plain", "pickle"):
        raise BadPayload("result", "must be plain or pickle")


class _Call(NamedTuple):
    function: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]


def call(payload: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Call the function; `{"value"}`, or with `each` `{"values", "seconds"}`.

    With `result` = `pickle` it is `{"pickle", "python"}` of the same. Raises `Traced` with a result
    `{"error": {"type", "message"}}` for what the function raises.
    """
    check(payload)
    pid = os.getpid()
    done: list[Any] = []
    answers = _Answers(payload)
    loaded = False
    try:
        try:
            found = _load(payload)
        except (TaskFailed, ImportError):
            raise
        except Exception as error:
            raise _Unloaded(exception_text.of(error)) from error
        loaded = True
        if payload.get("each") is not True:
            return answers.of(_run(found.function, found.args, found.kwargs), {})
        began = time.perf_counter()
        # What is done stays in the list when the next one raises.
        done.extend(_run(found.function, args, found.kwargs) for args in found.args)
        return answers.of(done, {"seconds": time.perf_counter() - began})
    except BaseException as error:  # a stranger's code: it may raise anything, ours too
        if os.getpid() != pid:
            raise  # in a process that the function forked: the caller ends it
        if not loaded and issubclass(type(error), TaskFailed):
            raise
        result = answers.failed(error, done)
        raise Traced(_failure(error, payload, result, loaded=loaded), _trace(error)) from None


class _Unloaded(Exception):
    """The function could not be made of what came."""


def _by_statement(error: ImportError) -> bool:
    """Tell whether an import statement led to it: that is the device's lack, for every argument.

    What a function makes of its arguments, as `importlib.import_module(name)`, is its own failure:
    the device must not be passed over for its other calls.
    """
    from opcode import opname

    step = error.__traceback__
    while step is not None:
        if opname[step.tb_frame.f_code.co_code[step.tb_lasti]] in ("IMPORT_NAME", "IMPORT_FROM"):
            return True
        step = step.tb_next
    return False


def _failure(
    error: BaseException, payload: Mapping[str, Any], result: Any, *, loaded: bool
) -> TaskFailed:
    from retire_cluster.schemas.plain import NotPlain

    kind = type(error)  # what it says of its class may be anything
    message = exception_text.of(error)
    if issubclass(kind, _Unloaded):
        message = f"the function cannot be loaded here: {error}"
    elif issubclass(kind, NotPlain):
        message = f"ResultNotPlain: {error}"
    elif issubclass(kind, OSError):
        message += enforcement.hint(message)
    message += resource_limits.hint(message)
    if issubclass(kind, ImportError) and (not loaded or _by_statement(cast(ImportError, error))):
        message += f". The device lacks it: install it there{_sending(error)}"
        failure: TaskFailed = NotHere(message)
    elif issubclass(kind, MemoryError) or payload.get("retry_errors") is True:
        failure = TaskFailed(message)
    else:
        failure = Hopeless(message)
    failure.result = result
    return failure


def _sending(error: BaseException) -> str:
    """How a module of the user's own comes along, where the error names one."""
    name = ImportError.__dict__["name"].__get__(error)
    top = name.partition(".")[0] if type(name) is str else ""
    if not top.isidentifier():
        return ""
    return f"; a module of your own is sent along with Executor(modules=[{top}])"


def _trace(error: BaseException) -> str:
    """Its trace without our own calls on top."""
    own = 0
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename != __file__:
            break
        own += 1
    return exception_text.trace(error, skip=own)


# --- the function, from each of its forms -----------------------------------------------------


def _load(payload: Mapping[str, Any]) -> _Call:
    form = payload["form"]
    if form == "cloudpickle":
        return _unpickled(payload)
    function = _referred(payload) if form == "reference" else _compiled(payload)
    from retire_cluster.schemas.plain import BadPlain, NoNumpy, decode

    try:
        each = payload.get("each") is True
        args = [decode(one) for one in payload.get("args", [])]
        kwargs = {name: decode(one) for name, one in payload.get("kwargs", {}).items()}
    except NoNumpy:
        raise NotHere(
            "an argument is an array, and NumPy is not installed on this device: `pip install"
            " numpy` beside its worker"
        ) from None
    except BadPlain as error:
        raise BadPayload("args", str(error)) from None
    if each and not all(isinstance(one, (list, tuple)) for one in args):
        raise BadPayload("args", "must be a list of lists with each")
    return _Call(function, args, kwargs)


def _referred(payload: Mapping[str, Any]) -> Callable[..., Any]:
    module, _, path = payload["function"].partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return _callable(found, payload["function"])


def _compiled(payload: Mapping[str, Any]) -> Callable[..., Any]:
    text, name = payload["source"], payload["function"]
    file = f"<{name}>"
    try:
        code = compile(text, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        own, sent = own_python(), payload.get("python") or ""
        if sent and sent != own:
            raise NotHere(
                f"{MISMATCH}: Python {own} does not read what Python {sent} sent: {error}"
            ) from None
        raise
    # For traces.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(code, vars(module))
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return _callable(found, name)


def _callable(found: Any, name: str) -> Callable[..., Any]:
    if not callable(found):
        raise TypeError(f"{name} is of type {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]  # whatever it is


def _unpickled(payload: Mapping[str, Any]) -> _Call:
    own, sent = own_python(), payload["python"]
    if own != sent:
        raise NotHere(
            f"{MISMATCH}: the function was pickled by Python {sent}, and this device runs its tasks"
            f" by Python {own}. Ask for one (required_python), or send the function as text or by"
            " name"
        )
    if _cloudpickle() is None:
        raise NotHere(
            "cloudpickle is not installed on this device: `pip install cloudpickle` beside its"
            " worker (the extra retire-cluster[worker] has it)"
        )
    import pickle

    try:
        data = binascii.a2b_base64(payload["call"])
    except ValueError as error:
        raise BadPayload("call", f"is not base64: {error}") from None
    found = pickle.loads(data)
    if not isinstance(found, tuple) or len(found) != 3:
        raise BadPayload("call", "must be a pickle of (function, args, kwargs)")
    return _Call(_callable(found[0], "what was sent"), found[1], found[2])


def _cloudpickle() -> Any:
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return None


# --- running it, and its result ---------------------------------------------------------------


def _run(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    value = function(*args, **kwargs)
    if inspect.iscoroutine(value):
        import asyncio

        value = asyncio.run(value)
    return value


class _Answers:
    """Results in the form that was asked for."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._pickled = payload.get("result") == "pickle"
        self._each = payload.get("each") is True

    def of(self, value: Any, more: dict[str, Any]) -> dict[str, Any]:
        """A result; raises what says that it cannot be sent."""
        if self._pickled:
            return {"pickle": _pickle(value), "python": own_python(), **more}
        from retire_cluster.schemas.plain import encode

        room = MAX_RESULT_BYTES - _AROUND_BYTES
        name = "values" if self._each else "value"
        return {name: encode(value, "result", limit_bytes=room), **more}

    def failed(self, error: BaseException, done: list[Any]) -> dict[str, Any]:
        """What is told of an exception, with the results that there were before it."""
        if issubclass(type(error), _Unloaded) and error.__cause__ is not None:
            error = error.__cause__
        found: dict[str, Any] = {
            "error": {
                "type": exception_text.type_name(error),
                "module": str(type.__dict__["__module__"].__get__(type(error)))[:200],
                "message": _text_of(error),
            }
        }
        if self._pickled:
            for text in _attempts(lambda: _pickle(error)):
                found["error"] |= {"pickle": text, "python": own_python()}
        if self._each:
            for part in _attempts(lambda: self.of(done, {})):
                found |= part
        return found


def _attempts(make: Callable[[], Any]) -> Iterator[Any]:
    """What `make` makes, nothing if it fails: it may run a stranger's code."""
    try:
        found = make()
    except Exception:
        return
    yield found


def _text_of(error: BaseException) -> str:
    said = exception_text.of(error)
    return said.removeprefix(f"{exception_text.type_name(error)}: ")


def _pickle(value: Any) -> str:
    import pickle

    dumps = getattr(_cloudpickle(), "dumps", pickle.dumps)
    text: bytes = binascii.b2a_base64(dumps(value), newline=False)
    if len(text) > MAX_RESULT_BYTES - _AROUND_BYTES:
        raise ValueError(
            f"the result has {len(text)} bytes; the limit is {MAX_RESULT_BYTES} (1 MiB). Store it"
            " elsewhere and return where it is"
        )
    return text.decode("ascii")

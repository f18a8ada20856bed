"""Own task types: Python functions that a package offers in `retire_cluster.task_types`.

    [project.entry-points."retire_cluster.task_types"]
    resize_image = "my_package.images:resize"

The target is a function `resize(payload, context)` that returns a JSON value, or an object with a
method `run` of that form. Either may carry attributes: `name` (else the entry point's),
`description` (else the docstring's first line), `payload_schema` (docs/protocol.md),
`repeatable` (running it twice does no harm; no by default), `deterministic_errors`, the exception
classes after which trying again makes no sense, `not_here_errors`, those which say that this device
lacks something (`ImportError` says so anyway), and `test_payload`, one that does no harm anywhere:
`retire-cluster-worker --test` runs a task with it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from retire_cluster.node.system import resource_limits
from retire_cluster.node.tasks import exception_text
from retire_cluster.node.tasks.base import Context, Hopeless, NotHere, Success, TaskFailed
from retire_cluster.node.walls import enforcement
from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.clean_text import clean
from retire_cluster.schemas.text.json_text import JSONError, dumps, is_deeper
from retire_cluster.schemas.vocabulary import TASK_TYPE_PATTERN

_NAME = re.compile(rf"{TASK_TYPE_PATTERN}\Z")
#: How long the last import of a module took.
import_seconds = 0.0
_MAX_SCHEMA_BYTES = 64 * 1024
_MAX_SCHEMA_DEPTH = 24


class OwnType(NamedTuple):
    """A task type found on this device."""

    info: TypeInfo
    #: `module:attribute`, from which the task process loads it.
    entry_point: str
    #: What `--test` runs it with, None: nothing.
    test_payload: dict[str, Any] | None = None


def describe(name: str, entry_point: str) -> dict[str, Any]:
    """Load a type and say what it is, or what is wrong with it; for a task process.

    `{"info": {…}, "entry_point": …, "test_payload": …}` or `{"problem": …}`.
    """
    try:
        target = load(entry_point)
        info = _info(name, target)
        sample = _test_payload(target)
    except BaseException as error:  # a stranger's module may do anything at import
        return {"problem": _problem(error)}
    return {"info": vars(info), "entry_point": entry_point, "test_payload": sample}


def _problem(error: BaseException) -> str:
    """An error of an import, with the wall that may be the reason."""
    said = exception_text.of(error)
    if _is_one_of(error, (OSError,)):
        return said + enforcement.hint(said)
    if _is_one_of(error, (ImportError,)):
        # Python takes a folder that it may not list for an empty one.
        return said + enforcement.hint_at(_closed(sys.path))
    return said


def _closed(places: list[str]) -> str:
    """The first folder for modules that this process may not list."""
    for place in places:
        try:
            if os.path.isdir(place):
                os.scandir(place).close()
        except PermissionError:
            return place
        except (OSError, TypeError, ValueError):
            continue
    return ""


def read_description(row: Mapping[str, Any]) -> OwnType:
    """A row of `describe` as a record; raises `WireError`."""
    sample = row.get("test_payload")
    return OwnType(
        TypeInfo.read(row.get("info")),
        str(row.get("entry_point", "")),
        sample if isinstance(sample, dict) else None,
    )


def load(entry_point: str) -> Any:
    """The object an entry point names; raises whatever importing it raises."""
    global import_seconds
    module, _, attribute = entry_point.partition(":")
    began = time.perf_counter()
    target: Any = importlib.import_module(module.strip())
    import_seconds = time.perf_counter() - began
    for part in attribute.split("[")[0].strip().split("."):
        target = getattr(target, part)
    return target() if inspect.isclass(target) else target


def _info(entry_name: str, target: Any) -> TypeInfo:
    name = getattr(target, "name", None) or entry_name
    if not isinstance(name, str) or not _NAME.match(name):
        raise ValueError(f"the name {name!r:.80} may have only a-z 0-9 _ . - (1 to 100)")
    if name in BUILTIN:
        raise ValueError(f"{name} is a built-in type")
    _callable(target)
    schema = getattr(target, "payload_schema", None)
    if schema is not None and not isinstance(schema, dict):
        raise TypeError("payload_schema is an object or None")
    _check_schema(schema)
    doc = inspect.getdoc(target) or ""
    description = getattr(target, "description", None) or doc.partition("\n")[0]
    return TypeInfo(
        name=name,
        description=clean(str(description))[:1000],
        payload_schema=schema,
        repeatable=getattr(target, "repeatable", False) is True,
    )


def _check_schema(schema: object) -> None:
    """Refuse what cannot be a schema: raises `ValueError`. The main node judges its rules."""
    try:
        text = dumps(schema)
    except JSONError as error:
        raise ValueError(f"payload_schema is not JSON: {error}") from None
    if len(text) > _MAX_SCHEMA_BYTES:
        raise ValueError(f"payload_schema has more than {_MAX_SCHEMA_BYTES} bytes of JSON")
    if is_deeper(schema, _MAX_SCHEMA_DEPTH):
        raise ValueError(f"payload_schema is nested deeper than {_MAX_SCHEMA_DEPTH} levels")


def _test_payload(target: Any) -> dict[str, Any] | None:
    sample = getattr(target, "test_payload", None)
    if sample is not None and not isinstance(sample, dict):
        raise TypeError("test_payload is an object or None")
    json.dumps(sample, allow_nan=False)
    return sample


def _callable(target: Any) -> Callable[[Mapping[str, Any], Context], Any]:
    run = getattr(target, "run", None)
    found = run if callable(run) else target
    if not callable(found):
        raise TypeError("is neither a function nor an object with a method run")
    return found  # type: ignore[no-any-return]  # whatever it is, it is called as documented


def run(entry_point: str, payload: Mapping[str, Any], context: Context) -> Success:
    """Run one task of an own type.

    Raises `TaskFailed` with the trace for what it raises, `Hopeless` for its own
    `deterministic_errors`, `NotHere` for a package that is missing and its `not_here_errors`.
    """
    pid = os.getpid()
    hopeless: Any = ()
    not_here: Any = ()
    try:
        target = load(entry_point)
        function = _callable(target)
        hopeless = getattr(target, "deterministic_errors", ())
        not_here = getattr(target, "not_here_errors", ())
        result = function(payload, context)
        if os.getpid() != pid:
            _leave(0)
        if inspect.iscoroutine(result):
            import asyncio

            result = asyncio.run(result)
        return Success(result)
    except BaseException as error:  # a stranger's code: no exception of it is ours
        if os.getpid() != pid:
            _leave(error)
        if isinstance(error, (TaskFailed, Traced)):
            raise
        failure: type[TaskFailed] = TaskFailed
        if _is_one_of(error, hopeless):
            failure = Hopeless
        elif _is_one_of(error, not_here) or _is_one_of(error, (ImportError,)):
            failure = NotHere
        # Without our own frame on top, which says nothing to the type's author.
        message = exception_text.of(error)
        if _is_one_of(error, (OSError,)):
            message += enforcement.hint(message)
        message += resource_limits.hint(message)
        raise Traced(failure(message), exception_text.trace(error, skip=1)) from None


def _leave(how: BaseException | int) -> NoReturn:
    """End a process that the task forked and that came back here: only its parent answers."""
    code = 1
    try:
        if isinstance(how, SystemExit):
            if how.code is None or isinstance(how.code, int):
                how = how.code or 0
            else:
                print(how.code, file=sys.stderr)
        if isinstance(how, int):
            code = how & 0xFF
        elif not isinstance(how, SystemExit):
            sys.stderr.write(exception_text.trace(how))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def _is_one_of(error: BaseException, kinds: Any) -> bool:
    try:
        return isinstance(error, tuple(kinds))
    except Exception:  # a class may decide in its own way what its instances are
        return False


class Traced(Exception):
    """A failure together with the trace to show."""

    def __init__(self, failure: TaskFailed, trace: str) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.trace = trace

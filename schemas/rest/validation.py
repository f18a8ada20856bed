"""Validate a document against a schema; every boundary that reads JSON calls `validate`.

A Cerberus validator shared by threads gives wrong verdicts, so each thread has its own; normalising
before validating crashes on an object where a list was declared, so it is validated first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from cerberus import errors as cerberus_errors

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest import quick
from retire_cluster.schemas.rest.dialect import (
    TYPES,
    Schema,
    StrictValidator,
    describe,
    type_names,
)

#: Compiled validators a thread keeps.
_CACHE_SIZE: Final = 256
#: At most this many offending fields are listed in one error.
_MAX_LISTED: Final = 100


class _Cache(threading.local):
    def __init__(self) -> None:
        self.validators: OrderedDict[int, _Entry] = OrderedDict()


class _Entry(NamedTuple):
    schema: Schema
    check: quick.Check | None
    validator: StrictValidator


_cache = _Cache()


def _known(schema: Schema) -> _Entry:
    known = _cache.validators
    entry = known.get(id(schema))
    # The entry keeps its schema alive, so an id in the cache cannot belong to another one.
    if entry is None:
        entry = _Entry(schema, quick.compiled(schema), StrictValidator(dict(schema)))
        known[id(schema)] = entry
        if len(known) > _CACHE_SIZE:
            known.popitem(last=False)
    else:
        known.move_to_end(id(schema))
    return entry


def validate(schema: Schema, document: object, *, where: str = "") -> dict[str, Any]:
    """Return `document` with defaults filled in; `schema` maps field names to Cerberus rules.

    Puts `where` before the field names of errors and leaves the document as it is. Raises
    `ValidationError`: `field` is the first offender in the order of the document,
    `details["errors"]` lists all.
    """
    if not isinstance(document, dict):
        raise ValidationError(where, "must be an object")
    check = _known(schema).check
    if check is not None:
        fits = quick.accepted(check, document)
        if fits is not None:
            return fits
    return by_cerberus(schema, document, where=where)


def by_cerberus(schema: Schema, document: dict[str, Any], *, where: str = "") -> dict[str, Any]:
    """Do as `validate` without the fast path: the verdict and the words that count."""
    validator = _known(schema).validator
    if validator.validate(document, normalize=False):
        normal = validator.normalized(document)
        if normal is not None and not validator._errors:
            return dict(normal)
    found = list(_leaves(validator._errors, document))
    found.sort(key=lambda leaf: _position(document, leaf[0]))
    listed = [{"field": _dotted(where, path), "reason": reason} for path, reason in found]
    listed = listed[:_MAX_LISTED] or [{"field": where, "reason": "is not valid"}]
    raise ValidationError(listed[0]["field"], listed[0]["reason"], errors=listed)


_Path = tuple[Any, ...]


def _dotted(where: str, path: _Path) -> str:
    return ".".join([where, *map(str, path)] if where else list(map(str, path)))


def _position(document: object, path: _Path) -> tuple[int, ...]:
    """Return a sort key for where a path is in the document; what is absent comes last."""
    place: list[int] = []
    for step in path:
        if isinstance(document, dict):
            keys = list(document)
            place.append(keys.index(step) if step in document else len(keys))
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int) and step < len(document):
            place.append(step)
            document = document[step]
        else:
            place.append(0)
            document = None
    return tuple(place)


def _leaves(found: Sequence[Any], document: object) -> Iterator[tuple[_Path, str]]:
    for error in found:
        if error.is_logic_error:
            yield from _logic_leaves(error)
        elif error.is_group_error:
            if error.code == cerberus_errors.KEYSRULES.code:
                for child in error.child_errors:
                    yield child.document_path, "this name: " + _reason(child)
            else:
                yield from _leaves(error.child_errors, document)
        else:
            yield error.document_path, _reason(error)


def _logic_leaves(error: Any) -> Iterator[tuple[_Path, str]]:
    """Yield the errors of the one alternative whose type fits, else name all alternatives."""
    rules = list(error.constraint)
    for index, children in sorted(error.definitions_errors.items()):
        names = type_names(rules[index]) if index < len(rules) else []
        if any(name in TYPES and TYPES[name][0](error.value) for name in names):
            yield from _leaves(children, None)
            return
    yield error.document_path, "must be " + describe({"anyof": rules})


def _reason(error: Any) -> str:
    if error.code == cerberus_errors.CUSTOM.code:
        return str(error.info[0])
    if error.code == cerberus_errors.UNKNOWN_FIELD.code:
        return "unknown field"
    if error.code == cerberus_errors.REQUIRED_FIELD.code:
        return "is required"
    if error.code == cerberus_errors.EMPTY_NOT_ALLOWED.code:
        return "must not be empty"
    return f"does not fit the rule {error.rule}" if error.rule else "is not valid"

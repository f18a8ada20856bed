"""A function goes as text only where its text is all there is to it."""

from __future__ import annotations

import functools
import importlib.util
import math
import os.path
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retire_cluster.sdk.functions import source
from retire_cluster.sdk.functions.source import NotText

CODE = '''
import functools
import math
import os.path
from math import sqrt

LIMIT = 10
TABLE = {}


def plain(n: int, *, more: "Unknown" = 2) -> Nowhere:
    """Says what it does."""
    return sqrt(n) + math.pi + more + LIMIT + len(os.path.join("a", "b"))


def itself(n):
    return 1 if n < 2 else n * itself(n - 1)


def with_class():
    class Local:
        size = LIMIT

        def get(self):
            return self.size

    return Local().get()


async def later(n):
    return n


def uses_table():
    return TABLE


def counts():
    global LIMIT
    LIMIT += 1


def computed(n=len("abc")):
    return n


def unknown():
    return nothing_here


def other():
    return plain(1)


@functools.lru_cache
def cached():
    return 1


def decorated_away(f):
    return f


@decorated_away
def decorated():
    return 1


def outer(k):
    def inner(n):
        return n + k

    def free(n):
        return n + LIMIT

    return inner, free


small = lambda n: n + 1
'''


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    # Not a test's own module: pytest rewrites the code of those.
    path = tmp_path / "of_a_user.py"
    path.write_text(CODE.replace("Nowhere", "'Nowhere'"))
    spec = importlib.util.spec_from_file_location("of_a_user", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run(text: source.Text) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(text.text, names)
    function: Callable[..., Any] = names[text.name]
    return function


def test_what_a_function_uses_comes_along(module: ModuleType) -> None:
    text = source.of(module.plain)
    assert run(text)(4) == sqrt(4) + math.pi + 2 + 10 + len(os.path.join("a", "b"))
    assert run(source.of(module.itself))(5) == 120
    assert run(source.of(module.with_class))() == 10
    assert run(source.of(module.outer(1)[1]))(1) == 11
    assert "async def later" in source.of(module.later).text


def test_a_text_holds_while_what_it_stands_for_does(module: ModuleType) -> None:
    text = source.of(module.plain)
    assert text.holds(module.plain)
    module.__dict__["LIMIT"] = 11
    assert not text.holds(module.plain)
    assert run(source.of(module.plain))(0) == math.pi + 2 + 11 + 3


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("uses_table", "it uses TABLE"),
        ("counts", "it changes the global LIMIT"),
        ("computed", "a default is computed"),
        ("unknown", "there is no nothing_here"),
        ("other", "it uses plain"),
        ("cached", "no function of Python's"),
        ("decorated", "it is decorated"),
        ("small", "a lambda"),
    ],
)
def test_what_is_more_than_its_text_is_not_taken(module: ModuleType, name: str, why: str) -> None:
    with pytest.raises(NotText, match=why):
        source.of(getattr(module, name))


def test_closures_methods_and_partials_are_not_taken(module: ModuleType) -> None:
    with pytest.raises(NotText, match="it uses k of the function around"):
        source.of(module.outer(1)[0])
    for odd in (functools.partial(module.plain, 1), "x".upper, len, str):
        with pytest.raises(NotText):
            source.of(odd)


def test_a_file_that_changed_since_is_not_believed(module: ModuleType) -> None:
    path = Path(module.__file__ or "")
    for before, after in (("n * itself(n - 1)", "n + itself(n - 1)"), ("n < 2", "n < 3")):
        path.write_text(CODE.replace(before, after))
        import linecache

        linecache.checkcache()
        with pytest.raises(NotText, match="has changed"):
            source.of(module.itself)

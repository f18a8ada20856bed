"""Calls as payloads: the first form that fits, and what cannot be sent by name."""

from __future__ import annotations

import base64
import importlib.util
import math
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retire_cluster.node.tasks.python_call import check
from retire_cluster.schemas.interpreter import own_python
from retire_cluster.sdk.functions.calls import Calls, TooLarge
from retire_cluster.sdk.functions.pickling import CannotSend

PROJECT = """
import threading
SIZE = []

class Point:
    def __init__(self, x):
        self.x = x

def plain(n):
    return n + 1

def both(n):
    return plain(n), SIZE
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[ModuleType]:
    path = tmp_path / "users_project.py"
    path.write_text(PROJECT)
    spec = importlib.util.spec_from_file_location("users_project", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["users_project"] = found
    spec.loader.exec_module(found)
    yield found
    del sys.modules["users_project"]


def opened(payload: dict[str, Any]) -> Any:
    return pickle.loads(base64.b64decode(payload["call"]))


def test_what_is_installed_goes_by_name_and_needs_no_version() -> None:
    sent = Calls().one(math.factorial, (5,), {})
    assert sent.payload["form"] == "reference"
    assert (sent.payload["function"], sent.payload["args"]) == ("math:factorial", [5])
    assert sent.python == ""
    check(sent.payload)
    assert Calls().one(pow, (2, 5), {"mod": 3}).payload["kwargs"] == {"mod": 3}
    many = Calls().many(math.sqrt, [(1,), (4,)])
    assert many.payload["args"] == [[1], [4]]
    check(many.payload)


def test_a_function_of_a_users_file_goes_as_text_and_what_uses_more_as_a_pickle(
    project: ModuleType,
) -> None:
    text = Calls().one(project.plain, (1,), {})
    assert (text.payload["form"], text.python) == ("source", "")
    check(text.payload)
    more = Calls().one(project.both, (1,), {})
    assert (more.payload["form"], more.python) == ("cloudpickle", own_python())
    assert more.payload["digest"]
    check(more.payload)
    del sys.modules["users_project"]  # as on a device that lacks it
    try:
        function, args, kwargs = opened(more.payload)
        assert function(*args, **kwargs) == (2, [])
    finally:
        sys.modules["users_project"] = project


def test_arguments_that_are_no_plain_values_make_it_a_pickle(project: ModuleType) -> None:
    sent = Calls().one(print, (project.Point(3),), {})
    assert sent.payload["form"] == "cloudpickle"
    assert opened(sent.payload)[1][0].x == 3
    import cloudpickle

    assert not cloudpickle.list_registry_pickle_by_value()


def test_a_pickled_result_binds_every_form_to_this_python() -> None:
    sent = Calls(pickled=True).one(math.factorial, (5,), {})
    assert (sent.payload["result"], sent.python) == ("pickle", own_python())


def test_a_form_that_is_forced_says_why_it_does_not_fit(project: ModuleType) -> None:
    with pytest.raises(CannotSend, match="a lambda has no text"):
        Calls("source").one(lambda: 1, (), {})
    with pytest.raises(CannotSend, match="not found by the name"):
        Calls("reference").one(lambda: 1, (), {})
    with pytest.raises(CannotSend, match=r"argument 1 is of type users_project\.Point"):
        Calls("source").one(project.plain, (project.Point(1),), {})
    assert (
        Calls("reference").one(project.both, (1,), {}).payload["function"] == "users_project:both"
    )
    with pytest.raises(ValueError, match="form"):
        Calls("pickle")


def test_what_cannot_be_pickled_is_named_by_its_place(project: ModuleType) -> None:
    lock = threading.Lock()
    point = project.Point({"deep": [1, lock]})
    with pytest.raises(CannotSend, match=r"argument 2\.x\['deep'\]\[1\] \(of type _thread\.lock\)"):
        Calls().one(print, (1, point), {})
    with pytest.raises(CannotSend, match=r"argument end\.x"):
        Calls().one(print, (), {"end": point})
    with pytest.raises(CannotSend, match=r"function .*<lambda>'s lock"):
        Calls().one(lambda: lock, (), {})


def test_a_call_that_is_too_large_names_its_largest_argument() -> None:
    with pytest.raises(TooLarge, match=r"largest part is argument 2 \(3000\d\d bytes\)"):
        Calls().one(print, ("x", "y" * 300_000), {})
    with pytest.raises(TooLarge, match="largest part is argument sep"):
        Calls().one(print, (lambda: 1,), {"sep": b"y" * 300_000})


def test_without_cloudpickle_a_lambda_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    assert Calls().one(math.sqrt, (4,), {}).payload["form"] == "reference"
    with pytest.raises(CannotSend, match="pip install cloudpickle"):
        Calls().one(lambda: 1, (), {})


def test_no_name_of_a_call_makes_a_request_that_is_refused_with_its_neighbours(
    tmp_path: Path,
) -> None:
    def named(**names: int) -> int:
        return len(names)

    named.__qualname__ = "a\ud800\x1b[2J"
    sent = Calls().one(named, (), {"\ud800": 1})
    assert sent.payload["name"] == "a\ufffd\ufffd[2J"
    assert sent.payload["form"] == "cloudpickle"
    assert opened(sent.payload)[2] == {"\ud800": 1}
    with pytest.raises(CannotSend, match=r"the name of argument '\\ud800'"):
        Calls("reference").one(math.factorial, (), {"\ud800": 1})

    path = tmp_path / "long.py"
    path.write_text(f"def {'f' * 501}():\n    return 1\n")
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), path, "exec"), names)
    sent = Calls().one(names["f" * 501], (), {})
    assert sent.payload["form"] == "cloudpickle"
    assert len(sent.payload["name"]) == 200

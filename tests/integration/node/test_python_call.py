"""`python_call` on a real worker: its forms, its errors, and what stays between two calls."""

from __future__ import annotations

import base64
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from retire_cluster.schemas import plain
from retire_cluster.schemas.protocol import messages
from tests.integration.node_kit import Bus, Ended, Start, posix_only

PYTHON = "{}.{}".format(*sys.version_info)
GRANTED = ("--allow", "python_call", "--allow-root")


@pytest.fixture
def worker(bus: Bus, start: Start) -> Bus:
    start(*GRANTED)
    bus.welcome()
    return bus


def sent(function: Any, *args: Any, **more: Any) -> dict[str, Any]:
    """The payload of a pickled call."""
    call = base64.b64encode(cloudpickle.dumps((function, args, more.pop("kwargs", {}))))
    return {"form": "cloudpickle", "python": PYTHON, "call": call.decode(), **more}


def source(text: str, *args: Any, **more: Any) -> dict[str, Any]:
    return {"form": "source", "source": text, "function": "f", "args": list(args), **more}


def value(ended: Ended) -> Any:
    assert ended.item.outcome == "success", ended
    return plain.decode(ended.data["value"])


def error(ended: Ended, cause: str = "deterministic") -> dict[str, Any]:
    assert (ended.item.outcome, ended.item.cause) == ("failed", cause), ended
    found: dict[str, Any] = ended.data["error"]
    return found


def test_it_is_not_offered_until_the_owner_allows_it(bus: Bus, start: Start) -> None:
    start("--allow-root")
    assert "python_call" not in {info.name for info in bus.welcome().task_types}
    ended = bus.run("python_call", source("def f(): pass"))
    assert ended.item.cause == "policy_denied"
    assert "--allow python_call" in (ended.item.error_message or "")


def test_each_form_gives_the_value(worker: Bus) -> None:
    named = {"form": "reference", "function": "math:factorial", "args": [5]}
    assert value(worker.run("python_call", named)) == 120
    text = (
        "import math\ndef f(n, *, k=1):\n    print('hello')\n    return (n, math.pi, {k: b'x'})\n"
    )
    ended = worker.run("python_call", source(text, 3, kwargs={"k": 2}))
    assert value(ended) == (3, 3.141592653589793, {2: b"x"})
    assert ended.details["logs"] == "hello\n"
    three = 3
    assert value(worker.run("python_call", sent(lambda x: x * three, 14))) == 42


class Counter:
    """Something with a state and a method."""

    def __init__(self) -> None:
        self.count = 40

    def add(self, more: int) -> int:
        return self.count + more


async def slowly(text: str) -> str:
    return text.upper()


def test_methods_partials_coroutines_and_classes_are_called(worker: Bus) -> None:
    import functools

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        assert value(worker.run("python_call", sent(Counter().add, 2))) == 42
        assert value(worker.run("python_call", sent(functools.partial(pow, 2), 5))) == 32
        assert value(worker.run("python_call", sent(slowly, "abc"))) == "ABC"
        assert value(worker.run("python_call", sent(complex, 1, 2))) == 1 + 2j
        ended = worker.run("python_call", sent(Counter))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    told = error(ended)
    assert told["type"] == "NotPlain"
    assert "Counter" in told["message"]


def test_many_calls_go_in_one_task_and_tell_what_was_done_before_an_error(worker: Bus) -> None:
    payload = {"form": "reference", "function": "math:sqrt", "args": [[4], [9]], "each": True}
    ended = worker.run("python_call", payload)
    assert ended.data["values"] == [2.0, 3.0]
    assert 0 <= ended.data["seconds"] < 5
    ended = worker.run("python_call", {**payload, "args": [[4], [9], [-1], [16]]})
    assert error(ended)["type"] == "ValueError"
    assert ended.data["values"] == [2.0, 3.0]


def test_what_a_function_raises_is_told_with_its_own_trace_and_is_not_tried_again(
    worker: Bus,
) -> None:
    text = "def g(n):\n    return 1 / n\n\ndef f(n):\n    return g(n)\n"
    ended = worker.run("python_call", source(text, 0))
    assert error(ended) == {
        "type": "ZeroDivisionError", "module": "builtins", "message": "division by zero",
    }  # fmt: skip
    assert ended.item.error_message == "ZeroDivisionError: division by zero"
    trace = ended.details["error_traceback"]
    assert "return 1 / n" in trace
    assert "python_call.py" not in trace
    assert error(worker.run("python_call", source(text, 0, retry_errors=True)), "error")
    assert error(worker.run("python_call", source("import sys\ndef f():\n    sys.exit(3)\n")))
    generator = worker.run("python_call", source("def f():\n    yield 1\n"))
    assert "make a list of it" in error(generator)["message"]
    gone = worker.run("python_call", source("import os\ndef f():\n    os._exit(3)\n"))
    assert "ended by itself with exit code 3" in (gone.item.error_message or "")
    assert value(worker.run("python_call", source("def f():\n    return 1\n"))) == 1


def test_a_device_that_lacks_a_module_says_so_with_the_cure(worker: Bus) -> None:
    for payload in (
        {"form": "reference", "function": "no_such_module.inner:f"},
        source("def f():\n    import no_such_module\n"),
    ):
        ended = worker.run("python_call", payload)
        assert error(ended, "not_here")["type"] == "ModuleNotFoundError"
        assert "modules=[no_such_module]" in (ended.item.error_message or "")


def test_a_module_that_an_argument_named_is_the_functions_own_failure(worker: Bus) -> None:
    text = "import importlib\ndef f(name):\n    return importlib.import_module(name).__name__\n"
    ended = worker.run("python_call", source(text, "no_such_module"))
    assert error(ended)["type"] == "ModuleNotFoundError"
    assert value(worker.run("python_call", source(text, "json"))) == "json"
    raised = "def f():\n    raise ImportError('no', name='math\\n:x')\n"
    assert error(worker.run("python_call", source(raised)))["type"] == "ImportError"


def test_errors_that_lie_about_themselves_or_are_our_own_are_told_and_not_tried_again(
    worker: Bus,
) -> None:
    liar = (
        "class Liar(ImportError):\n"
        "    @property\n"
        "    def __class__(self):\n"
        "        raise ValueError\n"
        "    @property\n"
        "    def name(self):\n"
        "        raise ValueError\n"
        "def f():\n"
        "    raise Liar('lies')\n"
    )
    assert error(worker.run("python_call", source(liar)))["type"] == "Liar"
    ours = (
        "from retire_cluster.node.tasks.base import Denied\n"
        "def f():\n"
        "    raise Denied('not mine to say')\n"
    )
    assert error(worker.run("python_call", source(ours)))["type"] == "Denied"


def test_a_pickle_of_another_python_is_never_opened(worker: Bus, tmp_path: Path) -> None:
    mark = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> Any:
            return open, (str(mark), "w")

    payload = sent(print, Bomb())
    for other in ("3.9", "3.99", "pypy3.11"):
        ended = worker.run("python_call", {**payload, "python": other})
        if other.startswith("3"):
            assert ended.item.cause == "not_here"
            assert "PYTHON_MISMATCH" in (ended.item.error_message or "")
        assert not mark.exists()


def test_a_text_of_a_newer_python_is_a_mismatch_and_of_the_same_one_a_mistake(worker: Bus) -> None:
    wrong = "def f(:\n    pass\n"
    other = worker.run("python_call", source(wrong, python="3.99"))
    assert (other.item.cause, "PYTHON_MISMATCH" in str(other.item.error_message)) == (
        "not_here",
        True,
    )
    assert error(worker.run("python_call", source(wrong, python=PYTHON)))["type"] == "SyntaxError"
    assert error(worker.run("python_call", source(wrong)))["type"] == "SyntaxError"


def test_a_pickled_result_is_given_to_who_asks_only(worker: Bus) -> None:
    ended = worker.run("python_call", sent(lambda: SimpleNamespace(count=40), result="pickle"))
    assert ended.item.outcome == "success", ended
    assert ended.data["python"] == PYTHON
    assert pickle.loads(base64.b64decode(ended.data["pickle"])).count == 40
    ended = worker.run("python_call", sent(lambda: 1 / 0, result="pickle"))
    told = error(ended)
    assert type(pickle.loads(base64.b64decode(told["pickle"]))) is ZeroDivisionError


def test_a_result_that_is_too_large_says_what_to_do(worker: Bus) -> None:
    ended = worker.run("python_call", source("def f():\n    return ['x' * 1000] * 2000\n"))
    assert "store it elsewhere" in error(ended)["message"]
    ended = worker.run(
        "python_call", {**source("def f():\n    return b'x' * 2_000_000\n"), "result": "pickle"}
    )
    assert "the limit is" in error(ended)["message"]


def test_two_owners_on_one_slot_share_nothing(bus: Bus, start: Start) -> None:
    start(*GRANTED, "--slots", "1")
    bus.welcome()
    leave = (
        "import builtins, os, math, sys\n"
        "def f():\n"
        "    builtins.secret = math.secret = 'mine'\n"
        "    os.environ['SECRET'] = 'mine'\n"
        "    open('secret', 'w').write('mine')\n"
        "    sys.modules['theirs'] = sys\n"
        "    return os.getpid(), os.getcwd()\n"
    )
    look = (
        "import builtins, os, math, sys\n"
        "def f(folder):\n"
        "    return (hasattr(builtins, 'secret') or hasattr(math, 'secret')\n"
        "        or 'SECRET' in os.environ or 'theirs' in sys.modules\n"
        "        or os.path.exists('secret') or os.path.exists(folder), os.getpid())\n"
    )
    pid, folder = value(bus.run("python_call", source(leave)))
    found, other = value(bus.run("python_call", source(look, folder)))
    assert not found
    assert other != pid


@posix_only
def test_a_call_is_cancelled_and_tells_what_it_printed_no_longer(worker: Bus) -> None:
    text = "import time\ndef f():\n    time.sleep(600)\n"
    key = worker.assign("python_call", source(text))
    worker.started(key)
    worker.send(messages.Cancel(worker.session, (key,), "cancelled"))
    assert worker.result(key).item.outcome == "cancelled"
    assert value(worker.run("python_call", source("def f():\n    return 1\n"))) == 1


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"form": "pickle"}, "form"),
        ({"form": "reference"}, "function"),
        ({"form": "reference", "function": "math"}, "module:name"),
        ({"form": "source", "source": "x"}, "function"),
        ({"form": "cloudpickle", "call": "eA=="}, "python"),
        ({"form": "cloudpickle", "call": "x", "python": PYTHON, "args": []}, "args"),
        ({"form": "cloudpickle", "call": "not base64!", "python": PYTHON}, ""),
        ({"form": "reference", "function": "math:pi"}, "cannot be called"),
        ({"form": "reference", "function": "math:nothing"}, "nothing"),
        ({"form": "reference", "function": "math:sqrt", "args": [{"$py": "no"}]}, "no type"),
        ({"form": "reference", "function": "math:sqrt", "args": [4], "each": True}, "lists"),
        ({"form": "reference", "function": "math:sqrt", "stranger": 1}, "stranger"),
    ],
)
def test_a_payload_that_cannot_be_used_is_refused_by_name(
    worker: Bus, payload: dict[str, Any], words: str
) -> None:
    ended = worker.run("python_call", payload)
    assert (ended.item.outcome, ended.item.cause) == ("failed", "deterministic")
    assert words in (ended.item.error_message or "")

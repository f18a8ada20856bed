"""`python_eval`: what it computes, and what it refuses whatever is tried."""

from __future__ import annotations

import math
from typing import Any

import pytest

from retire_cluster.node.tasks import python_eval
from retire_cluster.node.tasks.base import BadPayload, Context, Hopeless, Limits, TaskFailed


def context() -> Context:
    return Context(
        task_id="t",
        attempt=1,
        timeout_seconds=5,
        limits=Limits(),
        tell=lambda percent, message: None,
        write_log=lambda text: None,
        is_cancelled=lambda: False,
    )


def value(expression: str, **variables: Any) -> Any:
    return python_eval.evaluate(expression, variables)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3", 7),
        ("2 ** 10", 1024),
        ("-7 // 2, 7 % 3, 6 / 4", (-4, 1, 1.5)),
        ("'a' + 'b' * 3", "abbb"),
        ("1 < 2 <= 2 != 3", True),
        ("True and not False or None", True),
        ("'yes' if 2 in [1, 2] else 'no'", "yes"),
        ("[x ** 2 for x in range(5) if x % 2]", [1, 9]),
        ("{k: v for k, v in zip('ab', [1, 2])}", {"a": 1, "b": 2}),
        ("{x % 3 for x in range(9)}", {0, 1, 2}),
        ("sum(x for x in range(10))", 45),
        ("sorted([3, 1, 2], key=abs)[::-1]", [3, 2, 1]),
        ("[y for x in [[1], [2]] for y in x]", [1, 2]),
        ("max([1, 5, 2]), min(3, 2), len('abc'), abs(-1)", (5, 2, 3, 1)),
        ("dict(a=1)['a'] + {'b': 2}['b']", 3),
        ("round(2.567, 1), int('7'), float('1.5'), str(12), bool([])", (2.6, 7, 1.5, "12", False)),
        ("list(enumerate('ab')), tuple([1]), set([1, 1])", ([(0, "a"), (1, "b")], (1,), {1})),
        ("any([0, 1]), all([1, 0])", (True, False)),
        ("math.sqrt(2) + math.pi", math.sqrt(2) + math.pi),
        ("math.factorial(5)", 120),
        ("[math.floor(x) for x in [1.5, 2.5]]", [1, 2]),
        ("  1 + 1  ", 2),
        ("1 << 4 | 1", 17),
    ],
)
def test_it_computes(expression: str, expected: Any) -> None:
    assert value(expression) == expected


def test_variables_are_names_in_the_expression() -> None:
    assert value("a['x'] + len(b)", a={"x": 1}, b=[1, 2]) == 3


@pytest.mark.parametrize(
    "expression",
    [
        "().__class__",
        "''.__class__.__mro__",
        "[].append",
        "'{0.__class__}'.format(1)",
        "f'{1}'",
        "f'{1:{10**9}}'",
        "math.__loader__",
        "math.__dict__",
        "math",
        "[math]",
        "math.sqrt.__self__",
        "math['sqrt']",
        "(math).nothing",
        "__import__('os')",
        "eval('1')",
        "open('/etc/passwd')",
        "getattr(1, 'real')",
        "type(1)",
        "print(1)",
        "(lambda: 1)()",
        "(x := 1)",
        "[*range(3)]",
        "max(*[1, 2])",
        "dict(**{'a': 1})",
        "[1 for __builtins__ in [1]]",
        "_",
        "x",
        "import os",
        "x = 1",
        "1; 2",
        "await x",
        "[x async for x in y]",
        "yield 1",
        "...",
        "b'bytes'",
        "1j",
        "[1][0](2)",
        "(abs)(1)()",
        "{**{}}[1]",
        "",
        "(" * 300 + ")" * 300,
        "1 @ 2",
        "1 / 0",
        "[1][5]",
        "{}['x']",
        "'a' + 1",
        "int('x')",
    ],
)
def test_it_refuses_with_a_reason_that_names_the_field(expression: str) -> None:
    with pytest.raises(Hopeless, match=r"payload\.expression: "):
        value(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "9**99999999",
        "2**-99999999999",
        "(2**50000) * (2**60000)",
        "range(10**10)",
        "range(10**30)",
        "list(range(10**9))",
        "'a' * 10**9",
        "[0] * 10**9",
        "'%1000000000d' % 1",
        "1 << 10**9",
        "round(1, -10**9)",
        "math.factorial(10**9)",
        "math.perm(10**6, 10**6)",
        "[x for x in range(100) for y in range(1000)]",
        "int('9' * 5000)",
        "str([0] * 20000)",
        "'a' ** 2",
    ],
)
def test_it_does_not_even_begin_what_would_take_forever(expression: str) -> None:
    with pytest.raises(Hopeless, match=r"payload\.expression: "):
        value(expression)


def test_run_returns_result_and_expression() -> None:
    payload = {"expression": "a + 1", "variables": {"a": 1}}
    assert python_eval.run(payload, context()).result == {"result": 2, "expression": "a + 1"}


@pytest.mark.parametrize("expression", ["2**64", "float('nan')", "(-8)**0.5", "abs", "math.inf"])
def test_a_value_that_json_cannot_hold_fails_for_good(expression: str) -> None:
    with pytest.raises(Hopeless, match=r"payload\.expression: result"):
        python_eval.run({"expression": expression}, context())


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "expression"),
        ({"expression": 1}, "expression"),
        ({"expression": "x" * 10_001}, "expression"),
        ({"expression": "1", "extra": 1}, "extra"),
        ({"expression": "1", "variables": []}, "variables"),
        ({"expression": "1", "variables": {"_x": 1}}, "variables._x"),
        ({"expression": "1", "variables": {"math": 1}}, "variables.math"),
        ({"expression": "1", "variables": {"len": 1}}, "variables.len"),
        ({"expression": "1", "variables": {"a b": 1}}, "variables.a b"),
    ],
)
def test_a_bad_payload_is_named(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(BadPayload) as error:
        python_eval.check(payload)
    assert error.value.message.startswith(f"payload.{field}: ")
    assert isinstance(error.value, TaskFailed)

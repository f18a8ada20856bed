"""`python_eval`: an expression of literals, comprehensions, safe functions and `math`.

Three walls: the syntax tree may hold nothing but the kinds of nodes listed here (so there is no
attribute but `math.name` to escape through), simpleeval evaluates it with bounded operators and
functions, and the process has little memory and time.
"""

from __future__ import annotations

import ast
import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from retire_cluster.node.tasks.base import (
    BadPayload,
    Context,
    Hopeless,
    Success,
    as_text,
    no_strangers,
)
from retire_cluster.node.tasks.json_result import NotJson, to_json
from retire_cluster.schemas.task_types import BUILTIN

INFO = BUILTIN["python_eval"]

MAX_EXPRESSION = 10_000
MAX_LENGTH = 1_000_000
MAX_BITS = 100_000
MAX_CPU_SECONDS = 10
MAX_EXTRA_MEMORY_BYTES = 256 * 1024 * 1024

_NODES: tuple[type[ast.AST], ...] = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Subscript, ast.Slice,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension,
    ast.Call, ast.keyword, ast.Attribute,
)  # fmt: skip
_CONSTANTS = (bool, int, float, str, type(None))


def check(payload: Mapping[str, Any]) -> None:
    """Refuse a payload that cannot be used: raises `BadPayload`."""
    no_strangers(payload, INFO.payload_schema or {})
    expression = as_text(payload, "expression")
    if not expression or len(expression) > MAX_EXPRESSION:
        raise BadPayload("expression", f"must be a text of 1 to {MAX_EXPRESSION} characters")
    variables = payload.get("variables", {})
    if not isinstance(variables, dict):
        raise BadPayload("variables", "must be an object")
    for name in variables:
        if not name.isidentifier() or name.startswith("_") or name == "math" or name in FUNCTIONS:
            raise BadPayload(f"variables.{name}", "must be a free name that does not start with _")


def run(payload: Mapping[str, Any], context: Context) -> Success:
    """Evaluate the expression; raises `Hopeless` naming what is wrong with it."""
    check(payload)
    expression = payload["expression"]
    with _bounded(min(float(MAX_CPU_SECONDS), context.timeout_seconds)):
        value = evaluate(expression, payload.get("variables", {}))
        try:
            to_json(value)
        except NotJson as error:
            raise Hopeless(f"payload.expression: {error}") from None
        except MemoryError:
            raise Hopeless("payload.expression: its result needs too much memory") from None
    return Success({"result": value, "expression": expression})


def evaluate(expression: str, variables: Mapping[str, Any]) -> Any:
    """The expression's value; raises `Hopeless` for whatever keeps it from having one."""
    import simpleeval

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(expression.strip(), mode="eval")
        _inspect(tree)
        tree = ast.fix_missing_locations(_SetsToCalls().visit(tree))
        evaluator = simpleeval.EvalWithCompoundTypes(
            operators=_operators(simpleeval), functions=dict(FUNCTIONS), names=dict(variables)
        )
        evaluator.functions.update(FUNCTIONS)  # it adds its own list, tuple, dict and set
        evaluator.nodes[ast.Attribute] = _math_function
        return evaluator.eval(expression, previously_parsed=tree.body)
    except Hopeless:
        raise
    except MemoryError:
        raise Hopeless("payload.expression: needs too much memory") from None
    except RecursionError:
        raise Hopeless("payload.expression: is nested too deeply") from None
    except SyntaxError as error:
        raise Hopeless(f"payload.expression: is not an expression: {error.msg}") from None
    except Exception as error:  # whatever the expression provokes is its own fault
        raise Hopeless(f"payload.expression: {type(error).__name__}: {error}"[:1000]) from None


def _inspect(tree: ast.AST) -> None:
    roots = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise Hopeless(f"payload.expression: {_word(node)} is not allowed")
        if isinstance(node, ast.Constant) and not isinstance(node.value, _CONSTANTS):
            raise Hopeless(f"payload.expression: {type(node.value).__name__} is not allowed")
        if isinstance(node, ast.Name):
            if node.id.startswith("_"):
                raise Hopeless(f"payload.expression: the name {node.id} is not allowed")
            if node.id == "math" and id(node) not in roots:
                raise Hopeless("payload.expression: math is used as math.name")
        elif isinstance(node, ast.Call):
            _inspect_call(node)
        elif isinstance(node, ast.Attribute):
            _math_function(node)
        elif isinstance(node, ast.comprehension) and node.is_async:
            raise Hopeless("payload.expression: async is not allowed")


def _inspect_call(node: ast.Call) -> None:
    if isinstance(node.func, ast.Name):
        if node.func.id not in FUNCTIONS:
            raise Hopeless(
                f"payload.expression: there is no function {node.func.id};"
                f" there are {', '.join(sorted(FUNCTIONS))} and math's"
            )
    elif not isinstance(node.func, ast.Attribute):
        raise Hopeless("payload.expression: only named functions can be called")
    if any(keyword.arg is None for keyword in node.keywords):
        raise Hopeless("payload.expression: ** is not allowed in a call")


def _word(node: ast.AST) -> str:
    words = {"Lambda": "lambda", "JoinedStr": "an f-string", "NamedExpr": ":=", "Starred": "*"}
    name = type(node).__name__
    return words.get(name, name)


class _SetsToCalls(ast.NodeTransformer):
    """simpleeval knows no set comprehension: `{x for …}` is evaluated as `set(x for …)`."""

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        self.generic_visit(node)
        inner = ast.GeneratorExp(elt=node.elt, generators=node.generators)
        return ast.Call(func=ast.Name(id="set", ctx=ast.Load()), args=[inner], keywords=[])


def _math_function(node: ast.Attribute) -> Any:
    if not isinstance(node.value, ast.Name) or node.value.id != "math":
        raise Hopeless(f"payload.expression: the attribute .{node.attr} is not allowed")
    found = MATH.get(node.attr)
    if found is None:
        raise Hopeless(f"payload.expression: there is no math.{node.attr}")
    return found


# --- bounded functions ------------------------------------------------------------------------


def _too_much(what: str) -> Hopeless:
    return Hopeless(f"payload.expression: {what}")


def _range(*args: int) -> range:
    found = range(*args)
    try:
        long = len(found) > MAX_LENGTH
    except OverflowError:
        long = True
    if long:
        raise _too_much(f"range is longer than {MAX_LENGTH}")
    return found


def _round(number: Any, ndigits: int | None = None) -> Any:
    if ndigits is not None and abs(ndigits) > 1000:
        raise _too_much("round takes up to 1000 digits")
    return round(number, ndigits)


def _str(value: Any = "") -> str:
    if not isinstance(value, (str, int, float, bool, type(None))) and len(value) > 10_000:
        raise _too_much("str of something that long")
    return str(value)


def _int(value: Any = 0, base: int | None = None) -> int:
    if isinstance(value, str) and len(value) > 4_000:
        raise _too_much("int of a text that long")
    return int(value) if base is None else int(value, base)


def _bounded_int(name: str, function: Callable[..., Any], limit: int) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        if any(isinstance(arg, int) and abs(arg) > limit for arg in args):
            raise _too_much(f"math.{name} takes numbers up to {limit}")
        return function(*args)

    return call


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        if abs(base).bit_length() * abs(exponent) > MAX_BITS:
            raise _too_much(f"a power of more than {MAX_BITS} bits")
    elif not isinstance(base, (int, float)) or not isinstance(exponent, (int, float)):
        raise _too_much("** takes numbers")
    return base**exponent


def _multiply(simple: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def multiply(left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MAX_BITS:
                raise _too_much(f"a product of more than {MAX_BITS} bits")
            return left * right
        return simple(left, right)

    return multiply


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, (str, bytes)):
        raise _too_much("% does not format texts here")
    return left % right


def _operators(simpleeval: Any) -> dict[type[ast.AST], Callable[..., Any]]:
    found = dict(simpleeval.DEFAULT_OPERATORS)
    found[ast.Pow] = _power
    found[ast.Mult] = _multiply(simpleeval.safe_mult)
    found[ast.Mod] = _modulo
    return found


#: Every function an expression may call, beside math's.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "all": all, "any": any, "bool": bool, "dict": dict, "enumerate": enumerate,
    "float": float, "int": _int, "len": len, "list": list, "max": max, "min": min,
    "range": _range, "round": _round, "set": set, "sorted": sorted, "str": _str, "sum": sum,
    "tuple": tuple, "zip": zip,
}  # fmt: skip

_MATH_LIMITS = {"factorial": 10_000, "comb": 10_000, "perm": 10_000, "ldexp": 2_000}
#: Everything public in `math`, the few that can take forever bounded.
MATH: dict[str, Any] = {
    name: _bounded_int(name, getattr(math, name), _MATH_LIMITS[name])
    if name in _MATH_LIMITS
    else getattr(math, name)
    for name in dir(math)
    if not name.startswith("_")
}


@contextlib.contextmanager
def _bounded(cpu_seconds: float) -> Iterator[None]:
    """Give this process less memory and processor time while the block runs, where possible."""
    try:
        import resource
    except ImportError:
        yield
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    wanted = {resource.RLIMIT_CPU: math.ceil(used + cpu_seconds) + 1}
    size = _address_space_bytes()
    if size:
        wanted[resource.RLIMIT_AS] = size + MAX_EXTRA_MEMORY_BYTES
    before = {}
    for kind, soft in wanted.items():
        with contextlib.suppress(ValueError, OSError):
            old, hard = resource.getrlimit(kind)
            if hard != resource.RLIM_INFINITY:
                soft = min(soft, hard)
            resource.setrlimit(kind, (soft, hard))
            before[kind] = (old, hard)
    try:
        yield
    finally:
        for kind, limits in before.items():
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, limits)


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[0])
        import resource

        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0

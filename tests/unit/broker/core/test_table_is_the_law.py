"""Every status that the main node gives a task comes from the table, and each row is needed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import transitions
from retire_cluster.broker.core.transitions import TRANSITIONS, TaskEvent
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.vocabulary import TERMINAL, Cause, Outcome, TaskStatus
from tests.unit.broker.kit import Cluster, Member, submit

BROKER = Path(__file__).resolve().parents[4] / "broker"
#: Where a status goes: the call, and which of its arguments that is.
SINKS = {
    "Task": 4, "OutcomeRow": 1,
    "ledger.add": 1, "ledger.extend": 2, "ledger.move": 1, "ledger.move_all": 1,
}  # fmt: skip
#: Constructors that keep what they are given.
KEEPERS = {("model.py", "Task"), ("transitions.py", "IllegalTransition")}
#: What the store says of an ended task is taken from it as it is.
READERS = {("restore.py", "_tasks"), ("requests.py", "retry")}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _called(call: ast.Call) -> str:
    """`Task`, or `ledger.move` for `state.ledger.move`."""
    name = ast.unparse(call.func)
    return ".".join(name.split(".")[-2:]) if ".ledger." in f".{name}" else name.split(".")[-1]


def _statuses(function: Function) -> Iterator[ast.expr]:
    """What a function gives out as a task's status."""
    for item in ast.walk(function):
        if isinstance(item, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = item.targets if isinstance(item, ast.Assign) else [item.target]
            named = [one for target in targets for one in ast.walk(target)]
            if item.value is not None and any(
                isinstance(one, ast.Attribute) and one.attr == "status" for one in named
            ):
                yield item.value
        elif isinstance(item, ast.Call):
            name = _called(item)
            given = {word.arg: word.value for word in item.keywords}
            if name == "setattr":
                assert ast.unparse(item.args[1]) != "'status'", ast.unparse(item)
            elif name == "_replace" and "status" in given:
                yield given["status"]
            elif name in SINKS and not any(isinstance(one, ast.Starred) for one in item.args):
                yield given["status"] if "status" in given else item.args[SINKS[name]]


def _is_lawful(value: ast.expr, function: Function, file: str) -> bool:
    if isinstance(value, ast.Attribute):
        # `status.value` is the word of a status; `task.status` is one that was given before.
        return value.attr == "status" or (
            value.attr == "value" and _is_lawful(value.value, function, file)
        )
    if isinstance(value, ast.Call):
        name = _called(value)
        if name == "TaskStatus":
            return (file, function.name) in READERS and not isinstance(value.args[0], ast.Constant)
        return name in ("after", "move", "move_all")
    if isinstance(value, ast.Name):
        bound = [
            item.value
            for item in ast.walk(function)
            if isinstance(item, ast.Assign)
            and any(ast.unparse(target) == value.id for target in item.targets)
        ]
        return bool(bound) and all(_is_lawful(one, function, file) for one in bound)
    return False


def _unlawful(source: str, file: str) -> list[str]:
    tree = ast.parse(source)
    found = []
    for owner in ast.walk(tree):
        if not isinstance(owner, ast.Module | ast.ClassDef):
            continue
        for function in owner.body:
            if not isinstance(function, Function):
                continue
            if isinstance(owner, ast.ClassDef) and (file, owner.name) in KEEPERS:
                continue
            found += [
                f"{file}: {function.name} gives the status {ast.unparse(value)}"
                for value in _statuses(function)
                if not _is_lawful(value, function, file)
            ]
    return found


def test_no_code_of_the_main_node_gives_a_task_a_status_but_by_the_table() -> None:
    files = list(BROKER.rglob("*.py"))
    assert len(files) > 50
    found = [
        line
        for file in files
        # The store gives back what it was given.
        if file.parent.name != "store"
        for line in _unlawful(file.read_text("utf-8"), file.name)
    ]
    assert found == []


@pytest.mark.parametrize(
    "body",
    [
        "task.status = TaskStatus.FAILED",
        "task.status, task.device = TaskStatus.FAILED, None",
        "state.ledger.move(task.number, TaskStatus.FAILED, None)",
        "status = TaskStatus.FAILED\n    state.ledger.move_all(numbers, status, None)",
        "return Task(number, spec, 0, b'', TaskStatus.QUEUED, 0.0)",
        "return OutcomeRow(task.number, TaskStatus.FAILED.value, None)",
        "return old._replace(status=TaskStatus.FAILED.value)",
        "task.status = TaskStatus('failed')",
        "task.status = given",
    ],
)
def test_a_status_from_elsewhere_is_found(body: str) -> None:
    assert len(_unlawful(f"def rule(given):\n    {body}\n", "rules.py")) == 1


def test_a_status_from_the_table_is_not() -> None:
    source = """
def rule(state, task):
    status = after(task.status, "fail")
    state.ledger.move(task.number, status, None)
    return OutcomeRow(task.number, status.value, None)
"""
    assert _unlawful(source, "rules.py") == []


# --- each row is needed --------------------------------------------------------------------------


def _bring(cluster: Cluster, box: Member, status: TaskStatus | None) -> int:
    """Bring a task that may not be retried to a state; its number."""
    if status is None:
        return 0
    if status is TaskStatus.PENDING:
        return cluster.submit(delay=60.0)[0]
    (number,) = cluster.submit(max_retries=0)
    if status is TaskStatus.CANCELLED:
        cluster.do(ev.CancelRequested(number))
    if status in (TaskStatus.QUEUED, TaskStatus.CANCELLED):
        return number
    box.join()
    cluster.place()
    if status is not TaskStatus.ASSIGNED:
        box.start()
    if status in TERMINAL:
        box.finish(outcome=status.value)
    return number


def _let_due(cluster: Cluster) -> None:
    cluster.pass_time(61)
    cluster.tick("deadlines")


def _assign(cluster: Cluster, box: Member) -> None:
    box.join()
    cluster.place()


def _lack_the_program(cluster: Cluster, box: Member) -> None:
    """Two tasks need what the only device lacks: one fails there, the other one in the queue."""
    box.join(slots=2)
    task = {"task_type": "command"}
    submit(cluster, task, task, payload=b'{"command":["ffmpeg"]}')
    cluster.place()
    box.finish(outcome=Outcome.FAILED, cause=Cause.NOT_HERE)
    cluster.place()
    cluster.tick("unschedulable")


def _lack_and_be_late(cluster: Cluster, box: Member) -> None:
    """No device of ours says this: that a task ran too long which it cannot run."""
    cluster.device("other")
    box.finish(outcome=Outcome.TIMEOUT, cause=Cause.NOT_HERE)


def _damage(cluster: Cluster, number: int) -> None:
    if number in cluster.state.tasks:
        cluster.do(ev.TaskDamaged(number))
    else:
        cluster.do(ev.ResultDamaged(number, cluster.wall_ms, cluster.outcome(number)))


_S = TaskStatus
#: Pairs and what brings each about, given a task in that state.
ROWS: dict[tuple[TaskStatus | None, TaskEvent], Callable[[Cluster, Member, int], object]] = {
    (None, "submit"): lambda cluster, box, number: cluster.submit(),
    (None, "delay"): lambda cluster, box, number: cluster.submit(delay=60.0),
    (_S.PENDING, "due"): lambda cluster, box, number: _let_due(cluster),
    (_S.QUEUED, "assign"): lambda cluster, box, number: _assign(cluster, box),
    (_S.QUEUED, "fail"): lambda cluster, box, number: _lack_the_program(cluster, box),
    (_S.ASSIGNED, "start"): lambda cluster, box, number: box.start(),
    (_S.ASSIGNED, "fail"): lambda cluster, box, number: box.finish(
        outcome=Outcome.FAILED, cause=Cause.NOT_HERE
    ),
    (_S.ASSIGNED, "time_out"): lambda cluster, box, number: _lack_and_be_late(cluster, box),
    (_S.RUNNING, "succeed"): lambda cluster, box, number: box.finish(),
    (_S.RUNNING, "fail"): lambda cluster, box, number: box.fail(),
    (_S.RUNNING, "time_out"): lambda cluster, box, number: box.finish(outcome=Outcome.TIMEOUT),
    **{
        (status, "wait"): lambda cluster, box, number: box.say(
            msg.Goodbye(box.session, "the owner wants it back")
        )
        for status in (_S.ASSIGNED, _S.RUNNING)
    },
    **{
        (status, "cancel"): lambda cluster, box, number: cluster.do(ev.CancelRequested(number))
        for status in (_S.PENDING, _S.QUEUED, _S.ASSIGNED, _S.RUNNING)
    },
    **{
        (status, "retry"): lambda cluster, box, number: cluster.retry(number)
        for status in (_S.FAILED, _S.TIMEOUT, _S.CANCELLED)
    },
    **{
        (status, "damage"): lambda cluster, box, number: _damage(cluster, number)
        for status in (_S.PENDING, _S.QUEUED, _S.ASSIGNED, *TERMINAL)
    },
}


class _Watched(dict[tuple[TaskStatus | None, TaskEvent], TaskStatus]):
    """The table; `read` are the pairs that were looked up."""

    def __init__(self) -> None:
        super().__init__(TRANSITIONS)
        self.read: list[tuple[TaskStatus | None, TaskEvent]] = []

    def __getitem__(self, pair: tuple[TaskStatus | None, TaskEvent]) -> TaskStatus:
        self.read.append(pair)
        return super().__getitem__(pair)


@pytest.mark.parametrize("pair", TRANSITIONS, ids=str)
def test_each_row_of_the_table_is_brought_about_by_an_event(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, pair: tuple[TaskStatus | None, TaskEvent]
) -> None:
    box = cluster.stranger()
    number = _bring(cluster, box, pair[0])
    assert pair[0] is None or cluster.state.ledger.status(number) is pair[0]
    table = _Watched()
    monkeypatch.setattr(transitions, "TRANSITIONS", table)
    ROWS[pair](cluster, box, number)
    assert pair in table.read


def test_a_restart_takes_its_statuses_from_the_table_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = cluster.stranger()
    numbers = [_bring(cluster, box, status) for status in (_S.PENDING, _S.ASSIGNED, _S.QUEUED)]
    table = _Watched()
    monkeypatch.setattr(transitions, "TRANSITIONS", table)
    cluster.restart()
    assert {(None, "submit"), (None, "delay"), (_S.QUEUED, "assign")} == set(table.read)
    assert [cluster.status(number) for number in numbers] == ["pending", "assigned", "queued"]

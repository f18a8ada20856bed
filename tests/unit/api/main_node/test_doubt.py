"""What the facade says of a change whose answer did not come: what is true, not that it failed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from retire_cluster.api.main_node.link import CHANGES, NOT_KNOWN
from retire_cluster.broker.admin.table import OPERATIONS
from retire_cluster.broker.client import AdminClient, NoAnswer
from tests.unit.api.kit import API, Bench

TASK = {"task_type": "echo", "payload": {}}


#: Changing operations that leave a client in no doubt: a wait and a ping change nothing that was
#: asked for, the facade tells of its keys by itself.
NO_DOUBT = {"task.wait", "device.ping", "api_key.used", "api_key.changed"}


def test_every_changing_operation_that_the_facade_asks_is_named_as_a_change(root: Path) -> None:
    asked = {
        item.value
        for file in (root / "http").rglob("*.py")
        if file != root / "http" / "main_node" / "link.py"
        for item in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    }
    changing = {name for name, operation in OPERATIONS.items() if operation.changes}
    assert changing >= NO_DOUBT
    assert (asked & changing) - NO_DOUBT == CHANGES


def test_a_submission_without_an_answer_may_have_been_taken_and_that_is_said() -> None:
    bench = Bench()
    bench.cluster.answers["task.submit"] = NoAnswer("no answer within 2 s", sent=True)
    result = bench.ask("POST", f"{API}/tasks", json=TASK)
    assert result.status_code == 503
    assert result.json["message"] == f"no answer within 2 s. {NOT_KNOWN}"


@pytest.mark.parametrize(
    ("op", "method", "path", "sent"),
    [
        ("task.submit", "POST", "/tasks", False),
        ("task.list", "GET", "/tasks", True),
        ("rate.hit", "POST", "/tasks", True),
    ],
)
def test_what_was_not_sent_or_changes_nothing_leaves_no_doubt(
    op: str, method: str, path: str, sent: bool
) -> None:
    bench = Bench(rate_limit=op == "rate.hit")
    bench.cluster.answers[op] = NoAnswer("no answer within 2 s", sent=sent)
    result = bench.ask(method, API + path, json=TASK if method == "POST" else None)
    assert result.status_code == 503
    assert NOT_KNOWN not in result.json["message"]


def test_a_fault_of_the_facade_after_the_answer_does_not_say_that_nothing_happened() -> None:
    bench = Bench()
    bench.cluster.answers["task.submit"] = {"task_ids": []}  # not what was promised
    result = bench.ask("POST", f"{API}/tasks", json=TASK)
    assert (result.status_code, result.json["error_code"]) == (500, "INTERNAL_ERROR")
    assert NOT_KNOWN in result.json["message"]


def test_a_main_node_that_is_not_there_was_sent_nothing() -> None:
    client = AdminClient(port=1, timeout_seconds=0.2)
    with pytest.raises(NoAnswer) as caught:
        client.call("task.submit")
    assert not caught.value.sent
    client.close()

"""Scopes against a real facade over a real main node: every cell of the table, and the attacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from retire_cluster.api.admission.keys import key_of
from retire_cluster.schemas import rights
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.rest.endpoints import ENDPOINTS, Endpoint
from retire_cluster.schemas.rights import Cell
from retire_cluster.schemas.task_types import BUILTIN
from tests.integration.main_kit import MainNode, settings_for
from tests.integration.site_kit import Said, Site

API = "/api/v1"
HARMLESS, DANGEROUS, OWN = "sleep", "command", "resize"
PAYLOADS: dict[str, dict[str, Any]] = {HARMLESS: {}, DANGEROUS: {"command": ["true"]}, OWN: {}}
NOWHERE = {"required_tags": ["nowhere"]}
KEYS = [key_of(scope, scopes=[scope]) for scope in rights.SCOPES]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainNode]:
    found = MainNode(settings_for(tmp_path_factory.mktemp("main")))
    types = (*BUILTIN.values(), msg.TypeInfo(OWN, "scales a picture", None, True))
    found.device("box", task_types=types)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def guarded(node: MainNode) -> Iterator[Site]:
    site = Site(node, *KEYS)
    yield site
    site.close()


@pytest.fixture(scope="module")
def closed(node: MainNode) -> Iterator[Site]:
    site = Site(node, *KEYS, auth_reads=True)
    yield site
    site.close()


def submission(task_type: str, **more: Any) -> dict[str, Any]:
    payload = PAYLOADS.get(task_type, {})
    return {"task_type": task_type, "payload": payload, "requirements": NOWHERE, **more}


def waiting(site: Site, task_type: str) -> str:
    """The id of a task that waits."""
    said = site.ask("POST", f"{API}/tasks", submission(task_type), key="admin")
    assert said.status == 201, said
    return str(said.json["data"]["task_id"])


def ended(site: Site, task_type: str) -> str:
    """The id of a task that can be retried."""
    task_id = waiting(site, task_type)
    assert site.ask("POST", f"{API}/tasks/{task_id}/cancel", key="admin").status == 200
    return task_id


def refused(said: Said) -> bool:
    """Whether who asked was not enough; whatever else was wrong."""
    return said.status == 401 or (said.status == 403 and "scope" in said.json["error_details"])


def do(site: Site, row: Endpoint, key: str, task_type: str, **headers: str) -> Said:
    """An operation, on a task of this type where it is about one."""
    body: Any = None if row.body is None or row.body_optional else {}
    path = row.path.replace("{device_id}", "nobody")
    if row.operation_id == "submitTask":
        body = submission(task_type)
    elif row.operation_id == "submitTasks":
        body = {"tasks": [submission(task_type)]}
    elif row.operation_id == "cancelTasks":
        body = {"task_ids": [waiting(site, task_type)]}
    elif row.operation_id == "retryTask":
        path = path.replace("{task_id}", ended(site, task_type))
    elif "{task_id}" in path:
        path = path.replace("{task_id}", waiting(site, task_type))
    return site.ask(row.method, path, body, key=key, **headers)


def cells(row: Endpoint, expected: Cell) -> Iterator[tuple[str, bool]]:
    """Task types, and whether this one is let through."""
    yield HARMLESS, expected is not Cell.NO
    if row.right.by_type:
        yield DANGEROUS, expected is Cell.YES
        yield OWN, expected is Cell.YES


@pytest.mark.parametrize("reads_closed", [False, True])
def test_every_cell_of_the_table_is_what_the_facade_does(
    guarded: Site, closed: Site, reads_closed: bool
) -> None:
    site = closed if reads_closed else guarded
    wrong = []
    for row in ENDPOINTS.values():
        for scope in ("", *rights.SCOPES):
            expected = rights.cell(row.operation_id, scope, reads_closed=reads_closed)
            for task_type, passes in cells(row, expected):
                said = do(site, row, scope, task_type)
                if refused(said) is passes:
                    wrong.append((row.operation_id, scope or "no key", task_type, said.status))
    assert not wrong


def test_without_authentication_strangers_meet_the_column_of_no_key(node: MainNode) -> None:
    site = Site(node)
    try:
        wrong = []
        for row in ENDPOINTS.values():
            expected = rights.cell(row.operation_id, "", reads_closed=False)
            for task_type, passes in cells(row, expected):
                near = do(site, row, "", task_type)
                far = do(site, row, "", task_type, via="1.1 elsewhere")
                if refused(near) or refused(far) is passes:
                    wrong.append((row.operation_id, task_type, near.status, far.status))
        assert not wrong
    finally:
        site.close()


def test_the_table_says_what_it_has_to() -> None:
    """Cells by hand: the table must not agree with a mistake of its own."""

    def of(operation_id: str, scope: str, reads_closed: bool = False) -> str:
        return str(rights.cell(operation_id, scope, reads_closed=reads_closed))

    assert set(rights.RIGHTS) == {row.operation_id for row in ENDPOINTS.values()}
    assert (of("getTaskResults", "submit"), of("getTaskResults", "submit", True)) == ("yes", "no")
    assert (of("retryTask", "submit"), of("retryTask", "submit:dangerous")) == ("harmless", "yes")
    assert (of("cancelTasks", "submit"), of("cancelTask", "read")) == ("harmless", "no")
    assert of("submitTask", "submit:dangerous", True) == "yes"
    assert of("submitTask", "", True) == "no"
    assert (of("getConfig", ""), of("updateServerConfig", "submit:dangerous")) == ("no", "no")
    assert {of(name, "admin", True) for name in rights.RIGHTS} == {"yes"}
    assert rights.of_type("a.type.of.theirs") == "submit:dangerous"


# --- the attacks ---------------------------------------------------------------------------------


def test_submit_does_not_run_anothers_command_again_nor_end_it(guarded: Site) -> None:
    task_id = ended(guarded, DANGEROUS)
    said = guarded.ask("POST", f"{API}/tasks/{task_id}/retry", key="submit")
    assert (said.status, said.code) == (403, "FORBIDDEN")
    assert said.json["error_details"]["scope"] == "submit:dangerous"
    assert "Retrying a task of the type command needs" in said.json["message"]
    running, harmless = waiting(guarded, DANGEROUS), waiting(guarded, HARMLESS)
    assert guarded.ask("POST", f"{API}/tasks/{running}/cancel", key="submit").status == 403
    both = {"task_ids": [harmless, running]}
    assert guarded.ask("POST", f"{API}/tasks/cancel", both, key="submit").status == 403
    for task_id in (running, harmless):
        said = guarded.ask("GET", f"{API}/tasks/{task_id}/status", key="read")
        assert said.json["data"]["status"] == "queued", "all or none"
    assert guarded.ask("POST", f"{API}/tasks/cancel", both, key="submit:dangerous").status == 200


def test_results_are_read_with_read_only_where_reading_is_closed(closed: Site) -> None:
    task_id = ended(closed, HARMLESS)
    asked = {"task_ids": [task_id]}
    said = closed.ask("POST", f"{API}/tasks/results", asked, key="submit")
    assert (said.status, said.json["error_details"]["scope"]) == (403, "read")
    assert closed.ask("POST", f"{API}/tasks/results", asked, key="read").status == 200


def test_dangerous_may_what_a_submitter_of_harmless_types_may(closed: Site) -> None:
    key = "submit:dangerous"
    evaluation = {"task_type": "python_eval", "payload": {"expression": "1"}}
    assert closed.ask("POST", f"{API}/tasks", evaluation, key=key).status == 201
    assert closed.ask("POST", f"{API}/tasks", submission("echo"), key=key).status == 201
    task_id = ended(closed, "echo")
    assert closed.ask("POST", f"{API}/tasks/{task_id}/retry", key=key).status == 200


def test_what_is_said_of_a_caller_is_checked(node: MainNode) -> None:
    task_id = node.submit()[0]
    for caller in ({}, {"scopes": ["root"]}, {"scopes": "admin"}, "admin", {"scopes": [], "x": 1}):
        for op, args in (
            ("task.cancel", {"task_id": task_id}), ("task.retry", {"task_id": task_id}),
            ("task.cancel_many", {"task_ids": [task_id]}),
        ):  # fmt: skip
            with pytest.raises(ValidationError, match="caller"):
                node.call(op, caller=caller, **args)

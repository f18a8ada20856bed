"""The table of the admin socket's operations, and operations on a store in trouble."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import pytest

from retire_cluster.broker import admin
from retire_cluster.broker.admin import tasks as admin_tasks
from retire_cluster.broker.admin.registry import AdminOperation
from retire_cluster.broker.admin.table import OPERATIONS
from retire_cluster.broker.core import instructions as ins
from retire_cluster.schemas import errors
from retire_cluster.schemas.vocabulary import TaskStatus
from tests.unit.broker.kit import Cluster, wrong


def test_the_table_is_the_protocols() -> None:
    assert set(OPERATIONS) == {
        "broker.info", "health", "cluster.status", "cluster.metrics", "cluster.config", "metrics",
        "device.list", "device.get", "device.status", "device.remove", "device.drain",
        "device.resume", "device.readmit", "device.ping", "device.summary",
        "task.submit", "task.list", "task.get", "task.status", "task.result", "task.cancel",
        "task.retry", "task.explain", "task.wait", "task.cancel_many", "task.statistics",
        "task.types",
        "config.get", "config.update", "config.reset", "events.poll", "rate.hit", "facade.report",
        "facade.identity",
        "token.create", "token.list", "token.revoke", "device.authorise",
        "api_key.changed", "api_key.used", "api_key.uses",
        "admin_key.add", "admin_key.list", "admin_key.revoke",
    }  # fmt: skip


def test_every_operation_of_the_room_is_in_the_table_once() -> None:
    modules = [
        import_module(f"{admin.__name__}.{found.name}") for found in iter_modules(admin.__path__)
    ]
    made = [
        each.name
        for module in modules
        for each in vars(module).values()
        if isinstance(each, AdminOperation)
    ]
    assert sorted(made) == sorted(OPERATIONS)


def test_an_unknown_operation_is_not_found_and_the_others_named(cluster: Cluster) -> None:
    with pytest.raises(
        errors.NotFound, match=r"no operation 'task.sumbit'; there are .*task.submit"
    ):
        cluster.call("task.sumbit")


@pytest.mark.parametrize(
    "op", sorted(name for name, entry in OPERATIONS.items() if entry.schema is not None)
)
def test_every_operation_refuses_an_argument_it_does_not_know(cluster: Cluster, op: str) -> None:
    assert "nonsense" in str(wrong(cluster, op, {"nonsense": 1}).details["errors"])


def test_a_task_whose_row_vanished_is_not_found(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    cluster.store.commit([ins.ForgetTasks((number,))])
    with pytest.raises(errors.TaskNotFound):
        cluster.admin.row(number)
    with pytest.raises(errors.TaskNotFound):
        cluster.call("task.get", {"task_id": cluster.public(number)})
    cluster.state.ledger.add(50, TaskStatus.SUCCESS, "echo", 1)
    with pytest.raises(errors.TaskNotFound):
        admin_tasks._brief(cluster.admin, 50, cluster.now)
    cluster.state.ledger.drop(50)


def test_finding_a_task_knows_whether_it_has_ended(cluster: Cluster) -> None:
    (number,) = cluster.submit()
    assert cluster.admin.ended(number) is None
    cluster.call("task.cancel", {"task_id": cluster.public(number)})
    assert cluster.admin.ended(number) is not None

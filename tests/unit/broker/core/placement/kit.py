"""Tasks that devices cannot run for what they lack, and what is kept of it."""

from __future__ import annotations

from typing import Any

from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.json_text import dumps
from tests.unit.broker.kit import Cluster, Member, submit

OWN = TypeInfo("resize", repeatable=True, distribution="pictures")
WEB = (BUILTIN["command"], BUILTIN["http_request"], BUILTIN["sleep"])


def program(cluster: Cluster, name: str, count: int = 1, **fields: Any) -> list[int]:
    """Tasks that run a program, submitted as a client does."""
    body = {"task_type": "command", **fields}
    found = submit(cluster, *[body] * count, payload=dumps({"command": [name, "-x"]}))
    return [number(cluster, task_id) for task_id in found["task_ids"]]


def number(cluster: Cluster, task_id: str) -> int:
    read = cluster.state.ids.read(task_id)
    assert read is not None
    return read[0]


def lacks(member: Member, cause: str = "not_here", error: str = "") -> None:
    """Everything that a device has ends for want of something."""
    text = error or "there is no program 'ffmpeg' on this device"
    member.finish(outcome="failed", cause=cause, error=text, result=b"")


def notes(member: Member) -> list[tuple[str, str, str]]:
    found = member.record.notes.items()
    return [(kind.task_type, kind.needs, note.cause) for kind, note in found if note.active]


def explained(cluster: Cluster, task: int, device_id: str) -> list[str]:
    data = cluster.call("task.explain", {"task_id": cluster.public(task, cluster.wall_ms)}).data
    return next(row["reasons"] for row in data["devices"] if row["device_id"] == device_id)


def owns(cluster: Cluster, count: int = 1, **limits: Any) -> list[int]:
    return cluster.submit(count, task_type="resize", **limits)


def let_pass(cluster: Cluster, seconds: float, *members: Member) -> None:
    cluster.pass_time(seconds)
    for member in members:
        member.beat()
    cluster.tick("unschedulable", "deadlines")

"""`retire-cluster explain TASK`: why it waits, device by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retire_cluster.cli import common, exits
from retire_cluster.cli.common import Session
from retire_cluster.cli.output import Style, facts, table
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus


def main(argv: Sequence[str] | None = None) -> int:
    """The verb."""
    parser = common.verb_parser(
        "explain", "Why a task waits: device by device.", parents=[common.connection_flags()]
    )
    parser.add_argument("task_id", metavar="TASK")
    args = parser.parse_args(argv)
    return common.run(args, explain)


def explain(session: Session) -> int:
    """Ask and print."""
    data = session.client.call("task.explain", {"task_id": session.args.task_id})
    output = session.output
    output.data(data, explanation_text(data, output.style, output.width))
    return exits.OK


def explanation_text(data: Mapping[str, Any], style: Style, width: int = 0) -> str:
    """The explanation for people."""
    rows: list[tuple[str, Any]] = [("task", data["task_id"]), ("status", data["status"])]
    reason = data.get("queued_reason")
    if isinstance(reason, Mapping):
        rows.append(("eligible devices", reason.get("eligible_devices")))
        rows.append(("of these busy", reason.get("busy_devices")))
        rejected = reason.get("rejected") or {}
        rows += [(f"{count} rejected", why) for why, count in rejected.items()]
    text = facts(rows, style)
    devices = data.get("devices") or []
    if TaskStatus(data["status"]) in TERMINAL:
        return f"{text}\n\nit has ended and does not wait"
    if not devices:
        return f"{text}\n\nno device has joined the cluster"
    lines = [
        (device["device_id"], device["eligible"], device.get("reasons") or []) for device in devices
    ]
    return f"{text}\n\n{table(('DEVICE', 'ELIGIBLE', 'WHY NOT'), lines, style, width=width)}"

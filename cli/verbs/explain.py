"""`retire-cluster explain TASK`: why it waits, device by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from retire_cluster.cli import exits
from retire_cluster.cli.output import Style, clean, facts, table
from retire_cluster.cli.session import Session, connection_flags, run_verb, verb_parser
from retire_cluster.schemas.vocabulary import OFF_BY_DEFAULT, TERMINAL, TaskStatus

#: By how a reason begins; `{}` is how it goes on.
_CURES: Final = {
    **{
        f"does not run {name}": f"to allow {name} on a device, start its worker there with"
        f" --allow {name} (on this machine: retire-cluster up --allow {name})"
        for name in OFF_BY_DEFAULT
    },
    "does not run ": "to have {} on a device, install the plugin that offers it there and restart"
    " its worker",
    "missing tag ": "to give a device the tag, start its worker there with --tag {}",
    "role is not ": "to give a device the role, start its worker there with --role {}",
    "Python is not ": "to run it on other Pythons, send the function as text or by name"
    ' (Executor(form="source")); or run a worker there with Python {}',
    "draining": "to let a device take work again: retire-cluster devices resume DEVICE",
    "offline": "to see what keeps a device away, run there: retire-cluster-worker --test",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser(
        "explain", "Why a task waits: device by device.", parents=[connection_flags()]
    )
    parser.add_argument("task_id", metavar="TASK")
    args = parser.parse_args(argv)
    return run_verb(args, explain)


def explain(session: Session) -> int:
    """Ask the cluster and print its explanation."""
    data = session.client.call("task.explain", {"task_id": session.args.task_id})
    output = session.output
    output.data(data, explanation_text(data, output.style, output.width))
    return exits.OK


def explanation_text(data: Mapping[str, Any], style: Style, width: int = 0) -> str:
    """Return the explanation for people."""
    rows: list[tuple[str, Any]] = [("task", data["task_id"]), ("status", data["status"])]
    if data.get("due_at"):
        rows.append(("due", f"{data['due_at']}: it waits for its time"))
    reason = data.get("queued_reason")
    if isinstance(reason, Mapping):
        rows.append(("eligible devices", reason.get("eligible_devices")))
        rows.append(("of these busy", reason.get("busy_devices")))
        rejected = reason.get("rejected") or {}
        rows += [(f"{count} rejected", why) for why, count in rejected.items()]
        returned = reason.get("given_back") or {}
        rows += [("given back", f"{times} times by {name}") for name, times in returned.items()]
    if otherwise := data.get("described_otherwise_by"):
        rows.append(("type described otherwise by", otherwise))
    text = facts(rows, style)
    devices = data.get("devices") or []
    if TaskStatus(data["status"]) in TERMINAL:
        return f"{text}\n\nit has ended and does not wait"
    if not devices:
        return f"{text}\n\nno device has joined the cluster"
    lines = [
        (device["device_id"], device["eligible"], device.get("reasons") or []) for device in devices
    ]
    text += f"\n\n{table(('DEVICE', 'ELIGIBLE', 'WHY NOT'), lines, style, width=width)}"
    if any(device["eligible"] for device in devices):
        return text
    found = {str(why) for device in devices for why in device.get("reasons") or []}
    shown = "\n".join(dict.fromkeys(filter(None, map(cure, sorted(found)))))
    return f"{text}\n\n{shown}" if shown else text


def cure(reason: str) -> str:
    """Return what helps against a reason, empty where nothing is to be typed."""
    for start, text in _CURES.items():
        if reason.startswith(start):
            return text.format(clean(reason[len(start) :]))
    return ""

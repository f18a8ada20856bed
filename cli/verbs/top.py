"""`retire-cluster top`: the cluster as it works, redrawn every two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.output import Style, table
from retire_cluster.cli.session import Session, all_items, connection_flags, run_verb, verb_parser
from retire_cluster.cli.verbs.status import status_text
from retire_cluster.schemas.text.clean_text import escaped_lines

HEADERS = (
    "DEVICE", "STATUS", "RUNNING", "SLOTS", "CPU %", "MEM %", "TEMP", "BATTERY", "DONE", "FAILED",
)  # fmt: skip
#: More devices than this are not asked one by one.
_SHOWN = 60
_CLEAR = "\x1b[H\x1b[2J"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser(
        "top",
        "The cluster as it works; Ctrl-C ends it.",
        parents=[connection_flags()],
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks (2)"
    )
    parser.add_argument("--once", action="store_true", help="look once and end")
    args = parser.parse_args(argv)
    if not 0.2 <= args.interval <= 3600:
        parser.error("--interval: must be from 0.2 to 3600")
    return run_verb(args, watch)


def watch(session: Session, pause: Callable[[float], None] = time.sleep) -> int:
    """Draw until interrupted; once when nobody looks (a pipe, `--json`, `--once`)."""
    output, args = session.output, session.args
    once = args.once or output.as_json or not output.out.isatty()
    try:
        while True:
            found = look(session)
            if once:
                output.data(found, text(found, session.target.address, output.style, output.width))
                return exits.OK
            drawn = text(found, session.target.address, output.style, output.width)
            output.out.write(f"{_CLEAR}{escaped_lines(drawn, painted=True)}\n")
            output.out.flush()
            pause(args.interval)
    except KeyboardInterrupt:
        return exits.OK


def look(session: Session) -> dict[str, Any]:
    """Return the cluster's status and every device's."""
    client = session.client
    status = client.call("cluster.status")
    devices = list(all_items(client, "device.list", {}))
    details = [
        client.call("device.get", {"device_id": device["device_id"]}) for device in devices[:_SHOWN]
    ]
    return {**status, "devices": details, "more_devices": max(0, len(devices) - _SHOWN)}


def text(found: Mapping[str, Any], address: str, style: Style, width: int) -> str:
    """Return what is drawn."""
    rows = [_row(device) for device in found["devices"]]
    # Who works first, then who is there.
    rows.sort(key=lambda row: (-(row[2] or 0), row[1] != "online", row[0]))
    shown = table(HEADERS, rows, style, width=width) if rows else "no device has joined yet"
    more = f"\nand {found['more_devices']} more" if found["more_devices"] else ""
    return f"{status_text(found, address, style)}\n\n{shown}{more}"


def _row(device: Mapping[str, Any]) -> tuple[Any, ...]:
    metrics = device.get("metrics") or {}
    return (
        device["device_id"],
        device["status"],
        len(device["running_tasks"]),
        device["slots"],
        metrics.get("cpu_percent"),
        metrics.get("memory_percent"),
        metrics.get("temperature_c"),
        metrics.get("battery_percent"),
        device["tasks_succeeded"],
        device["tasks_failed"],
    )

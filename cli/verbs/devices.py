"""`retire-cluster devices`: the machines of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.output import Style, facts, table
from retire_cluster.cli.session import (
    Session,
    all_items,
    call_each,
    connection_flags,
    given,
    run_verb,
    verb_parser,
)
from retire_cluster.schemas.vocabulary import Platform, Role

HEADERS = ("DEVICE", "STATUS", "ROLE", "PLATFORM", "CORES", "GB", "UP", "LAST HEARTBEAT", "TAGS")
_PING_SECONDS = 1.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser("devices", "The machines of the cluster.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parents = [connection_flags()]

    def add(name: str, text: str, command: Callable[[Session], int]) -> Any:
        found = verbs.add_parser(name, help=text, parents=parents, allow_abbrev=False)
        found.set_defaults(command=command)
        return found

    listing = add("ls", "list them", ls)
    listing.add_argument("--status", choices=["online", "offline", "all"])
    listing.add_argument("--role", choices=[role.value for role in Role])
    listing.add_argument("--platform", choices=[platform.value for platform in Platform])
    listing.add_argument("--tag", action="append", metavar="TAG", help="must have it; repeatable")
    add("show", "all about one", show).add_argument("device_ids", nargs=1, metavar="ID")
    for name, text, command in (
        ("ping", "a round trip to each", ping),
        ("drain", "let them finish and take nothing new", drain),
        ("resume", "let them take work again", resume),
        ("rm", "remove them; their running tasks go to others", remove),
        ("readmit", "let removed ones come back", readmit),
    ):
        add(name, text, command).add_argument("device_ids", nargs="+", metavar="ID")
    args = parser.parse_args(argv)
    return run_verb(args, args.command)


def ls(session: Session) -> int:
    """List devices."""
    args, output = session.args, session.output
    filters = given(status=args.status, role=args.role, platform=args.platform, tags=args.tag)
    rows = list(all_items(session.client, "device.list", filters))
    output.data(rows, devices_table(rows, output.style, output.width) if rows else "")
    if not rows:
        output.hint("no device" + (" matches" if filters else " has joined yet"))
    return exits.OK


def show(session: Session) -> int:
    """Show one device."""
    device = session.client.call("device.get", {"device_id": session.args.device_ids[0]})
    session.output.data(device, device_text(device, session.output.style))
    return exits.OK


def ping(session: Session) -> int:
    """Ping devices; 3 when one did not answer."""

    def line(data: Mapping[str, Any]) -> str:
        if data["ping_successful"]:
            return f"{data['device_id']}: {data['response_time_ms']:.1f} ms"
        return f"{data['device_id']}: no answer within {_PING_SECONDS:g} s"

    answers, code = _each(session, "device.ping", line, timeout_seconds=_PING_SECONDS)
    silent = [data for data in answers if not data["ping_successful"]]
    return exits.UNREACHABLE if silent and code == exits.OK else code


def drain(session: Session) -> int:
    """Stop giving devices work."""
    return _each(session, "device.drain", lambda data: f"{data['device_id']}: draining")[1]


def resume(session: Session) -> int:
    """Give devices work again."""
    return _each(session, "device.resume", lambda data: f"{data['device_id']}: accepting")[1]


def remove(session: Session) -> int:
    """Remove devices."""
    code = _each(session, "device.remove", lambda data: f"{data['device_id']}: removed")[1]
    if code == exits.OK and not session.output.as_json:
        session.output.hint("let one come back with: retire-cluster devices readmit ID")
    return code


def readmit(session: Session) -> int:
    """Lift the removal of devices."""
    return _each(session, "device.readmit", lambda data: f"{data['device_id']}: may join again")[1]


def _each(
    session: Session, op: str, line: Callable[[Mapping[str, Any]], str], **extra: Any
) -> tuple[list[dict[str, Any]], int]:
    return call_each(session, op, "device_id", session.args.device_ids, line, **extra)


def devices_table(rows: Iterable[Mapping[str, Any]], style: Style, width: int = 0) -> str:
    """Return devices as a table."""
    lines = []
    for device in rows:
        facts_of = device.get("capabilities") or {}
        lines.append(
            (
                device["device_id"],
                device["status"],
                device["role"],
                device["platform"],
                facts_of.get("cpu_count"),
                facts_of.get("memory_total_gb"),
                device.get("uptime"),
                device.get("last_heartbeat"),
                device.get("tags") or [],
            )
        )
    return table(HEADERS, lines, style, width=width)


def passed_over_line(entry: Mapping[str, Any]) -> str:
    """Return what a device gets none of for a while, and why."""
    need = f" ({entry['needs']})" if entry.get("needs") else ""
    return f"{entry['task_type']}{need} until {entry['until']}: {entry['message']}"


def own_type_line(entry: Mapping[str, Any]) -> str:
    """Return an own type and the package it comes from."""
    return f"{entry['name']} of {entry['distribution']} {entry['version'] or ''}".rstrip()


def device_text(device: Mapping[str, Any], style: Style) -> str:
    """Return all about one device, for people."""
    rows: list[tuple[str, Any]] = []
    for name, value in device.items():
        if name == "metrics_history":
            continue
        if name == "task_types":
            value = [entry["name"] if isinstance(entry, Mapping) else entry for entry in value]
        if name == "own_task_types":
            rows += [("own type", own_type_line(entry)) for entry in value]
        elif name == "passed_over":
            rows += [("passed over for", passed_over_line(entry)) for entry in value]
        elif isinstance(value, Mapping):
            rows += [(f"{name}.{inner}", item) for inner, item in value.items()]
        else:
            rows.append((name, value))
    return facts(rows, style)

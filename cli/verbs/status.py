"""`retire-cluster-status` and `retire-cluster status`: how the cluster is, at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.output import Output, Style, facts
from retire_cluster.cli.session import Session, all_items, connection_flags, given, run_verb
from retire_cluster.cli.verbs.devices import device_text, devices_table
from retire_cluster.conf import ports
from retire_cluster.conf.arguments import Parser
from retire_cluster.schemas.text.hosts import read_address
from retire_cluster.schemas.vocabulary import Role


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; return its exit code."""
    return _main(argv, "retire-cluster-status")


def umbrella(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    return _main(argv, "retire-cluster status")


def _main(argv: Sequence[str] | None, prog: str) -> int:
    parser = Parser(
        prog=prog,
        description="How the cluster is.",
        parents=[connection_flags()],
        allow_abbrev=False,
    )
    parser.add_argument(
        "address", nargs="?", metavar="HOST[:PORT]", help="the main node's admin socket (port 8080)"
    )
    parser.add_argument("--devices", action="store_true", help="list the devices too")
    parser.add_argument("--device", metavar="ID", help="show this device alone")
    parser.add_argument(
        "--role", choices=[role.value for role in Role], help="list the devices of this role"
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="wait for answers (10)"
    )
    args = parser.parse_args(argv)
    if args.timeout <= 0:
        parser.error("--timeout: must be above 0")
    if args.address is not None:
        if args.cluster_host is not None or args.cluster_port is not None:
            parser.error("give HOST[:PORT] or --cluster-host and --cluster-port, not both")
        try:
            args.cluster_host, args.cluster_port = read_address(args.address, ports.ADMIN)
        except ValueError as error:
            Output.standard().hint(f"{prog}: {error}")
            return exits.USAGE
    return run_verb(args, show, timeout_seconds=args.timeout)


def show(session: Session) -> int:
    """Ask and print what the flags name."""
    args, client, output = session.args, session.client, session.output
    if args.device:
        device = client.call("device.get", {"device_id": args.device})
        output.data(device, device_text(device, output.style))
        return exits.OK
    found = client.call("cluster.status")
    text = status_text(found, session.target.address, output.style)
    if args.devices or args.role:
        rows = list(all_items(client, "device.list", given(role=args.role)))
        found = {**found, "devices": rows}
        text = f"{text}\n\n{devices_table(rows, output.style, output.width)}"
    output.data(found, text)
    return exits.OK


def status_text(data: Mapping[str, Any], address: str, style: Style) -> str:
    """Return the cluster's status for people."""
    stats = data["cluster_stats"]
    totals = stats["total_resources"]
    server = data["server_info"]
    tasks = data.get("tasks") or {}
    online = f"{stats['online_devices']} of {stats['total_devices']} online"
    if stats["total_devices"]:
        online += f" ({stats['health_percentage']:g} %)"
    rows: list[tuple[str, Any]] = [
        ("main node", f"{address}, version {server['version']}, up {server['uptime']}"),
        ("devices", online),
        (
            "resources",
            f"{totals['cpu_cores']:g} cores, {totals['memory_gb']:g} GB memory, "
            f"{totals['storage_gb']:g} GB storage",
        ),
    ]
    if stats.get("by_role"):
        rows.append(("by role", stats["by_role"]))
    if stats.get("by_platform"):
        rows.append(("by platform", stats["by_platform"]))
    if tasks:
        rows.append(("queued", tasks.get("queued", 0)))
        rows.append(("running", tasks.get("running", 0)))
        ended = {name: n for name, n in (tasks.get("by_status") or {}).items() if n}
        if ended:
            rows.append(("tasks", ended))
    return facts(rows, style)

"""`retire-cluster token`: join lines for new devices."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from retire_cluster.cli import exits
from retire_cluster.cli.output import table
from retire_cluster.cli.session import Session, call_each, connection_flags, run_verb, verb_parser
from retire_cluster.conf import joining
from retire_cluster.conf.machine.addresses import is_loopback, public_host
from retire_cluster.schemas.text.hosts import HostError, bracketed, read_host

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
HEADERS = ("TOKEN", "STATE", "USED", "CREATED", "EXPIRES", "NOTE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser("token", "Join lines: each lets new devices into the cluster.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parents = [connection_flags()]
    create = verbs.add_parser(
        "create", help="make one and print the line to paste", parents=parents, allow_abbrev=False
    )
    create.add_argument("--uses", type=int, default=1, metavar="N", help="devices it lets in (1)")
    create.add_argument(
        "--age",
        type=age,
        default=3600,
        metavar="TIME",
        help="how long it works: 90s, 30m, 1h, 7d (1h)",
    )
    create.add_argument("--note", default="", metavar="TEXT", help="what it is for")
    create.add_argument(
        "--host",
        type=dialled,
        metavar="ADDRESS",
        help="where devices reach this main node (its LAN address)",
    )
    create.set_defaults(command=_create)
    verbs.add_parser("ls", help="list them", parents=parents, allow_abbrev=False).set_defaults(
        command=_ls
    )
    revoke = verbs.add_parser(
        "revoke", help="end them at once; devices that joined stay", parents=parents,
        allow_abbrev=False,
    )  # fmt: skip
    revoke.add_argument("token_ids", nargs="+", metavar="TOKEN")
    revoke.set_defaults(command=_revoke)
    args = parser.parse_args(argv)
    return run_verb(args, args.command)


def age(text: str) -> int:
    """Return the seconds of `90s`, `30m`, `1h`, `7d`, or of a number alone.

    Raises `argparse.ArgumentTypeError`.
    """
    found = re.fullmatch(r"([0-9]{1,7})([smhd]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 30m, 1h or 7d")
    return int(found[1]) * _UNITS[found[2] or "s"]


def dialled(text: str) -> str:
    """Return a host that devices can dial. Raises `argparse.ArgumentTypeError`."""
    try:
        return read_host(text)
    except HostError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _create(session: Session) -> int:
    args, output = session.args, session.output
    host = args.host or _host(session)
    made = session.client.call(
        "token.create", {"uses": args.uses, "age_seconds": args.age, "note": args.note}
    )
    word = joining.join_string(made, host)
    del made["token"]
    server = joining.find(session.target.data_dir)
    line = joining.one_line(server, host, word) if server is not None else ""
    output.data(
        {**made, "join": word, "one_line": line or None}, f"retire-cluster-worker --join {word}"
    )
    if line:
        output.hint(f"on a device with nothing but Python:\n{line}")
    what = "one device" if made["uses"] == 1 else f"{made['uses']} devices"
    output.hint(
        f"good for {what} until {made['expires_at']};"
        f" devices dial {bracketed(host)}:{made['worker_port']}"
    )
    if is_loopback(host):
        output.hint("this machine has no address on a network: name one with --host")
    return exits.OK


def _host(session: Session) -> str:
    if not is_loopback(session.target.host):
        return session.target.host
    bound = session.client.call("config.get", {"section": "server"})["worker_host"]
    return public_host(bound, session.target.public_host) or "127.0.0.1"


def _ls(session: Session) -> int:
    items = session.client.call("token.list")["items"]
    rows = [
        (
            item["token_id"], item["state"], f"{item['used']}/{item['uses']}",
            item["created_at"], item["expires_at"], item["note"],
        )
        for item in items
    ]  # fmt: skip
    output = session.output
    output.data(items, table(HEADERS, rows, output.style, width=output.width) if rows else "")
    if not rows:
        output.hint("no token; make one with: retire-cluster token create")
    return exits.OK


def _revoke(session: Session) -> int:
    _, code = call_each(
        session, "token.revoke", "token_id", session.args.token_ids,
        lambda data: f"{data['token_id']}: revoked",
    )  # fmt: skip
    return code

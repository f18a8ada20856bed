"""`retire-cluster admin-key`: CURVE keys that may administer this cluster from another machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retire_cluster.cli import exits
from retire_cluster.cli.output import table
from retire_cluster.cli.session import Session, call_each, connection_flags, run_verb, verb_parser
from retire_cluster.conf import curve
from retire_cluster.schemas.errors import ValidationError

HEADERS = ("NAME", "FINGERPRINT", "CREATED")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser(
        "admin-key", "Keys that may use the admin socket from elsewhere. They may do everything."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parents = [connection_flags()]
    create = verbs.add_parser(
        "create", help="make one and write it to a file", parents=parents, allow_abbrev=False
    )
    create.add_argument("name", metavar="NAME", help="whose it is")
    create.add_argument("--out", metavar="FILE", help="where it is written (NAME.key)")
    create.set_defaults(command=_create)
    verbs.add_parser("ls", help="list them", parents=parents, allow_abbrev=False).set_defaults(
        command=_ls
    )
    revoke = verbs.add_parser(
        "revoke", help="shut them out at once", parents=parents, allow_abbrev=False
    )
    revoke.add_argument("names", nargs="+", metavar="NAME")
    revoke.set_defaults(command=_revoke)
    args = parser.parse_args(argv)
    return run_verb(args, args.command)


def _create(session: Session) -> int:
    name = session.args.name
    path = Path(session.args.out or f"{name}.key")
    if path.exists():
        raise ValidationError("--out", f"{path} exists; name another file")
    pair = curve.new_pair()
    made = session.client.call("admin_key.add", {"name": name, "public_key": pair.public})
    try:
        curve.write_key_file(path, pair, server=made["server_key"])
    except OSError as error:
        session.client.call("admin_key.revoke", {"name": name})
        raise ValidationError("--out", f"{path} cannot be written: {error.strerror}") from None
    session.output.data({"name": name, "file": str(path)}, str(path))
    session.output.hint(
        "take this file to the other machine and use it there, as in:"
        f" retire-cluster status --cluster-host HOST --cluster-key {path.name}"
    )
    return exits.OK


def _ls(session: Session) -> int:
    items = session.client.call("admin_key.list")["items"]
    rows = [(item["name"], item["fingerprint"], item["created_at"]) for item in items]
    output = session.output
    output.data(items, table(HEADERS, rows, output.style, width=output.width) if rows else "")
    if not rows:
        output.hint("no key beside this machine's own")
    return exits.OK


def _revoke(session: Session) -> int:
    _, code = call_each(
        session, "admin_key.revoke", "name", session.args.names,
        lambda data: f"{data['name']}: revoked",
    )  # fmt: skip
    return code

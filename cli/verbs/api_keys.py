"""`retire-cluster keys`: keys for the REST API, kept as hashes beside the facade."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from retire_cluster.api.admission import keys as api_keys
from retire_cluster.api.content.envelope import utc
from retire_cluster.cli import exits
from retire_cluster.cli.endpoints import running_api
from retire_cluster.cli.output import table
from retire_cluster.cli.session import Session, connection_flags, run_verb, verb_parser
from retire_cluster.schemas.errors import ClusterError, NotFound, ValidationError
from retire_cluster.schemas.rights import SCOPES

HEADERS = ("KEY", "SCOPES", "CREATED", "LAST USED", "NOTE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser(
        "keys", "Keys for the REST API. A change counts at once; with keys, authentication is on."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parents = [connection_flags()]
    create = verbs.add_parser(
        "create", help="make one; it is shown this once", parents=parents, allow_abbrev=False
    )
    create.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="what it may do; repeatable (read and submit). submit:dangerous: also types that run"
        " code or reach out; admin: everything",
    )
    create.add_argument("--note", default="", metavar="TEXT", help="whose it is")
    create.set_defaults(command=_create)
    verbs.add_parser("ls", help="list them", parents=parents, allow_abbrev=False).set_defaults(
        command=_ls
    )
    revoke = verbs.add_parser("revoke", help="end them", parents=parents, allow_abbrev=False)
    revoke.add_argument("key_ids", nargs="+", metavar="KEY", help="as `keys ls` names it")
    revoke.set_defaults(command=_revoke)
    args = parser.parse_args(argv)
    return run_verb(args, args.command)


def _path(session: Session) -> Path:
    return session.target.data_dir / api_keys.FILE_NAME


def _kept(path: Path) -> list[api_keys.ApiKey]:
    try:
        return api_keys.read_keys(path)
    except api_keys.ApiKeyFileError as error:
        raise ValidationError("", str(error)) from None


def _write(path: Path, keys: Sequence[api_keys.ApiKey]) -> None:
    try:
        api_keys.write_keys(path, keys)
    except OSError as error:
        raise ValidationError("", f"{path} cannot be written: {error.strerror}") from None


def _tell(session: Session, change: str, key_ids: list[str], scopes: Sequence[str] = ()) -> None:
    """Have the main node make events of what has been done; it counts without that, too."""
    args = {"change": change, "key_ids": key_ids, "scopes": list(scopes)}
    try:
        session.client.call("api_key.changed", args)
    except ClusterError:
        session.output.hint("no main node was told: its events do not tell of this")


def _create(session: Session) -> int:
    path, args, output = _path(session), session.args, session.output
    scopes = list(dict.fromkeys(args.scope or ("read", "submit")))
    key = api_keys.generate()
    record = api_keys.key_of(key, scopes=scopes, note=args.note, at=utc(time.time()))
    before = _kept(path)
    _write(path, [*before, record])
    output.data({"key": key, "key_id": record.key_id, "scopes": scopes, "note": args.note}, key)
    output.hint(f"{record.key_id} ({', '.join(scopes)}); the key itself is not kept: copy it now")
    if not before and running_api(session.target.data_dir) is not None:
        output.hint("a REST API that was started without keys asks for one after its next start")
    _tell(session, "created", [record.key_id], scopes)
    return exits.OK


def _ls(session: Session) -> int:
    kept, output = _kept(_path(session)), session.output
    uses = {}
    with suppress(ClusterError):  # the list is worth something without the main node, too
        uses = session.client.call("api_key.uses")["items"]
    items = []
    rows = []
    for key in kept:
        used = uses.get(key.key_id)
        scopes = list(key.scopes)
        items.append(
            {
                "key_id": key.key_id,
                "scopes": scopes,
                "created_at": key.created_at,
                "last_used_at": used,
                "note": key.note,
            }
        )
        rows.append((key.key_id, ", ".join(scopes), key.created_at, used or "never", key.note))
    output.data(items, table(HEADERS, rows, output.style, width=output.width) if rows else "")
    if not rows:
        output.hint("no key; make one with: retire-cluster keys create")
    return exits.OK


def _revoke(session: Session) -> int:
    path, wanted = _path(session), session.args.key_ids
    kept = _kept(path)
    for key_id in wanted:
        found = [key for key in kept if key.key_id == key_id]
        if not found:
            raise NotFound(f"there is no key {key_id!r}; see: retire-cluster keys ls")
    _write(path, [key for key in kept if key.key_id not in wanted])
    session.output.data(
        [{"key_id": key_id} for key_id in wanted],
        "\n".join(f"{key_id}: revoked" for key_id in wanted),
    )
    _tell(session, "revoked", list(dict.fromkeys(wanted)))
    return exits.OK

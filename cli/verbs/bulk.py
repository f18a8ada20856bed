"""`tasks cancel` and `tasks retry` for all tasks that match, asked for first and counted."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from retire_cluster.cli import exits
from retire_cluster.cli.retrying import SettlingClient
from retire_cluster.cli.session import PAGE_SIZE, Session, given
from retire_cluster.cli.target import Caller
from retire_cluster.schemas.errors import (
    CannotRetryTask,
    TaskJustEnded,
    TaskNotFound,
)
from retire_cluster.schemas.vocabulary import PRIORITIES

#: What a bulk command means where no status is named.
STATUSES: Final[Mapping[str, tuple[str, ...]]] = {
    "cancel": ("pending", "queued", "assigned", "running"),
    "retry": ("failed", "timeout"),
}
_ALSO: Final[Mapping[str, tuple[str, ...]]] = {"cancel": (), "retry": ("cancelled",)}
_AT_ONCE: Final = 1_000


def add_flags(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add the flags that say which tasks are meant: ids, or what they have in common."""
    parser.add_argument("task_ids", nargs="*", metavar="ID")
    group = parser.add_argument_group("many at once")
    shown = ", ".join(STATUSES[verb])
    group.add_argument(
        "--status", choices=(*STATUSES[verb], *_ALSO[verb]), help=f"only these; default: {shown}"
    )
    group.add_argument("--type", metavar="TYPE", help="only of this type")
    group.add_argument("--priority", choices=PRIORITIES)
    group.add_argument("--device", metavar="ID", help="only those assigned to this device")
    group.add_argument("--all", action="store_true", help="all of them")
    group.add_argument("--yes", "-y", action="store_true", help="do not ask")


def is_bulk(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Tell whether tasks are named by what they have in common; exits 2 when that is not clear."""
    filters = any((args.status, args.type, args.priority, args.device, args.all))
    if filters and args.task_ids:
        parser.error("give ids, or what they have in common, not both")
    if not filters and not args.task_ids:
        parser.error("which? give ids, or --status, --type, --priority, --device, --all")
    return filters


def run(session: Session) -> int:
    """Count what matches, ask, act on it, and say how many it was."""
    args, verb = session.args, str(session.args.verb)
    statuses = (args.status,) if args.status else STATUSES[verb]
    filters = given(task_type=args.type, priority=args.priority, device_id=args.device)
    counts = {status: _count(session.client, {**filters, "status": status}) for status in statuses}
    total = sum(counts.values())
    if total and not args.yes:
        shown = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
        question = f"{verb} {total:,} tasks ({shown})?"
        if not _can_ask(session):
            session.output.hint(f"{question} Say so with --yes")
            return exits.USAGE
        if not _confirmed(session, question):
            session.output.hint("nothing was done")
            return exits.INTERRUPTED
    found = [
        task_id
        for status in statuses
        if counts[status]
        for task_id in _ids(session.client, {**filters, "status": status})
    ]
    done: Counter[str] = Counter()
    act = _ACTIONS[verb]
    past = {"cancel": "cancelled", "retry": "retried"}[verb]
    try:
        for start in range(0, len(found), _AT_ONCE):
            part = found[start : start + _AT_ONCE]
            act(session.client, part, done)
    except BaseException:
        session.output.hint(f"stopped; {done['done']:,} of {len(found):,} {past}")
        raise
    left = len(found) - done["done"]
    more = f"; {left:,} had changed meanwhile" if left else ""
    data = {past: done["done"], f"not_{past}": left}
    session.output.data(data, f"{done['done']:,} tasks {past}{more}")
    return exits.OK


def _count(client: Caller, filters: Mapping[str, Any]) -> int:
    data = client.call("task.list", {**filters, "page_size": 1})
    return int(data["pagination"]["total_items"])


def _ids(client: Caller, filters: Mapping[str, Any]) -> list[str]:
    """Return the ids of all that match now; by a cursor, so that new tasks move no page."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        asked = {**filters, "page_size": PAGE_SIZE, **given(after=cursor)}
        data = client.call("task.list", asked)
        found += [item["task_id"] for item in data["items"]]
        cursor = data["pagination"].get("next_cursor")
        if not cursor:
            return found


def _can_ask(session: Session) -> bool:
    return not session.output.as_json and sys.stdin.isatty() and session.output.err.isatty()


def _confirmed(session: Session, question: str) -> bool:
    err = session.output.err
    err.write(f"{question} [y/N] ")
    err.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _cancel(client: Caller, task_ids: Sequence[str], done: Counter[str]) -> None:
    data = client.call("task.cancel_many", {"task_ids": list(task_ids)})
    done["done"] += len(data["cancelled"])


def _retry(client: Caller, task_ids: Sequence[str], done: Counter[str]) -> None:
    settling = SettlingClient(client)
    for task_id in task_ids:
        try:
            settling.call("task.retry", {"task_id": task_id})
        except (CannotRetryTask, TaskJustEnded, TaskNotFound):
            continue
        done["done"] += 1


_ACTIONS: Final[Mapping[str, Callable[[Caller, Sequence[str], Counter[str]], None]]] = {
    "cancel": _cancel,
    "retry": _retry,
}

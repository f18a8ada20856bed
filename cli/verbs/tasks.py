"""`retire-cluster tasks`: what was asked of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.output import Style, facts, pretty, table
from retire_cluster.cli.retrying import SettlingClient
from retire_cluster.cli.session import (
    PAGE_SIZE,
    Session,
    call_each,
    connection_flags,
    given,
    run_verb,
    verb_parser,
)
from retire_cluster.cli.verbs import bulk
from retire_cluster.cli.waiting import missing, print_result, wait_and_print
from retire_cluster.schemas.vocabulary import PRIORITIES, TaskStatus

HEADERS = ("TASK", "STATUS", "TYPE", "PRIORITY", "CREATED", "SECONDS", "RETRIES", "DEVICE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser("tasks", "What was asked of the cluster.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parents = [connection_flags()]

    def add(name: str, text: str, command: Callable[[Session], int]) -> Any:
        found = verbs.add_parser(name, help=text, parents=parents, allow_abbrev=False)
        found.set_defaults(command=command)
        return found

    listing = add("ls", "list them, newest first", ls)
    listing.add_argument("--status", choices=[status.value for status in TaskStatus])
    listing.add_argument("--type", metavar="TYPE")
    listing.add_argument("--priority", choices=PRIORITIES)
    listing.add_argument("--device", metavar="ID", help="assigned to this device")
    listing.add_argument(
        "--limit", type=_limit, default=20, metavar="N", help="how many (20); 0 for all"
    )
    for name, text, command in (
        ("show", "all about one", show),
        ("result", "its result; exit 1 if it did not succeed", result),
        ("logs", "what it wrote, and its traceback", logs),
    ):
        verb = add(name, text, command)
        verb.add_argument("task_ids", nargs=1, metavar="ID")
        if name == "logs":
            verb.add_argument("--raw", action="store_true", help="unchanged on a terminal too")
    cancelling = add("cancel", "cancel them, by id or all that match", cancel)
    bulk.add_flags(cancelling, "cancel")
    retrying = add("retry", "run ended ones again, by id or all that match", retry)
    bulk.add_flags(retrying, "retry")
    waiting = add("wait", "wait until they have ended", wait)
    waiting.add_argument("task_ids", nargs="+", metavar="ID")
    waiting.add_argument("--timeout", type=float, metavar="SECONDS", help="give up (exit 7)")
    args = parser.parse_args(argv)
    many = {"cancel": cancelling, "retry": retrying}.get(args.verb)
    if many is not None and bulk.is_bulk(many, args):
        args.command = bulk.run
    return run_verb(args, args.command)


def ls(session: Session) -> int:
    """List tasks."""
    args, output = session.args, session.output
    filters = given(
        status=args.status, task_type=args.type, priority=args.priority, device_id=args.device
    )
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    more = True
    while more:
        left = args.limit - len(rows) if args.limit else PAGE_SIZE
        asked = {**filters, "page_size": min(PAGE_SIZE, left)}
        data = session.client.call("task.list", asked | given(after=cursor))
        rows += data["items"]
        cursor = data["pagination"].get("next_cursor")
        more = bool(cursor and data["items"]) and (not args.limit or len(rows) < args.limit)
    output.data(rows, tasks_table(rows, output.style, output.width) if rows else "")
    if not rows:
        output.hint("no task" + (" matches" if filters else " was submitted yet"))
    elif cursor and output.err.isatty():
        output.hint(f"the newest {len(rows)}; all with --limit 0")
    return exits.OK


def show(session: Session) -> int:
    """Show one task."""
    task = session.client.call("task.get", {"task_id": session.args.task_ids[0]})
    session.output.data(task, task_text(task, session.output.style))
    return exits.OK


def result(session: Session) -> int:
    """Print a task's result."""
    found = session.client.call("task.result", {"task_id": session.args.task_ids[0]})
    if session.output.as_json:
        session.output.data(found, "")
    else:
        print_result(session, found)
    return exits.for_task_status(found["status"])


def logs(session: Session) -> int:
    """Print what a task wrote."""
    found = session.client.call("task.result", {"task_id": session.args.task_ids[0]})
    fields = ("task_id", "logs", "error_message", "error_traceback", "truncated")
    outputs = _outputs(found.get("result_data"))
    parts = [_lines(found.get("logs")), found.get("error_traceback"), _lines(outputs.get("stdout"))]
    if errors := _lines(outputs.get("stderr")):
        parts.append(f"stderr:\n{errors}" if parts[-1] else errors)
    text = "\n".join(part for part in parts if part)
    shown = session.output.written(text, raw=session.args.raw)
    told = {**{name: found.get(name) for name in fields}, **outputs}
    session.output.data(told, shown, as_it_is=True)
    if not text:
        session.output.hint("it wrote nothing")
    for line in missing(found):
        session.output.hint(line)
    return exits.OK


def _outputs(result: Any) -> dict[str, str]:
    """Return what a `command` wrote, which is in its result; empty for any other."""
    names = ("stdout", "stderr")
    if not isinstance(result, Mapping) or "return_code" not in result:
        return {}
    return {name: result[name] for name in names if isinstance(result.get(name), str)}


def cancel(session: Session) -> int:
    """Cancel tasks."""
    return _each(session, "task.cancel")


def retry(session: Session) -> int:
    """Run ended tasks again."""
    return _each(replace(session, client=SettlingClient(session.client)), "task.retry")


def wait(session: Session) -> int:
    """Wait for tasks."""
    return wait_and_print(session, session.args.task_ids, session.args.timeout)


def _each(session: Session, op: str) -> int:
    def line(task: Mapping[str, Any]) -> str:
        return f"{task['task_id']}: {task['status']}"

    return call_each(session, op, "task_id", session.args.task_ids, line)[1]


def tasks_table(rows: Sequence[Mapping[str, Any]], style: Style, width: int = 0) -> str:
    """Return tasks as a table."""
    names: tuple[str, ...] = (
        "task_id", "status", "task_type", "priority", "created_at", "execution_time_seconds",
        "retry_count", "assigned_device_id",
    )  # fmt: skip
    headers: tuple[str, ...] = HEADERS
    if any(task.get("due_at") for task in rows):  # delayed, or between two tries
        headers, names = (*HEADERS, "DUE"), (*names, "due_at")
    return table(headers, ([task.get(name) for name in names] for task in rows), style, width=width)


def task_text(task: Mapping[str, Any], style: Style) -> str:
    """Return all about one task, for people."""
    nested = ("payload", "result", "attempts", "error_history")
    plain = [(name, value) for name, value in task.items() if name not in nested]
    parts = [facts(plain, style)]
    attempts = task.get("attempts") or []
    if attempts:
        headers = list(dict.fromkeys(name for attempt in attempts for name in attempt))
        rows = [[attempt.get(name) for name in headers] for attempt in attempts]
        parts.append(table([name.upper() for name in headers], rows, style))
    parts += [
        f"{name}:\n{pretty(task[name], style)}"
        for name in ("payload", "result")
        if task.get(name) is not None
    ]
    if lines := missing(task.get("result")):
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _lines(logs_of_task: Any) -> str:
    if isinstance(logs_of_task, (list, tuple)):
        return "\n".join(str(line) for line in logs_of_task)
    return str(logs_of_task or "").rstrip("\n")


def _limit(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number

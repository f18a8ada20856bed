"""`retire-cluster submit`: give the cluster a task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.payloads import (
    add_task_flags,
    check_sendable,
    payload_from_words,
    read_json_object,
    read_pair,
    read_value,
    task_from_flags,
    why,
)
from retire_cluster.cli.session import Session, connection_flags, run_verb, verb_parser
from retire_cluster.cli.stdin import read_whole
from retire_cluster.cli.waiting import look_again, wait_and_print
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.text import json_text

_EPILOG = """\
examples:
  retire-cluster submit echo message=Hello --wait
  retire-cluster submit sleep duration=3 --require min_cpu_cores=2
  retire-cluster submit python_eval expression='sum(range(10))' --wait
  retire-cluster submit command 'command=["uname", "-a"]' --require required_tags=lab,linux
  retire-cluster submit http_request @request.json
  echo '{"message": "Hello"}' | retire-cluster submit echo -

A value is JSON where it is JSON, else text; `name:=VALUE` insists on JSON.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser(
        "submit",
        "Give the cluster a task.",
        parents=[connection_flags()],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task_type", metavar="TYPE", help="what to do: echo, sleep, command ...")
    parser.add_argument(
        "payload",
        nargs="*",
        metavar="k=v | @file.json | -",
        help="the payload: fields, a JSON object, a file with one, or - for standard input",
    )
    add_task_flags(parser)
    parser.add_argument(
        "--metadata", action="append", default=[], metavar="k=v", help="kept with the task"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end and print the result")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="with --wait: give up waiting (exit 7)"
    )
    args = parser.parse_intermixed_args(argv)
    if args.timeout is not None and (not args.wait or args.timeout < 0):
        parser.error("--timeout: goes with --wait and is not negative")
    return run_verb(args, submit)


def submit(session: Session) -> int:
    """Submit, and wait where asked."""
    args, output = session.args, session.output
    payload = json_text.dumps(_payload(args.task_type, args.payload))
    task = {**task_from_flags(args), "metadata": _metadata(args.metadata)}
    data = session.client.call("task.submit", {"task": task}, [payload])
    task_id = data["task_ids"][0]
    view = (data.get("tasks") or [{"task_id": task_id}])[0]
    due = view.get("due_at")
    if args.wait:
        first = f"submitted {task_id}" + (f", starts at {due}, not before" if due else "")
        return wait_and_print(session, [task_id], args.timeout, first=first)
    shown = {"task_id": task_id, "task": view, "submitted_at": data.get("submitted_at")}
    output.data(shown, task_id, message="Task submitted")
    if due and not output.as_json:
        output.hint(f"it starts at {due}, not before")
    if not output.as_json and output.err.isatty():
        output.hint(f"wait for it with: {look_again([task_id])}")
    return exits.OK


def _payload(task_type: str, words: Sequence[str]) -> dict[str, Any]:
    if words == ["-"]:
        return read_json_object(read_whole("payload"), "standard input")
    if len(words) == 1 and words[0].startswith("@"):
        name = words[0][1:]
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationError("payload", f"{name} cannot be read: {why(error)}") from None
        return read_json_object(text, name)
    if len(words) == 1 and words[0].startswith("{"):
        return read_json_object(words[0], "payload")
    return payload_from_words(task_type, words)


def _metadata(words: Sequence[str]) -> dict[str, Any]:
    pairs = [read_pair(word, "metadata") for word in words]
    found = {name: read_value(text) for name, text in pairs}
    check_sendable(found, "metadata")
    return found

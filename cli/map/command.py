"""`retire-cluster map`: a task for every line of a file, results in the order of the lines."""

from __future__ import annotations

import argparse
import contextlib
import uuid
from collections.abc import Sequence

from retire_cluster.cli import exits
from retire_cluster.cli.map.journal import Journal
from retire_cluster.cli.map.run import Lines, Run, settle
from retire_cluster.cli.map.run import cancel as cancel_tasks
from retire_cluster.cli.payloads import add_task_flags, task_from_flags
from retire_cluster.cli.retrying import ReconnectingClient
from retire_cluster.cli.session import Session, connection_flags, run_verb, verb_parser
from retire_cluster.schemas.errors import ValidationError

_EPILOG = """\
examples:
  seq 100 | sed 's/.*/{"expression": "& ** 2"}/' | retire-cluster map python_eval -
  retire-cluster map thumbnail photos.jsonl --resume photos > results.jsonl
  retire-cluster map thumbnail photos.jsonl --resume photos --retry-failed > results.jsonl
  retire-cluster map --cancel photos

Each line of the output is {"line", "task_id", "status", "result_data", "error_message"},
with "truncated" where a result is not whole.

With --resume NAME, running it again goes on where it stopped, as long as the cluster keeps the
tasks (7 days). Lines that were submitted before are not submitted again, lines that are new or
changed are; what was cancelled runs again, what failed only with --retry-failed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser(
        "map", "A task for every line of a file of JSON objects; results in the lines' order.",
        parents=[connection_flags()], epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("task_type", metavar="TYPE", nargs="?", help="what to do with each line")
    parser.add_argument(
        "file", metavar="FILE.jsonl", nargs="?", help="a payload a line; - is standard input"
    )
    add_task_flags(parser)
    parser.add_argument(
        "--window", type=int, default=5_000, metavar="N", help="tasks under way at once (5000)"
    )
    parser.add_argument(
        "--unordered", action="store_true", help="print each result as soon as it is there"
    )
    parser.add_argument("--resume", metavar="NAME", help="go on with an earlier run of this name")
    parser.add_argument(
        "--retry-failed", action="store_true",
        help="with --resume: run again what failed or timed out, and nothing else",
    )  # fmt: skip
    parser.add_argument(
        "--cancel-on-interrupt", action="store_true",
        help="Ctrl-C cancels what was submitted; else it runs on (a terminal is asked)",
    )  # fmt: skip
    parser.add_argument(
        "--cancel", metavar="NAME", help="cancel what an earlier run of this name left, and end"
    )
    args = parser.parse_intermixed_args(argv)
    if not 1 <= args.window <= 1_000_000:
        parser.error("--window: must be from 1 to 1000000")
    if args.cancel is not None:
        if args.task_type is not None:
            parser.error("--cancel: goes without TYPE and FILE")
        return run_verb(args, cancel)
    if args.file is None:
        parser.error("TYPE and FILE.jsonl are required")
    if args.retry_failed and not args.resume:
        parser.error("--retry-failed: goes with --resume NAME")
    return run_verb(args, run)


def run(session: Session) -> int:
    """Submit a task for each line, wait, and print the results."""
    args = session.args
    task = task_from_flags(args)
    lines = Lines.read(args.file)
    name = args.resume or f"{args.task_type[:30]}-{uuid.uuid4().hex[:6]}"
    client = _client(session)
    with contextlib.ExitStack() as held:
        journal: Journal | None = Journal(session.target.data_dir / "map", name)
        try:
            held.enter_context(journal or contextlib.nullcontext())
        except ValidationError:
            if args.resume:
                raise
            journal = None  # nobody asked for it: it cannot be gone on with, that is all
        return Run(client, session.output, task, lines, journal, args).all()


def cancel(session: Session) -> int:
    """Cancel what a run has left."""
    name = session.args.cancel
    client = _client(session)
    with Journal(session.target.data_dir / "map", name, "--cancel") as journal:
        settle(client, journal)
        if not journal.task_ids:
            raise ValidationError("--cancel", f"no run {name!r} is known on this machine")
        count = cancel_tasks(client, journal.task_ids)
    session.output.data({"cancelled": count}, f"{count} cancelled")
    return exits.OK


def _client(session: Session) -> ReconnectingClient:
    """Return a client that waits for a main node it has met; raise where none is there at all."""
    client = ReconnectingClient(session.client, session.output.hint, session.target.address)
    client.call("broker.info")
    return client

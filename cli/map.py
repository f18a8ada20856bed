"""`retire-cluster map`: a task for every line of a file, results in the order of the lines."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from retire_cluster.cli import common, exits
from retire_cluster.cli.common import Session
from retire_cluster.cli.output import clean_json
from retire_cluster.cli.payloads import read_json_object, requirements_from_words
from retire_cluster.cli.waiting import wait_for
from retire_cluster.schemas import jsontext
from retire_cluster.schemas.errors import ClusterUnavailable, QueueFull, ValidationError
from retire_cluster.schemas.vocabulary import PRIORITIES

CHUNK = 200
#: How long a main node may be away, or full, before it is given up.
_PATIENCE_SECONDS = 60.0
_EPILOG = """\
examples:
  seq 100 | sed 's/.*/{"expression": "& ** 2"}/' | retire-cluster map python_eval -
  retire-cluster map thumbnail photos.jsonl --resume photos > results.jsonl

Each line of the output is {"line", "task_id", "status", "result_data", "error_message"},
with "truncated" where a result is not whole.
With --resume NAME, running it again on the same file goes on where it stopped (for a day).
"""


@dataclass
class Progress:
    """How far it is; one line that is written over, on a terminal."""

    total: int
    stream: TextIO
    done: int = 0
    failed: int = 0
    began: float = field(default_factory=time.monotonic)

    def step(self, results: Sequence[dict[str, Any]]) -> None:
        """Count results and show it."""
        self.done += len(results)
        self.failed += sum(result["status"] != "success" for result in results)
        if self.stream.isatty():
            rate = self.done / max(0.001, time.monotonic() - self.began)
            size = 24
            full = size * self.done // max(1, self.total)
            bar = "#" * full + "." * (size - full)
            failed = f", {self.failed} failed" if self.failed else ""
            self.stream.write(f"\r[{bar}] {self.done:,} of {self.total:,}{failed}, {rate:,.0f}/s ")
            self.stream.flush()

    def end(self) -> None:
        """Leave the line."""
        if self.stream.isatty() and self.done:
            self.stream.write("\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The verb."""
    parser = common.verb_parser(
        "map", "A task for every line of a file of JSON objects; results in the lines' order.",
        parents=[common.connection_flags()], epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("task_type", metavar="TYPE", help="what to do with each line")
    parser.add_argument("file", metavar="FILE.jsonl", help="a payload a line; - is standard input")
    parser.add_argument("--priority", choices=PRIORITIES, default="normal")
    parser.add_argument(
        "--requirement", "--require", action="append", default=[], metavar="k=v",
        help="what the devices must have, or timeout_seconds, max_retries; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=int, default=5_000, metavar="N", help="tasks under way at once (5000)"
    )
    parser.add_argument("--resume", metavar="NAME", help="go on with an earlier run of this name")
    args = parser.parse_args(argv)
    if not 1 <= args.window <= 1_000_000:
        parser.error("--window: must be from 1 to 1000000")
    return common.run(args, run)


def run(session: Session) -> int:
    """Submit in chunks, wait for the oldest, print in order."""
    args, output = session.args, session.output
    payloads = _payloads(args.file)
    task = {
        "task_type": args.task_type,
        "priority": args.priority,
        "requirements": requirements_from_words(args.requirement),
    }
    name = args.resume or str(uuid.uuid4())
    progress = Progress(len(payloads), output.err)
    under_way: deque[tuple[int, list[str]]] = deque()
    waiting = 0
    chunks = _chunks(len(payloads))
    start = next(chunks, None)
    try:
        while start is not None or under_way:
            while start is not None and waiting < args.window:
                ids = _submit(session, task, payloads[start : start + CHUNK], f"{name}:{start}")
                under_way.append((start, ids))
                waiting += len(ids)
                start = next(chunks, None)
            first, ids = under_way.popleft()
            results, _ = wait_for(session.client, ids, None)
            waiting -= len(ids)
            _print(first, ids, results)
            progress.step(results)
    except KeyboardInterrupt:
        progress.end()
        output.hint(f"stopped; {waiting} submitted tasks go on")
        if args.resume:
            output.hint(f"go on with: the same command and --resume {name}")
        return exits.INTERRUPTED
    progress.end()
    if progress.failed:
        output.hint(f"{progress.failed} of {progress.total} did not succeed")
    return exits.TASK_FAILED if progress.failed else exits.OK


def _payloads(name: str) -> list[bytes]:
    """The lines of the file as payloads; blank ones are left out."""
    try:
        text = sys.stdin.read() if name == "-" else open(name, encoding="utf-8").read()  # noqa: SIM115
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError("FILE", f"{name} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found.append(jsontext.dumps(read_json_object(line, f"line {number} of {name}")))
    return found


def _chunks(total: int) -> Iterator[int]:
    return iter(range(0, total, CHUNK))


def _submit(
    session: Session, task: dict[str, Any], payloads: Sequence[bytes], key: str
) -> list[str]:
    """The ids of a chunk's tasks; said again until it was heard, and done once."""
    args = {
        "task": task,
        "count": len(payloads),
        "brief": True,
        "owner": "retire-cluster map",
        "idempotency_key": hashlib.sha256(key.encode()).hexdigest()[:40],
        "fingerprint": hashlib.sha256(
            jsontext.dumps(task) + b"\n" + b"\n".join(payloads)
        ).hexdigest(),
    }
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            found: list[str] = session.client.call(
                "task.submit", args, payloads, timeout_seconds=30.0
            )["task_ids"]
            return found
        except (ClusterUnavailable, QueueFull) as error:
            if time.monotonic() > until:
                raise
            time.sleep(min(5.0, error.retry_after or 1.0))


def _print(first: int, ids: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    by_id = {result["task_id"]: result for result in results}
    for number, task_id in enumerate(ids, first + 1):
        result = by_id[task_id]
        row = {
            "line": number,
            "task_id": task_id,
            "status": result["status"],
            "result_data": result.get("result_data"),
            "error_message": result.get("error_message"),
        }
        if result.get("truncated"):
            row["truncated"] = result["truncated"]
        sys.stdout.write(clean_json(jsontext.dumps(row).decode("utf-8")) + "\n")
    sys.stdout.flush()

"""How a `map` runs: chunks are submitted, waited for and printed, whatever happens meanwhile."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import sys
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from retire_cluster.cli import exits
from retire_cluster.cli.map.journal import BatchSubmission, Journal, digest
from retire_cluster.cli.map.progress import Progress
from retire_cluster.cli.output import Output, clean_json
from retire_cluster.cli.payloads import read_json_object, why
from retire_cluster.cli.retrying import SettlingClient
from retire_cluster.cli.stdin import read_whole
from retire_cluster.cli.target import Caller
from retire_cluster.cli.waiting import wait_for
from retire_cluster.schemas.errors import CannotRetryTask, TaskNotFound, ValidationError
from retire_cluster.schemas.text import json_text

CHUNK: Final = 200
_CANCEL_AT_ONCE: Final = 1_000
#: How long an unordered look at the oldest chunk may take.
_LOOK_SECONDS: Final = 1.0
_FAILED: Final = frozenset({"failed", "timeout"})
_GONE: Final = "gone"
Result = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """The payloads of a file."""

    file: str
    payloads: list[bytes]

    @classmethod
    def read(cls, name: str) -> Lines:
        """Read all lines but blank ones of a file, `-` for standard input.

        Raises `ValidationError` naming the first line that is wrong.
        """
        try:
            if name == "-":
                text = read_whole("FILE")
            else:
                with open(name, encoding="utf-8") as file:
                    text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationError("FILE", f"{name} cannot be read: {why(error)}") from None
        found = []
        # Not `splitlines`: a text in JSON may hold what Unicode calls the end of a line.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                found.append(json_text.dumps(read_json_object(line, f"line {number} of {name}")))
        return cls(name, found)


@dataclass
class Chunk:
    """Some lines in a row that are under way."""

    first: int
    #: Their tasks.
    ids: list[str]
    #: Positions whose result was not printed yet.
    left: list[int]

    @property
    def waited(self) -> list[str]:
        """The tasks whose results are still to be printed."""
        return [self.ids[position] for position in self.left]


class Run:
    """One run from its first line to its last."""

    def __init__(
        self,
        client: Caller,
        output: Output,
        task: dict[str, Any],
        lines: Lines,
        journal: Journal | None,
        args: argparse.Namespace,
    ) -> None:
        self._client = client
        self._output = output
        self._task = task
        self._payloads = lines.payloads
        self._journal = journal
        self._args = args
        self._progress = Progress(len(lines.payloads), output.err)
        #: The task of each line; None: not submitted yet.
        self._ids: list[str | None] = [None] * len(lines.payloads)
        self._under_way: deque[Chunk] = deque()

    def all(self) -> int:
        """Submit, wait and print; return the exit code."""
        try:
            if self._journal is not None:
                self._find_earlier(self._journal)
            self._work()
        except KeyboardInterrupt:
            self._progress.end()
            return self._interrupted()
        except BaseException:
            self._progress.end()
            self._tell_what_runs_on()
            raise
        self._progress.end()
        failed = self._progress.failed
        if failed:
            self._output.hint(f"{failed} of {self._progress.total} did not succeed")
            if self._journal is not None:
                self._output.hint(
                    f"run these again, and only these: {self._same_command()} --retry-failed"
                )
        elif self._journal is not None and not self._args.resume:
            self._journal.remove()
        return exits.TASK_FAILED if failed else exits.OK

    # --- what an earlier run did ---

    def _find_earlier(self, journal: Journal) -> None:
        settle(self._client, journal)
        if not journal.task_ids:
            return
        kind = self._task["task_type"]
        for position, payload in enumerate(self._payloads):
            self._ids[position] = journal.take(digest(kind, payload))
        known = [position for position, task_id in enumerate(self._ids) if task_id]
        for start in range(0, len(known), CHUNK):
            self._look_at(journal, known[start : start + CHUNK])
        left = journal.task_ids
        new = self._ids.count(None)
        if new and known:
            self._output.hint(
                f"{new} of {len(self._ids)} lines are new or changed since the earlier run, or were"
                f" not reached: line {self._ids.index(None) + 1} is the first of them"
            )
        if left:
            self._output.hint(
                f"{len(left)} tasks of the earlier run belong to no line any more; cancel what runs"
                f" of them with: retire-cluster tasks cancel {left[0]}"
                + (" ..." if len(left) > 1 else "")
            )

    def _look_at(self, journal: Journal, positions: Sequence[int]) -> None:
        """Run again what was cancelled, and what failed where that is asked for."""
        ids = [str(self._ids[position]) for position in positions]
        found = results_of(self._client, ids, 0.0)
        gone = []
        for position, task_id in zip(positions, ids, strict=True):
            status = found[task_id]["status"] if task_id in found else ""
            if status == _GONE and self._args.retry_failed:
                gone.append(task_id)
                self._ids[position] = None
            elif status == "cancelled" or (status in _FAILED and self._args.retry_failed):
                with contextlib.suppress(CannotRetryTask):  # somebody else was quicker
                    SettlingClient(self._client).call("task.retry", {"task_id": task_id})
        if gone:
            journal.forget(gone)

    # --- the work ---

    def _work(self) -> None:
        starts = iter(range(0, len(self._payloads), CHUNK))
        start = next(starts, None)
        while start is not None or self._under_way:
            while start is not None and self._count() < self._args.window:
                self._begin(start)
                start = next(starts, None)
            if self._args.unordered:
                self._take_some()
            else:
                chunk = self._under_way[0]
                self._print(chunk, results_of(self._client, chunk.waited, None))
                self._under_way.popleft()

    def _count(self) -> int:
        return sum(len(chunk.left) for chunk in self._under_way)

    def _begin(self, start: int) -> None:
        """Submit the lines of a chunk that were not, and wait for all of them."""
        end = min(start + CHUNK, len(self._payloads))
        new = [position for position in range(start, end) if self._ids[position] is None]
        if new:
            what = BatchSubmission(
                str(uuid.uuid4()), self._task, [self._payloads[position] for position in new]
            )
            if self._journal is not None:
                self._journal.sending(what)
            try:
                ids = submit(self._client, self._task, what)
            except ValidationError as error:
                if self._journal is not None:
                    self._journal.refused()
                raise _of_its_line(error, new) from None
            if self._journal is not None:
                self._journal.sent(what, ids)
            for position, task_id in zip(new, ids, strict=True):
                self._ids[position] = task_id
        ids = [str(task_id) for task_id in self._ids[start:end]]
        self._under_way.append(Chunk(start, ids, list(range(len(ids)))))

    def _take_some(self) -> None:
        """Print what has ended of all chunks; the oldest is waited for a little."""
        for chunk in list(self._under_way):
            seconds = _LOOK_SECONDS if chunk is self._under_way[0] else 0.0
            self._print(chunk, results_of(self._client, chunk.waited, seconds))
            if not chunk.left:
                self._under_way.remove(chunk)

    def _print(self, chunk: Chunk, found: dict[str, Result]) -> None:
        shown = []
        for position in chunk.left:
            task_id = chunk.ids[position]
            result = found.get(task_id)
            if result is None:
                continue
            row = {
                "line": chunk.first + position + 1,
                "task_id": task_id,
                "status": result["status"],
                "result_data": result.get("result_data"),
                "error_message": result.get("error_message"),
            }
            if result.get("truncated"):
                row["truncated"] = result["truncated"]
            sys.stdout.write(clean_json(json_text.dumps(row).decode("utf-8")) + "\n")
            shown.append(result)
        sys.stdout.flush()
        chunk.left = [place for place in chunk.left if chunk.ids[place] not in found]
        self._progress.step(shown)

    # --- ending early ---

    def _interrupted(self) -> int:
        """Say what runs on after Ctrl-C; cancel it where that is wanted. A second one ends all."""
        with contextlib.suppress(KeyboardInterrupt):
            count = self._count()
            if not count and not self._unsure():
                self._output.hint("stopped; nothing runs on")
            elif self._args.cancel_on_interrupt or self._is_wanted(count):
                self._output.hint(f"cancelling {count:,} tasks (Ctrl-C again leaves them)")
                self._output.hint(f"{self._cancel():,} cancelled")
                if self._journal is not None:
                    self._output.hint(f"go on later with: {self._same_command()}")
            else:
                self._tell_what_runs_on()
        return exits.INTERRUPTED

    def _unsure(self) -> BatchSubmission | None:
        return None if self._journal is None else self._journal.interrupted()

    def _is_wanted(self, count: int) -> bool:
        """Ask at a terminal whether the tasks are to be cancelled."""
        if not (sys.stdin.isatty() and self._output.err.isatty()):
            return False
        self._output.err.write(f"stopped; {count:,} submitted tasks run on. Cancel them? [y/N] ")
        self._output.err.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _cancel(self) -> int:
        ids = [task_id for chunk in self._under_way for task_id in chunk.waited]
        unsure = self._unsure()
        if unsure is not None and self._journal is not None:
            more = submit(self._client, unsure.task, unsure)
            self._journal.sent(unsure, more)
            ids += more
        return cancel(self._client, ids)

    def _tell_what_runs_on(self) -> None:
        count = self._count()
        if not count:
            return
        self._output.hint(f"stopped; {count:,} submitted tasks run on")
        if self._journal is None:
            kind = self._task["task_type"]
            self._output.hint(f"cancel with: retire-cluster tasks cancel --type {kind}")
            return
        self._output.hint(f"go on with: {self._same_command()}")
        self._output.hint(f"or cancel them with: retire-cluster map --cancel {self._journal.name}")

    def _same_command(self) -> str:
        name = "" if self._journal is None else f" --resume {self._journal.name}"
        return f"the same command with{name}"


def settle(client: Caller, journal: Journal) -> None:
    """Learn what became of a submission that was interrupted; a refused one was not made."""
    unsure = journal.interrupted()
    if unsure is None:
        return
    try:
        ids = submit(client, unsure.task, unsure)
    except ValidationError:
        journal.refused()
        return
    journal.learn(unsure, ids)


def _of_its_line(error: ValidationError, positions: Sequence[int]) -> ValidationError:
    """Return the error, naming the line of the file instead of the place in what was sent."""
    found = re.fullmatch(r"tasks\.([0-9]{1,6})\.(.+)", error.field, re.DOTALL)
    if found is None or int(found[1]) >= len(positions):
        return error
    return ValidationError(f"line {positions[int(found[1])] + 1}: {found[2]}", error.reason)


def submit(client: Caller, task: dict[str, Any], what: BatchSubmission) -> list[str]:
    """Make a submission, once however often it is sent; return the ids of its tasks.

    Raises a `ClusterError`, a `ValidationError` when nothing of it was made.
    """
    args = {
        "task": task,
        "count": len(what.payloads),
        "brief": True,
        "owner": "retire-cluster map",
        "idempotency_key": what.idempotency_key,
        "fingerprint": hashlib.sha256(
            json_text.dumps(task) + b"\n" + b"\n".join(what.payloads)
        ).hexdigest(),
    }
    found: list[str] = client.call("task.submit", args, what.payloads, timeout_seconds=30.0)[
        "task_ids"
    ]
    return found


def cancel(client: Caller, task_ids: Sequence[str]) -> int:
    """Cancel those of these tasks that have not ended; return how many they were."""
    count = 0
    for start in range(0, len(task_ids), _CANCEL_AT_ONCE):
        part = list(task_ids[start : start + _CANCEL_AT_ONCE])
        count += len(client.call("task.cancel_many", {"task_ids": part})["cancelled"])
    return count


def results_of(
    client: Caller, task_ids: Sequence[str], timeout_seconds: float | None
) -> dict[str, Result]:
    """Return results by task id, of those that have ended within the time or are kept no more."""
    return dict(_results(client, task_ids, timeout_seconds))


def _results(
    client: Caller, task_ids: Sequence[str], timeout_seconds: float | None
) -> Iterator[tuple[str, Result]]:
    if not task_ids:
        return
    try:
        results, _ = wait_for(client, task_ids, timeout_seconds)
    except TaskNotFound:
        if len(task_ids) > 1:  # found by halves, so that no other goes with it
            middle = len(task_ids) // 2
            yield from _results(client, task_ids[:middle], timeout_seconds)
            yield from _results(client, task_ids[middle:], timeout_seconds)
            return
        message = "the main node does not keep this task any more, or it is another cluster's"
        yield task_ids[0], {"task_id": task_ids[0], "status": _GONE, "error_message": message}
    else:
        yield from ((result["task_id"], result) for result in results)

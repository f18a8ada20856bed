"""Waiting for tasks to end: by the broker's own wait, across its restarts, to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.output import Style, clean, pretty
from retire_cluster.cli.retrying import ReconnectingClient
from retire_cluster.cli.session import Session
from retire_cluster.cli.target import Caller
from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable
from retire_cluster.schemas.text import truncation

#: Seconds of one call; an idle wait costs a call every so often.
_CALL_SECONDS = 10.0
_FIRST_SECONDS = 2.0
#: How long a main node may be away (restarting) before waiting is given up.
_AWAY_SECONDS = 30.0


def wait_for(
    client: Caller,
    task_ids: Sequence[str],
    timeout_seconds: float | None,
    *,
    why: Callable[[Sequence[str], str], str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return `(results, unfinished ids)` when all have ended or the time is over (None: never).

    `why` is called now and then with the unfinished ids and the text that it returned last, to say
    why they wait; it returns the text that it has said by then. Raises `ClusterUnavailable` when
    the main node stays away for 30 s.
    """
    # Results come under their canonical ids.
    task_ids = [task_id.lower() for task_id in task_ids]
    deadline = None if timeout_seconds is None else clock() + timeout_seconds
    away_since: float | None = None
    asked = list(task_ids)
    found: dict[str, dict[str, Any]] = {}
    omitted: list[str] = []
    told = ""
    while True:
        # The first look is short, so that whoever waits in vain soon hears why.
        patience = _CALL_SECONDS if told or why is None else _FIRST_SECONDS
        patience = 0.0 if omitted else patience
        left = patience if deadline is None else min(patience, deadline - clock())
        args = {"task_ids": asked, "timeout_seconds": max(0.0, left)}
        try:
            data = client.call("task.wait", args, timeout_seconds=max(0.0, left) + 5.0)
            away_since = None
        except ClusterUnavailable:
            away_since = clock() if away_since is None else away_since
            over = deadline is not None and clock() >= deadline
            if over or clock() - away_since >= _AWAY_SECONDS:
                raise
            pause(0.2)
            continue
        found.update((result["task_id"], result) for result in data["results"])
        unfinished = list(data["unfinished"])
        omitted = list(data.get("omitted") or ())
        over = deadline is not None and clock() >= deadline
        if not omitted and (not unfinished or over):
            return [found[task_id] for task_id in task_ids if task_id in found], unfinished
        # What has ended and was told is not asked for again; large results come in parts.
        asked = [*omitted, *unfinished]
        if why is not None and not omitted:
            told = why(unfinished, told)


def wait_and_print(
    session: Session, task_ids: Sequence[str], timeout_seconds: float | None, *, first: str = ""
) -> int:
    """Say `first`, wait, print results; return the exit code. Ctrl-C leaves the tasks running."""
    output = session.output
    try:
        if first:
            output.hint(first)

        def why(unfinished: Sequence[str], told: str) -> str:
            return _tell_why(session, unfinished, told)

        client = ReconnectingClient(
            session.client, output.hint, session.target.address, timeout_seconds=timeout_seconds
        )
        results, unfinished = wait_for(client, task_ids, timeout_seconds, why=why)
    except KeyboardInterrupt:
        output.hint(f"\ndetached; the work goes on. Look again with: {look_again(task_ids)}")
        return exits.INTERRUPTED
    if output.as_json:
        if len(task_ids) == 1 and results:
            output.data(results[0], "")
        else:
            output.data({"results": results, "unfinished": unfinished}, "")
    else:
        for result in results:
            print_result(session, result, named=len(task_ids) > 1)
    if unfinished:
        output.hint(f"not finished in time; look again with: {look_again(unfinished)}")
        return exits.TIMED_OUT
    codes = [exits.for_task_status(result["status"]) for result in results]
    return max(codes, default=exits.OK)


def _tell_why(session: Session, unfinished: Sequence[str], told: str) -> str:
    """Say, when it is news, that nothing can run the first of the tasks that wait."""
    try:
        status = session.client.call("task.status", {"task_id": unfinished[0]})
    except ClusterError:
        return told
    reason = status.get("queued_reason") or {}
    if not reason or reason.get("eligible_devices"):
        return told or "it runs, or will"
    rejected = reason.get("rejected") or {}
    text = ", ".join(f"{count} x {clean(str(what))}" for what, count in sorted(rejected.items()))
    text = f"waiting: no device can run it now ({text or 'none has joined yet'})"
    if text != told:
        session.output.hint(text)
        session.output.hint(f"why, device by device: retire-cluster explain {unfinished[0]}")
        session.output.hint(
            "it waits until a device can, or a device's owner allows it: Ctrl-C leaves it queued,"
            " --timeout SECONDS ends such a wait; or give it up:"
            f" retire-cluster tasks cancel {unfinished[0]}"
        )
    return text


def print_result(session: Session, result: dict[str, Any], *, named: bool = False) -> None:
    """Print a result for people: its data on standard output, how it went on standard error."""
    output = session.output
    style = Style.of(output.err)
    task_id, status = result["task_id"], result["status"]
    where = result.get("worker_device_id")
    seconds = result.get("execution_time_seconds")
    told = style.paint(status, "green" if status == "success" else "red")
    told += f" on {clean(str(where))}" if where else ""
    told += f" in {seconds:.3g} s" if isinstance(seconds, (int, float)) else ""
    output.hint(f"{task_id}: {told}")
    if result.get("error_message"):
        output.hint(clean(str(result["error_message"])))
    data = result.get("result_data")
    if data is not None:
        shown = {"task_id": task_id, "result_data": data} if named else data
        output.data(data, pretty(shown, output.style))
    for line in missing(result):
        output.hint(line)


def missing(result: Mapping[str, Any] | None) -> list[str]:
    """Return what of a result is not whole, a line for each part."""
    cuts = truncation.read((result or {}).get("truncated"))
    return [truncation.words(part, cut) for part, cut in cuts.items()]


def look_again(task_ids: Sequence[str]) -> str:
    """Return the command that waits on."""
    shown = " ".join(task_ids[:10])
    return f"retire-cluster tasks wait {shown}" + (" ..." if len(task_ids) > 10 else "")

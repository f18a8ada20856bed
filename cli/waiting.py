"""Waiting for tasks to end: by the broker's own wait, across its restarts, to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.common import Caller, Session
from retire_cluster.cli.output import Style, clean, pretty
from retire_cluster.schemas.errors import ClusterUnavailable

#: Seconds of one call; an idle wait costs a call every so often.
_CALL_SECONDS = 20.0
#: How long a main node may be away (restarting) before waiting is given up.
_AWAY_SECONDS = 30.0


def wait_for(
    client: Caller,
    task_ids: Sequence[str],
    timeout_seconds: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[list[dict[str, Any]], list[str]]:
    """`(results, unfinished ids)` when all have ended or the time is over.

    Raises `ClusterUnavailable` when the main node stays away for 30 s.
    """
    deadline = None if timeout_seconds is None else clock() + timeout_seconds
    away_since: float | None = None
    while True:
        left = _CALL_SECONDS if deadline is None else min(_CALL_SECONDS, deadline - clock())
        args = {"task_ids": list(task_ids), "timeout_seconds": max(0.0, left)}
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
        unfinished = list(data["unfinished"])
        if not unfinished or (deadline is not None and clock() >= deadline):
            return list(data["results"]), unfinished


def wait_and_print(
    session: Session, task_ids: Sequence[str], timeout_seconds: float | None, *, first: str = ""
) -> int:
    """Say `first`, wait, print results, return the exit code; Ctrl-C leaves the tasks running."""
    output = session.output
    try:
        if first:
            output.hint(first)
        results, unfinished = wait_for(session.client, task_ids, timeout_seconds)
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


def print_result(session: Session, result: dict[str, Any], *, named: bool = False) -> None:
    """A result for people: its data on standard output, how it went on standard error."""
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


def look_again(task_ids: Sequence[str]) -> str:
    """The command that waits on."""
    shown = " ".join(task_ids[:10])
    return f"retire-cluster tasks wait {shown}" + (" ..." if len(task_ids) > 10 else "")

"""A device with a valid key that has gone bad, against the main node."""

from __future__ import annotations

import time

from retire_cluster.schemas.task_types import BUILTIN
from tests.chaos.red import Attack, Target, Went

_SECONDS = 8.0
#: Attempts that a task without retries may get in that time: the first waits are short.
_ATTEMPTS = 12


def _gives_back_for_ever(target: Target) -> str:
    """It alone may run the task, and releases each attempt at once."""
    liar = target.device("gives-back", target.known("gives-back"))
    liar.join(tags=("gives-back",), task_types=(BUILTIN["sleep"],))
    task_id = target.submit("sleep", requirements={"required_tags": ["gives-back"]})
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        liar.pump(0.05)
        while liar.assigned:
            key, *_ = liar.assigned.pop(0)
            liar.finished(key, outcome="released")
    task = target.call("task.get", task_id=task_id)
    attempts = target.call("task.status", task_id=task_id)["attempt"]
    rows = len(task["attempts"])
    target.call("task.cancel", task_id=task_id)
    if attempts > _ATTEMPTS or rows > _ATTEMPTS:
        raise Went(f"{attempts} attempts and {rows} rows in {_SECONDS:g} s, max_retries 0")
    if task["status"] not in ("queued", "pending", "assigned"):
        raise Went(f"the task is {task['status']}, by what one device says")
    return f"{attempts} attempts, {rows} rows in {_SECONDS:g} s; it waits"


ATTACKS = [
    Attack("S28", "a task is given back without end", _gives_back_for_ever),
]

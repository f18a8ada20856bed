"""The own task types of this device: each is imported and described in a process of its own.

Importing runs a stranger's code. Whatever it does (leave, crash, hang, close its output) costs
that type and no other, and the log, `--test` and the device's page name it with the reason.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from retire_cluster.node.device import entry_points
from retire_cluster.node.device.entry_points import EntryPoint
from retire_cluster.node.device.policy import Policy
from retire_cluster.node.process.frames import FrameError
from retire_cluster.node.process.replies import BadReply, Described
from retire_cluster.node.running.task_process import Plan, TaskProcess
from retire_cluster.node.tasks import own_type
from retire_cluster.node.tasks.own_type import OwnType
from retire_cluster.schemas.protocol.wire import WireError
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.clean_text import clean, shorten

log = logging.getLogger("retire_cluster.node")

#: One type has this long to be imported and described.
DESCRIBE_SECONDS = 30.0
_AT_ONCE = 4


class OwnTypes(NamedTuple):
    """What is there, and what is not there with the reason."""

    types: list[OwnType]
    left_out: list[str]


def own_types(policy: Policy, plan: Plan, limit_seconds: float = DESCRIBE_SECONDS) -> OwnTypes:
    """The task types that installed packages offer and the owner allows."""
    left_out: list[str] = []
    wanted: dict[str, EntryPoint] = {}
    found = entry_points.installed()
    for name in sorted(policy.allow - set(BUILTIN) - {point.name for point in found}):
        log.warning("--allow %s: there is no such task type on this device", name)
    for point in found:
        refusal = policy.refusal(point.name)
        if refusal is not None:
            log.warning("task type %s is left out: %s", point.name, refusal)
        elif point.name in wanted:
            left_out.append(_second(point, wanted[point.name]))
        else:
            wanted[point.name] = point
    types = _describe(list(wanted.values()), plan, limit_seconds, left_out)
    for reason in left_out:
        log.warning("left out: %s", reason)
    return OwnTypes(types, left_out)


def _describe(
    points: Sequence[EntryPoint], plan: Plan, limit_seconds: float, left_out: list[str]
) -> list[OwnType]:
    if not points:
        return []
    named: dict[str, tuple[OwnType, EntryPoint]] = {}
    with ThreadPoolExecutor(_AT_ONCE, "describe") as pool:
        answers = pool.map(lambda point: _describe_one(point, plan, limit_seconds), points)
        for point, answer in zip(points, answers, strict=True):
            if isinstance(answer, str):
                reason = f"task type {point.name} ({point.value}): {answer}"
                left_out.append(shorten(clean(reason), 500))
            elif answer.info.name in named:
                left_out.append(_second(point, named[answer.info.name][1], answer.info.name))
            else:
                named[answer.info.name] = answer, point
    return [kind for kind, _ in named.values()]


def _second(point: EntryPoint, first: EntryPoint, name: str = "") -> str:
    return (
        f"task type {name or point.name} of {point.distribution} ({point.value}):"
        f" {first.distribution} ({first.value}) has that name too and comes first"
    )


def _describe_one(point: EntryPoint, plan: Plan, limit_seconds: float) -> OwnType | str:
    """The type, or why there is none."""
    try:
        process = TaskProcess(plan)
    except OSError as error:
        return f"no process could be started: {error}"
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit_seconds, end)
    timer.daemon = True
    timer.start()
    answer, problem = None, ""
    try:
        process.send({"kind": "describe", "name": point.name, "entry_point": point.value})
        answer = process.receive()
    except (OSError, FrameError, BadReply) as error:
        problem = str(error)
        process.kill()
    finally:
        timer.cancel()
        code, words = process.wait()
    if isinstance(answer, Described) and len(answer.rows) == 1:
        row = answer.rows[0]
        if "problem" in row:
            return str(row["problem"])
        try:
            found = own_type.read_description(row)
        except WireError as error:
            return str(error)
        # Not as its own code may tell.
        info = replace(
            found.info, distribution=point.distribution, distribution_version=point.version
        )
        return found._replace(info=info)
    if late.is_set():
        return f"its import did not end within {limit_seconds:g} s"
    return problem or f"its import ended the process with exit code {code}: {words or 'no words'}"

"""A session around a script of answers, with what it printed."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retire_cluster.cli.output import Output, Style
from retire_cluster.cli.session import Session
from retire_cluster.cli.target import Target

PLAIN = Style()
TASK = "0190a0a0-0000-7000-8000-000000000001"


class Script:
    """Answers calls in order; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.blobs: list[bytes] = []

    def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        self.calls.append((op, dict(args or {})))
        self.blobs += blobs
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        found: dict[str, Any] = answer
        return found


class Run:
    """A session around a script, with what it printed."""

    def __init__(self, script: Script, *, as_json: bool = False, **args: Any) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        target = Target("127.0.0.1", 8080, "the default", Path())
        output = Output(self.out, self.err, as_json)
        self.session = Session(script, output, target, argparse.Namespace(**{"raw": False, **args}))

    def __call__(self, command: Callable[[Session], int]) -> int:
        return command(self.session)


def result(status: str = "success", **more: Any) -> dict[str, Any]:
    return {
        "task_id": TASK,
        "status": status,
        "result_data": {"echo": {"a": 1}},
        "execution_time_seconds": 0.05,
        "worker_device_id": "pi",
        **more,
    }


def submission(**more: Any) -> dict[str, Any]:
    plain = {
        "task_type": "echo",
        "payload": ["a=1"],
        "priority": "normal",
        "requirement": [],
        "timeout_seconds": None,
        "retries": None,
        "delay": 0.0,
        "metadata": [],
        "wait": False,
        "timeout": None,
    }
    return {**plain, **more}

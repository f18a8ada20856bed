"""The worker's loop lives: an error of its own costs the attempt it was met with, and no more."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from retire_cluster.node.core.events import Ended
from retire_cluster.node.core.records import Attempt, Result
from retire_cluster.node.device.clock import monotonic
from retire_cluster.node.device.policy import Policy
from retire_cluster.node.running.catalog import Catalog, Kind, Place
from retire_cluster.node.running.runner import Runner
from retire_cluster.node.running.task_process import TaskProcess
from retire_cluster.node.tasks.base import Limits
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol.messages import TypeInfo

PATIENCE_SECONDS = 20.0


def _broken(payload: Mapping[str, Any]) -> None:
    raise RuntimeError("a rule of ours that fails")


class Rig:
    """A real runner whose collaborators fail as the test wants."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        catalog = Catalog(Policy())
        catalog._kinds["checked"] = Kind(TypeInfo("checked"), Place.CHILD, _broken)
        catalog._refusals["checked"] = None
        self.runner = Runner(
            slots=2,
            catalog=catalog,
            limits=Limits(),
            start_process=self._no_process,
            facts=self._no_facts,
            clock=monotonic,
            wake=self.woken.set,
        )
        self.results: dict[int, Result] = {}

    def _no_process(self) -> TaskProcess:
        raise ValueError("no process today: caf\udce9")

    def _no_facts(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        raise KeyError("no facts today")

    def run(self, *tasks: tuple[str, dict[str, Any]]) -> list[Result]:
        numbers = range(len(self.results) + 1, len(self.results) + len(tasks) + 1)
        attempts = [
            Attempt((n, 1, n, 0), 0, TaskIds(0), kind, 30, json.dumps(payload).encode(), True)
            for n, (kind, payload) in zip(numbers, tasks, strict=True)
        ]
        self.runner.run(attempts, monotonic())
        end = monotonic() + PATIENCE_SECONDS
        while not self.results.keys() >= set(numbers):
            assert monotonic() < end, f"no result of all of {list(numbers)}: {self.results}"
            self.woken.clear()
            for event in self.runner.collect(monotonic()):
                if isinstance(event, Ended):
                    self.results.update((result.key[0], result) for result in event.results)
            self.woken.wait(0.02)
        return [self.results[n] for n in numbers]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.runner.close()


def test_an_error_of_ours_fails_its_attempt_with_a_trace_in_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        checked, facts, echo = rig.run(
            ("checked", {}), ("system_info", {}), ("echo", {"still": "here"})
        )
    for result, name in ((checked, "RuntimeError"), (facts, "KeyError")):
        assert (result.outcome, result.cause) == ("failed", "error")
        assert name in (result.error_message or "")
    assert json.loads(echo.data) == {"echo": {"still": "here"}}
    assert "a rule of ours that fails" in caplog.text
    assert "Traceback" in caplog.text
    assert "RuntimeError" in rig.runner.last_error or "KeyError" in rig.runner.last_error


def test_an_error_while_a_process_is_looked_after_fails_its_attempt_and_frees_the_slot(
    rig: Rig,
) -> None:
    tasks = [("python_eval", {"expression": str(n)}) for n in range(5)]
    for result in rig.run(*tasks):
        assert (result.outcome, result.cause) == ("failed", "error")
        assert "ValueError: no process today" in (result.error_message or "")
    assert rig.runner._active == {}

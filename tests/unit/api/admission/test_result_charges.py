"""A result is free the first time a client takes it; a cycle over many is paid for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from retire_cluster.api.admission import result_charges
from retire_cluster.api.admission.rate_limit import RequestLimiter
from retire_cluster.api.admission.result_charges import ResultCharges


class Counter:
    """Counts what is charged, in place of the main node."""

    enabled = True

    def __init__(self) -> None:
        self.charged = 0

    def charge(self, req: object) -> None:
        """One request."""
        self.charged += 1


def result(number: int) -> dict[str, Any]:
    """A task that ended in its number's second."""
    return {
        "task_id": f"t{number}",
        "completed_at": f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z",
    }


class Alike(str):
    """A text that hashes as every other of its kind."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 1


def test_results_are_told_apart_by_what_they_are_and_not_by_a_hash() -> None:
    counter = Counter()
    charges = ResultCharges(cast(RequestLimiter, counter))
    context = SimpleNamespace(identity=SimpleNamespace(client="script"), standing=None)
    req = cast(Any, SimpleNamespace(context=context))
    for name in ("one", "two", "three"):
        ended = {"task_id": Alike(name), "completed_at": "2026-01-01T00:00:00Z"}
        charges.charge(req, [ended], waited=False)
    assert counter.charged == 0, "each is new"


def test_a_cycle_over_more_results_than_are_remembered_is_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(result_charges, "_REMEMBERED", 50)
    counter = Counter()
    charges = ResultCharges(cast(RequestLimiter, counter))

    def take(client: str, number: int) -> int:
        context = SimpleNamespace(identity=SimpleNamespace(client=client), standing=None)
        before = counter.charged
        req = cast(Any, SimpleNamespace(context=context))
        charges.charge(req, [result(number)], waited=False)
        return counter.charged - before

    assert sum(take("script", number) for number in range(200)) == 0, "each is new"
    assert sum(take("script", number) for number in range(200)) == 200
    assert sum(take("script", number) for number in range(200, 250)) == 0
    assert take("other", 3) == 0, "another client has its own first time"

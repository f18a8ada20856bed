"""The short form of `python -m tests.chaos.boundaries`: some odd cases over each way in."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.boundaries import bus, device, web
from tests.chaos.boundaries.hammer import Boundary, generator, hammer
from tests.chaos.red import Target

CASES = range(300)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    made = Target(tmp_path_factory.mktemp("boundary") / "up", *bus.FLAGS, settings=bus.SETTINGS)
    yield made
    made.close()


@pytest.mark.parametrize("make", [bus.Device, bus.TokenHolder, bus.Administrator])
def test_odd_messages_to_the_main_node_change_nothing_for_others(
    target: Target, make: Callable[[Target], Boundary]
) -> None:
    boundary = make(target)
    assert not hammer(boundary, CASES, seed=7).problems
    target.release()


@pytest.mark.parametrize("make", [web.Rest, web.Stream])
def test_odd_requests_and_frames_to_the_facade_are_refused_and_nothing_else_happens(
    target: Target, make: Callable[[Target], Boundary]
) -> None:
    boundary = make(target)
    assert not hammer(boundary, range(200), seed=1).problems
    boundary.close()


@pytest.mark.parametrize(
    ("make", "cases"),
    [(web.Installer, 200), (device.MainNode, 300), (device.TaskProcess, 100),
     (device.DamagedSpool, 150)],
)  # fmt: skip
def test_odd_things_that_come_to_the_installer_and_to_a_worker_change_nothing(
    tmp_path: Path, make: Callable[[Path], Boundary], cases: int
) -> None:
    boundary = make(tmp_path / "own")
    try:
        assert not hammer(boundary, range(cases), seed=7).problems
    finally:
        boundary.close()


class _Planted(Boundary):
    """A boundary with a fault that a case in a hundred meets."""

    name = "planted"
    peak_mb = 20.0

    def __init__(self) -> None:
        self.sent: list[int] = []

    def case(self, rng: random.Random) -> int:
        return rng.randrange(100)

    def send(self, case: int) -> None:
        self.sent.append(case)
        assert case != 7, "it answers nonsense"
        if case == 8:
            bytearray(b"x" * 60_000_000)

    def witness(self) -> None:
        assert 9 not in self.sent, "nobody is served"

    def pids(self) -> Sequence[int]:
        return [os.getpid()]


def test_what_a_case_does_to_others_is_told_with_the_numbers_that_bring_it_back() -> None:
    drawn = {number: generator("planted", 3, number).randrange(100) for number in range(500)}
    wrong = [number for number, case in drawn.items() if case == 7]
    found = hammer(_Planted(), range(500), seed=3)
    told = "\n".join(found.problems)
    assert f"case {wrong[0]} of seed 3: AssertionError('it answers nonsense" in told
    assert "the witness is not served" in told
    assert "MB more for a moment" in told
    alone = hammer(_Planted(), wrong[:1], seed=3)
    assert len(alone.problems) == 1

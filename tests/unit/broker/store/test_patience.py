"""Reads that are tried again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from retire_cluster.broker.store.patience import PAUSES_SECONDS, Patience

EIO = sqlite3.OperationalError("disk I/O error")
LOCKED = sqlite3.OperationalError("database is locked")
MALFORMED = sqlite3.DatabaseError("database disk image is malformed")


def failing(*errors: sqlite3.Error) -> Callable[[], str]:
    left = list(errors)

    def read() -> str:
        if left:
            raise left.pop(0)
        return "content"

    return read


@pytest.mark.parametrize("error", [EIO, LOCKED])
@pytest.mark.parametrize("times", range(1, len(PAUSES_SECONDS) + 1))
def test_what_passes_is_not_noticed(error: sqlite3.Error, times: int) -> None:
    slept: list[float] = []
    assert Patience(slept.append).read(failing(*[error] * times)) == "content"
    assert slept == list(PAUSES_SECONDS[:times])


def test_damage_is_not_tried_again() -> None:
    slept: list[float] = []
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        Patience(slept.append).read(failing(MALFORMED))
    assert not slept


def test_trouble_that_lasts_costs_one_try_a_read_until_one_succeeds() -> None:
    slept: list[float] = []
    patience = Patience(slept.append)
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError):
            patience.read(failing(*[EIO] * 9))
    assert slept == list(PAUSES_SECONDS)
    assert patience.read(failing()) == "content"
    assert patience.read(failing(EIO)) == "content"
    assert slept == [*PAUSES_SECONDS, PAUSES_SECONDS[0]]

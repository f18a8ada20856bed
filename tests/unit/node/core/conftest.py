"""Fixtures of the session's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from retire_cluster.node.core.connection import Phase
from tests.unit.node.core.kit import Driver


@pytest.fixture
def ready() -> Iterator[Driver]:
    driver = Driver().join()
    yield driver
    due = driver.session.next_due()
    assert (due is None) == (driver.phase() is Phase.CLOSED)

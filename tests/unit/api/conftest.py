"""Fixtures of the application's tests."""

from __future__ import annotations

import pytest

from tests.unit.api.kit import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()

"""Fixtures of the facade's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.api.kit import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    yield found
    found.close()

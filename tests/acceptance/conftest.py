"""Fixtures of the acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.kit import Cluster, Process, Rest


@pytest.fixture(autouse=True)
def _what_a_failed_test_started_ends_with_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """Left behind, it would fail whichever test runs when its handles are collected."""
    processes, failures = len(Process.started), request.session.testsfailed
    yield
    if request.session.testsfailed > failures:
        for process in reversed(Process.started[processes:]):
            process.stop()
        del Process.started[processes:]


@pytest.fixture
def rest(cluster: Cluster) -> Rest:
    """The REST API of a module's own `cluster`."""
    return cluster.rest

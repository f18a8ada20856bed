"""Fixtures of the core's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from retire_cluster.broker.store.base import Store
    from retire_cluster.conf.settings import Settings
    from tests.unit.broker.kit import Cluster, MakeCluster


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """See `MakeCluster`."""
    # Most tests do without the main node.
    from retire_cluster.broker.core.invariants import check_invariants
    from tests.unit.broker.kit import Cluster

    made: list[Cluster] = []

    def make(
        settings: Settings | None = None, *, store: Store | None = None, seed: int = 1
    ) -> Cluster:
        made.append(Cluster(settings, store=store, seed=seed))
        return made[-1]

    yield make
    for cluster in made:
        check_invariants(cluster.state)
        cluster.store.close()


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """A cluster with default settings, a memory store and nothing in it."""
    return make_cluster()

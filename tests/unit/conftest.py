"""Fixtures of the core's tests.

Tests are no packages, so the kit is loaded by path; under this name static tools find it too.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from retire_cluster.broker.store import Store
    from retire_cluster.conf.settings import Settings
    from tests.unit.broker_kit import Cluster, MakeCluster


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(name.rpartition(".")[2] + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_kit = _load("tests.unit.broker_kit")


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """See `MakeCluster`."""
    made: list[Cluster] = []

    def make(
        settings: Settings | None = None, *, store: Store | None = None, seed: int = 1
    ) -> Cluster:
        made.append(_kit.Cluster(settings, store=store, seed=seed))
        return made[-1]

    yield make
    for cluster in made:
        cluster.state.check_invariants()
        cluster.store.close()


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """A cluster with default settings, a memory store and nothing in it."""
    return make_cluster()

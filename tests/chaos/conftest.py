"""Fixtures of the chaos tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness.zygote import Zygote
from tests.chaos.rig import Rig

MakeRig = Callable[..., Rig]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chaos needs signals and seconds."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if sys.platform == "win32":
                item.add_marker(pytest.mark.skip(reason="kill -9, SIGSTOP and fork are POSIX"))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """The process that starts the product's processes."""
    made = Zygote(tmp_path_factory.mktemp("zygote") / "zygote.log")
    yield made
    made.close()


@pytest.fixture
def make_rig(tmp_path: Path, zygote: Zygote) -> Iterator[MakeRig]:
    """Makes clusters (see `Rig`); nothing runs in them yet."""
    with ExitStack() as stack:

        def make(**options: Any) -> Rig:
            made = Rig(tmp_path, zygote=zygote, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def cluster(make_rig: MakeRig) -> Rig:
    """A running main node with quick settings."""
    made = make_rig()
    made.start_broker()
    return made

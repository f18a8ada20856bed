"""The tree of errors that reach a user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from retire_cluster.schemas import errors
from retire_cluster.schemas.errors import ClusterError


def _all(kind: type[ClusterError]) -> Iterator[type[ClusterError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from _all(below)


@pytest.mark.parametrize("kind", list(_all(ClusterError)), ids=lambda kind: kind.__name__)
def test_every_error_says_in_a_sentence_of_its_own_what_happened(
    kind: type[ClusterError],
) -> None:
    assert "sentence" in vars(kind)
    assert kind.sentence != ClusterError.sentence
    assert kind.sentence.endswith(".")

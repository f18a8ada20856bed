"""Odd machines, the small set: it works there, or says one line with the cure."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.chaos import machines
from tests.integration.node_kit import linux_only

pytestmark = linux_only


@pytest.mark.parametrize(
    "condition", [one for one in machines.table() if one.small], ids=lambda one: one.name
)
def test_it_works_there_or_says_what_to_do(condition: machines.Condition) -> None:
    # Not pytest's own folder: another user may not enter that.
    with tempfile.TemporaryDirectory(prefix="rc-odd-", ignore_cleanup_errors=True) as folder:
        try:
            assert machines.run(condition, Path(folder)) == ""
        except machines.Skipped as reason:
            pytest.skip(str(reason))


def test_no_two_conditions_have_one_name() -> None:
    names = [one.name for one in machines.table()]
    assert len(names) == len(set(names)) >= 35

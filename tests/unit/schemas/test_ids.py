"""Public task ids."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.schemas.ids import MAX_TASK, SALT_BITS, TaskIds

NUMBERS = st.integers(1, MAX_TASK)
TIMES = st.integers(0, 2**48 - 1)
SALTS = st.integers(0, 2**SALT_BITS - 1)


@given(SALTS, NUMBERS, TIMES)
def test_an_id_is_a_uuid_of_version_7_and_leads_back_to_its_task(
    salt: int, number: int, created_ms: int
) -> None:
    ids = TaskIds(salt)
    text = ids.public(number, created_ms)
    parsed = uuid.UUID(text)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)
    assert ids.read(text) == ids.read(text.upper()) == (number, created_ms)


@given(SALTS, SALTS, NUMBERS)
def test_an_id_of_another_store_is_none_of_ours(salt: int, other: int, number: int) -> None:
    found = TaskIds(other).read(TaskIds(salt).public(number, 1))
    assert found == ((number, 1) if salt == other else None)


@given(st.text(max_size=50))
def test_any_other_text_is_no_id(text: str) -> None:
    assert TaskIds(5).read(text) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text + "\n",
        lambda text: text.replace("-", ""),
        lambda text: "{" + text + "}",
        lambda text: text[:14] + "4" + text[15:],
        lambda text: text[:19] + "c" + text[20:],
        lambda text: text[:-1] + "\uff11",
    ],
)
def test_an_id_in_another_form_is_no_id(spoil: object) -> None:
    assert callable(spoil)
    assert TaskIds(5).read(spoil(TaskIds(5).public(1, 1))) is None


@given(st.lists(st.tuples(TIMES, NUMBERS), min_size=2, max_size=5))
def test_ids_sort_by_creation_time_then_number(pairs: list[tuple[int, int]]) -> None:
    ids = TaskIds(9)
    pairs.sort()
    texts = [ids.public(number, at) for at, number in pairs]
    assert texts == sorted(texts)

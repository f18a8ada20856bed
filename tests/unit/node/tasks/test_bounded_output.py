"""The beginning and the end of an output are kept, and what is missing between them is said."""

from __future__ import annotations

import json
import random

import pytest

from retire_cluster.node.tasks.bounded_output import HeadTail, Kept, cuts, fit, of_text
from retire_cluster.schemas.text import truncation
from retire_cluster.schemas.text.truncation import Cut


def fed(data: bytes, limit: int, pieces: int = 7) -> Kept:
    keeper = HeadTail(limit)
    for at in range(0, len(data), pieces):
        keeper.add(data[at : at + pieces])
    return keeper.take()


def test_what_fits_is_whole_and_says_nothing() -> None:
    kept = fed(b"x" * 100, 100)
    assert kept == Kept(b"x" * 100, b"", 100)
    assert kept.text == "x" * 100
    assert kept.cut is None


def test_of_what_does_not_fit_both_ends_are_left_with_the_count_between_them() -> None:
    kept = fed(b"first\n" + b"x" * 10_000 + b"\nlast\n", 100)
    assert kept.text.startswith("first\nxxx")
    assert kept.text.endswith("xxx\nlast\n")
    assert "\n[... 9912 of 10012 bytes are missing here ...]\n" in kept.text
    assert kept.cut == Cut(10_012, 100, "middle")


@pytest.mark.parametrize("pieces", [1, 3, 64, 5_000])
def test_it_does_not_matter_in_which_pieces_it_comes(pieces: int) -> None:
    data = random.Random(4).randbytes(4_000)
    assert fed(data, 300, pieces) == fed(data, 300, 4_000)


def test_the_ends_are_exactly_the_first_and_last_bytes() -> None:
    data = bytes(97 + n % 26 for n in range(5_000))
    for limit in (1, 2, 3, 10, 999, 4_999):
        kept = fed(data, limit)
        half = limit // 2
        assert kept.head == data[: limit - half]
        assert kept.tail == (data[-half:] if half else b"")
        assert kept.kept_bytes == limit


def test_a_character_is_never_cut_in_two() -> None:
    for shift in range(8):
        data = b"." * shift + "ä€😀".encode() * 500
        for limit in range(20, 40):
            kept = fed(data, limit)
            assert "\ufffd" not in kept.text
            assert limit - 8 < kept.kept_bytes <= limit


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert fed(b"caf\xe9", 100).text == "caf\ufffd"
    binary = of_text("", 9)._replace(head=b"\xff" * 10_000, total_bytes=10_000)
    found = fit({"stdout": binary}, 2_000)["stdout"]
    assert set(found.text) > {"\ufffd"}
    assert found.cut == Cut(10_000, found.kept_bytes, "middle")
    assert len(found.text.encode()) <= 2_000


def test_it_begins_anew_after_each_take() -> None:
    keeper = HeadTail(4)
    keeper.add(b"123456789")
    assert keeper.take().cut is not None
    keeper.add(b"ab")
    assert keeper.total_bytes == 2
    assert keeper.take() == Kept(b"ab", b"", 2)


def test_an_endless_output_takes_no_more_memory_than_its_limit() -> None:
    keeper = HeadTail(1_000)
    for _ in range(2_000):
        keeper.add(b"y" * 10_000)
    assert len(keeper._head) + len(keeper._tail) <= 2_000
    assert keeper.take().cut == Cut(20_000_000, 1_000, "middle")


def test_texts_are_halved_from_the_middle_until_their_json_fits() -> None:
    outputs = {"stdout": of_text("a" + "\0" * 50_000 + "z", 60_000), "stderr": of_text("short", 9)}
    found = fit(outputs, 20_000)
    assert len(json.dumps(found["stdout"].text)) + len('"short"') <= 20_000
    assert found["stdout"].text[0] == "a"
    assert found["stdout"].text[-1] == "z"
    assert found["stderr"].text == "short"
    (part, cut), *others = cuts(found).items()
    assert part == "stdout"
    assert cut.total_bytes == 50_002
    assert cut.missing == "middle"
    assert not others


def test_a_beginning_alone_is_shortened_at_its_end_also_when_the_whole_was_counted() -> None:
    kept = Kept(b"0123456789", b"", 1_000).smaller(4)
    assert kept == Kept(b"0123", b"", 1_000)
    assert kept.cut == Cut(1_000, 4, "end")


def test_what_was_counted_only_in_part_says_so() -> None:
    kept = Kept(b"x" * 10, b"", None)
    assert kept.cut == Cut(None, 10, "end")
    assert kept.text.endswith("\n[... more bytes are missing here ...]\n")
    assert truncation.words("content", Cut(None, 10, "end")) == "content: cut after 10 bytes"


def test_what_was_cut_survives_json_and_strangers_rows_are_left_out() -> None:
    found = {"logs": Cut(70_000, 65_536, "middle"), "content": Cut(None, 9, "end")}
    assert truncation.read(json.loads(json.dumps(truncation.write(found)))) == found
    assert truncation.write({}) is None
    row = {"total_bytes": 5, "kept_bytes": 1, "missing": "middle"}
    strange: tuple[object, ...] = (
        True, [], {"logs": True}, {"logs": {**row, "total_bytes": -1}}, {"strange": row},
        {"logs": {**row, "kept_bytes": 1.5}}, {"logs": {**row, "missing": []}},
        {"logs": {**row, "missing": "most"}}, {"logs": {**row, "kept_bytes": True}},
    )  # fmt: skip
    for bad in strange:
        assert truncation.read(bad) == {}


def test_what_is_missing_is_said_in_words() -> None:
    line = truncation.words("stdout", Cut(1_000_000, 262_144, "middle"))
    assert (
        line
        == "stdout: 737,856 of 1,000,000 bytes are missing in the middle (policy.output_limit_kb)"
    )
    assert truncation.words("logs", Cut(7, 0, "all")) == "logs: all 7 bytes are missing"

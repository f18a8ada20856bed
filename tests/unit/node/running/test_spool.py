"""Results on disk: what was stored comes back, whatever happened to the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retire_cluster.node.core.records import Result
from retire_cluster.node.running.spool import Spool, SpoolError


def result(number: int, data: bytes = b'{"n":1}') -> Result:
    key = (number, 1, number + 10, 3)
    return Result(key, "success", 0.5, None, None, data, b'{"logs":"x"}')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.spool"


def test_stored_results_come_back_in_order_after_a_restart(path: Path) -> None:
    spool = Spool(path)
    failed = Result((9, 2, 1, 1), "failed", 1.25, "error", "it broke: ä", b"", b"")
    spool.store([result(1), result(2)])
    spool.store([failed])
    spool.close()
    again = Spool(path)
    assert again.results() == [result(1), result(2), failed]
    assert again.reasons == []
    again.close()


def test_forgotten_results_stay_forgotten(path: Path) -> None:
    spool = Spool(path)
    spool.store([result(1), result(2)])
    spool.forget([result(1).key, (77, 1, 1, 1)])
    spool.close()
    again = Spool(path)
    assert again.results() == [result(2)]
    again.close()


def test_the_file_is_empty_when_nothing_is_owed(path: Path) -> None:
    spool = Spool(path)
    spool.store([result(1)])
    spool.forget([result(1).key])
    assert path.stat().st_size == 0
    spool.store([result(2)])
    spool.close()
    again = Spool(path)
    assert again.results() == [result(2)]
    again.close()


def test_a_file_of_forgotten_results_only_is_emptied_at_start(path: Path) -> None:
    spool = Spool(path)
    spool.store([result(1)])
    whole = path.read_bytes()
    spool.forget([result(1).key])
    spool.close()
    path.write_bytes(whole[:20])
    again = Spool(path)
    assert (again.results(), len(again.reasons)) == ([], 1)
    assert path.stat().st_size == 0
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_a_torn_last_record_costs_only_itself(path: Path, cut: int) -> None:
    spool = Spool(path)
    spool.store([result(1)])
    spool.store([result(2)])
    spool.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Spool(path)
    assert again.results() == [result(1)]
    assert len(again.reasons) == 1
    again.store([result(3)])
    again.close()
    last = Spool(path)
    assert last.results() == [result(1), result(3)]
    last.close()


def test_every_single_flipped_byte_costs_at_most_its_record(path: Path) -> None:
    spool = Spool(path)
    spool.store([result(1)])
    size = path.stat().st_size
    spool.store([result(2), result(3)])
    spool.close()
    whole = path.read_bytes()
    for at in range(size):
        broken = bytearray(whole)
        broken[at] ^= 0x41
        path.write_bytes(bytes(broken))
        again = Spool(path)
        assert again.results() == [result(2), result(3)], at
        assert len(again.reasons) >= 1
        again.close()


def test_a_result_that_looks_like_a_record_does_not_confuse_it(path: Path) -> None:
    spool = Spool(path)
    nasty = result(1, b"RCS1R" + b"\xff" * 40)
    spool.store([nasty, result(2)])
    spool.close()
    again = Spool(path)
    assert again.results() == [nasty, result(2)]
    again.close()


def test_records_with_strange_content_are_skipped(path: Path) -> None:
    from retire_cluster.node.running import spool as module

    path.write_bytes(
        module._record(b"R", b"not json") + module._record(b"R", b"[1]")
        + module._record(b"F", b"[[1]]") + module._record(b"F", b"[1]")
        + module._record(b"R", b'[[1,1,1,1],"success",1' + b"0" * 400 + b',null,null]')
    )  # fmt: skip
    spool = Spool(path)
    assert (spool.results(), len(spool.reasons)) == ([], 5)
    spool.close()


def test_a_long_file_is_rewritten_without_what_is_forgotten(path: Path) -> None:
    spool = Spool(path, compact_bytes=2_000)
    spool.store([result(n, b"x" * 200) for n in range(1, 11)])
    spool.forget([result(n).key for n in range(1, 10)])
    assert path.stat().st_size < 400
    spool.store([result(20)])
    spool.close()
    again = Spool(path)
    assert again.results() == [result(10, b"x" * 200), result(20)]
    again.close()


def test_a_disk_that_fails_is_told_and_the_result_kept_in_memory(path: Path) -> None:
    spool = Spool(path)
    spool.close()
    with pytest.raises(SpoolError, match=re.escape(f"cannot store results: {path}: Bad file")):
        spool.store([result(1)])
    assert spool.results() == [result(1)]
    with pytest.raises(SpoolError, match=re.escape(f"cannot tidy results: {path}: Bad file")):
        spool.forget([result(1).key])

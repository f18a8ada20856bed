"""The red team's script notices a hole that is there, and the quick part of it finds none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import redteam
from tests.chaos.red import Attack, NotHere, Target, Went, known

#: Attacks that need nothing but the one cluster, and a fraction of a second each.
QUICK = {"S2", "S3", "S4", "S5", "S7", "S8", "S11"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    made = Target(tmp_path_factory.mktemp("red") / "up", *redteam.FLAGS)
    yield made
    made.close()


def test_what_may_be_tried_quickly_holds(target: Target) -> None:
    wanted = [attack for attack in redteam.attacks() if attack.number in QUICK]
    assert len(wanted) >= len(QUICK)
    rows = [redteam.judge(attack, target) for attack in wanted]
    assert {row.verdict for row in rows} == {redteam.HELD}, redteam.table(rows)


def test_a_cluster_that_was_opened_is_told_as_gone_through(tmp_path: Path) -> None:
    opened = Target(tmp_path / "up", "--workers", "0", "--insecure")
    try:
        row = redteam.judge(Attack("S1", "no encryption", known._no_encryption), opened)
    finally:
        opened.close()
    assert row.verdict == redteam.WENT, row
    assert "the bus answers a client without keys" in row.seen
    assert "| S1 | no encryption | WENT THROUGH | the bus answers" in redteam.table([row])
    assert not row.good


def test_every_way_an_attack_can_end_has_its_verdict(target: Target) -> None:
    def hangs(_: Target) -> str:
        while True:
            try:
                target.up.wait()
            except Exception:  # an attack that swallows what it gets
                continue

    def is_not_here(_: Target) -> str:
        raise NotHere("no such kernel")

    def fails(_: Target) -> str:
        pytest.fail("the kit's own way to give up")

    def goes_through(_: Target) -> str:
        raise Went("it answered")

    ways = {hangs: redteam.WENT, is_not_here: redteam.NOT_HERE, fails: redteam.UNCLEAR,
            goes_through: redteam.WENT, lambda _: "refused": redteam.HELD}  # fmt: skip
    for run, verdict in ways.items():
        row = redteam.judge(Attack("S1", "one", run, seconds=0.5), target)
        assert (row.verdict, row.good) == (verdict, verdict in (redteam.HELD, redteam.NOT_HERE))


def test_a_cluster_that_serves_nobody_any_more_is_told_whatever_the_attack_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target.witness, "__defaults__", (1.0,))
    idle = Target(tmp_path / "up", "--workers", "0")
    try:
        row = redteam.judge(Attack("S1", "nothing", lambda _: "refused"), idle)
    finally:
        idle.close()
    assert row.verdict == redteam.WENT
    assert "no longer serves" in row.seen


def test_numbers_are_chosen_by_name_and_sorted_as_numbers() -> None:
    all_of_them = redteam.attacks()
    numbers = [int(attack.number.lstrip("S")) for attack in all_of_them]
    assert numbers == sorted(numbers)
    assert set(range(1, 18)) <= set(numbers)
    assert {attack.number for attack in redteam.chosen(all_of_them, "s4, S10")} == {"S4", "S10"}
    with pytest.raises(ValueError, match="S999"):
        redteam.chosen(all_of_them, "S999")

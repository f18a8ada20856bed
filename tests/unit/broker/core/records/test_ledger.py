"""The ledger against a naive list of tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from retire_cluster.broker.core.records.ledger import Ledger, Names, TaskFilter
from retire_cluster.schemas.vocabulary import PRIORITIES, TERMINAL, TaskStatus

STATUSES = st.sampled_from(list(TaskStatus))
TYPES = st.sampled_from(["echo", "sleep", "command"])
PRIORITY = st.integers(0, 3)
DEVICES = st.sampled_from([None, "a", "b"])


@dataclass
class Line:
    """A task as the naive list keeps it."""

    number: int
    status: TaskStatus
    type: str
    priority: int
    device: str | None
    ended_s: int


class LedgerAgainstList(RuleBasedStateMachine):
    """Whatever is written, both tell the same."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.lines: list[Line] = []
        self.next = 1

    @rule(status=STATUSES, type_=TYPES, priority=PRIORITY, device=DEVICES, gap=st.integers(0, 3))
    def add(
        self, status: TaskStatus, type_: str, priority: int, device: str | None, gap: int
    ) -> None:
        self.next += gap
        self.ledger.add(self.next, status, type_, priority, device, 7)
        self.lines.append(Line(self.next, status, type_, priority, device, 7))
        self.next += 1

    @rule(status=STATUSES, device=DEVICES, ended_s=st.integers(0, 9), which=st.integers(0))
    def move(self, status: TaskStatus, device: str | None, ended_s: int, which: int) -> None:
        if self.lines:
            line = self.lines[which % len(self.lines)]
            line.status, line.device, line.ended_s = status, device, ended_s
            self.ledger.move(line.number, status, device, ended_s)

    @rule(status=STATUSES, type_=TYPES, priority=PRIORITY, device=DEVICES, count=st.integers(1, 5))
    def extend(
        self, status: TaskStatus, type_: str, priority: int, device: str | None, count: int
    ) -> None:
        self.ledger.extend(self.next, count, status, type_, priority, device, 3)
        for _ in range(count):
            self.lines.append(Line(self.next, status, type_, priority, device, 3))
            self.next += 1

    @rule(
        status=STATUSES, device=DEVICES, first=st.integers(0, 20), count=st.integers(1, 6),
        order=st.sampled_from([1, -1]),
    )  # fmt: skip
    def move_all(
        self, status: TaskStatus, device: str | None, first: int, count: int, order: int
    ) -> None:
        some = self.lines[first : first + count][::order]
        for line in some:
            line.status, line.device, line.ended_s = status, device, 5
        if some:
            self.ledger.move_all([line.number for line in some], status, device, 5)

    @rule(which=st.integers(0))
    def drop(self, which: int) -> None:
        if self.lines:
            self.ledger.drop(self.lines.pop(which % len(self.lines)).number)

    @rule()
    def drop_the_oldest_and_compact(self) -> None:
        for line in self.lines[:3]:
            self.ledger.drop(line.number)
        del self.lines[:3]
        self.ledger.compact()

    @rule(
        status=st.none() | STATUSES,
        type_=st.none() | TYPES | st.just("unknown"),
        priority=st.none() | PRIORITY,
        device=st.none() | st.sampled_from(["a", "b", "unknown", ""]),
        skip=st.integers(0, 4),
        size=st.integers(1, 4),
        before=st.none() | st.integers(-1, 40),
    )
    def look(
        self,
        status: TaskStatus | None,
        type_: str | None,
        priority: int | None,
        device: str | None,
        skip: int,
        size: int,
        before: int | None,
    ) -> None:
        wanted = TaskFilter(status, type_, priority, device)
        fits = [
            line.number
            for line in reversed(self.lines)
            if status in (None, line.status)
            and type_ in (None, line.type)
            and priority in (None, line.priority)
            and (device is None or (device == line.device and device != ""))
        ]
        assert self.ledger.count(wanted) == len(fits)
        older = [number for number in fits if before is None or number < before]
        assert self.ledger.page(wanted, skip, size, before) == older[skip : skip + size]

    @invariant()
    def tell_the_same(self) -> None:
        ledger, lines = self.ledger, self.lines
        assert ledger.total == len(lines)
        for number in range(-1, self.next + 2):
            assert ledger.has(number) == any(line.number == number for line in lines)
        for line in lines:
            found = (ledger.status(line.number), ledger.ended_s(line.number))
            assert found == (line.status, line.ended_s)
        zeros = dict.fromkeys((status.value for status in TaskStatus), 0)
        assert ledger.by_status() == {**zeros, **Counter(line.status.value for line in lines)}
        words = Counter(PRIORITIES[line.priority] for line in lines)
        assert ledger.by_priority() == {**dict.fromkeys(PRIORITIES, 0), **words}
        ended = [line for line in lines if line.status in TERMINAL]
        assert ledger.ended() == len(ended)
        words = Counter(PRIORITIES[line.priority] for line in ended)
        assert ledger.by_priority(TERMINAL) == {**dict.fromkeys(PRIORITIES, 0), **words}
        assert ledger.by_type() == Counter(line.type for line in lines)
        assert ledger.by_device() == Counter(line.device for line in lines if line.device)
        pairs = Counter((line.device, line.status) for line in lines if line.device)
        assert ledger.by_device_and_status() == pairs
        ledger.sort_endings()
        ledger.check_endings()


LedgerAgainstList.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLedgerAgainstList = LedgerAgainstList.TestCase


def test_numbers_only_rise() -> None:
    ledger = Ledger()
    ledger.add(5, TaskStatus.QUEUED, "echo", 1)
    with pytest.raises(ValueError, match="task 5 is older"):
        ledger.add(5, TaskStatus.QUEUED, "echo", 1)


def test_an_empty_ledger_begins_at_any_number_and_again_after_all_is_deleted() -> None:
    ledger = Ledger()
    for number in (1_000_000, 7_000_000):
        ledger.add(number, TaskStatus.SUCCESS, "echo", 1)
        assert ledger.page(TaskFilter(), 0, 5) == [number]
        ledger.drop(number)
        ledger.compact()
        assert not ledger.has(number)
        assert len(ledger._status) == 0


def test_names_are_numbered_in_order_of_appearance() -> None:
    names = Names("x")
    assert [names.number(text) for text in ("a", "x", "a", "b")] == [1, 0, 1, 2]
    assert (names.known("b"), names.known("c")) == (2, None)


def test_a_device_is_found_among_many_whatever_its_number_looks_like_in_bytes() -> None:
    ledger = Ledger()
    for number in range(1, 1_201):
        ledger.add(number, TaskStatus.SUCCESS, "echo", 1, f"d{number % 600}")
    for device in (0, 1, 254, 255, 256, 257, 511, 512, 599):
        wanted = TaskFilter(device_id=f"d{device}")
        found = [number for number in range(1_200, 0, -1) if number % 600 == device]
        assert ledger.page(wanted, 0, 10) == found
        assert ledger.page(wanted, 0, 10, before=found[0]) == found[1:]

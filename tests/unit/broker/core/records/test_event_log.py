"""The event log and its cursor."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.records.event_log import Entry, EventLog, fresh_epoch

EPOCH = 1 << 40
WALL_MS = 1_760_000_000_000
YEAR_MS = 365 * 86_400_000


def everything(entry: Entry) -> bool:
    return True


def filled(count: int, epoch: int = EPOCH, size: int = 10) -> EventLog:
    log = EventLog(epoch, size)
    for number in range(count):
        log.add("task.queued" if number % 2 else "device.online", number)
    return log


def test_ids_rise_without_gaps_and_across_epochs() -> None:
    log = filled(3)
    ids = [entry.id for entry in log.after(0)]
    assert ids == [EPOCH + 1, EPOCH + 2, EPOCH + 3]
    assert log.last == ids[-1]
    assert log.recorded == 3


@given(
    st.lists(
        st.tuples(st.integers(-60 * YEAR_MS, 9_000 * YEAR_MS), st.integers(0, 1 << 29)),
        min_size=1, max_size=20,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_ids_rise_over_restarts_whatever_the_clock_does_and_stay_javascripts_numbers(
    lives: list[tuple[int, int]], rng: random.Random
) -> None:
    newest = 0
    for moved_ms, events in lives:
        epoch = fresh_epoch(newest, Now(0.0, WALL_MS + moved_ms), rng)
        assert epoch > newest
        newest = epoch + events
    assert newest < 2**53


@pytest.mark.parametrize("later_ms", [0, 3_600_000, YEAR_MS, -YEAR_MS])
def test_a_restored_backup_does_not_number_its_events_as_the_one_it_replaces(later_ms: int) -> None:
    """The forerunner ran on from the same backup; its newest cursor is not known to the new one."""
    rng = random.Random(later_ms)
    mistaken = 0
    for kept in range(10_000_000, 10_000_200):
        old = EventLog(fresh_epoch(kept, Now(0.0, WALL_MS), rng))
        old.add_burst("task.queued", 1, range(500), [1] * 500, None, {})
        new = EventLog(fresh_epoch(kept, Now(0.0, WALL_MS + later_ms), rng))
        new.add_burst("task.queued", 1, range(700), [1] * 700, None, {})
        mistaken += not new.gap(old.last)
    assert mistaken == 0


def test_a_new_log_has_nothing_and_its_cursor_is_where_the_first_event_will_follow() -> None:
    log = EventLog(EPOCH)
    assert list(log.after(0)) == []
    before = log.last
    log.add("device.online", 1, device_id="box")
    assert [entry.id for entry in log.after(before)] == [log.last]


@given(st.integers(0, 30), st.integers(1, 12), st.integers(-3, 35))
def test_after_a_cursor_come_exactly_the_kept_events_newer_than_it(
    count: int, size: int, offset: int
) -> None:
    log = filled(count, size=size)
    kept = list(range(EPOCH + 1, EPOCH + 1 + count))[-size:]
    since = EPOCH + offset
    wanted = [number for number in kept if number > since]
    assert [entry.id for entry in log.after(since)] == wanted
    dropped = count - len(kept)
    missing = [number for number in range(1, dropped + 1) if EPOCH + number > since]
    assert log.gap(since) == (bool(missing) or since > log.last or since < EPOCH)


@given(
    st.lists(st.integers(0, 5), max_size=12), st.integers(1, 20), st.integers(-2, 60),
    st.none() | st.integers(1, 20),
)  # fmt: skip
def test_a_burst_is_read_as_the_events_it_stands_for(
    sizes: list[int], size: int, offset: int, resized: int | None
) -> None:
    log, naive = EventLog(EPOCH, size), EventLog(EPOCH, size)
    task = 0
    for count in sizes:
        if not count:
            for one in (log, naive):
                one.add("device.online", 7, device_id="box", data={"a": 1})
            continue
        tasks = range(task, task + count)
        data = {"attempt": 1} if count % 2 else [{"attempt": number} for number in tasks]
        log.add_burst("task.queued", count, tasks, [9] * count, "box", data)
        for number in tasks:
            told = {"attempt": 1 if count % 2 else number}
            naive.add("task.queued", count, number, 9, "box", told)
        task += count
    if resized is not None:
        log.resize(resized)
        naive.resize(resized)
    since = EPOCH + offset
    assert list(log.after(since)) == list(naive.after(since))
    assert (log.gap(since), log.last) == (naive.gap(since), naive.last)
    assert log.select(since, 3, everything) == naive.select(since, 3, everything)


def test_a_poll_from_the_start_has_no_gap_but_a_cursor_of_a_forerunner_has() -> None:
    log = filled(30)
    assert not log.gap(0)
    assert log.gap(5)
    assert log.gap(log.last + 1)
    assert not log.gap(log.last)
    assert EventLog(2).gap(EventLog(EPOCH).last)


def test_selecting_gives_at_most_the_limit_and_goes_on_where_it_stopped() -> None:
    log = filled(10)
    seen: list[int] = []
    cursor = 0
    for _ in range(4):
        found, cursor = log.select(cursor, 3, everything)
        seen += [entry.id for entry in found]
    assert seen == [entry.id for entry in log.after(0)]
    assert log.select(cursor, 3, everything) == ([], log.last)


def test_what_is_not_wanted_is_passed_over_by_the_cursor() -> None:
    log = filled(10)
    found, cursor = log.select(0, 100, lambda entry: entry.type == "task.queued")
    assert len(found) == 5
    assert cursor == log.last
    assert log.select(0, 100, lambda entry: False) == ([], log.last)


def test_a_cursor_of_an_epoch_with_higher_numbers_gets_all_that_is_kept() -> None:
    log = filled(3)
    assert log.gap(log.last + 50)
    assert log.select(log.last + 50, 10, everything) == (list(log.after(0)), log.last)
    assert log.select(log.last + 50, 2, everything)[1] == log.last - 1
    assert EventLog(EPOCH).select(EPOCH + 50, 10, everything) == ([], EPOCH)


def test_a_smaller_log_forgets_its_oldest_events_and_a_larger_one_keeps_more() -> None:
    log = filled(10)
    newest = log.last
    log.resize(10)
    log.resize(4)
    assert [entry.id for entry in log.after(0)] == list(range(newest - 3, newest + 1))
    assert log.gap(newest - 5)
    log.resize(6)
    for number in range(3):
        log.add("device.changed", number)
    assert len(list(log.after(0))) == 6

"""The event log and its cursor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.broker.feed import EPOCH_SPAN, Entry, EventLog


def everything(entry: Entry) -> bool:
    return True


def filled(count: int, epoch: int = 1, size: int = 10) -> EventLog:
    log = EventLog(epoch, size)
    for number in range(count):
        log.add("task.queued" if number % 2 else "device.online", number)
    return log


def test_ids_rise_without_gaps_and_across_epochs() -> None:
    log = filled(3)
    ids = [entry.id for entry in log.after(0)]
    assert ids == [EPOCH_SPAN + 1, EPOCH_SPAN + 2, EPOCH_SPAN + 3]
    assert log.last == ids[-1] < EventLog(2).last + 1


def test_ids_stay_whole_numbers_of_javascript_for_a_million_restarts() -> None:
    assert EventLog(1_000_000).last < 2**53


def test_a_new_log_has_nothing_and_its_cursor_is_where_the_first_event_will_follow() -> None:
    log = EventLog(1)
    assert list(log.after(0)) == []
    before = log.last
    log.add("device.online", 1, device_id="box")
    assert [entry.id for entry in log.after(before)] == [log.last]


@given(st.integers(0, 30), st.integers(1, 12), st.integers(-3, 35))
def test_after_a_cursor_come_exactly_the_kept_events_newer_than_it(
    count: int, size: int, offset: int
) -> None:
    log = filled(count, size=size)
    kept = list(range(EPOCH_SPAN + 1, EPOCH_SPAN + 1 + count))[-size:]
    since = EPOCH_SPAN + offset
    wanted = [number for number in kept if number > since]
    assert [entry.id for entry in log.after(since)] == wanted
    dropped = count - len(kept)
    missing = [number for number in range(1, dropped + 1) if EPOCH_SPAN + number > since]
    assert log.gap(since) == (bool(missing) or since > log.last or since < EPOCH_SPAN)


@given(
    st.lists(st.integers(0, 5), max_size=12), st.integers(1, 20), st.integers(-2, 60),
    st.none() | st.integers(1, 20),
)  # fmt: skip
def test_a_burst_is_read_as_the_events_it_stands_for(
    sizes: list[int], size: int, offset: int, resized: int | None
) -> None:
    log, naive = EventLog(1, size), EventLog(1, size)
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
    since = EPOCH_SPAN + offset
    assert list(log.after(since)) == list(naive.after(since))
    assert (log.gap(since), log.last) == (naive.gap(since), naive.last)
    assert log.select(since, 3, everything) == naive.select(since, 3, everything)


def test_a_poll_from_the_start_has_no_gap_but_a_cursor_of_a_forerunner_has() -> None:
    log = filled(30)
    assert not log.gap(0)
    assert log.gap(5)
    assert log.gap(log.last + 1)
    assert not log.gap(log.last)
    assert EventLog(2).gap(EventLog(1).last)


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


def test_a_cursor_from_the_future_is_brought_back() -> None:
    log = filled(3)
    assert log.select(log.last + 50, 10, everything) == ([], log.last)


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

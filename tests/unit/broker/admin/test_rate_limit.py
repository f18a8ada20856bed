"""Moving windows of the rate limit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.broker.admin import rate_limit
from retire_cluster.broker.admin.rate_limit import HOUR, MINUTE, RequestLimits, RequestWindows

LIMITS = RequestLimits(per_minute=6, per_hour=20, burst=2)


def hit(
    limiter: RequestWindows, at: float, client: str = "a", limits: RequestLimits = LIMITS
) -> Any:
    return limiter.hit(client, limits, at, int(at * 1000))


def test_remaining_counts_down_and_stays_at_zero_in_the_burst() -> None:
    limiter = RequestWindows()
    answers = [hit(limiter, 100.0) for _ in range(9)]
    assert [one["remaining"] for one in answers] == [5, 4, 3, 2, 1, 0, 0, 0, 0]
    assert [one["allowed"] for one in answers] == [True] * 8 + [False]
    assert {one["limit"] for one in answers} == {6}


def test_the_documented_defaults_are_seventy_in_a_minute() -> None:
    limiter = RequestWindows()
    allowed = sum(hit(limiter, 5.0, limits=RequestLimits())["allowed"] for _ in range(100))
    assert allowed == 70


def test_reset_is_the_second_when_the_oldest_request_leaves_the_minute() -> None:
    limiter = RequestWindows()
    assert hit(limiter, 100.0)["reset"] == 160
    assert hit(limiter, 130.0)["reset"] == 160
    assert hit(limiter, 161.0)["reset"] == 190


def test_a_refused_request_costs_nothing_and_names_the_wait() -> None:
    limiter = RequestWindows()
    for second in range(8):
        hit(limiter, 100.0 + second)
    refused = [hit(limiter, 110.0) for _ in range(5)]
    assert {one["retry_after"] for one in refused} == {50}
    assert not hit(limiter, 159.9)["allowed"]
    assert hit(limiter, 160.0)["allowed"]
    assert not hit(limiter, 160.0)["allowed"]


def test_the_hour_has_its_own_limit() -> None:
    limiter = RequestWindows()
    times = [100.0 + 60.0 * number for number in range(20)]
    assert all(hit(limiter, at)["allowed"] for at in times)
    refused = hit(limiter, 1_400.0)
    assert (refused["allowed"], refused["retry_after"]) == (False, 100 + 3600 - 1_400)
    assert hit(limiter, 100.0 + HOUR)["allowed"]


def test_clients_are_counted_apart() -> None:
    limiter = RequestWindows()
    for _ in range(9):
        hit(limiter, 1.0, "a")
    assert hit(limiter, 1.0, "b")["remaining"] == 5


def test_the_client_away_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "CLIENTS_KEPT", 3)
    limiter = RequestWindows()
    for client in "abcad":
        hit(limiter, 1.0, client)
    assert hit(limiter, 1.0, "a")["remaining"] == 3
    assert hit(limiter, 1.0, "b")["remaining"] == 5


@given(
    # Exact in binary: at the edge of a window, sums and differences round differently.
    st.lists(st.integers(0, 32_000).map(lambda one: one / 64), max_size=80),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_no_window_ever_holds_more_than_allowed(
    gaps: list[float], per_minute: int, per_hour: int, burst: int
) -> None:
    limiter, limits = RequestWindows(), RequestLimits(per_minute, per_hour, burst)
    at = 0.0
    kept: list[float] = []
    for gap in gaps:
        at += gap
        answer = hit(limiter, at, limits=limits)
        recent = sum(one > at - MINUTE for one in kept)
        hour = sum(one > at - HOUR for one in kept)
        assert answer["allowed"] == (recent < per_minute + burst and hour < per_hour)
        if answer["allowed"]:
            kept.append(at)
            assert answer["retry_after"] == 0
        else:
            assert answer["retry_after"] >= 1

"""Long polls: how many threads they may hold, and for how long."""

from __future__ import annotations

import json
import time

import pytest

from retire_cluster.api.admission import parking
from retire_cluster.api.admission.parking import AT_ONCE, GATHER_SECONDS
from retire_cluster.api.admission.shutdown import Shutdown
from retire_cluster.api.serving import websocket
from tests.integration.api.kit import Bench, parse, read_all


def test_parked_polls_leave_three_quarters_of_the_threads_to_others(bench: Bench) -> None:
    ask = b"GET /api/v1/events?wait=%d&since=0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with bench.connect() as parked:
        parked.sendall(ask % 60)
        assert bench.log.somebody_waits.wait(5)
        # The one place of four threads is taken: further polls come back with nothing.
        for _ in range(6):
            status, _, body = bench.raw(ask % 50)
            assert (status, json.loads(body)["data"]["events"]) == (200, [])
        bench.log.happen("task.queued", task_id="a")
        status, _, body = parse(read_all(parked))
        assert [event["id"] for event in json.loads(body)["data"]["events"]] == [1]


def test_whoever_asks_to_wait_without_end_and_never_waits_is_told_to_slow_down(
    bench: Bench,
) -> None:
    for number in range(5):
        bench.log.happen("task.queued", task_id=str(number))
    ask = b"GET /api/v1/events?wait=60&since=0 HTTP/1.1\r\nHost: a\r\n\r\n"
    statuses = []
    with bench.connect() as client:
        for _ in range(2 * AT_ONCE):
            client.sendall(ask)
            status, headers, _ = parse(read_all(client))
            statuses.append(status)
            if status == 429:
                break
        assert statuses[:AT_ONCE] == [200] * AT_ONCE
        assert (status, headers["retry-after"]) == (429, "1")
        began = time.monotonic()
        client.sendall(ask)
        assert parse(read_all(client))[0] == 200
        assert time.monotonic() - began > 0.9 * websocket.REST_SECONDS, "its next one waits"
    assert bench.health() == 200


def test_whoever_waits_for_one_task_after_the_other_is_answered_as_fast_as_they_end(
    bench: Bench,
) -> None:
    with bench.connect() as client:
        for number in range(3 * AT_ONCE):
            bench.log.happen("task.queued", task_id=str(number))
            ask = b"GET /api/v1/events?wait=60&since=%d HTTP/1.1\r\nHost: a\r\n\r\n" % number
            client.sendall(ask)
            status, _, body = parse(read_all(client))
            assert (status, len(json.loads(body)["data"]["events"])) == (200, 1)


@pytest.mark.parametrize(("known", "seconds"), [(True, 0.0), (False, GATHER_SECONDS)])
def test_only_polls_of_strangers_are_held_for_what_comes_next(known: bool, seconds: float) -> None:
    budget = parking.WaitBudget(Shutdown(), time.monotonic, 60.0, lambda: True, known=known)
    assert budget.gather_seconds == seconds


def test_clients_without_a_key_leave_places_to_wait_to_those_with_one() -> None:
    bench = Bench("secret", threads=16)
    ask = b"GET /api/v1/events?wait=60&since=0 HTTP/1.1\r\nHost: a\r\n%sConnection: close\r\n\r\n"
    try:
        parked = [bench.connect() for _ in range(2)]
        for connection in parked:
            bench.log.somebody_waits.clear()
            connection.sendall(ask % b"")
            assert bench.log.somebody_waits.wait(5)
        status, _, body = bench.raw(ask % b"")
        assert (status, json.loads(body)["data"]["events"]) == (200, []), "no third place"
        bench.log.somebody_waits.clear()
        keyed = bench.connect()
        keyed.sendall(ask % b"X-API-Key: secret\r\n")
        assert bench.log.somebody_waits.wait(5)
        bench.log.happen("task.queued", task_id="a")
        for connection in (*parked, keyed):
            assert json.loads(parse(read_all(connection))[2])["data"]["events"]
    finally:
        bench.close()

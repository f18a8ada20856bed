"""Large bodies: one is read at a time, strangers' are few, and small requests do not notice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from retire_cluster.api.admission.body_budget import (
    ALL_BYTES,
    STRANGER_BYTES,
    STRANGERS_BYTES,
    BodyBudget,
    OneByOne,
    Sender,
)
from retire_cluster.broker.client import RawAnswer
from tests.integration.api.kit import Bench, parse, read_all
from tests.integration.broker.test_intake import Peak
from tests.integration.main_kit import eventually

KEY = "a-key-of-this-test-0123456789"
MIB = 1024 * 1024
BATCH = b"POST /api/v1/tasks/batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
WITH_KEY = BATCH + f"X-API-Key: {KEY}\r\n".encode()
BY_ANOTHER = BATCH + b"X-Forwarded-For: 192.0.2.1\r\n"


def sized(head: bytes, body: bytes) -> bytes:
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def chunked(head: bytes, body: bytes) -> bytes:
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def batch(count: int) -> bytes:
    """A good batch of so many tasks of 250 KiB each."""
    task = b'{"task_type":"echo","payload":{"a":"%b"}}' % (b"x" * (250 * 1024))
    return b'{"tasks":[%b]}' % b",".join([task] * count)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made = []

    def one(*keys: str, **options: Any) -> Bench:
        made.append(Bench(*keys, **options))
        return made[-1]

    yield one
    for bench in made:
        bench.close()


class Holding:
    """Stands in front of a main node and keeps submissions waiting."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.inside = self.most = self.begun = 0
        self._lock = threading.Lock()
        self._call = bench.log.call_raw
        monkeypatch.setattr(bench.log, "call_raw", self.call_raw)

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        **options: Any,
    ) -> RawAnswer:
        if op != "task.submit":
            return self._call(op, args, blobs, **options)
        with self._lock:
            self.begun += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.go_on.wait(20)
        with self._lock:
            self.inside -= 1
        return RawAnswer({"task_ids": ["t"] * len(blobs), "submitted_at": "now"}, [])


def test_large_bodies_take_one_thread_and_small_requests_do_not_wait(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(threads=4)
    held = Holding(bench, monkeypatch)
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(bench.raw, sized(BATCH, batch(5))) for _ in range(8)]
        try:
            eventually(lambda: held.begun, "one of them is with the main node")
            eventually(lambda: bench.server.bodies.kept_bytes > 8 * 5 * 250 * 1024, "all are here")
            for _ in range(20):
                assert bench.health() == 200
            assert held.begun == 1
        finally:
            held.go_on.set()
        assert [answer.result()[0] for answer in answers] == [201] * 8
    assert held.most == 1
    eventually(lambda: not bench.server.bodies.kept_bytes, "all is given back")


def test_eight_of_the_largest_batches_at_once_cost_little_more_than_one(
    make: Callable[..., Bench],
) -> None:
    bench = make(threads=16)
    values = b"1.5," * ((16 * MIB - 100) // 4)
    request = sized(BATCH, b'{"tasks":[{"task_type":"echo","payload":{"a":[%b1]}}]}' % values)
    del values
    with Peak() as peak, ThreadPoolExecutor(8) as clients:
        statuses = [answer[0] for answer in clients.map(bench.raw, [request] * 8)]
    print(f"{peak.grown_mib} MiB more")
    assert statuses == [413] * 8, "its payload is too large, which is known when it was read"
    assert peak.grown_mib < 400


@pytest.mark.parametrize("framed", [sized, chunked])
def test_a_batch_is_larger_than_any_body_for_who_may_submit_only(
    make: Callable[..., Bench], framed: Callable[[bytes, bytes], bytes]
) -> None:
    guarded, open_ = make(KEY), make()
    body = b" " * (MIB + 1)
    for bench, head in (
        (guarded, BATCH),
        (guarded, BATCH + b"X-API-Key: wrong\r\n"),
        (open_, BY_ANOTHER),
    ):
        status, _, text = bench.raw(framed(head, body))
        document = json.loads(text)
        assert (status, document["error_code"]) == (413, "PAYLOAD_TOO_LARGE")
        assert "several smaller batches" in document["message"]
        assert document["error_details"]["limit_bytes"] == MIB
    for bench, head in ((guarded, WITH_KEY), (open_, BATCH)):
        assert bench.raw(framed(head, body))[0] == 400, "it was read"


def test_a_stranger_who_asks_first_is_refused_before_he_sends(make: Callable[..., Bench]) -> None:
    bench = make(KEY)
    asking = b"Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n"
    assert bench.raw(BATCH + asking)[0] == 413
    with bench.connect() as connection:
        connection.sendall(WITH_KEY + asking)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")


def test_bodies_of_strangers_on_their_way_are_bounded_and_others_are_served(
    make: Callable[..., Bench],
) -> None:
    bench, size = make(KEY), 1_000_000
    head = BATCH + b"Content-Length: %d\r\n\r\n" % size
    waiting = [bench.connect() for _ in range(STRANGER_BYTES // size)]
    for connection in waiting:
        connection.sendall(head + b" " * (size - 1))
    kept = len(waiting) * (size - 1)
    eventually(lambda: bench.server.bodies.kept_bytes == kept, "all are counted")
    status, headers, text = bench.raw(sized(BATCH, b" " * size))
    assert (status, json.loads(text)["error_code"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert int(headers["retry-after"]) >= 1
    assert bench.raw(sized(BATCH, b" " * 60_000))[0] == 400, "small ones are read"
    assert bench.raw(sized(WITH_KEY, b" " * 5 * MIB))[0] == 400, "and those of who has a key"
    waiting[0].sendall(b" ")
    assert parse(read_all(waiting[0]))[0] == 400
    eventually(lambda: bench.server.bodies.kept_bytes < kept, "given back after the answer")
    assert bench.raw(sized(BATCH, b" " * size))[0] == 400, "there is room again"
    for connection in waiting:
        connection.close()
    eventually(lambda: not bench.server.bodies.kept_bytes, "all is given back")


def test_what_is_kept_is_counted_by_address_for_strangers_and_for_all() -> None:
    budget = BodyBudget()
    strangers = [Sender(f"192.0.2.{n}", stranger=True) for n in range(5)]
    key = Sender("192.0.2.1", stranger=False)
    assert all(budget.take(each, STRANGER_BYTES) is None for each in strangers[:4])
    for sender in (strangers[0], strangers[4]):
        refused = budget.take(sender, 1)
        assert refused is not None
        assert refused.status == 429
    assert budget.kept_bytes == STRANGERS_BYTES
    assert budget.take(key, ALL_BYTES - STRANGERS_BYTES) is None
    refused = budget.take(key, 1)
    assert refused is not None
    assert refused.status == 503
    budget.give_back(strangers[0], STRANGER_BYTES)
    assert budget.take(strangers[4], 1) is None
    budget.give_back(strangers[4], 1)
    for each in strangers[1:4]:
        budget.give_back(each, STRANGER_BYTES)
    budget.give_back(key, ALL_BYTES - STRANGERS_BYTES)
    assert budget.kept_bytes == 0
    assert not budget._each


def test_who_comes_while_one_is_in_comes_in_order() -> None:
    door = OneByOne[str]()
    assert door.enter("a")
    assert not door.enter("b")
    assert not door.enter("c")
    assert [door.leave(), door.leave(), door.leave()] == ["b", "c", None]
    assert door.enter("d")

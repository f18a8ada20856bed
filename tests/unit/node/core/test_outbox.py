"""Results on their way to the main node: no more at a time than it takes from one device."""

from __future__ import annotations

from retire_cluster.node.core.outbox import Outbox
from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol.messages import AttemptKey

MIB = 1024 * 1024
#: What the main node lets a connection have on its way, less what waits in its sockets.
MOST = 24 * MIB


def owing(count: int, size: int) -> Outbox:
    outbox = Outbox()
    for number in range(1, count + 1):
        key: AttemptKey = (number, 1, 1, 1)
        outbox.add(Result(key, "success", 0.1, None, None, b"x" * size, b""))
    return outbox


def test_large_results_are_sent_as_the_ones_before_are_acknowledged() -> None:
    outbox = owing(200, MIB)
    sent: list[int] = []
    rounds = 0
    while outbox:
        batches = list(outbox.batches())
        assert 0 < sum(len(result.data) for _, part in batches for result in part) < MOST
        for batch, part in batches:
            sent += [result.key[0] for result in part]
            outbox.acknowledge(batch)
        rounds += 1
    assert sent == list(range(1, 201))
    assert rounds > 5


def test_what_was_lost_on_its_way_makes_room_for_itself() -> None:
    outbox = owing(100, MIB)
    first = [number for number, _ in outbox.batches(beat=1)]
    assert first
    assert list(outbox.batches(beat=1)) == []
    outbox.resend_before(2)
    assert list(outbox.batches(beat=2))
    outbox.start_over()
    assert next(part[0].key[0] for _, part in outbox.batches(beat=2)) == 1


def test_a_batch_that_was_made_and_not_sent_is_sent_again() -> None:
    outbox = owing(3_000, 10)
    for _ in outbox.batches(beat=1):
        break
    outbox.resend_before(2)
    assert sum(len(part) for _, part in outbox.batches(beat=2)) == 3_000


def test_small_results_go_at_once() -> None:
    outbox = owing(5_000, 10)
    assert sum(len(part) for _, part in outbox.batches()) == 5_000

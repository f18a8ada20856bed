"""Results that the main node has not acknowledged: kept, batched, sent again when it is back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.protocol.wire import BATCH_BYTES, split_batch

#: Of what was sent and is not acknowledged yet: a main node that is slower than the network would
#: have to keep more for this connection than it keeps for any, and cut it.
MOST_UNACKED_BYTES = 16 * 1024 * 1024
#: Results in one FINISHED; its header stays far below the protocol's limit.
MAX_BATCH_ITEMS = 1_000
#: Bytes of a FINISHED row beside its blobs, generously.
_ROW_BYTES = 300


class Outbox:
    """Results that this device owes the main node: it hands out batches and is told of ACKs."""

    def __init__(self, stored: Sequence[Result] = ()) -> None:
        """Owe what was stored.

        :param stored: what an earlier process left on disk
        """
        self._unacked = {result.key: result for result in stored}
        self._waiting: list[Result] = list(stored)
        #: Batch → its results, the newest heartbeat that went before it, and its bytes.
        self._batches: dict[int, tuple[list[Result], int, int]] = {}
        self._unacked_bytes = 0
        self._last_batch = 0
        self._on_disk = {result.key for result in stored}

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._unacked

    def __len__(self) -> int:
        return len(self._unacked)

    def keys(self) -> tuple[AttemptKey, ...]:
        """Keys of everything owed, in the order it ended."""
        return tuple(self._unacked)

    def add(self, result: Result, *, on_disk: bool = False) -> None:
        """Owe one more result.

        :param on_disk: it is stored, and its key is handed back when it may leave the disk
        """
        self._unacked[result.key] = result
        self._waiting.append(result)
        if on_disk:
            self._on_disk.add(result.key)

    def acknowledge(self, batch: int) -> list[AttemptKey]:
        """Forget a batch that has arrived for good; the keys of it that may leave the disk."""
        return self._forget(result.key for result in self._take(batch))

    def resend_before(self, beat: int) -> None:
        """Send again what went before a heartbeat that is acknowledged, and is not itself.

        Messages of a session stay in order, so the batch or its ACK was dropped on the way.
        """
        for batch in [n for n, (_, before, _) in self._batches.items() if before < beat]:
            results = self._take(batch)
            self._waiting += [result for result in results if result.key in self._unacked]

    def drop(self, keys: Iterable[AttemptKey]) -> list[AttemptKey]:
        """Forget what nobody wants any more; the keys of it that may leave the disk."""
        gone = {key for key in keys if key in self._unacked}
        if gone:
            self._waiting = [result for result in self._waiting if result.key not in gone]
        return self._forget(gone)

    def start_over(self) -> None:
        """Send everything owed again: a new session has begun."""
        self._waiting = list(self._unacked.values())
        self._batches.clear()
        self._unacked_bytes = 0

    def batches(self, beat: int = 0) -> list[tuple[int, list[Result]]]:
        """What waits to be sent, in batches that fit a message, each with its number.

        Of much only as many as may be on their way; the others once these are acknowledged.

        :param beat: the newest heartbeat sent so far
        """
        batches: list[tuple[int, list[Result]]] = []
        if not self._waiting or self._unacked_bytes > MOST_UNACKED_BYTES:
            return batches
        results, self._waiting = self._waiting, []
        sizes = [len(result.data) + len(result.details) + _ROW_BYTES for result in results]
        start = 0
        for count in split_batch(sizes, BATCH_BYTES // 2):
            end = start + count
            for first in range(start, end, MAX_BATCH_ITEMS):
                last = min(first + MAX_BATCH_ITEMS, end)
                if self._unacked_bytes > MOST_UNACKED_BYTES:
                    self._waiting = results[first:]
                    return batches
                self._last_batch += 1
                part, size = results[first:last], sum(sizes[first:last])
                self._batches[self._last_batch] = (part, beat, size)
                self._unacked_bytes += size
                batches.append((self._last_batch, part))
            start = end
        return batches

    def _take(self, batch: int) -> list[Result]:
        """The results of a batch that is on its way no longer; none of one that is not."""
        results, _, size = self._batches.pop(batch, ([], 0, 0))
        self._unacked_bytes -= size
        return results

    def _forget(self, keys: Iterable[AttemptKey]) -> list[AttemptKey]:
        from_disk = []
        for key in keys:
            self._unacked.pop(key, None)
            if key in self._on_disk:
                self._on_disk.discard(key)
                from_disk.append(key)
        return from_disk

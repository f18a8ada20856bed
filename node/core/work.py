"""The work of one device: attempts it has, results it owes, and news of both.

The session says when it may speak and whether it takes work; what is in hand is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from retire_cluster.node.core.instructions import (
    ForgetResults,
    Instruction,
    Kill,
    Log,
    Run,
    Send,
    StoreResults,
)
from retire_cluster.node.core.outbox import Outbox
from retire_cluster.node.core.records import ABANDONED, CANCELLED, TIMEOUT, Attempt, Result
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import AttemptKey, Held, ProgressItem
from retire_cluster.schemas.vocabulary import Cause, Outcome


class Work:
    """What a device has in hand.

    :param repeatable: whether a task of this type and payload may run twice
    :param stored: results that an earlier process left on disk
    :param progress_seconds: least time between two PROGRESS messages
    :param emit: takes the instructions, in order
    """

    def __init__(
        self,
        *,
        now: float,
        repeatable: Callable[[str, bytes], bool],
        stored: Sequence[Result],
        progress_seconds: float,
        emit: Callable[[Instruction], None],
    ) -> None:
        self._repeatable = repeatable
        self._progress_seconds = progress_seconds
        self._emit = emit
        #: Attempts the device has and has not finished.
        self.held: dict[AttemptKey, Attempt] = {}
        self.outbox = Outbox(stored)
        #: Attempts that began, and how far others are, since the main node was last told.
        self._started_news: list[AttemptKey] = []
        self._progress_news: dict[AttemptKey, ProgressItem] = {}
        #: When PROGRESS may be sent again.
        self._progress_at = now

    # --- what comes in ------------------------------------------------------------------------

    def assign(
        self, message: messages.Assign, payloads: Sequence[bytes], *, refuse: str, fenced: bool
    ) -> None:
        """Take new attempts; those that are not taken are released at once.

        :param refuse: why none is taken, or empty
        :param fenced: whether what may not run twice is not taken
        """
        attempts: list[Attempt] = []
        held, outbox, repeatable = self.held, self.outbox, self._repeatable
        token, epoch, ids = message.token, message.epoch, TaskIds(message.salt)
        left = iter(payloads)
        for task_type, timeout_seconds, *columns in message.groups:
            for task, number, created_ms in zip(*columns, strict=True):
                payload = next(left)
                key = (task, number, token, epoch)
                if key in held or key in outbox:
                    continue  # said twice
                if refuse:
                    outbox.add(_released(key, refuse))
                    continue
                safe = repeatable(task_type, payload)
                if fenced and not safe:
                    outbox.add(_released(key, "the lease was over when it came"))
                    continue
                attempt = Attempt(key, created_ms, ids, task_type, timeout_seconds, payload, safe)
                held[key] = attempt
                attempts.append(attempt)
        if attempts:
            self._emit(Run(attempts))

    def start(self, keys: Iterable[AttemptKey], now: float) -> None:
        """Note that attempts run from now on."""
        for key in keys:
            attempt = self.held.get(key)
            if attempt is not None:
                attempt.started_at = now
                self._started_news.append(key)

    def note_progress(self, items: Iterable[ProgressItem]) -> None:
        """Note how far attempts are, to tell it when PROGRESS may go."""
        self._progress_news.update((item.key, item) for item in items if item.key in self.held)

    def finish(self, results: Iterable[Result]) -> None:
        """Owe the results of attempts that ended; store those that a second run could not give."""
        durable: list[Result] = []
        for result in results:
            attempt = self.held.pop(result.key, None)
            if attempt is None:
                continue  # abandoned meanwhile
            lasts = not attempt.repeatable and result.outcome != Outcome.RELEASED
            if lasts:
                durable.append(result)
            self.outbox.add(result, on_disk=lasts)
            self._progress_news.pop(result.key, None)
        if durable:
            self._emit(StoreResults(durable))

    def cancel(self, keys: Sequence[AttemptKey], reason: str) -> None:
        """End attempts for the main node.

        :param reason: as CANCEL says it: `cancelled` or `timeout`; another is logged, and is no
            timeout
        """
        if reason not in (CANCELLED, TIMEOUT):
            words = f"a task is cancelled for a reason unknown here: {reason[:100]!r}"
            self._emit(Log("warning", words))
            reason = CANCELLED
        self.kill([key for key in keys if key in self.held], reason)
        for key in keys:
            if key not in self.held and key not in self.outbox:
                # Never seen here, so nothing will ever end it: say so at once.
                cause = Cause.TIMEOUT.value if reason == TIMEOUT else None
                words = "it was not on this device"
                self.outbox.add(Result(key, reason, 0.0, cause, words, b"", b""))

    def abandon(self, keys: Sequence[AttemptKey]) -> None:
        """End attempts of which nobody wants a result; forget the results that are owed."""
        self.kill([key for key in keys if key in self.held], ABANDONED)
        for key in keys:
            self.held.pop(key, None)
            self._progress_news.pop(key, None)
        self._forget(self.outbox.drop(keys))

    def acknowledge(self, batch: int) -> None:
        """Forget a batch of results that the main node has."""
        self._forget(self.outbox.acknowledge(batch))

    def kill(self, keys: Iterable[AttemptKey], reason: str) -> None:
        """Have attempts killed; `finish` is called once they have ended."""
        listed = list(keys)
        if listed:
            self._emit(Kill(listed, reason))

    def _forget(self, keys: list[AttemptKey]) -> None:
        if keys:
            self._emit(ForgetResults(keys))

    # --- what is told -------------------------------------------------------------------------

    def rows(self, now: float) -> tuple[Held, ...]:
        """What is held, for HELLO and heartbeats."""
        rows = ((key, attempt.started_at) for key, attempt in self.held.items())
        return tuple(Held(k, at is not None, 0.0 if at is None else now - at) for k, at in rows)

    def unrepeatable(self) -> list[AttemptKey]:
        """Attempts that may not run twice."""
        return [key for key, attempt in self.held.items() if not attempt.repeatable]

    def unstarted(self) -> list[AttemptKey]:
        """Attempts that wait for a slot."""
        return [key for key, attempt in self.held.items() if attempt.started_at is None]

    @property
    def progress_due(self) -> float | None:
        """When there is progress to tell; None while there is none."""
        return self._progress_at if self._progress_news else None

    def start_over(self) -> None:
        """Send again what is owed: a new session has begun. Its HELLO says what has started."""
        self.outbox.start_over()
        self._started_news.clear()

    def send_news(self, session: str, last_beat: int, now: float) -> None:
        """Send what is new: starts, progress, results.

        :param last_beat: the newest heartbeat sent in this session
        """
        if self._started_news:
            keys = tuple(key for key in self._started_news if key in self.held)
            self._started_news.clear()
            if keys:
                self._emit(Send(messages.Started(session, keys)))
        if self._progress_news and now >= self._progress_at:
            rows = tuple(self._progress_news.values())
            self._progress_news.clear()
            self._progress_at = now + self._progress_seconds
            self._emit(Send(messages.Progress(session, rows)))
        for batch, results in self.outbox.batches(last_beat):
            blobs = tuple(blob for one in results for blob in (one.data, one.details))
            message = messages.Finished.of(session, batch, results)
            self._emit(Send(message, blobs))


def _released(key: AttemptKey, why: str) -> Result:
    return Result(key, Outcome.RELEASED.value, 0.0, None, why, b"", b"")

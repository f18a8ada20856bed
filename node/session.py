"""What a device says to the main node and when: a pure state machine, events in, instructions out.

    connecting --LinkUp--> greeting --WELCOME--> ready --Stop--> draining --> closed
         ^---- LinkDown, silence, REJECT ----------'

Everything that decides lives here, and nothing here reads a clock, a socket or a random number:
`now` (monotonic seconds that go on while the device sleeps), `random` and `new_session` are
arguments. The rules, from docs/protocol.md:

* Each HELLO opens a new session. A message that names another session is ignored.
* A result is kept until its FINISHED is acknowledged, and sent again after every WELCOME.
* The device is *fenced* at the send time of its last acknowledged heartbeat + timeout -
  max(0.5 s, 10 %). From then on others may have its work: what may not run twice is killed.
* After `interval x max_missed` without a word from the main node the socket is rebuilt, because
  sleep, VPN and Wi-Fi changes leave links that look alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from retire_cluster.node.records import (
    ABANDONED,
    CANCELLED,
    FENCED,
    RELEASED,
    TIMEOUT,
    Attempt,
    Connect,
    Ended,
    Event,
    Exit,
    Forget,
    Instruction,
    Introduction,
    Keep,
    Kill,
    Learned,
    LinkDown,
    LinkUp,
    Opened,
    Progressed,
    Received,
    Result,
    Run,
    Say,
    Send,
    Started,
    Stop,
    Tick,
    Told,
)
from retire_cluster.schemas.messages import (
    Abandon,
    Assign,
    Cancel,
    Config,
    ConfigAck,
    Drain,
    Finished,
    FinishedAck,
    FinishedItem,
    FromDevice,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    HeartbeatConfig,
    Held,
    Hello,
    Key,
    Ping,
    Pong,
    Progress,
    ProgressItem,
    Reject,
    Resume,
    Welcome,
)
from retire_cluster.schemas.messages import Started as StartedMessage
from retire_cluster.schemas.vocabulary import Cause, Outcome
from retire_cluster.schemas.wire import BATCH_BYTES, PROTOCOL, split_batch

MAX_HELD_IN_HEARTBEAT = 256
#: Results in one FINISHED; its header stays far below the protocol's limit.
MAX_BATCH_ITEMS = 1_000
#: Bytes of a FINISHED row beside its blobs, generously.
_ROW_BYTES = 200
_MAX_ERROR_BYTES = 4_096

EXIT_OK = 0
EXIT_REFUSED = 2
EXIT_REMOVED = 4
EXIT_INTERRUPTED = 130


class Phase(Enum):
    """Where the session is."""

    CONNECTING = "connecting"
    GREETING = "greeting"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True)
class Pace:
    """Waiting times of the session, in seconds."""

    #: For WELCOME after HELLO.
    welcome_seconds: float = 5.0
    #: First and longest wait before the socket is rebuilt; doubles in between.
    backoff_seconds: float = 2.0
    backoff_cap_seconds: float = 30.0
    #: After REJECT `duplicate` or `max_connections` when the broker names no time.
    refused_seconds: float = 5.0
    #: Least time between two PROGRESS messages.
    progress_seconds: float = 0.25
    #: For running work to end by itself after the first signal.
    grace_seconds: float = 10.0
    #: For killed work to be gone.
    kill_seconds: float = 5.0
    #: For the last results to be acknowledged.
    last_ack_seconds: float = 3.0


#: Until the first WELCOME brings the broker's; the contract's defaults.
DEFAULT_CONFIG = HeartbeatConfig(version=0, interval=5.0, timeout=30.0, max_missed=3)


def fence_margin(timeout_seconds: float) -> float:
    """Seconds before the lease's end at which a device stops relying on it."""
    return max(0.5, 0.1 * timeout_seconds)


class Session:
    """One worker process's side of the conversation with the main node."""

    def __init__(
        self,
        introduction: Introduction,
        *,
        now: float,
        random: Callable[[], float],
        new_session: Callable[[], str],
        repeatable: Callable[[str, bytes], bool],
        stored: Sequence[Result] = (),
        kill_on_lease_loss: bool = True,
        pace: Pace | None = None,
        address: str = "the main node",
    ) -> None:
        self._me = introduction
        self._random = random
        self._new_session = new_session
        self._repeatable = repeatable
        self._kill_on_lease_loss = kill_on_lease_loss
        self._pace = pace or Pace()
        self._address = address
        self._began = now
        self._capabilities: dict[str, Any] = {}

        self._state = Phase.CONNECTING
        self.session = ""
        self.epoch = -1
        self.config = DEFAULT_CONFIG
        self.accepting = True
        self.not_accepting_reason = ""
        self.last_error = ""
        self.rtt_ms: float | None = None

        self._held: dict[Key, Attempt] = {}
        #: Ended and not acknowledged, in the order they ended.
        self._unacked: dict[Key, Result] = {result.key: result for result in stored}
        self._outbox: list[Result] = list(stored)
        self._batches: dict[int, list[Result]] = {}
        self._last_batch = 0
        #: Keys whose results are on disk.
        self._stored: set[Key] = {result.key for result in stored}
        self._started_news: list[Key] = []
        self._progress_news: dict[Key, Told] = {}
        self._progress_at = now

        self._hello_sent = now
        self._heard = now
        self._beat = 0
        self._beats: dict[int, float] = {}
        self._beat_at = now
        #: Send time of what the broker last acknowledged; None before the first WELCOME.
        self._lease_from: float | None = None
        self._fenced = False
        self._linked = False
        self._failures = 0
        self._connect_at: float | None = None
        self._greet_at: float | None = None
        self._welcome_by: float | None = None
        self._outage_said = False
        self._last_refusal = ""

        self._stop_reason: str | None = None
        self._exit_code = EXIT_OK
        self._grace_until = 0.0
        self._kill_until: float | None = None
        self._ack_until: float | None = None
        self._out: list[Instruction] = []

    # --- what others may ask ------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the session is; DRAINING once a stop was asked for."""
        if self._stop_reason is not None and self._state is not Phase.CLOSED:
            return Phase.DRAINING
        return self._state

    @property
    def held(self) -> dict[Key, Attempt]:
        """Attempts the device has and has not finished."""
        return self._held

    @property
    def unsent(self) -> tuple[Key, ...]:
        """Keys of results that the main node has not acknowledged."""
        return tuple(self._unacked)

    @property
    def fence_at(self) -> float | None:
        """When the device stops relying on its lease; None while it has none."""
        if self._lease_from is None:
            return None
        timeout = self.config.timeout
        return self._lease_from + timeout - fence_margin(timeout)

    def next_due(self) -> float | None:
        """The next moment at which `Tick` has something to do."""
        if self._state is Phase.CLOSED:
            return None
        due: list[float] = []
        if self._state is Phase.READY:
            due += (self._beat_at, self._silent_at())
            if self._progress_news:
                due.append(self._progress_at)
        else:
            timers = (self._connect_at, self._greet_at, self._welcome_by)
            due += [timer for timer in timers if timer is not None]
        fence_at = self.fence_at
        if fence_at is not None and not self._fenced and self._held:
            due.append(fence_at)
        if self._stop_reason is not None:
            if self._held:
                due.append(self._grace_until if self._kill_until is None else self._kill_until)
            elif self._ack_until is not None:
                due.append(self._ack_until)
        return min(due, default=None)

    # --- the one entrance ---------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What is to be done because of `event`, in order."""
        if self._state is Phase.CLOSED:
            return []
        if type(event) is Ended:
            self._on_ended(event)
        elif type(event) is Received:
            self._on_received(event, now)
        elif type(event) is Tick:
            self._on_tick(now)
        elif type(event) is Started:
            self._on_started(event.keys, now)
        elif type(event) is Progressed:
            for told in event.items:
                if told.key in self._held:
                    self._progress_news[told.key] = told
        elif type(event) is LinkUp:
            self._on_link_up(now)
        elif type(event) is LinkDown:
            self._on_link_down(event.reason, now)
        elif type(event) is Learned:
            self._capabilities = dict(event.capabilities)
        elif type(event) is Stop:
            self._on_stop(event.reason, now)
        elif type(event) is Opened:
            self._connect(now)
        out, self._out = self._out, []
        return out

    # --- the link -----------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        self._state = Phase.CONNECTING
        self._linked = False
        self._greet_at = self._welcome_by = None
        self._connect_at = now + self._backoff()
        self._out.append(Connect())

    def _backoff(self) -> float:
        """Seconds until the next attempt: doubling, the upper half of it random."""
        wait = min(
            self._pace.backoff_cap_seconds,
            self._pace.backoff_seconds * float(2 ** min(self._failures, 10)),
        )
        self._failures += 1
        return wait * (0.5 + 0.5 * self._random())

    def _on_link_up(self, now: float) -> None:
        self._linked = True
        self._connect_at = None
        if self._greet_at is None or self._greet_at <= now:
            self._greet(now)

    def _on_link_down(self, reason: str, now: float) -> None:
        # The transport dials again by itself; the timer is for when that leads nowhere.
        if self._linked or self._state is not Phase.CONNECTING:
            self._connect_at = now + self._backoff()
        self._linked = False
        self._state = Phase.CONNECTING
        self._welcome_by = None
        self._say_outage(reason)

    def _say_outage(self, reason: str) -> None:
        if self._outage_said or self._stop_reason is not None:
            return
        self._outage_said = True
        self._say(
            "warning",
            f"no connection to {self._address} ({reason}). Check that the main node runs there,"
            " that its worker port is this one and that no firewall is between; trying on",
        )

    def _greet(self, now: float) -> None:
        self.session = self._new_session()
        self._state = Phase.GREETING
        self._greet_at = self._connect_at = None
        self._welcome_by = now + self._pace.welcome_seconds
        self._hello_sent = now
        self._beat = 0
        self._beats.clear()
        self._outbox = list(self._unacked.values())
        self._batches.clear()
        self._started_news.clear()
        me = self._me
        self._send(
            Hello(
                protocol=PROTOCOL,
                device_id=me.device_id,
                instance=me.instance,
                session=self.session,
                version=me.version,
                role=me.role,
                platform=me.platform,
                hostname=me.hostname,
                tags=me.tags,
                slots=me.slots,
                capabilities=self._capabilities,
                task_types=me.task_types,
                held=tuple(self._held_rows(now)),
                unsent=tuple(self._unacked),
                accepting=self._takes_work(),
                uptime_seconds=round(now - self._began, 3),
            )
        )

    def _held_rows(self, now: float) -> Iterable[Held]:
        for attempt in self._held.values():
            began = attempt.started_at
            yield Held(attempt.key, began is not None, 0.0 if began is None else now - began)

    def _takes_work(self) -> bool:
        return self.accepting and self._stop_reason is None

    def _silent_at(self) -> float:
        return self._heard + self.config.interval * self.config.max_missed

    # --- messages -----------------------------------------------------------------------------

    def _on_received(self, event: Received, now: float) -> None:
        message = event.message
        if isinstance(message, Reject):
            if message.session in ("", self.session):
                self._on_reject(message, now)
            return
        if message.session != self.session:
            return
        self._heard = now
        if isinstance(message, Welcome):
            self._on_welcome(message, now)
            return
        if self._state is not Phase.READY:
            return
        if isinstance(message, Assign):
            self._on_assign(message, event.blobs)
        elif isinstance(message, FinishedAck):
            self._drop(self._batches.pop(message.batch, ()))
        elif isinstance(message, HeartbeatAck):
            self._on_heartbeat_ack(message, now)
        elif isinstance(message, Cancel):
            self._on_cancel(message)
        elif isinstance(message, Abandon):
            self._abandon(message.items)
        elif isinstance(message, Config):
            self._apply(message.config)
            self._send(ConfigAck(self.session, self.config.version))
            self._send_heartbeat(now)
        elif isinstance(message, Ping):
            self._send(Pong(self.session, message.nonce))
        elif isinstance(message, Drain):
            self._set_accepting(False, message.reason or "drained by the main node", now)
        elif isinstance(message, Resume):
            self._set_accepting(True, "", now)

    def _on_welcome(self, message: Welcome, now: float) -> None:
        if self._state is Phase.READY:
            return
        self._state = Phase.READY
        self._welcome_by = self._connect_at = None
        self._failures = 0
        self.epoch = message.epoch
        self._lease_from = self._hello_sent
        self._fenced = False
        self._outage_said = False
        self._last_refusal = ""
        self._apply(message.config)
        self._abandon(message.abandon)
        self._say("info", f"joined {self._address} as {self._me.device_id}")
        if self._stop_reason is not None:
            self._send(Drain(self.session, self._stop_reason))
        self._send_heartbeat(now)

    def _on_reject(self, message: Reject, now: float) -> None:
        code = message.code
        if code == "register":
            # A broker that keeps saying so must not be answered in a tight loop.
            if self._state is Phase.GREETING:
                self._wait_to_greet(self._backoff(), now)
            else:
                self._greet(now)
            return
        if code == "removed":
            self._say("error", f"this device was removed from the cluster: {message.message}")
            self._kill(list(self._held), ABANDONED)
            self._close(EXIT_REMOVED)
            return
        if code in ("protocol", "bad_hello", "wrong_port"):
            self._say("error", f"{self._address} refuses this worker: {message.message or code}")
            self._kill(list(self._held), ABANDONED)
            self._close(EXIT_REFUSED)
            return
        wait = message.retry_after_seconds
        if wait is None:
            wait = self._pace.refused_seconds
        if code != self._last_refusal:
            self._last_refusal = code
            self._say(
                "warning",
                f"{self._address} does not take this worker now ({code}):"
                f" {message.message or 'no reason given'}; trying again every {wait:.0f} s",
            )
        self._wait_to_greet(min(max(wait, 0.1), 3600.0) * (1.0 + 0.1 * self._random()), now)

    def _wait_to_greet(self, wait_seconds: float, now: float) -> None:
        self._state = Phase.CONNECTING
        self._welcome_by = self._connect_at = None
        self._greet_at = now + wait_seconds

    def _apply(self, config: HeartbeatConfig) -> None:
        self.config = config
        self._beat_at = min(self._beat_at, self._heard + config.interval)

    def _on_heartbeat_ack(self, message: HeartbeatAck, now: float) -> None:
        sent = self._beats.get(message.beat)
        if sent is None:
            return
        self.rtt_ms = round((now - sent) * 1000, 3)
        if self._lease_from is None or sent > self._lease_from:
            self._lease_from = sent
            self._fenced = False
        for beat in [beat for beat in self._beats if beat <= message.beat]:
            del self._beats[beat]

    def _set_accepting(self, accepting: bool, reason: str, now: float) -> None:
        if accepting != self.accepting:
            text = "takes work again" if accepting else f"takes no new work: {reason}"
            self._say("info", text)
        self.accepting = accepting
        self.not_accepting_reason = reason
        self._send_heartbeat(now)

    # --- attempts -----------------------------------------------------------------------------

    def _on_assign(self, message: Assign, blobs: list[bytes]) -> None:
        refuse = not self._takes_work()
        attempts: list[Attempt] = []
        held, unacked, repeatable = self._held, self._unacked, self._repeatable
        for item, payload in zip(message.items, blobs, strict=True):
            key = item.key
            if key[3] < self.epoch or key in held or key in unacked:
                continue
            if refuse:
                self._hand_in(_released(key, self._reason_not_to_accept()))
                continue
            task_type = item.task_type
            attempt = Attempt(
                key,
                item.task_id,
                task_type,
                item.timeout_seconds,
                payload,
                repeatable(task_type, payload),
            )
            held[key] = attempt
            attempts.append(attempt)
        if attempts:
            self._out.append(Run(attempts))

    def _reason_not_to_accept(self) -> str:
        return self._stop_reason or self.not_accepting_reason or "the device takes no new work"

    def _on_started(self, keys: list[Key], now: float) -> None:
        for key in keys:
            attempt = self._held.get(key)
            if attempt is not None:
                attempt.started_at = now
                self._started_news.append(key)

    def _on_ended(self, event: Ended) -> None:
        to_store: list[Result] = []
        held, unacked, outbox = self._held, self._unacked, self._outbox
        for result in event.results:
            key = result.key
            attempt = held.pop(key, None)
            if attempt is None:
                continue
            if not attempt.repeatable and result.outcome != Outcome.RELEASED:
                to_store.append(result)
            unacked[key] = result
            outbox.append(result)
            self._progress_news.pop(key, None)
        if to_store:
            self._stored.update(result.key for result in to_store)
            self._out.append(Keep(to_store))

    def _on_cancel(self, message: Cancel) -> None:
        known = [key for key in message.items if key in self._held]
        # Never seen here, so nothing will ever end it: say so at once.
        strange = [k for k in message.items if k not in self._held and k not in self._unacked]
        reason = CANCELLED if message.reason == "cancelled" else TIMEOUT
        for key in strange:
            cause = Cause.TIMEOUT.value if reason == TIMEOUT else None
            self._hand_in(Result(key, reason, 0.0, cause, "it was not on this device", b"", b""))
        self._kill(known, reason)

    def _hand_in(self, result: Result) -> None:
        self._unacked[result.key] = result
        self._outbox.append(result)

    def _abandon(self, keys: Sequence[Key]) -> None:
        self._kill([key for key in keys if key in self._held], ABANDONED)
        for key in keys:
            self._held.pop(key, None)
            self._progress_news.pop(key, None)
        gone = set(keys) & self._unacked.keys()
        if gone:
            self._outbox = [result for result in self._outbox if result.key not in gone]
            self._drop([self._unacked[key] for key in gone])

    def _drop(self, results: Iterable[Result]) -> None:
        forget = []
        for result in results:
            key = result.key
            self._unacked.pop(key, None)
            if key in self._stored:
                self._stored.discard(key)
                forget.append(key)
        if forget:
            self._out.append(Forget(forget))

    def _kill(self, keys: list[Key], reason: str) -> None:
        if keys:
            self._out.append(Kill(keys, reason))

    # --- the clock ----------------------------------------------------------------------------

    def _on_tick(self, now: float) -> None:
        self._check_fence(now)
        if self._state is Phase.READY:
            if now >= self._silent_at():
                self._say_outage(f"nothing heard for {now - self._heard:.0f} s")
                self._connect(now)
            else:
                self._flush(now)
                if now >= self._beat_at:
                    self._send_heartbeat(now)
        elif self._greet_at is not None and now >= self._greet_at:
            if self._linked:
                self._greet(now)
            else:
                self._greet_at = None
                self._connect(now)
        elif self._welcome_by is not None and now >= self._welcome_by:
            # The reply may still come; until the rebuild it counts.
            self._welcome_by = None
            self._say_outage("it does not answer")
            self._connect_at = now + self._backoff()
        elif self._connect_at is not None and now >= self._connect_at:
            self._say_outage("no answer")
            self._connect(now)
        if self._stop_reason is not None:
            self._drain(now)

    def _check_fence(self, now: float) -> None:
        fence_at = self.fence_at
        if self._fenced or fence_at is None or now < fence_at:
            return
        self._fenced = True
        if not self._held or not self._kill_on_lease_loss:
            return
        doomed = [key for key, attempt in self._held.items() if not attempt.repeatable]
        if doomed:
            self._say(
                "warning",
                f"the lease is over: {len(doomed)} task(s) that may not run twice are stopped"
                " (worker.on_lease_loss = kill)",
            )
            self._kill(doomed, FENCED)

    def _send_heartbeat(self, now: float) -> None:
        self._beat += 1
        self._beats[self._beat] = now
        self._beat_at = now + self.config.interval
        rows = None
        if len(self._held) <= MAX_HELD_IN_HEARTBEAT:
            rows = tuple(self._held_rows(now))
        takes_work = self._takes_work()
        self._send(
            Heartbeat(
                session=self.session,
                beat=self._beat,
                held=rows,
                accepting=takes_work,
                not_accepting_reason="" if takes_work else self._reason_not_to_accept(),
                rtt_ms=self.rtt_ms,
                config_version=self.config.version,
                last_error=self.last_error,
            )
        )

    def _flush(self, now: float) -> None:
        if self._started_news:
            keys = tuple(key for key in self._started_news if key in self._held)
            self._started_news.clear()
            if keys:
                self._send(StartedMessage(self.session, keys))
        if self._progress_news and now >= self._progress_at:
            rows = tuple(ProgressItem(*told) for told in self._progress_news.values())
            self._progress_news.clear()
            self._progress_at = now + self._pace.progress_seconds
            self._send(Progress(self.session, rows))
        if self._outbox:
            self._send_results()

    def _send_results(self) -> None:
        results, self._outbox = self._outbox, []
        sizes = [len(result.data) + len(result.details) + _ROW_BYTES for result in results]
        start = 0
        for count in split_batch(sizes, BATCH_BYTES // 2):
            for first in range(start, start + count, MAX_BATCH_ITEMS):
                part = results[first : min(first + MAX_BATCH_ITEMS, start + count)]
                self._last_batch += 1
                self._batches[self._last_batch] = part
                items = tuple(FinishedItem(*result[:5]) for result in part)
                blobs = tuple(blob for result in part for blob in result[5:])
                message = Finished(self.session, self._last_batch, items)
                self._out.append(Send(message, blobs))
            start += count

    # --- the end ------------------------------------------------------------------------------

    def _on_stop(self, reason: str, now: float) -> None:
        pace = self._pace
        if self._stop_reason is not None:
            self._say("warning", "stopping at once")
            self._exit_code = EXIT_INTERRUPTED
            self._grace_until = now
            self._kill_until = now + min(2.0, pace.kill_seconds)
            self._ack_until = now + min(1.0, pace.last_ack_seconds)
            self._kill(list(self._held), RELEASED)
            return
        self._stop_reason = reason
        self._grace_until = now + pace.grace_seconds
        running = [key for key, attempt in self._held.items() if attempt.started_at is not None]
        self._say(
            "info",
            f"stopping: {reason}; {len(running)} task(s) running, up to"
            f" {pace.grace_seconds:.0f} s to finish",
        )
        if self._state is Phase.READY:
            self._send(Drain(self.session, reason))
        self._kill([key for key, a in self._held.items() if a.started_at is None], RELEASED)

    def _drain(self, now: float) -> None:
        if self._held and self._kill_until is None and now >= self._grace_until:
            self._say("warning", f"{len(self._held)} task(s) still running are stopped")
            self._kill_until = now + self._pace.kill_seconds
            self._kill(list(self._held), RELEASED)
        if self._held and (self._kill_until is None or now < self._kill_until):
            return
        if self._ack_until is None:
            self._ack_until = now + self._pace.last_ack_seconds
        if self._unacked and now < self._ack_until:
            return
        if self._state is Phase.READY:
            self._send(Goodbye(self.session, self._stop_reason or ""))
        if self._unacked:
            self._say(
                "warning",
                f"{len(self._unacked)} result(s) were not acknowledged;"
                " those of tasks that may not run twice are kept on disk",
            )
        self._close(self._exit_code)

    def _close(self, code: int) -> None:
        self._state = Phase.CLOSED
        self._out.append(Exit(code))

    # --- small things -------------------------------------------------------------------------

    def _send(self, message: FromDevice) -> None:
        self._out.append(Send(message))

    def _say(self, level: str, text: str) -> None:
        self._out.append(Say(level, text))


def _released(key: Key, why: str) -> Result:
    return Result(key, Outcome.RELEASED.value, 0.0, None, why, b"", b"")

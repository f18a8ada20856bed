"""What a device says to the main node and when: a pure state machine, events in, instructions out.

    connecting --LinkUp--> greeting --WELCOME--> ready --Stop--> draining --> closed
         ^---- LinkDown, silence, REJECT ----------'

Everything that decides lives here, and nothing here reads a clock, a socket or a random number:
`now` (monotonic seconds that go on while the device sleeps), `random` and `new_session` are
arguments. The rules, from docs/protocol.md:

* Each HELLO opens a new session. A message that names another session is ignored.
* A result is kept until its FINISHED is acknowledged, and sent again after every WELCOME and when a
  heartbeat that was sent after it is acknowledged first.
* The device is *fenced* at the send time of its last acknowledged heartbeat + timeout -
  max(0.5 s, 10 %). From then on others may have its work: what may not run twice is killed.
* After `interval x max_missed` without a word from the main node the socket is rebuilt, because
  sleep, VPN and Wi-Fi changes leave links that look alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from retire_cluster.node.core import records
from retire_cluster.node.core.lease import Lease
from retire_cluster.node.core.records import (
    ABANDONED,
    FENCED,
    RELEASED,
    Instruction,
    Result,
)
from retire_cluster.node.core.work import Work
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import HeartbeatConfig
from retire_cluster.schemas.protocol.wire import PROTOCOL
from retire_cluster.schemas.text.cleantext import clean

MAX_HELD_IN_HEARTBEAT = 256

EXIT_OK = 0
EXIT_REFUSED = 2
EXIT_REMOVED = 4
EXIT_INTERRUPTED = 130

#: Until the first WELCOME brings the broker's; the contract's defaults.
DEFAULT_CONFIG = HeartbeatConfig(version=0, interval=5.0, timeout=30.0, max_missed=3)


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
    #: Between two tries at a main node that speaks an older protocol.
    outdated_seconds: float = 60.0
    #: Least time between two PROGRESS messages.
    progress_seconds: float = 0.25
    #: For running work to end by itself after the first signal.
    grace_seconds: float = 10.0
    #: For killed work to be gone.
    kill_seconds: float = 5.0
    #: For the last results to be acknowledged.
    last_ack_seconds: float = 3.0


class Session:
    """One worker process's side of the conversation with the main node."""

    def __init__(
        self,
        introduction: records.Introduction,
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
        self._kill_on_lease_loss = kill_on_lease_loss
        self._pace = pace or Pace()
        self._address = address
        self._began = now
        self._capabilities: dict[str, Any] = {}

        self._state = Phase.CONNECTING
        self.session = ""
        self.epoch = -1
        self.config = DEFAULT_CONFIG
        #: The timeout that the main node goes by, as far as this device can know.
        self._lease_timeout = DEFAULT_CONFIG.timeout
        #: The heartbeat whose acknowledgement says that it knows `config`.
        self._config_beat = 0
        self.accepting = True
        self.not_accepting_reason = ""
        #: What last went wrong on this device, for heartbeats.
        self.last_error = ""

        self._work = Work(
            now=now,
            repeatable=repeatable,
            stored=stored,
            progress_seconds=self._pace.progress_seconds,
            emit=lambda instruction: self._out.append(instruction),
        )
        #: Attempts the device has and has not finished.
        self.held = self._work.held
        #: Results that the main node has not acknowledged.
        self.outbox = self._work.outbox
        self.lease = Lease()

        self._linked = False
        self._hello_sent = now
        self._heard = now
        self._beat_at = now
        self._failures = 0
        self._connect_at: float | None = None
        self._greet_at: float | None = None
        self._welcome_by: float | None = None
        self._outage_said = False
        self._last_refusal = ""
        #: Types that the main node does not take, as it said last.
        self._left_out: tuple[str, ...] = ()

        self._stop_reason: str | None = None
        self._exit_code = EXIT_OK
        self._grace_until = 0.0
        self._kill_until: float | None = None
        self._ack_until: float | None = None
        self._out: list[Instruction] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            records.Opened: lambda event, now: self._connect(now),
            records.LinkUp: lambda event, now: self._on_link_up(now),
            records.LinkDown: self._on_link_down,
            records.Received: self._on_received,
            records.Started: lambda event, now: self._work.started(event.keys, now),
            records.Progressed: lambda event, now: self._work.progressed(event.items),
            records.Ended: lambda event, now: self._work.ended(event.results),
            records.Learned: self._on_learned,
            records.Offers: self._on_offers,
            records.Tick: lambda event, now: self._on_tick(now),
            records.Stop: self._on_stop,
            messages.FinishedAck: lambda message, now: self._work.acknowledged(message.batch),
            messages.HeartbeatAck: self._on_heartbeat_ack,
            messages.Cancel: lambda message, now: self._work.cancel(message.items, message.reason),
            messages.Abandon: lambda message, now: self._work.abandon(message.items),
            messages.Config: self._on_config,
            messages.Ping: self._on_ping,
            messages.Drain: self._on_drain,
            messages.Resume: self._on_resume,
        }

    # --- what others may ask ------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the session is; DRAINING once a stop was asked for."""
        if self._stop_reason is not None and self._state is not Phase.CLOSED:
            return Phase.DRAINING
        return self._state

    @property
    def fence_at(self) -> float | None:
        """When the device stops relying on its lease; None while it has none."""
        return self.lease.fence_at(self._lease_timeout)

    def next_due(self) -> float | None:
        """The next moment at which `Tick` has something to do."""
        if self._state is Phase.CLOSED:
            return None
        due: list[float | None] = []
        if self._state is Phase.READY:
            due += (self._beat_at, self._silent_at(), self._work.progress_due)
        else:
            due += (self._connect_at, self._greet_at, self._welcome_by)
        if self.held and not self.lease.fenced:
            due.append(self.fence_at)
        if self._stop_reason is not None:
            if not self.held:
                due.append(self._ack_until)
            else:
                due.append(self._grace_until if self._kill_until is None else self._kill_until)
        return min((at for at in due if at is not None), default=None)

    @property
    def device_id(self) -> str:
        """This device's name in the cluster."""
        return self._me.device_id

    # --- the one entrance ---------------------------------------------------------------------

    def handle(self, event: records.Event, now: float) -> list[Instruction]:
        """What is to be done because of `event`, in order."""
        if self._state is not Phase.CLOSED:
            self._handlers[type(event)](event, now)
        out, self._out = self._out, []
        return out

    # --- the link -----------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        self._state = Phase.CONNECTING
        self._linked = False
        self._greet_at = self._welcome_by = None
        self._connect_at = now + self._backoff()
        self._out.append(records.Connect())

    def _backoff(self) -> float:
        """Seconds until the next attempt: doubling, the upper half of it random."""
        wait = self._pace.backoff_seconds * float(2 ** min(self._failures, 10))
        self._failures += 1
        return min(self._pace.backoff_cap_seconds, wait) * (0.5 + 0.5 * self._random())

    def _on_link_up(self, now: float) -> None:
        self._linked = True
        self._connect_at = None
        if self._greet_at is None or self._greet_at <= now:
            self._greet(now)

    def _on_link_down(self, event: records.LinkDown, now: float) -> None:
        # The transport dials again by itself; the timer is for when that leads nowhere.
        if self._linked:
            self._connect_at = now + self._backoff()
        self._linked = False
        self._state = Phase.CONNECTING
        self._welcome_by = None
        self._say_outage(event.reason, cured=event.cured)

    def _say_outage(self, reason: str, *, cured: bool = False) -> None:
        if self._outage_said or self._stop_reason is not None:
            return
        self._outage_said = True
        if cured:
            self._say("warning", f"no connection to {self._address}: {reason}; trying on")
            return
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
        self.lease.new_session()
        self._work.start_over()
        me = self._me
        self._send(
            messages.Hello(
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
                held=self._work.rows(now),
                unsent=self.outbox.keys(),
                accepting=self._takes_work(),
                uptime_seconds=round(now - self._began, 3),
                left_out=me.left_out,
                walls=me.walls,
            )
        )

    def _takes_work(self) -> bool:
        return self.accepting and self._stop_reason is None

    def _silent_at(self) -> float:
        return self._heard + self.config.interval * self.config.max_missed

    def _on_learned(self, event: records.Learned, now: float) -> None:
        self._capabilities = dict(event.capabilities)

    def _on_offers(self, event: records.Offers, now: float) -> None:
        self._me = replace(self._me, task_types=event.task_types, left_out=event.left_out)
        # Whoever goes need not tell; whoever is not connected tells when it is.
        if self._stop_reason is None and self._state in (Phase.GREETING, Phase.READY):
            self._greet(now)

    # --- messages -----------------------------------------------------------------------------

    def _on_received(self, event: records.Received, now: float) -> None:
        message = event.message
        if isinstance(message, messages.Reject):
            if message.session in ("", self.session):
                self._on_reject(message, now)
        elif message.session == self.session:
            self._heard = now
            if isinstance(message, messages.Welcome):
                self._on_welcome(message, now)
            elif self._state is Phase.READY:
                if isinstance(message, messages.Assign):
                    self._on_assign(event, now)
                else:
                    self._handlers[type(message)](message, now)

    def _on_welcome(self, message: messages.Welcome, now: float) -> None:
        if self._state is Phase.READY:
            return
        self._state = Phase.READY
        self._welcome_by = self._connect_at = None
        self._failures = 0
        self._outage_said = False
        self._last_refusal = ""
        self.epoch = message.epoch
        self.config = message.config
        self._lease_timeout, self._config_beat = message.config.timeout, 0
        self.lease.welcomed(self._hello_sent)
        self._work.abandon(message.abandon)
        self._say("info", f"joined {self._address} as {self._me.device_id}")
        if message.left_out != self._left_out:
            self._left_out = message.left_out
            for reason in message.left_out:
                self._say("warning", f"the main node says: {clean(reason)[:500]}")
        if self._stop_reason is not None:
            self._send(messages.Drain(self.session, self._stop_reason))
        self._send_heartbeat(now)

    def _on_reject(self, message: messages.Reject, now: float) -> None:
        code, text = message.code, message.message
        if code == "register":
            # A broker that keeps saying so must not be answered in a tight loop.
            if self._state is Phase.READY:
                self._greet(now)
            else:
                self._wait_to_greet(self._backoff(), now)
        elif code == "removed":
            self._say("error", f"this device was removed from the cluster: {text}")
            self._give_up(EXIT_REMOVED)
        elif code == "protocol" and message.protocol is not None and message.protocol < PROTOCOL:
            # The main node is the older one: it may be updated while this worker waits.
            self._refused_for_now(code, text, self._pace.outdated_seconds, now)
        elif code in ("protocol", "bad_hello", "wrong_port"):
            self._say("error", f"{self._address} refuses this worker: {text or code}")
            self._give_up(EXIT_REFUSED)
        else:
            self._refused_for_now(code, text, message.retry_after_seconds, now)

    def _refused_for_now(self, code: str, text: str, wait: float | None, now: float) -> None:
        wait = min(max(self._pace.refused_seconds if wait is None else wait, 0.1), 3600.0)
        if code != self._last_refusal:
            self._last_refusal = code
            self._say(
                "warning",
                f"{self._address} does not take this worker now ({code}):"
                f" {text or 'no reason given'}; trying again every {wait:g} s",
            )
        self._wait_to_greet(wait * (1.0 + 0.1 * self._random()), now)

    def _wait_to_greet(self, wait_seconds: float, now: float) -> None:
        self._state = Phase.CONNECTING
        self._welcome_by = self._connect_at = None
        self._greet_at = now + wait_seconds

    def _on_config(self, message: messages.Config, now: float) -> None:
        self.config = message.config
        # Until the main node has our CONFIG_ACK it goes by the old timeout, which may be shorter.
        self._lease_timeout = min(self._lease_timeout, self.config.timeout)
        self._config_beat = self.lease.last_beat + 1
        self._send(messages.ConfigAck(self.session, self.config.version))
        self._send_heartbeat(now)

    def _on_heartbeat_ack(self, message: messages.HeartbeatAck, now: float) -> None:
        self.lease.acknowledged(message.beat, now)
        self.outbox.overtaken(message.beat)
        if message.beat >= self._config_beat and message.config_version == self.config.version:
            self._lease_timeout = self.config.timeout

    def _on_ping(self, message: messages.Ping, now: float) -> None:
        self._send(messages.Pong(self.session, message.nonce))

    def _on_drain(self, message: messages.Drain, now: float) -> None:
        reason = message.reason or "drained by the main node"
        self._say("info", f"takes no new work: {reason}")
        self.accepting, self.not_accepting_reason = False, reason
        self._send_heartbeat(now)

    def _on_resume(self, message: messages.Resume, now: float) -> None:
        self._say("info", "takes work again")
        self.accepting, self.not_accepting_reason = True, ""
        self._send_heartbeat(now)

    def _on_assign(self, event: records.Received, now: float) -> None:
        message = event.message
        assert isinstance(message, messages.Assign)
        # What comes late, or while we are not heard, may have been given to others by now.
        self._check_fence(now)
        if message.epoch < self.epoch:
            return  # of an earlier broker process
        self._work.assign(
            message,
            event.blobs,
            refuse="" if self._takes_work() else self._reason_not_to_accept(),
            fenced=self.lease.fenced and self._kill_on_lease_loss,
        )

    def _reason_not_to_accept(self) -> str:
        return self._stop_reason or self.not_accepting_reason or "it takes no work"

    # --- the clock ----------------------------------------------------------------------------

    def _on_tick(self, now: float) -> None:
        self._check_fence(now)
        if self._state is Phase.READY:
            if now >= self._silent_at():
                self._say_outage(f"nothing heard for {now - self._heard:.0f} s")
                self._connect(now)
            else:
                self._work.tell(self.session, self.lease.last_beat, now)
                if now >= self._beat_at:
                    self._send_heartbeat(now)
        elif self._greet_at is not None and now >= self._greet_at:
            self._greet_at = None
            if self._linked:
                self._greet(now)
            else:
                self._connect(now)
        elif self._welcome_by is not None and now >= self._welcome_by:
            # The answer may still come; until the rebuild it counts.
            self._welcome_by = None
            self._say_outage("it does not answer")
            self._connect_at = now + self._backoff()
        elif self._connect_at is not None and now >= self._connect_at:
            self._say_outage("no answer")
            self._connect(now)
        if self._stop_reason is not None:
            self._finish_draining(now)

    def _check_fence(self, now: float) -> None:
        fence_at = self.fence_at
        if self.lease.fenced or fence_at is None or now < fence_at:
            return
        self.lease.fenced = True
        doomed = self._work.unrepeatable()
        if doomed and self._kill_on_lease_loss:
            self._say(
                "warning",
                f"the lease is over: {len(doomed)} task(s) that may not run twice are stopped"
                " (worker.on_lease_loss = kill)",
            )
            self._work.kill(doomed, FENCED)

    def _send_heartbeat(self, now: float) -> None:
        self._beat_at = now + self.config.interval
        takes_work = self._takes_work()
        self._send(
            messages.Heartbeat(
                session=self.session,
                beat=self.lease.next_beat(now),
                held=self._work.rows(now) if len(self.held) <= MAX_HELD_IN_HEARTBEAT else None,
                accepting=takes_work,
                not_accepting_reason="" if takes_work else self._reason_not_to_accept(),
                rtt_ms=self.lease.rtt_ms,
                config_version=self.config.version,
                last_error=self.last_error,
            )
        )

    # --- the end ------------------------------------------------------------------------------

    def _on_stop(self, event: records.Stop, now: float) -> None:
        if self._stop_reason is not None:
            self._stop_at_once(now)
            return
        grace_seconds = self._pace.grace_seconds
        self._stop_reason = event.reason
        self._grace_until = now + grace_seconds
        waiting = self._work.unstarted()
        running = len(self.held) - len(waiting)
        self._say(
            "info",
            f"stopping: {event.reason}; {running} task(s) running"
            + (f", up to {grace_seconds:g} s to finish" if running else ""),
        )
        if self._state is Phase.READY:
            self._send(messages.Drain(self.session, event.reason))
        self._work.kill(waiting, RELEASED)

    def _stop_at_once(self, now: float) -> None:
        self._say("warning", "stopping at once")
        self._exit_code = EXIT_INTERRUPTED
        self._kill_until = now + min(2.0, self._pace.kill_seconds)
        self._ack_until = now + min(1.0, self._pace.last_ack_seconds)
        self._work.kill(self.held, RELEASED)

    def _finish_draining(self, now: float) -> None:
        if self.held and self._kill_until is None:
            if now < self._grace_until:
                return
            self._say("warning", f"{len(self.held)} task(s) still running are stopped")
            self._kill_until = now + self._pace.kill_seconds
            self._work.kill(self.held, RELEASED)
        if self.held and self._kill_until is not None and now < self._kill_until:
            return
        if self._ack_until is None:
            self._ack_until = now + self._pace.last_ack_seconds
        if self.outbox and now < self._ack_until:
            return
        if self._state is Phase.READY:
            self._send(messages.Goodbye(self.session, self._stop_reason or ""))
        if self.outbox:
            self._say(
                "warning",
                f"{len(self.outbox)} result(s) were not acknowledged;"
                " those of tasks that may not run twice are kept on disk",
            )
        self._close(self._exit_code)

    def _give_up(self, code: int) -> None:
        self._work.kill(self.held, ABANDONED)
        self._close(code)

    def _close(self, code: int) -> None:
        self._state = Phase.CLOSED
        self._out.append(records.Exit(code))

    # --- small things -------------------------------------------------------------------------

    def _send(self, message: messages.FromDevice) -> None:
        self._out.append(records.Send(message))

    def _say(self, level: str, text: str) -> None:
        self._out.append(records.Say(level, text))

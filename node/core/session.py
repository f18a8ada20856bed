"""What a device says to the main node and when: a pure state machine, events in, instructions out.

    connecting --LinkUp--> greeting --WELCOME--> ready --StopAsked--> draining --> closed
         ^---- LinkDown, silence, REJECT ----------'

Everything that decides lives here and in what it is made of (connection.py, lease.py, work.py,
shutdown.py). Nothing here reads a clock, a socket or a random number: `now` (monotonic seconds
that go on while the device sleeps) and `Randomness` are arguments. The rules, from
docs/protocol.md:

* Each HELLO opens a new session. A message that names another session is ignored.
* A result is kept until its FINISHED is acknowledged, and sent again after every WELCOME and when a
  heartbeat that was sent after it is acknowledged first.
* The device is *fenced* at the send time of its last acknowledged heartbeat + timeout -
  max(0.5 s, 10 %). From then on others may have its work: what may not run twice is killed.
* After `interval x max_missed` without a word from the main node the socket is replaced, because
  sleep, VPN and Wi-Fi changes leave links that look alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retire_cluster.node.core import events, exit_codes
from retire_cluster.node.core.connection import Connection, Phase
from retire_cluster.node.core.instructions import Exit, Instruction, Log, Send
from retire_cluster.node.core.lease import Lease
from retire_cluster.node.core.pace import DEFAULT_CONFIG, Pace
from retire_cluster.node.core.records import ABANDONED, FENCED, RELEASED, Introduction, Result
from retire_cluster.node.core.shutdown import Shutdown, Step
from retire_cluster.node.core.work import Work
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.wire import PROTOCOL
from retire_cluster.schemas.text.clean_text import clean

#: With more attempts than this a heartbeat does not list them.
MAX_HELD_IN_HEARTBEAT = 256


@dataclass(frozen=True)
class Randomness:
    """Where a session's random numbers and ids come from."""

    #: Gives numbers from 0 to 1, for waits.
    fraction: Callable[[], float]
    #: Gives the id of a session that no other has.
    session_id: Callable[[], str]


class Session:
    """One worker process's side of the conversation with the main node.

    :param repeatable: whether a task of this type and payload may run twice
    :param stored: results that an earlier process left on disk
    :param kill_on_lease_loss: kill what may not run twice when the lease is over
    :param address: the main node, as the log names it
    """

    def __init__(
        self,
        introduction: Introduction,
        *,
        now: float,
        randomness: Randomness,
        repeatable: Callable[[str, bytes], bool],
        stored: Sequence[Result] = (),
        kill_on_lease_loss: bool = True,
        pace: Pace | None = None,
        address: str = "the main node",
    ) -> None:
        pace = pace or Pace()
        self._introduction = introduction
        self._pace = pace
        self._new_session_id = randomness.session_id
        self._kill_on_lease_loss = kill_on_lease_loss
        self._address = address
        self._began_mono = now
        self._capabilities: dict[str, Any] = {}
        self._out: list[Instruction] = []

        self._connection = Connection(
            pace=pace, random=randomness.fraction, address=address, emit=self._emit
        )
        self._shutdown = Shutdown(pace)
        self._work = Work(
            now=now,
            repeatable=repeatable,
            stored=stored,
            progress_seconds=pace.progress_seconds,
            emit=self._emit,
        )
        #: Attempts the device has and has not finished.
        self.held = self._work.held
        #: Results that the main node has not acknowledged.
        self.outbox = self._work.outbox
        self.lease = Lease()

        #: Id of the session that the last HELLO opened; empty before the first.
        self.session = ""
        #: The main node's, as WELCOME told it; -1 before the first.
        self.epoch = -1
        self.config = DEFAULT_CONFIG
        #: The timeout in seconds that the main node goes by, as far as this device can know.
        self._lease_timeout_seconds = DEFAULT_CONFIG.timeout
        #: The heartbeat whose acknowledgement says that the main node knows `config`.
        self._config_beat = 0
        #: Whether the main node wants this device to take work; False once it drained it.
        self.accepting = True
        self.not_accepting_reason = ""
        #: What last went wrong on this device, for heartbeats.
        self.last_error = ""
        #: Types that the main node does not take, each with the reason, as it said last.
        self._left_out: tuple[str, ...] = ()
        #: When the last HELLO was said, the last word came in, the next heartbeat is due.
        self._hello_sent_mono = now
        self._heard_mono = now
        self._beat_at_mono = now

        self._handlers: dict[type, Callable[[Any, float], None]] = {
            events.Opened: lambda event, now: self._connection.dial(now),
            events.LinkUp: self._on_link_up,
            events.LinkDown: self._on_link_down,
            events.Received: self._on_received,
            events.Started: lambda event, now: self._work.start(event.keys, now),
            events.Progressed: lambda event, now: self._work.note_progress(event.items),
            events.Ended: lambda event, now: self._work.finish(event.results),
            events.CapabilitiesChanged: self._on_capabilities_changed,
            events.OffersChanged: self._on_offers_changed,
            events.Tick: self._on_tick,
            events.StopAsked: self._on_stop_asked,
        }
        #: Of messages that count in the READY phase only, beside ASSIGN.
        self._message_handlers: dict[type, Callable[[Any, float], None]] = {
            messages.FinishedAck: lambda message, now: self._work.acknowledge(message.batch),
            messages.HeartbeatAck: self._on_heartbeat_ack,
            messages.Cancel: lambda message, now: self._work.cancel(message.items, message.reason),
            messages.Abandon: lambda message, now: self._work.abandon(message.items),
            messages.Config: self._on_config,
            messages.Ping: self._on_ping,
            messages.Drain: self._on_drain,
            messages.Resume: self._on_resume,
        }

    def __repr__(self) -> str:
        return (
            f"<Session {self.session or '-'} of {self.device_id}: {self.phase.value},"
            f" holds {len(self.held)}, owes {len(self.outbox)}>"
        )

    # --- what others may ask ------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the session is; DRAINING once a stop was asked for."""
        phase = self._connection.phase
        return Phase.DRAINING if self._shutdown.asked and phase is not Phase.CLOSED else phase

    @property
    def fence_at(self) -> float | None:
        """When the device stops relying on its lease; None while it has none."""
        return self.lease.fence_at(self._lease_timeout_seconds)

    def next_due(self) -> float | None:
        """The next moment at which `Tick` has something to do."""
        phase = self._connection.phase
        if phase is Phase.CLOSED:
            return None
        due: list[float | None] = [self._shutdown.due(holds=bool(self.held))]
        if phase is Phase.READY:
            due += (self._beat_at_mono, self._silent_at_mono(), self._work.progress_due)
        else:
            due += self._connection.due()
        if self.held and not self.lease.fenced:
            due.append(self.fence_at)
        return min((at for at in due if at is not None), default=None)

    @property
    def device_id(self) -> str:
        """This device's name in the cluster."""
        return self._introduction.device_id

    # --- the one entrance ---------------------------------------------------------------------

    def handle(self, event: events.Event, now: float) -> list[Instruction]:
        """What is to be done because of `event`, in order.

        :param now: monotonic seconds
        """
        if self._connection.phase is not Phase.CLOSED:
            self._handlers[type(event)](event, now)
        out, self._out = self._out, []
        return out

    # --- the link -----------------------------------------------------------------------------

    def _on_link_up(self, event: events.LinkUp, now: float) -> None:
        if self._connection.link_up(now):
            self._greet(now)

    def _on_link_down(self, event: events.LinkDown, now: float) -> None:
        self._connection.link_down(now)
        self._connection.log_outage(event.reason, quiet=self._shutdown.asked, cured=event.cured)

    def _greet(self, now: float) -> None:
        self._connection.greet(now)
        self.session = self._new_session_id()
        self._hello_sent_mono = now
        self.lease.open_session()
        self._work.start_over()
        me = self._introduction
        self._send(
            replace(
                me.hello(self.session, self._capabilities),
                held=self._work.rows(now),
                unsent=self.outbox.keys(),
                accepting=self._takes_work(),
                uptime_seconds=round(now - self._began_mono, 3),
                left_out=me.left_out,
            )
        )

    def _takes_work(self) -> bool:
        return self.accepting and not self._shutdown.asked

    def _silent_at_mono(self) -> float:
        return self._heard_mono + self.config.interval * self.config.max_missed

    def _on_capabilities_changed(self, event: events.CapabilitiesChanged, now: float) -> None:
        self._capabilities = dict(event.capabilities)

    def _on_offers_changed(self, event: events.OffersChanged, now: float) -> None:
        self._introduction = replace(
            self._introduction, task_types=event.task_types, left_out=event.left_out
        )
        # Whoever goes need not tell; whoever is not connected tells when it is.
        if self.phase in (Phase.GREETING, Phase.READY):
            self._greet(now)

    # --- messages -----------------------------------------------------------------------------

    def _on_received(self, event: events.Received, now: float) -> None:
        message = event.message
        if isinstance(message, messages.Reject):
            if message.session in ("", self.session):
                self._on_reject(message, now)
        elif message.session == self.session:
            self._heard_mono = now
            if isinstance(message, messages.Welcome):
                self._on_welcome(message, now)
            elif self._is_ready:
                if isinstance(message, messages.Assign):
                    self._on_assign(message, event.blobs, now)
                else:
                    self._message_handlers[type(message)](message, now)

    @property
    def _is_ready(self) -> bool:
        return self._connection.phase is Phase.READY

    def _on_welcome(self, message: messages.Welcome, now: float) -> None:
        if self._is_ready:
            return
        self._connection.welcome()
        self.epoch = message.epoch
        self.config = message.config
        self._lease_timeout_seconds, self._config_beat = message.config.timeout, 0
        self.lease.renew(self._hello_sent_mono)
        self._work.abandon(message.abandon)
        self._log("info", f"joined {self._address} as {self.device_id}")
        if message.left_out != self._left_out:
            self._left_out = message.left_out
            for reason in message.left_out:
                self._log("warning", f"the main node says: {clean(reason)[:500]}")
        if self._shutdown.reason is not None:
            self._send(messages.Drain(self.session, self._shutdown.reason))
        self._send_heartbeat(now)

    def _on_reject(self, message: messages.Reject, now: float) -> None:
        code, text = message.code, message.message
        if code == "register":
            # A main node that keeps saying so must not be answered in a tight loop.
            if self._is_ready:
                self._greet(now)
            else:
                self._connection.back_off(now)
        elif code == "removed":
            self._log("error", f"this device was removed from the cluster: {text}")
            self._give_up(exit_codes.REMOVED)
        elif code == "protocol" and message.protocol is not None and message.protocol < PROTOCOL:
            # The main node is the older one: it may be updated while this worker waits.
            self._connection.refuse(code, text, self._pace.outdated_seconds, now)
        elif code in ("protocol", "bad_hello", "wrong_port"):
            self._log("error", f"{self._address} refuses this worker: {text or code}")
            self._give_up(exit_codes.REFUSED)
        else:
            self._connection.refuse(code, text, message.retry_after_seconds, now)

    def _on_config(self, message: messages.Config, now: float) -> None:
        self.config = message.config
        # Until the main node has our CONFIG_ACK it goes by the old timeout, which may be shorter.
        self._lease_timeout_seconds = min(self._lease_timeout_seconds, self.config.timeout)
        self._config_beat = self.lease.last_beat + 1
        self._send(messages.ConfigAck(self.session, self.config.version))
        self._send_heartbeat(now)

    def _on_heartbeat_ack(self, message: messages.HeartbeatAck, now: float) -> None:
        self.lease.acknowledge(message.beat, now)
        self.outbox.resend_before(message.beat)
        if message.beat >= self._config_beat and message.config_version == self.config.version:
            self._lease_timeout_seconds = self.config.timeout

    def _on_ping(self, message: messages.Ping, now: float) -> None:
        self._send(messages.Pong(self.session, message.nonce))

    def _on_drain(self, message: messages.Drain, now: float) -> None:
        reason = message.reason or "drained by the main node"
        self._log("info", f"takes no new work: {reason}")
        self.accepting, self.not_accepting_reason = False, reason
        self._send_heartbeat(now)

    def _on_resume(self, message: messages.Resume, now: float) -> None:
        self._log("info", "takes work again")
        self.accepting, self.not_accepting_reason = True, ""
        self._send_heartbeat(now)

    def _on_assign(self, message: messages.Assign, payloads: list[bytes], now: float) -> None:
        # What comes late, or while we are not heard, may have been given to others by now.
        self._check_fence(now)
        if message.epoch < self.epoch:
            return  # of an earlier process of the main node
        self._work.assign(
            message,
            payloads,
            refuse="" if self._takes_work() else self._reason_not_to_accept(),
            fenced=self.lease.fenced and self._kill_on_lease_loss,
        )

    def _reason_not_to_accept(self) -> str:
        return self._shutdown.reason or self.not_accepting_reason or "it takes no work"

    # --- the clock ----------------------------------------------------------------------------

    def _on_tick(self, event: events.Tick, now: float) -> None:
        self._check_fence(now)
        quiet = self._shutdown.asked
        if not self._is_ready:
            if self._connection.tick(now, quiet=quiet):
                self._greet(now)
        elif now >= self._silent_at_mono():
            self._connection.log_outage(
                f"nothing heard for {now - self._heard_mono:.0f} s", quiet=quiet
            )
            self._connection.dial(now)
        else:
            self._work.send_news(self.session, self.lease.last_beat, now)
            if now >= self._beat_at_mono:
                self._send_heartbeat(now)
        if self._shutdown.asked:
            self._drain(now)

    def _check_fence(self, now: float) -> None:
        fence_at = self.fence_at
        if self.lease.fenced or fence_at is None or now < fence_at:
            return
        self.lease.fenced = True
        doomed = self._work.unrepeatable()
        if doomed and self._kill_on_lease_loss:
            self._log(
                "warning",
                f"the lease is over: {len(doomed)} task(s) that may not run twice are stopped"
                " (worker.on_lease_loss = kill)",
            )
            self._work.kill(doomed, FENCED)

    def _send_heartbeat(self, now: float) -> None:
        self._beat_at_mono = now + self.config.interval
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

    def _on_stop_asked(self, event: events.StopAsked, now: float) -> None:
        if self._shutdown.asked:
            self._log("warning", "stopping at once")
            self._shutdown.hurry(now)
            self._work.kill(self.held, RELEASED)
            return
        self._shutdown.begin(event.reason, now)
        waiting = self._work.unstarted()
        running = len(self.held) - len(waiting)
        grace = f", up to {self._pace.grace_seconds:g} s to finish" if running else ""
        self._log("info", f"stopping: {event.reason}; {running} task(s) running{grace}")
        if self._is_ready:
            self._send(messages.Drain(self.session, event.reason))
        self._work.kill(waiting, RELEASED)

    def _drain(self, now: float) -> None:
        step = self._shutdown.step(now, holds=bool(self.held), owes=bool(self.outbox))
        if step is Step.KILL:
            self._log("warning", f"{len(self.held)} task(s) still running are stopped")
            self._work.kill(self.held, RELEASED)
        if step is not Step.LEAVE:
            return
        if self._is_ready:
            self._send(messages.Goodbye(self.session, self._shutdown.reason or ""))
        if self.outbox:
            self._log(
                "warning",
                f"{len(self.outbox)} result(s) were not acknowledged;"
                " those of tasks that may not run twice are kept on disk",
            )
        self._close(self._shutdown.exit_code)

    def _give_up(self, code: int) -> None:
        self._work.kill(self.held, ABANDONED)
        self._close(code)

    def _close(self, code: int) -> None:
        self._connection.close()
        self._emit(Exit(code))

    # --- small things -------------------------------------------------------------------------

    def _send(self, message: messages.FromDevice) -> None:
        self._emit(Send(message))

    def _log(self, level: str, text: str) -> None:
        self._emit(Log(level, text))

    def _emit(self, instruction: Instruction) -> None:
        self._out.append(instruction)

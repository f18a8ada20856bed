"""Hand the event log, read once a process, to many listeners.

The feed reads `events.poll` with one cursor and hands each event to the listeners it matches. A
listener that resumes from an older event is brought up page by page by the same thread until it
meets the feed's cursor: nothing is lost or doubled between the two.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from retire_cluster.api.content import envelope
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.schemas.errors import ClusterError

#: An idle feed looks for new listeners this often.
_SLICE_SECONDS = 0.25
#: After faults of ours it tries again ever more rarely, down to this.
_LONGEST_REST_SECONDS = 30.0
_PAGE = 500
#: A listener with more unsent than this gets no further page of old events.
_ENOUGH_BYTES = 256 * 1024
_log = logging.getLogger("api.events")


class Sink(Protocol):
    """What a listener's events are sent to."""

    @property
    def pending_bytes(self) -> int:
        """Return how many bytes the client has not taken yet."""

    def send(self, texts: Sequence[str]) -> None:
        """Send messages; callable from any thread."""

    def end(self) -> None:
        """Say that it may not listen any more, and close; callable from any thread."""


@dataclass(frozen=True)
class EventFilter:
    """Which events a listener wants; an empty field wants all."""

    type: str = ""
    task_id: str = ""
    device_id: str = ""

    def wants(self, event: dict[str, Any]) -> bool:
        """Tell whether `event` is one of them; `task` stands for all of `task.…`."""
        kind = event.get("type", "")
        return (
            (not self.type or kind == self.type or kind.startswith(self.type + "."))
            and (not self.task_id or event.get("task_id") == self.task_id)
            and (not self.device_id or event.get("device_id") == self.device_id)
        )


def _always() -> bool:
    return True


class Listener:
    """One client of the stream.

    :param may_listen: tells whether it still may; called before events are handed out
    """

    def __init__(
        self, sink: Sink, wanted: EventFilter, since: int, may_listen: Callable[[], bool] = _always
    ) -> None:
        self.sink = sink
        self.wanted = wanted
        self.may_listen = may_listen
        #: Id of the last event that was handed to it, or passed over.
        self.cursor = since

    def __repr__(self) -> str:
        return f"<Listener of {self.wanted}, cursor {self.cursor}>"


class EventFeed:
    """Read events while anyone listens, on a thread that the first listener starts."""

    def __init__(self, link: MainNodeLink) -> None:
        self._link = link
        self._changed = threading.Condition()
        self._listeners: list[Listener] = []
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._cursor: int | None = None

    def now(self) -> int:
        """Return the id of the newest event. Raises `ClusterError`."""
        return int(self._poll({})["next"])

    def add(self, listener: Listener) -> None:
        """Send events to `listener` from now on."""
        with self._changed:
            if self._stopped:
                return
            self._listeners.append(listener)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def remove(self, listener: Listener) -> None:
        """Send nothing more to `listener`."""
        with self._changed:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def stop(self) -> bool:
        """End the thread; False when a silent main node still holds it."""
        with self._changed:
            self._stopped = True
            self._listeners.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=2 * _SLICE_SECONDS)
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                if not self._listeners:
                    # Nobody listens: what happens meanwhile is of no interest.
                    self._cursor = None
                    self._changed.wait_for(lambda: self._listeners or self._stopped)
                if self._stopped:
                    return
                listeners = list(self._listeners)
            try:
                self._turn(listeners)
            except ClusterError as error:
                _log.debug("no events", extra={"reason": error.message})
                self._rest(1.0)
            except Exception:
                failures += 1
                _log.exception("events could not be handed on; trying again")
                self._rest(min(_LONGEST_REST_SECONDS, 2.0**failures))
            else:
                failures = 0

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, timeout=seconds)

    def _turn(self, listeners: list[Listener]) -> None:
        listeners = self._those_who_may(listeners)
        if self._cursor is None:
            self._cursor = self.now()
        behind = [each for each in listeners if each.cursor < self._cursor]
        for listener in behind:
            if listener.sink.pending_bytes < _ENOUGH_BYTES:
                self._bring_up(listener)
        wait = 0.0 if behind else _SLICE_SECONDS
        data = self._poll({"since": self._cursor, "wait_seconds": wait}, extra_seconds=wait)
        before, self._cursor = self._cursor, int(data["next"])
        level = [each for each in listeners if each.cursor >= before]
        # A key may have been revoked while this waited: what came since is not for its holder.
        self._hand_out(self._those_who_may(level), data)

    def _those_who_may(self, listeners: list[Listener]) -> list[Listener]:
        """Return those that may still listen, and end the streams of the others."""
        found = []
        for listener in listeners:
            if listener.may_listen():
                found.append(listener)
            else:
                self.remove(listener)
                listener.sink.end()
        return found

    def _bring_up(self, listener: Listener) -> None:
        data = self._poll({"since": listener.cursor, "limit": _PAGE})
        self._hand_out([listener], data)

    def _hand_out(self, listeners: list[Listener], data: dict[str, Any]) -> None:
        events: list[dict[str, Any]] = data["events"]
        cursor = int(data["next"])
        texts: dict[int, str] = {}
        for listener in listeners:
            found = []
            if data.get("gap"):
                found.append(envelope.dump({"type": "gap", "next": cursor}).decode())
            for event in events:
                number = int(event["id"])
                if number > listener.cursor and listener.wanted.wants(event):
                    if number not in texts:
                        texts[number] = envelope.dump(event).decode()
                    found.append(texts[number])
            listener.cursor = max(cursor, listener.cursor)
            if found:
                try:
                    listener.sink.send(found)
                except Exception:  # one client's trouble is none of the others'
                    _log.exception("events could not be sent to a listener")

    def _poll(self, args: dict[str, Any], extra_seconds: float = 0.0) -> dict[str, Any]:
        return self._link.data("events.poll", args, extra_seconds=extra_seconds)


#: What a server that can speak WebSocket puts into a WSGI environment: call it with a function that
#: takes the opened connection and returns what to call when it has closed.
UPGRADE = "retire_cluster.upgrade"
OnOpen = Callable[[Sink], Callable[[], None]]
Upgrade = Callable[[OnOpen], None]

"""What a process that lives on says: it never fails for it, and never waits for who reads it.

A log may go to a disk that is full, a pipe whose reader has gone, or one whose reader has stopped
reading. Nothing of that may end a loop or hold one up: lines are handed to a thread that writes
them. What cannot be written is dropped, and the next line that can be says how many were.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TextIO, TypeVar

T = TypeVar("T")

#: More than this many that wait to be written, and new ones are dropped.
MOST_WAITING: Final = 20_000
#: How long a process that ends waits for what it has said to be read, all of it together.
LAST_WORDS_SECONDS: Final = 1.0
_AT_ONCE: Final = 1_000
_GATHER_SECONDS: Final = 0.02
#: How often a pipe that others made non-blocking is looked at when the system cannot wait for it.
_LOOK_SECONDS: Final = 0.05


class _Patience:
    """How long this process still waits at its end for what it has said to be read."""

    #: Seconds.
    left = LAST_WORDS_SECONDS


_patience = _Patience()


class Outlet(Generic[T]):
    """Takes items from any thread without waiting; one thread makes text of them and writes it.

    Many threads that write themselves would queue behind the stream's lock and, each time, behind
    the interpreter's, 5 ms apiece: sixteen threads that serve requests then answer 200 a second.

    :param stream: where to; one with a file descriptor is written to past its own buffer, so that
        a write that does not return holds no lock which the interpreter takes when it ends
    :param render: items → text, called by the writing thread; an item it fails for is dropped
    :param render_loss: how many were dropped, and why → text
    """

    def __init__(
        self, stream: TextIO, render: Callable[[T], str], render_loss: Callable[[int, str], str]
    ) -> None:
        self._stream = stream
        self._render = render
        self._render_loss = render_loss
        self._items: queue.SimpleQueue[T | threading.Event] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._dropped = 0
        self._why = ""
        #: Nothing that is put any more is written.
        self.closed = False
        self._thread = threading.Thread(target=self._work, name="outlet", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, item: T) -> None:
        """Hand an item over; never wait, never raise."""
        if self._items.qsize() < MOST_WAITING:
            self._items.put(item)
        else:
            self._drop(1, "nobody reads them")

    def flush(self, seconds: float) -> bool:
        """Wait until all that was put is written or dropped; return False if it is late."""
        reached = threading.Event()
        self._items.put(reached)
        return reached.wait(seconds)

    def close(self) -> None:
        """Write what is left, for as long as this process waits at its end, and end."""
        atexit.unregister(self.close)
        if not self.closed:
            began = time.monotonic()
            self.flush(_patience.left)
            _patience.left = max(0.0, _patience.left - (time.monotonic() - began))
            self.closed = True
            self._items.put(threading.Event())

    def _work(self) -> None:
        wrote_at = float("-inf")
        while not self.closed:
            batch = [self._items.get()]
            since = time.monotonic() - wrote_at
            if since < _GATHER_SECONDS and not isinstance(batch[0], threading.Event):
                # One of many: waking for each would cost more than writing it. After a quiet
                # moment a line goes out at once, so that a process killed next has said it.
                time.sleep(_GATHER_SECONDS - since)
            with contextlib.suppress(queue.Empty):
                while len(batch) < _AT_ONCE:
                    batch.append(self._items.get_nowait())
            self._write([item for item in batch if not isinstance(item, threading.Event)])
            wrote_at = time.monotonic()
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()

    def _write(self, items: Sequence[T]) -> None:
        texts = []
        for item in items:
            try:
                texts.append(self._render(item))
            except Exception as error:
                self._drop(1, type(error).__name__)
        if not texts:
            return
        lost = self._dropped
        if lost:
            texts.insert(0, self._render_loss(lost, self._why))
        try:
            write(self._stream, "".join(texts))
        except (OSError, ValueError) as error:
            self._drop(len(items), getattr(error, "strerror", None) or str(error))
        else:
            self._drop(-lost, "")

    def _drop(self, count: int, why: str) -> None:
        with self._counting:
            self._dropped += count
            self._why = why or self._why


def write(stream: TextIO, text: str) -> None:
    """Write all of a text, past the stream's own buffer where it has a file descriptor.

    Raises `OSError` and `ValueError` (the stream is closed). Waits for as long as nobody reads.
    """
    number = _descriptor(stream)
    if number is None:
        stream.write(text)
        stream.flush()
        return
    if sys.platform == "win32":
        text = text.replace("\n", "\r\n")
    rest = memoryview(text.encode(stream.encoding or "utf-8", "backslashreplace"))
    while rest:
        try:
            rest = rest[os.write(number, rest) :]
        except BlockingIOError:  # another process made the pipe we share non-blocking
            _await_room(number)


def _descriptor(stream: TextIO) -> int | None:
    """Return a stream's file descriptor; None: it has none, or is a console that takes no bytes."""
    try:
        if sys.platform == "win32" and stream.isatty():
            return None
        return stream.fileno()
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
        return None


def _await_room(number: int) -> None:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        poll.poll()
    else:
        time.sleep(_LOOK_SECONDS)


_outlets: dict[int, tuple[TextIO, Outlet[str]]] = {}
_making = threading.Lock()


def outlet_of(stream: TextIO) -> Outlet[str]:
    """Return this process's one outlet for lines on `stream`; make it where there is none."""
    with _making:
        kept = _outlets.get(id(stream))
        if kept is None or kept[0] is not stream or kept[1].closed:
            kept = (stream, Outlet(stream, _line, _lost_lines))
            _outlets[id(stream)] = kept
        return kept[1]


def tell(text: str, stream: TextIO | None = None) -> None:
    """Say a line on `stream` (standard error), later, by a thread; never waits, never raises."""
    found: Any = sys.stderr if stream is None else stream
    if found is None:  # started without it
        return
    if _descriptor(found) is None:
        with contextlib.suppress(OSError, ValueError):
            write(found, _line(text))
        return
    outlet_of(found).put(text)


#: Names a file for the last words of a process, for who started it.
WHY_VARIABLE: Final = "_RETIRE_CLUSTER_WHY_FILE"
_WHY_CHARACTERS: Final = 2_000
#: Meant for this process, and for none that it starts.
_WHY_FILE: Final = os.environ.pop(WHY_VARIABLE, "")


def take_why(path: Path) -> str:
    """Return the last words that a process left there, once; empty when it left none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = " ".join(file.read(_WHY_CHARACTERS).split())
        path.unlink()
    except OSError:
        return ""
    return found


def last_words(text: str) -> None:
    """Say a line on standard error before this process ends; waits a moment for it to be read.

    Who started this process for a person, and says such lines itself, gets it in a file instead.
    """
    if _WHY_FILE:
        with contextlib.suppress(OSError):
            Path(_WHY_FILE).write_text(text, "utf-8", errors="replace")
            return
    tell(text)
    found: Any = sys.stderr
    if found is not None and _descriptor(found) is not None:
        outlet_of(found).close()


def _line(text: str) -> str:
    return text + "\n"


def _lost_lines(count: int, why: str) -> str:
    return f"({count} earlier lines could not be written: {why})\n"

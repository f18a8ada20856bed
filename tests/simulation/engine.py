"""Virtual time, one queue of things to come, and the story of a run.

Nothing in a simulation reads a real clock or draws a number from elsewhere than `Engine.rng`, so a
seed replays exactly.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

#: Things that may happen in one seed; more means that somebody spins.
MAX_EVENTS = 60_000


class Violation(BaseException):
    """A promise was broken. Not an `Exception`: the loop's guard must not swallow it."""

    def __init__(self, text: str, task: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.task = task


class Line(NamedTuple):
    """One line of a story."""

    at: float
    who: str
    text: str
    #: Tasks it is about.
    tasks: frozenset[int]


class Story:
    """What happened, for people; kept only while a seed is replayed."""

    def __init__(self, live: Callable[[str], None] | None = None) -> None:
        self.lines: list[Line] = []
        self._live = live

    def add(self, at: float, who: str, text: str, tasks: Iterable[int] = ()) -> None:
        """Add a line, and print it at once in verbose runs."""
        line = Line(at, who, text, frozenset(tasks))
        self.lines.append(line)
        if self._live is not None:
            self._live(written(line))

    def of(self, task: int | None, last: int = 40) -> list[str]:
        """The lines about a task; without one, the last lines of all."""
        if task is None:
            return [written(line) for line in self.lines[-last:]]
        # What happens to whole parties (crashes, partitions) touches every task.
        return [written(line) for line in self.lines if task in line.tasks or line.who == "fate"]


def written(line: Line) -> str:
    """A line as text."""
    return f"{line.at:9.3f}  {line.who:<12} {line.text}"


class Engine:
    """The clock and the queue.

    :param seed: decides everything
    :param story: collects what happens, or None to run at full speed
    """

    def __init__(self, seed: int, story: Story | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.story = story
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Let something happen at a time (now, if that is past)."""
        self._order += 1
        heapq.heappush(self._queue, (max(when, self.now), self._order, what, args))

    def after(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        """Let something happen in a while."""
        self.at(self.now + seconds, what, *args)

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Go on until a time, or until `done` says so; whether it did."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            when, _, what, args = heapq.heappop(queue)
            self.now = when
            self.events += 1
            if self.events > MAX_EVENTS:
                raise Violation(f"more than {MAX_EVENTS} events: somebody spins")
            what(*args)
            if done is not None and done():
                return True
        self.now = until
        return False

    def chance(self, share: float) -> bool:
        """True in a share (0 to 1) of the cases."""
        return self.rng.random() < share

    def tell(self, who: str, text: str, tasks: Iterable[int] = ()) -> None:
        """Add to the story, if one is kept."""
        if self.story is not None:
            self.story.add(self.now, who, text, tasks)

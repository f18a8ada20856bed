"""Slots that run tasks in virtual time, in place of task processes.

What a task does is written in its payload: `do` lists, for each time it is really started, what
happens and after how long. The world counts starts, so a task that fails once and then succeeds is
`[["error", 0.2], ["success", 0.1]]`; after the list's end it succeeds at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retire_cluster.node.process import replies
from retire_cluster.node.process.frames import RawFrame
from retire_cluster.node.process.replies import Begun, Done, Progress
from retire_cluster.node.running.slot import Died, Job, News
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.text.json_text import dumps, loads

if TYPE_CHECKING:
    from tests.simulation.device import Worker

_FAILED = {
    "error": ("failed", "error", "it went wrong"),
    "not_here": ("failed", "not_here", "it is not here"),
    "deterministic": ("failed", "deterministic", "it will always go wrong"),
}


#: Headers and results as a task's own code may send them: none can go to the main node as it is.
ODD = (
    (b'{"outcome":"failed","cause":"error","error_message":"caf\\ud833","last":false}', b""),
    (b'{"outcome":"failed","cause":"error","error_message":5,"last":false}', b""),
    (b'{"outcome":"failed","cause":["error"],"error_message":null,"last":false}', b""),
    (b'{"outcome":[],"cause":null,"error_message":null,"last":false}', b""),
    (b'{"outcome":"success","cause":null,"error_message":null,"last":false}', b'{"\\ud800":1}'),
    (b'{"outcome":"success","cause":null,"error_message":null,"last":false}', b'{"key":[1'),
    (b'{"outcome":"success","cause":null,"error_message":null,"last":false}', b"[" * 300),
)


class SimulatedSlot:
    """The interface of `node.slot.Slot`; see the module's text."""

    def __init__(
        self, number: int, start_process: Callable[[], Any], post: Callable[[News], None]
    ) -> None:
        self._worker: Worker = start_process()
        self._worker.slots.append(self)
        self._world = self._worker.world
        self._post = post
        self._job: Job | None = None
        self._started = False
        #: What happens next, when, and what is left of it while the machine sleeps.
        self._next: tuple[Callable[[], None], float] | None = None
        self._left_seconds = 0.0
        self._turn = 0
        self._what: list[Any] = []

    # --- what the runner calls -------------------------------------------------------------------

    def start(self) -> None:
        """Nothing runs yet."""

    def submit(self, job: Job) -> None:
        """Begin an attempt."""
        self._job = job
        self._started = False
        self._then(self._world.engine.rng.choice((0.0, 0.02, 0.4)), self._begin)

    def kill(self, key: AttemptKey) -> None:
        """End it, tree and all; that may take a moment."""
        if self._job is not None and self._job.key == key:
            self._then(self._world.engine.rng.choice((0.0, 0.05, 0.3)), self._die)

    def ask_to_stop(self, key: AttemptKey) -> None:
        """These tasks do not listen."""

    def close(self) -> None:
        """The worker goes."""
        self.end()

    def join(self, timeout: float | None = None) -> None:
        """There is no thread."""

    # --- what the machine calls ------------------------------------------------------------------

    def end(self) -> None:
        """The worker died, and this with it."""
        self._turn += 1
        self._next = None
        job, self._job = self._job, None
        if job is not None and self._started:
            self._world.judge.running.stopped(job.key, self._worker)

    def pause(self) -> None:
        """The machine sleeps."""
        if self._next is not None:
            self._left_seconds = max(0.0, self._next[1] - self._world.engine.now)
            self._turn += 1

    def resume(self) -> None:
        """It wakes."""
        if self._next is not None:
            self._then(self._left_seconds, self._next[0])

    # --- the task --------------------------------------------------------------------------------

    def _then(self, seconds: float, what: Callable[[], None]) -> None:
        self._turn += 1
        when = self._world.engine.now + seconds
        self._next = (what, when)
        if self._worker.frozen and self._worker.deep:
            self._left_seconds = seconds
            return
        self._world.engine.at(when, self._go, self._turn)

    def _go(self, turn: int) -> None:
        if turn == self._turn and self._next is not None and self._worker.alive:
            what, self._next = self._next[0], None
            what()

    def _begin(self) -> None:
        job = self._job
        assert job is not None
        self._started = True
        count = self._world.judge.running.started(job.key, self._worker, job.header["task_type"])
        plan = loads(job.payload).get("do", [])
        self._what = plan[count - 1] if count <= len(plan) else ["success", 0.0]
        if self._worker.machine.profile.is_black_hole:
            self._what = ["error", 0.0]
        self._tell(Begun())
        if self._what[0] == "hang":
            self._next = None
            return
        if self._what[1] > 0.5 and self._world.engine.chance(0.3):
            self._tell(Progress(10.0, "on the way"))
        self._then(float(self._what[1]), self._finish)

    def _finish(self) -> None:
        job, self._job = self._job, None
        assert job is not None
        what = self._what[0]
        if what == "kill_worker":
            self._job = job
            self._worker.machine.crash(f"running task {job.key[0]}", back_after=0.5)
            return
        self._world.judge.running.stopped(job.key, self._worker)
        if what == "die":
            self._post(News(self, job.key, Died(1, "")))  # type: ignore[arg-type]
            return
        if what == "error" and self._world.engine.chance(0.3):
            self._post(News(self, job.key, self._odd()))  # type: ignore[arg-type]
            return
        outcome, cause, message = _FAILED.get(what, ("success", None, None))
        result = dumps({"key": list(job.key), "by": self._worker.name})
        done = Done(outcome, cause, message, result, b"", False)
        self._post(News(self, job.key, done))  # type: ignore[arg-type]

    def _odd(self) -> replies.Reply:
        """An answer as the real gate makes it of what no task should say."""
        header, blob = self._world.engine.rng.choice(ODD)
        try:
            return replies.read(RawFrame("done", header, blob))
        except replies.BadReply as error:
            return replies.failed(str(error))

    def _die(self) -> None:
        job, self._job = self._job, None
        assert job is not None
        if self._started:
            self._world.judge.running.stopped(job.key, self._worker)
        self._post(News(self, job.key, Died(-9, "killed")))  # type: ignore[arg-type]

    def _tell(self, what: Begun | Progress) -> None:
        assert self._job is not None
        self._post(News(self, self._job.key, what))  # type: ignore[arg-type]

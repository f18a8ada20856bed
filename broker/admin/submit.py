"""`task.submit`: new tasks (docs/protocol.md, Admin socket).

A submission is read, checked, put into the batch of the turn, made and answered: each step is a
module of `submission`. The submissions of one turn are made together: for a thousand clients with a
task each that costs little more than for one with a thousand.
"""

from __future__ import annotations

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.admin.submission.answering import answer
from retire_cluster.broker.admin.submission.checking import check
from retire_cluster.broker.admin.submission.reading import read
from retire_cluster.broker.admin.waits import park
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.instructions import StoreTasks
from retire_cluster.broker.core.model import TaskSpec
from retire_cluster.schemas.errors import IdempotencyConflict


@operation("task.submit", changes=True, batched=True)
def submit(admin: AdminContext, call: Call) -> Reply | None:
    """Submit tasks, all or none; with `wait_seconds` answer when they have ended.

    The repetition of an earlier submission is answered now, others by `make`.
    """
    if _depends_on_batch(admin, call):
        make(admin)
    asked = read(call, admin.specs)
    key = asked.idempotency
    earlier = None if key is None else admin.state.submissions.get(key[:2])
    if key is not None and earlier is not None:
        if earlier.fingerprint != key[2]:
            raise IdempotencyConflict
        numbers = range(earlier.first, earlier.first + earlier.size)
        reply = answer(admin, call, numbers, earlier.at_ms, replayed=True)
        return _wait(admin, call, reply, numbers, earlier.at_ms, asked.wait_seconds)
    admin.batch.add(check(admin, asked))
    return None


def _depends_on_batch(admin: AdminContext, call: Call) -> bool:
    """Whether a submission can be judged only after those before it were made: it may repeat one of
    them, or they count against its limit.
    """
    if "stranger" in call.args:
        return admin.batch.size > 0
    owner, key = call.args.get("owner"), call.args.get("idempotency_key")
    return isinstance(owner, str) and isinstance(key, str) and admin.batch.holds(owner, key)


def make(admin: AdminContext) -> None:
    """Make the tasks of the turn's batch; whoever does not wait for them to end is answered."""
    submissions = admin.batch.submissions
    if not submissions:
        return
    specs: list[TaskSpec] = []
    payloads: list[bytes] = []
    delays: list[float] = []
    keyed: list[ev.Keyed] = []
    for one in submissions:
        if one.idempotency is not None:
            keyed.append(ev.Keyed(len(specs), len(one.specs), *one.idempotency))
        specs += one.specs
        payloads += one.call.blobs
        delays += one.delays_seconds
    now = submissions[-1].call.now
    event = ev.TasksSubmitted(specs, payloads, delays if any(delays) else (), keyed)
    stored = next(i for i in admin.apply(event, now) if isinstance(i, StoreTasks))
    first = stored.rows[0].number
    for one in submissions:
        numbers = range(first, first + len(one.specs))
        first = numbers.stop
        if one.stranger is not None:
            admin.strangers.add(numbers, one.stranger)
        reply = answer(admin, one.call, numbers, now.wall_ms, replayed=False)
        immediate = _wait(admin, one.call, reply, numbers, now.wall_ms, one.wait_seconds)
        if immediate is not None:
            admin.answers.append((one.call.ticket, immediate))
    admin.batch.clear()


def _wait(
    admin: AdminContext, call: Call, reply: Reply, numbers: range, created_ms: int, seconds: float
) -> Reply | None:
    """Return the reply; None when the call is parked until its tasks have ended."""
    if not seconds:
        return reply
    tasks = [(number, created_ms) for number in numbers]
    park(admin, call, tasks, seconds, brief=True, answer_head=reply.data)
    return None

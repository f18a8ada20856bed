"""Any order of public operations against a model, under a virtual clock, with restarts.

The model knows which tasks were acknowledged and, once one was seen to have ended, how. The kit
checks the core's invariants after every step; at the end everything has to finish.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.protocol.messages import AttemptKey, Held
from retire_cluster.schemas.vocabulary import TERMINAL
from tests.unit.broker.kit import Cluster, Member, settings_with

ENDED = {status.value for status in TERMINAL}
DEVICES = ("one", "two", "three")
which = st.sampled_from(DEVICES)
some = st.integers(0, 10**6)


class ClusterModel(RuleBasedStateMachine):
    """Tasks, devices and time."""

    #: Operations done by all instances, shrinking not counted apart.
    steps = 0

    @initialize(durable=st.booleans(), seed=some)
    def begin(self, durable: bool, seed: int) -> None:
        """An empty cluster."""
        self.folder = Path(tempfile.mkdtemp(prefix="model-"))
        store = SQLiteStore(self.folder / "cluster.db") if durable else None
        self.cluster = Cluster(settings_with(), store=store, seed=seed)
        self.members: dict[str, Member] = {}
        self.old_keys: list[tuple[str, AttemptKey]] = []
        #: Acknowledged tasks by public id, and what was first seen of their end.
        self.promised: dict[str, dict[str, Any] | None] = {}
        self.by_key: dict[str, list[str]] = {}

    def teardown(self) -> None:
        """Faults off: everything has to finish."""
        if not hasattr(self, "cluster"):
            return
        try:
            self._finish_all()
        finally:
            self.cluster.store.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _finish_all(self) -> None:
        cluster = self.cluster
        for name in DEVICES:
            if name in cluster.state.tombstones:
                cluster.call("device.readmit", {"device_id": name})
            if name in cluster.state.devices:
                cluster.call("device.resume", {"device_id": name})
        member = cluster.stranger("finisher")
        member.join(slots=64)
        for _ in range(2_000):
            if not cluster.state.tasks:
                break
            cluster.live_on(5.0, member)
            if member.record.attempts:
                member.finish()
        assert not cluster.state.tasks, "some tasks never end"
        for task_id in self.promised:
            self._look(task_id)
            assert self.promised[task_id] is not None

    # --- clients ---------------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 4), delay=st.sampled_from((0, 0, 0, 30)),
        retries=st.integers(0, 3), key=st.sampled_from(("", "", "a", "b")),
    )  # fmt: skip
    def submit(self, count: int, delay: int, retries: int, key: str) -> None:
        """New tasks; a repeated key gives the first answer."""
        task = {"task_type": "sleep", "delay_seconds": delay,
                "requirements": {"max_retries": retries}}  # fmt: skip
        args: dict[str, Any] = {"task": task, "count": count, "brief": True}
        if key:
            args.update(owner="me", idempotency_key=key, fingerprint=f"{count}{delay}{retries}")
        try:
            found = self.cluster.call("task.submit", args, [b"{}"] * count).data
        except ClusterError as error:
            # Another body under a known key; nothing else is refused here.
            if error.code != "IDEMPOTENCY_CONFLICT" or key not in self.by_key:
                raise
            return
        if key:
            assert self.by_key.setdefault(key, found["task_ids"]) == found["task_ids"]
        for task_id in found["task_ids"]:
            self.promised.setdefault(task_id, None)

    def _pick(self, number: int) -> str:
        return sorted(self.promised)[number % len(self.promised)]

    @precondition(lambda self: self.promised)
    @rule(number=some)
    def look(self, number: int) -> None:
        """A task is where it was left, and an end that was seen stays."""
        self._look(self._pick(number))

    def _look(self, task_id: str) -> None:
        detail = self.cluster.call("task.get", {"task_id": task_id}).data
        seen = {name: detail[name] for name in ("status", "completed_at", "assigned_device_id")}
        if detail["status"] in ENDED:
            first = self.promised[task_id]
            assert first is None or first == seen
            self.promised[task_id] = seen
        else:
            assert self.promised[task_id] is None, f"{task_id} ended and lives again"

    @precondition(lambda self: self.promised)
    @rule(number=some)
    def cancel(self, number: int) -> None:
        """Cancel: done, or it had ended."""
        task_id = self._pick(number)
        try:
            self.cluster.call("task.cancel", {"task_id": task_id})
        except ClusterError as error:
            assert error.code == "CANNOT_CANCEL_TASK"  # noqa: PT017 - the code is the point
        self._look(task_id)

    @precondition(lambda self: self.promised)
    @rule(number=some)
    def retry(self, number: int) -> None:
        """Retry: the only way back from an end."""
        task_id = self._pick(number)
        self._look(task_id)
        try:
            self.cluster.call("task.retry", {"task_id": task_id})
        except ClusterError as error:
            assert error.code == "CANNOT_RETRY_TASK"  # noqa: PT017 - the code is the point
        else:
            self.promised[task_id] = None

    # --- devices ---------------------------------------------------------------------------------

    @rule(name=which, slots=st.integers(1, 3), keeps=st.booleans())
    def join(self, name: str, slots: int, keeps: bool) -> None:
        """HELLO: a new process without anything, or the same one with what it has."""
        cluster = self.cluster
        member = self.members.get(name)
        if member is None:
            member = self.members[name] = cluster.stranger(name)
        known = cluster.state.devices.get(name)
        held: tuple[Held, ...] = ()
        if known is not None:
            keys = [task.key for task in known.attempts.values()]
            self.old_keys += [(name, key) for key in keys]
            held = tuple(Held(key, True, 0.5) for key in keys) if keeps else ()
        member.join(slots=slots, held=held)
        cluster.place()

    def _member(self, name: str) -> Member | None:
        member = self.members.get(name)
        state = self.cluster.state
        if member is None or name not in state.devices:
            return None
        return member if state.devices[name].routing == member.routing else None

    @rule(name=which)
    def beat(self, name: str) -> None:
        """A heartbeat with everything it has."""
        member = self._member(name)
        if member is not None:
            member.beat([Held(key, True, 1.0) for key in member.keys])
            self.cluster.place()

    @rule(name=which, outcome=st.sampled_from(("success", "failed", "timeout", "released")),
          number=some)  # fmt: skip
    def finish(self, name: str, outcome: str, number: int) -> None:
        """One of its attempts ends."""
        member = self._member(name)
        if member is None or not member.keys:
            return
        key = member.keys[number % len(member.keys)]
        self.old_keys.append((name, key))
        cause = {"failed": "error", "timeout": "timeout"}.get(outcome)
        member.finish(key, outcome=outcome, cause=cause)
        self.cluster.place()

    @precondition(lambda self: self.old_keys)
    @rule(name=which, number=some)
    def say_something_stale(self, name: str, number: int) -> None:
        """A result under a key that is over, from whomever, changes nothing."""
        member = self._member(name)
        owner, key = self.old_keys[number % len(self.old_keys)]
        if member is None or (name == owner and key in member.keys):
            return
        before = self.cluster.state.ledger.by_status()
        member.finish(key, result=b'{"stale":true}')
        assert self.cluster.state.ledger.by_status() == before

    @rule(name=which, op=st.sampled_from(("drain", "resume", "remove", "readmit")))
    def administer(self, name: str, op: str) -> None:
        """Drain, resume, remove, readmit: done, or there is no such device."""
        try:
            self.cluster.call(f"device.{op}", {"device_id": name})
        except ClusterError as error:
            assert error.code == "DEVICE_NOT_FOUND"  # noqa: PT017 - the code is the point
        self.cluster.place()

    # --- time ------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 3.0, 8.0, 20.0, 60.0)), beating=st.booleans())
    def time_passes(self, seconds: float, beating: bool) -> None:
        """Devices beat meanwhile, or are silent."""
        members = [member for name in DEVICES if (member := self._member(name))]
        for member in members:
            self.old_keys += [(member.device_id, key) for key in member.keys]
        self.cluster.live_on(seconds, *(members if beating else ()))

    @rule(days=st.sampled_from((-10, 10)))
    def the_wall_clock_jumps(self, days: int) -> None:
        """Only timestamps may follow."""
        before = self.cluster.state.ledger.by_status()
        self.cluster.wall_ms += days * 86_400_000
        self.cluster.tick("deadlines", "liveness", "limits", "upkeep", "devices")
        assert self.cluster.state.ledger.by_status() == before

    @rule()
    def restart(self) -> None:
        """The main node dies and is started."""
        for name, device in self.cluster.state.devices.items():
            self.old_keys += [(name, task.key) for task in device.attempts.values()]
        self.cluster.restart()

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every acknowledged task is retained."""
        ClusterModel.steps += 1
        if hasattr(self, "promised"):
            assert self.cluster.state.ledger.total == len(self.promised)


ClusterModel.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestClusterModel = ClusterModel.TestCase

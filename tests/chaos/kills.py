"""kill -9 of main node, devices and facade, at random moments and at every named failpoint.

Each process has a keeper: it starts the process, with a failpoint armed or without, waits until it
has killed itself or its random time is over, kills it then, and starts it again. Meanwhile clients
submit (by the admin socket and by REST, with and without idempotency keys) and look at results.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retire_cluster.schemas.errors import ClusterError
from tests.chaos.harness.journal import Journal, Verdict
from tests.chaos.harness.zygote import Child
from tests.chaos.rig import Rig

BROKER_POINTS = (
    "broker-before-commit", "broker-after-commit", "broker-after-answer", "broker-after-assign",
)  # fmt: skip
DEVICE_POINTS = (
    "device-before-run", "device-after-run", "device-before-spool", "device-after-spool",
    "device-after-send", "device-after-ack",
)  # fmt: skip
FACADE_POINTS = ("facade-after-submit",)
#: Tasks that may be unfinished before clients pause.
MOST_WAITING = 1_500


@dataclass
class Report:
    """What a campaign did and found."""

    verdict: Verdict
    seconds: float
    #: `victim` or `failpoint` → kills.
    kills: Counter[str] = field(default_factory=Counter)
    #: Processes that ended in a way nobody asked for.
    surprises: list[str] = field(default_factory=list)
    submissions: int = 0
    refused: int = 0
    #: Runs of `command` tasks beyond the first of each.
    repeated_runs: int = 0

    @property
    def total(self) -> int:
        """Kills in all."""
        return sum(self.kills.values())


class Campaign:
    """Kills until there were enough, then lets everything finish and judges."""

    def __init__(self, rig: Rig, *, devices: int = 3, seed: int = 1) -> None:
        self.rig = rig
        self.seed = seed
        self.names = [f"device-{number}" for number in range(1, devices + 1)]
        self.journal = Journal(rig.folder / "journal")
        self.effects = rig.marks / "effects"
        self.effects.touch()
        self.kills: Counter[str] = Counter()
        self.surprises: list[str] = []
        self.submissions = self.refused = 0
        self._over = threading.Event()
        self._still = threading.Event()
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []

    def run(self, kills: int, *, longest_seconds: float, finish_seconds: float = 60.0) -> Report:
        """Until so many kills or so long; the report."""
        began = time.monotonic()
        self.rig.start_broker()
        threads = [
            self._thread(self._keep_broker, 1),
            self._thread(self._keep_facade, 2),
            *(
                self._thread(functools.partial(self._keep_device, name), 10 + index)
                for index, name in enumerate(self.names)
            ),
        ]
        clients = [
            self._thread(self._submit, 100),
            self._thread(self._submit, 101),
            self._thread(self._submit_by_rest, 102),
            self._thread(self._look, 103),
        ]
        for thread in (*threads, *clients):
            thread.start()
        while (
            sum(self.kills.values()) < kills
            and time.monotonic() - began < longest_seconds
            and not self._failures
        ):
            time.sleep(0.05)
        # Faults off: everything must finish now.
        self._still.set()
        for thread in threads:
            thread.join(30)
        self._over.set()
        for thread in clients:
            thread.join(30)
        if self._failures:
            raise self._failures[0]
        self.rig.await_broker()
        unseen = self.journal.waiting(10**9)
        for row in self.rig.finish(unseen, finish_seconds):
            self.journal.saw(row)
        self._look_again()
        assert self.rig.broker is not None
        if self.rig.broker.stop() != 0:
            self.surprises.append(f"the main node ended with {self.rig.broker.code} on SIGTERM")
        verdict = self.journal.judge(self.rig.database)
        runs = Counter(self.effects.read_text("utf-8").split())
        self.journal.close()
        return Report(
            verdict, time.monotonic() - began, self.kills, self.surprises, self.submissions,
            self.refused, sum(count - 1 for count in runs.values()),
        )  # fmt: skip

    # --- keepers ---------------------------------------------------------------------------------

    def _thread(self, work: Callable[[random.Random], None], number: int) -> threading.Thread:
        rng = random.Random(self.seed * 1_000 + number)

        def guarded() -> None:
            try:
                work(rng)
            except BaseException as error:
                self._failures.append(error)
                self._still.set()
                self._over.set()

        return threading.Thread(target=guarded, daemon=True)

    def _keep_broker(self, rng: random.Random) -> None:
        def start(point: str) -> Child:
            return self.rig.start_broker(failpoint=point, wait=False)

        assert self.rig.broker is not None
        self._keep("broker", start, BROKER_POINTS, 30, (0.3, 3.0), rng, self.rig.broker)

    def _keep_device(self, name: str, rng: random.Random) -> None:
        def start(point: str) -> Child:
            return self.rig.start_device(name, failpoint=point)

        self._keep("device", start, DEVICE_POINTS, 3, (0.1, 1.6), rng)

    def _keep_facade(self, rng: random.Random) -> None:
        def start(point: str) -> Child:
            return self.rig.start_api(failpoint=point)

        self._keep("facade", start, FACADE_POINTS, 8, (0.3, 2.0), rng)

    def _keep(
        self,
        victim: str,
        start: Callable[[str], Child],
        points: tuple[str, ...],
        most_times: int,
        life_seconds: tuple[float, float],
        rng: random.Random,
        child: Child | None = None,
    ) -> None:
        point = ""
        while True:
            if child is None:
                point = ""
                if rng.random() < 0.6:
                    point = f"{rng.choice(points)}:{rng.randint(1, most_times)}"
                child = start(point)
            until = time.monotonic() + rng.uniform(*life_seconds)
            while time.monotonic() < until and child.poll() is None and not self._still.is_set():
                time.sleep(0.01)
            if child.poll() is None and self._still.is_set():
                break
            self._end(victim, point, child)
            child = None
            if self._still.is_set():
                start("")
                return
        if point:  # it may still be about to kill itself
            child.kill()
            start("")

    def _end(self, victim: str, point: str, child: Child) -> None:
        name = victim
        if child.poll() is None:
            child.kill()
        elif child.code == -9 and point:
            name = point.partition(":")[0]
        else:
            with self._lock:
                how = f"{victim} ({point or 'no failpoint'}) ended: {child.code}"
                self.surprises.append(f"{how}: {child.last_words()}")
            time.sleep(0.2)
            return
        with self._lock:
            self.kills[name] += 1

    # --- clients ---------------------------------------------------------------------------------

    def _work(self, rng: random.Random) -> tuple[dict[str, Any], int]:
        """What to submit, and how many of it."""
        draw = rng.random()
        if draw < 0.80:
            payload: dict[str, Any] = {"n": rng.getrandbits(40), "text": "x" * rng.randint(0, 300)}
            return {"type": "echo", "payload": payload}, rng.randint(1, 20)
        if draw < 0.90:
            duration = round(rng.uniform(0.01, 0.3), 3)
            return {"type": "sleep", "payload": {"duration": duration}}, rng.randint(1, 4)
        script = f'echo $RC_TASK_ID >> "{self.effects}"'
        return {"type": "command", "payload": {"command": ["/bin/sh", "-c", script]}}, 1

    def _pause(self, rng: random.Random) -> None:
        self._over.wait(rng.uniform(0.01, 0.06))
        while len(self.journal.waiting(MOST_WAITING)) >= MOST_WAITING and not self._over.is_set():
            self._over.wait(0.1)

    def _submit(self, rng: random.Random) -> None:
        client = self.rig.client(1.0)
        while not self._over.is_set():
            work, count = self._work(rng)
            key = f"{self.seed}-{rng.getrandbits(60)}" if rng.random() < 0.5 else ""
            args: dict[str, Any] = {
                "task": {"task_type": work["type"], "requirements": {"max_retries": 10}},
                "count": count, "brief": True,
            }  # fmt: skip
            if key:
                args.update(owner="chaos", idempotency_key=key, fingerprint=key)
            blobs = [_dumps(work["payload"])] * count
            submit = functools.partial(client.call, "task.submit", args, blobs)
            ids = self._insist(submit, bool(key))
            if ids is not None:
                self.journal.acknowledged(ids["task_ids"], work, key)
            self._pause(rng)

    def _submit_by_rest(self, rng: random.Random) -> None:
        while not self._over.is_set():
            work, _ = self._work(rng)
            key = f"rest-{self.seed}-{rng.getrandbits(60)}" if rng.random() < 0.5 else ""
            headers = {"Idempotency-Key": key} if key else {}
            document = {
                "task_type": work["type"], "payload": work["payload"],
                "requirements": {"max_retries": 10},
            }  # fmt: skip
            ids = self._insist(functools.partial(self._post, document, headers), bool(key))
            if ids is not None:
                self.journal.acknowledged(ids["task_ids"], work, key)
            self._pause(rng)

    def _post(self, document: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        status, body = self.rig.http("POST", "/api/v1/tasks", document, headers, 3.0)
        if status == 201:
            return {"task_ids": [body["data"]["task_id"]]}
        if status in (502, 503):
            raise OSError(f"{status}")
        raise AssertionError(f"POST /tasks: {status} {body}")

    def _insist(self, call: Callable[[], dict[str, Any]], again: bool) -> dict[str, Any] | None:
        """The answer; with an idempotency key it is asked for until it comes."""
        while True:
            try:
                found = call()
            except (ClusterError, OSError) as error:
                if isinstance(error, ClusterError) and error.status not in (502, 503):
                    raise
                with self._lock:
                    self.refused += 1
                if not again or self._over.wait(0.05):
                    return None
            else:
                with self._lock:
                    self.submissions += 1
                return found

    def _look(self, rng: random.Random) -> None:
        client = self.rig.client(2.0)
        known: list[str] = []
        while not self._over.is_set():
            ids = self.journal.waiting(400)
            ids += rng.sample(known, min(20, len(known)))
            known += ids[: max(0, 2_000 - len(known))]
            if ids:
                self._see(client, ids)
            self._over.wait(0.1)

    def _see(self, client: Any, ids: list[str]) -> None:
        with contextlib.suppress(ClusterError):
            args = {"task_ids": ids, "timeout_seconds": 0.2}
            for row in client.call("task.wait", args)["results"]:
                self.journal.saw(row)

    def _look_again(self) -> None:
        """Everything that was ever seen, once more."""
        known = list(self.journal.seen)
        for begin in range(0, len(known), 500):
            part = known[begin : begin + 500]
            for row in self.rig.finish(part, 20):
                self.journal.saw(row)


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()

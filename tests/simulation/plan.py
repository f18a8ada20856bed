"""What one seed is about: the cluster, the work, and which faults are in season.

Each seed switches every kind of fault on or off by itself ("swarm"): rare mixtures appear that an
average of everything would never show.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from retire_cluster.conf.sections import Database, Heartbeat, Retention, Scheduler
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.protocol.messages import TypeInfo
from tests.simulation.client import Submission, payload
from tests.simulation.device import Profile
from tests.simulation.network import Weather

WORK = TypeInfo("work", repeatable=True)
ONCE = TypeInfo("once", repeatable=False)
RARE = TypeInfo("rare", repeatable=False)

#: What can go wrong: name → how often, relative to the others.
FAULTS: Final = {
    "main.crash": 2.0,
    "main.crash_before_commit": 2.0,
    "main.crash_after_commit": 2.0,
    "main.crash_sending": 2.0,
    "main.power_cut": 1.0,
    "main.stop": 1.0,
    "main.freeze": 1.5,
    "main.clock_jump": 0.7,
    "main.retention": 0.7,
    "main.slow_commits": 0.7,
    "store.fail": 1.5,
    "store.fail_midway": 1.5,
    "store.broken": 1.0,
    "store.full": 0.5,
    "store.unreadable": 0.7,
    "store.restore": 0.7,
    "device.crash": 3.0,
    "device.power_cut": 2.0,
    "device.lose_disk": 0.7,
    "device.stop": 1.5,
    "device.freeze": 2.5,
    "device.sleep": 1.0,
    "device.clone": 0.7,
    "device.change": 1.0,
    "net.break": 3.0,
    "net.partition": 3.0,
    "net.half_partition": 1.5,
    "net.full_queue": 0.7,
    "client.crash": 1.5,
    "client.break": 1.0,
    "client.partition": 1.0,
}
#: What clients ask for: name → how often.
OPS: Final = {
    "task.submit": 10.0,
    "task.wait": 3.0,
    "task.status": 1.0,
    "task.result": 1.0,
    "task.cancel": 2.0,
    "task.retry": 2.0,
    "device.drain": 0.7,
    "device.resume": 0.7,
    "device.remove": 0.5,
    "device.readmit": 0.8,
    "device.ping": 0.5,
    "config.update": 1.0,
    "config.limit": 0.3,
    "config.reset": 0.3,
    "events.poll": 0.5,
}
#: What puts leases to the test.
_OF_LEASES: Final = (
    "main.crash", "main.crash_after_commit", "main.power_cut", "net.break", "net.partition",
    "net.half_partition", "net.full_queue",
)  # fmt: skip
#: Requirements that the first two devices meet, and mostly others do not.
_NEEDS: Final[tuple[dict[str, Any], ...]] = (
    {"min_cpu_cores": 4},
    {"min_memory_gb": 3.5},
    {"min_storage_gb": 50},
    {"required_platform": "linux"},
    {"required_role": "compute"},
    {"required_tags": ["indoor"]},
    {"gpu_required": True},
    {"internet_required": True},
    {"required_tags": ["indoor", "fast"], "min_cpu_cores": 2},
)


def _form(rng: random.Random) -> dict[str, Any]:
    form: dict[str, Any] = {
        "task_type": rng.choice(("work", "once", "once", "echo", "rare")),
        "priority": rng.choice(("low", "normal", "high", "urgent")),
        "requirements": {
            "max_retries": rng.choice((0, 1, 2, 3, 6)),
            "timeout_seconds": rng.choice((2, 5, 20)),
        },
    }
    if rng.random() < 0.3:
        form["requirements"].update(rng.choice(_NEEDS))
    if rng.random() < 0.15:
        form["delay_seconds"] = rng.choice((0.5, 3.0))
    return form


def _is_long(form: dict[str, Any]) -> bool:
    return bool(form["task_type"] == "once" and form["requirements"]["timeout_seconds"] == 20)


def _is_plain(form: dict[str, Any]) -> bool:
    limits = form["requirements"]
    return form["task_type"] == "work" and limits["max_retries"] == 0 and len(limits) == 2


#: A fixed set: validating a new form costs as much as ten events.
_FORMS: Final = [_form(random.Random(number)) for number in range(150)]


class Plan:
    """Everything that a seed decides before it begins."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.interval = rng.choice((1.0, 1.0, 2.0))
        self.settings = self._settings()
        self.weather = self._weather()
        self.sqlite = rng.random() < 0.03
        #: Whether somebody listens to the event feed.
        self.subscribed = rng.random() < 0.3
        #: Whether payloads are read from the store when they are handed out.
        self.lean = rng.random() < 0.3
        #: Whether the main node reads connections in any order.
        self.shuffles = rng.random() < 0.5
        self.chaos_seconds = rng.uniform(4.0, 13.0)
        self.faults = {name: much for name, much in FAULTS.items() if rng.random() < 0.4}
        self.fault_gap_seconds = rng.choice((0.7, 1.5, 3.0))
        ops = {name: much for name, much in OPS.items() if rng.random() < 0.6}
        ops["task.submit"] = OPS["task.submit"]
        self.ops, self.op_weights = list(ops), list(ops.values())
        self.calls = rng.randint(3, 10)
        self.clients = rng.choice((1, 1, 2))
        self.profiles = self._profiles()
        self.device_ids = [profile.device_id for profile in self.profiles]
        self.once_types = frozenset({"once", "rare"})
        self.forms = rng.sample(_FORMS, 6)
        #: What tasks do when they run.
        self.deeds = [
            deed
            for deed in ("error", "deterministic", "hang", "kill_worker", "die")
            if rng.random() < 0.4
        ]
        if rng.random() < 0.1:
            self.deeds.append("not_here")
        #: Tasks of one submission.
        self.sizes: tuple[int, ...] = (1, 1, 2, 3)
        #: Seconds that tasks take which succeed.
        self.durations: tuple[float, ...] = (0.0, 0.2, 1.0, 3.0)
        #: A device on which everything fails at once, beside healthy ones.
        self.black_hole = ""
        if rng.random() < 0.1:
            self._be_about_leases()
        elif rng.random() < 0.08:
            self._be_about_a_black_hole()
        #: Faults that make it impossible to promise that nothing runs in two places.
        self.excuses = self.weather.harsh

    def _be_about_leases(self) -> None:
        """Long tasks that may not run twice, devices cut off, settings that change meanwhile."""
        self.weather = Weather(high=self.rng.choice((0.005, 0.2)))
        self.faults = {name: FAULTS[name] for name in _OF_LEASES}
        self.ops, self.op_weights = ["task.submit", "config.update"], [3.0, 1.0]
        self.calls, self.chaos_seconds = 8, 12.0
        self.deeds, self.durations = [], (1.0, 3.0, 8.0)
        self.forms = [form for form in _FORMS if _is_long(form)]

    def _be_about_a_black_hole(self) -> None:
        """Good weather, many tasks without a retry, one device that fails all it gets."""
        self.weather, self.faults, self.deeds = Weather(high=0.005), {}, []
        self.ops, self.op_weights, self.calls = ["task.submit"], [1.0], 6
        self.sizes, self.durations, self.chaos_seconds = (10, 20), (0.2, 1.0), 12.0
        self.forms = [form for form in _FORMS if _is_plain(form)]
        self.profiles = [
            replace(profile, denies=frozenset(), is_black_hole=number == 0)
            for number, profile in enumerate(self.profiles)
        ]
        self.black_hole = self.profiles[0].device_id
        scheduler = replace(self.settings.scheduler, backlog_limit=1_000_000)
        self.settings = replace(self.settings, scheduler=scheduler)

    def be_about_a_boomerang(self) -> None:
        """Good weather, few tasks, one device that gives back all it gets."""
        self.weather, self.faults, self.deeds = Weather(high=0.005), {}, []
        self.excuses = self.weather.harsh
        self.profiles = [
            replace(profile, denies=frozenset(), is_boomerang=number == 0)
            for number, profile in enumerate(self.profiles)
        ]

    def _settings(self) -> Settings:
        rng = self.rng
        base = rng.choice((0.0, 0.5, 2.0))
        return Settings(
            data_dir=Path("unused"),
            heartbeat=Heartbeat(**self.heartbeat()),
            scheduler=Scheduler(
                retry_base_seconds=base,
                retry_cap_seconds=max(base, rng.choice((1.0, 4.0))),
                poison_devices=rng.choice((2, 3)),
                aging_seconds=rng.choice((1.0, 60.0)),
                sweep_interval_seconds=rng.choice((0.5, 1.0, 2.0)),
                backlog_limit=rng.choice((1_000_000, 1_000_000, 8)),
            ),
            # Whatever the wall clock does, nothing here gets as old as that.
            retention=Retention(finished_days=5, idempotency_hours=120),
            database=Database(url="memory://"),
        )

    def heartbeat(self) -> dict[str, Any]:
        """Values for the section `heartbeat`."""
        rng = self.rng
        interval, missed = rng.choice((1.0, 1.0, 2.0)), rng.randint(2, 3)
        timeout = interval * missed + rng.choice((0.0, 1.0, 3.0))
        return {"interval": interval, "max_missed": missed, "timeout": timeout}

    def _weather(self) -> Weather:
        rng = self.rng
        high = rng.choice((0.005, 0.05, 0.5))
        if rng.random() < 0.75:
            return Weather(high=high)
        shares = [rng.choice((0.0, 0.02, 0.1)) for _ in range(3)]
        return Weather(0.001, high, *shares)

    def _profiles(self) -> list[Profile]:
        rng = self.rng
        found = []
        for number in range(rng.randint(2, 4)):
            able = number < 2
            found.append(
                Profile(
                    device_id=f"d{number}",
                    role="compute" if able or rng.random() < 0.5 else "mobile",
                    platform="linux" if able or rng.random() < 0.5 else "android",
                    tags=("indoor", "fast") if able else (),
                    slots=rng.choice((1, 1, 2, 3)),
                    capabilities={
                        "cpu_count": 8 if able else rng.choice((1, 4)),
                        "memory_total_gb": 16.0 if able else 2.0,
                        "storage_total_gb": 500.0,
                        "has_gpu": able,
                        "has_internet": able or rng.random() < 0.5,
                    },
                    own_types=(WORK, ONCE, RARE) if able else (WORK, ONCE),
                    denies=self._denies(),
                    kill_on_lease_loss=rng.random() < 0.85,
                )
            )
        return found

    def _denies(self) -> frozenset[str]:
        return frozenset({"work"}) if self.rng.random() < 0.1 else frozenset()

    def changed(self, profile: Profile) -> Profile:
        """The same device after its owner thought again; still able to do what it did."""
        return replace(profile, slots=self.rng.choice((1, 2, 3)), denies=self._denies())

    def willing(self, profile: Profile) -> Profile:
        """The same device, its owner refusing nothing."""
        return replace(profile, denies=frozenset())

    def submission(self, name: str) -> Submission:
        """Some tasks."""
        rng = self.rng
        form = rng.choice(self.forms)
        size = rng.choice(self.sizes)
        payloads = [payload(name, index, self._deeds()) for index in range(size)]
        key = name if rng.random() < 0.7 else ""
        return Submission(name, [form] * size, payloads, key)

    def _deeds(self) -> list[tuple[str, float]]:
        rng = self.rng
        found = []
        while self.deeds and rng.random() < 0.5:
            found.append((rng.choice(self.deeds), rng.choice((0.0, 0.3, 1.5))))
        if rng.random() < 0.7:
            found.append(("success", rng.choice(self.durations)))
        return found

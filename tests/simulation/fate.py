"""Fate: what goes wrong, when, and the end of all that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from retire_cluster.broker.store.memory import MemoryStore
from tests.simulation.device import Machine
from tests.simulation.judging.facts import Book
from tests.simulation.network import TO_MAIN, TO_PEER
from tests.simulation.storage import MemoryDisk

if TYPE_CHECKING:
    from tests.simulation.world import World

_BOTH = frozenset({TO_MAIN, TO_PEER})
_TEN_DAYS_MS = 10 * 86_400_000


class Fate:
    """Lets faults of the plan's kinds happen until it is told to stop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.engine.rng
        self.over = False
        #: A backup: the store, and what the judge knew then.
        self._kept: tuple[MemoryStore, Book] | None = None
        self._kinds = list(world.plan.faults)
        self._weights = list(world.plan.faults.values())
        self._does: dict[str, Callable[[], None]] = {
            "main.crash": lambda: self._main_dies(""),
            "main.crash_before_commit": lambda: self._at_commit("die_before"),
            "main.crash_after_commit": lambda: self._at_commit("die_after"),
            "main.crash_sending": self._main_dies_sending,
            "main.power_cut": lambda: self._main_dies("by a power cut", power_cut=True),
            "main.stop": self._main_stops,
            "main.freeze": self._main_freezes,
            "main.clock_jump": self._clock_jumps,
            "main.retention": self._retains,
            "main.slow_commits": self._slow_commits,
            "store.fail": lambda: self._at_commit("fail"),
            "store.fail_midway": lambda: self._at_commit("fail_midway"),
            "store.broken": self._disk_breaks,
            "store.full": self._disk_fills,
            "store.unreadable": self._disk_cannot_be_read,
            "store.restore": self._backup,
            "device.crash": self._device_crashes,
            "device.power_cut": self._device_loses_power,
            "device.lose_disk": self._device_loses_disk,
            "device.stop": self._device_stops,
            "device.freeze": lambda: self._device_freezes(deep=False),
            "device.sleep": lambda: self._device_freezes(deep=True),
            "device.clone": self._device_is_cloned,
            "device.change": self._device_changes,
            "net.break": lambda: self._breaks(self._machine().name),
            "net.partition": lambda: self._partition(self._machine().name, _BOTH),
            "net.half_partition": self._half_partition,
            "net.full_queue": self._queues_fill,
            "client.crash": self._client_crashes,
            "client.break": lambda: self._breaks(self._client_name()),
            "client.partition": lambda: self._partition(self._client_name(), _BOTH),
        }
        if self._kinds:
            self._next()

    def _next(self) -> None:
        wait = self.rng.expovariate(1.0 / self.world.plan.fault_gap_seconds)
        self.world.engine.after(wait, self._strike)

    def _strike(self) -> None:
        if not self.over:
            self._does[self.rng.choices(self._kinds, self._weights)[0]]()
            self._next()

    def _machine(self) -> Machine:
        return self.rng.choice(self.world.machines)

    def _client_name(self) -> str:
        return self.rng.choice(self.world.clients).name

    # --- the main node ---------------------------------------------------------------------------

    def _back(self) -> None:
        self.world.engine.after(self.rng.choice((0.1, 1.0, 4.0)), self.world.main.start)

    def _main_dies(self, why: str, *, power_cut: bool = False) -> None:
        self.world.main.die(why, power_cut=power_cut)
        self._back()

    def _at_commit(self, fate: str) -> None:
        main = self.world.main
        if main.store is not None:
            self.world.engine.tell("fate", f"the next commit: {fate}")
            main.store.next_commit = fate
        if fate.startswith("die"):
            self.world.engine.after(3.0, main.start)

    def _main_dies_sending(self) -> None:
        main = self.world.main
        if main.broker is not None:
            main.sends_left = self.rng.randint(0, 6)
            self.world.engine.after(3.0, main.start)

    def _main_stops(self) -> None:
        self.world.main.stop()
        self._back()

    def _main_freezes(self) -> None:
        self.world.main.freeze(self.rng.choice((0.5, 3.0, 8.0, 15.0)))

    def _clock_jumps(self) -> None:
        jump_ms = self.rng.choice((-_TEN_DAYS_MS, -3_600_000, 3_600_000, _TEN_DAYS_MS))
        self.world.engine.tell("fate", f"the main node's wall clock jumps by {jump_ms} ms")
        self.world.main.wall_offset_ms += jump_ms

    def _slow_commits(self) -> None:
        main = self.world.main
        main.commit_seconds = self.rng.choice((0.01, 0.2))
        self.world.engine.after(3.0, setattr, main, "commit_seconds", 0.0)

    def _disk_breaks(self) -> None:
        self.world.main.break_disk(True)
        self.world.engine.after(self.rng.uniform(0.5, 4.0), self.world.main.break_disk, False)

    def _disk_fills(self) -> None:
        store = self.world.main.store
        if store is not None:
            self.world.engine.tell("fate", "the disk is nearly full for 5 s")
            store.free = 1.0
            self.world.engine.after(5.0, setattr, store, "free", 100.0)

    def _retains(self) -> None:
        self.world.engine.tell("fate", "what is old is deleted now")
        self.world.main.retain()

    def _disk_cannot_be_read(self) -> None:
        store = self.world.main.store
        if store is not None:
            self.world.engine.tell("fate", "payloads cannot be read for 2 s")
            store.unreadable = True
            self.world.engine.after(2.0, setattr, store, "unreadable", False)

    def _backup(self) -> None:
        """A backup is made; the next time it is put back, once."""
        main, judge = self.world.main, self.world.judge
        if not isinstance(main.disk, MemoryDisk) or judge.restored:
            return
        if self._kept is None:
            self.world.engine.tell("fate", "the store is backed up")
            self._kept = (main.disk.back_up(), judge.back_up())
            return
        store, book = self._kept
        main.die("to get a backup put back")
        self.world.engine.tell("fate", "a backup is put back")
        main.disk.put_back(store)
        judge.put_back(book)
        self._back()

    # --- devices ---------------------------------------------------------------------------------

    def _back_after(self) -> float:
        return self.rng.choice((0.2, 1.0, 6.0))

    def _device_crashes(self) -> None:
        self._machine().crash("by kill -9", back_after=self._back_after())

    def _device_loses_power(self) -> None:
        self._machine().crash("by a power cut", power_cut=True, back_after=self._back_after())

    def _device_loses_disk(self) -> None:
        machine = self._machine()
        machine.disk.durable = False
        machine.crash("with its disk", power_cut=True, back_after=self._back_after())
        machine.disk.durable = True

    def _device_stops(self) -> None:
        worker = self._machine().worker
        if worker is not None:
            worker.stop()
            if self.rng.random() < 0.3:
                self.world.engine.after(0.3, worker.stop)

    def _device_freezes(self, *, deep: bool) -> None:
        worker = self._machine().worker
        if worker is not None:
            worker.freeze(self.rng.choice((0.5, 2.0, 5.0, 12.0, 40.0)), deep=deep)

    def _device_is_cloned(self) -> None:
        """The owner copies the worker's folder to another machine, or starts it twice."""
        machine = self._machine()
        if machine.worker is None or any(
            clone.profile.device_id == machine.profile.device_id and not clone.retired
            for clone in self.world.clones
        ):
            return
        clone = Machine(self.world, f"{machine.name}x", machine.profile)
        self.world.engine.tell("fate", f"{machine.name} is started a second time")
        self.world.clones.append(clone)
        if self.rng.random() < 0.5:
            machine.worker.freeze(self.rng.choice((3.0, 12.0)), deep=False)
        clone.start()
        self.world.engine.after(self.rng.uniform(2.0, 8.0), self._end_clone, clone)

    def _end_clone(self, clone: Machine) -> None:
        clone.retired = True
        clone.crash("for good", back_after=None)

    def _device_changes(self) -> None:
        machine = self._machine()
        machine.profile = self.world.plan.changed(machine.profile)
        machine.crash("to be set up anew", back_after=self._back_after())

    # --- the network -----------------------------------------------------------------------------

    def _breaks(self, name: str) -> None:
        network = self.world.network
        for pipe in network.pipes_of(name):
            self.world.engine.tell("fate", f"a connection of {name} breaks")
            network.tear(pipe, "the connection broke")

    def _partition(self, name: str, directions: frozenset[int]) -> None:
        seconds = self.rng.choice((0.5, 2.0, 6.0, 15.0))
        self.world.engine.tell(
            "fate", f"{name} is cut off for {seconds:.1f} s, directions {sorted(directions)}"
        )
        self.world.network.block(name, directions, seconds)

    def _half_partition(self) -> None:
        self._partition(self._machine().name, frozenset({self.rng.choice((TO_MAIN, TO_PEER))}))

    def _queues_fill(self) -> None:
        main = self.world.main
        main.full_share = 0.3
        self.world.engine.tell("fate", "queues to devices are full for 2 s")
        self.world.engine.after(2.0, setattr, main, "full_share", 0.0)

    def _client_crashes(self) -> None:
        self.rng.choice(self.world.clients).crash(self.rng.uniform(0.2, 3.0))

    # --- the end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """All faults off, everybody up, every device willing."""
        self.over = True
        world, main = self.world, self.world.main
        world.engine.tell("fate", "all faults are over")
        world.network.heal_all()
        main.commit_seconds, main.full_share, main.sends_left = 0.0, 0.0, None
        main.break_disk(False)
        if main.store is not None:
            main.store.next_commit, main.store.free = "", 100.0
            main.store.unreadable = False
        main.thaw(main.broker)
        main.start()
        for clone in world.clones:
            self._end_clone(clone)
        for machine in world.machines:
            if machine.profile.denies:
                machine.profile = world.plan.willing(machine.profile)
                machine.crash("to be allowed everything", back_after=0.1)
            elif machine.worker is not None:
                machine.worker.thaw()
            else:
                machine.start()
        for client in world.clients:
            client.become_calm()

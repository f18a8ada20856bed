"""What comes to the main node: a device's frames, a token holder's, an administrator's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import zmq

from retire_cluster.conf import curve
from retire_cluster.conf.curve import ClientKeys
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from tests.chaos import fuzz
from tests.chaos.boundaries import twist
from tests.chaos.boundaries.hammer import BATCH, Boundary
from tests.chaos.red.target import Target
from tests.integration.main_kit import RawDevice
from tests.wire.fixtures import Recording, releases

#: What may pile up by valid messages among the odd ones is kept small, so that memory tells.
SETTINGS: Final = """
[scheduler]
backlog_limit = 300
retry_base_seconds = 0.05
retry_cap_seconds = 0.5
poison_devices = 100
[retention]
event_rows = 1000
finished_rows = 500
[api]
rate_limit = false
"""
FLAGS: Final = ("--workers", "1", "--slots", "4", "--no-rate-limit")
#: The fuzzed device's own tag: no other task comes to it.
_TAG: Final = "fuzzed"
#: What one token's holder says: more is beyond its budget.
_SAYS_A_TOKEN: Final = 12


class _MainNode(Boundary):
    """Sends to the main node of a cluster by one socket."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._logged = 0
        self._over = 0
        self._sent = 0
        self.device: RawDevice

    def pids(self) -> Sequence[int]:
        return [self.target.main_pid]

    def send(self, case: list[bytes]) -> None:
        try:
            self.device.socket.send_multipart(case, zmq.NOBLOCK)
        except zmq.Again:
            self.renew()
        self.target.call("health")  # the same loop: it has taken the case before, or soon after
        while self.device.socket.poll(0):
            self.answered(self.device.socket.recv_multipart())

    def answered(self, frames: list[bytes]) -> None:
        """Look at an answer. Raises `AssertionError`."""

    def renew(self) -> None:
        """Begin again on a new connection."""

    def witness(self) -> None:
        self.target.call("config.reset")
        self.target.witness()
        self.renew()

    def complaints(self) -> list[str]:
        text = self.target.log()
        new, self._logged = text[self._logged :], len(text)
        marks = ("Traceback", '"level": "ERROR"', "a turn failed", "died (")
        found = [line for line in new.splitlines() if any(mark in line for mark in marks)][:3]
        over, self._over = self._over, self.target.dropped("over_budget")
        if self._over - over > BATCH // 3:
            found.append(f"{self._over - over} cases were dropped unread: that shows nothing")
        return found


class Device(_MainNode):
    """A device with a valid key and work in its hands says what it likes."""

    name = "bus"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._devices = 0
        self._recorded = [
            message
            for release in releases()
            for verb in ("HELLO", "HEARTBEAT", "STARTED", "PROGRESS", "FINISHED", "PONG", "DRAIN",
                         "GOODBYE", "CONFIG_ACK")
            for message in Recording(release).all("device", verb)
        ]  # fmt: skip

    def renew(self) -> None:
        """Be another device: each may say so much, and what is dropped unread shows nothing."""
        if self._devices:
            self.device.close()
            self.target.call("device.remove", device_id=self.device.device_id)
        self._devices += 1
        name = f"fuzzed-{self._devices}"
        self.device = self.target.device(name, self.target.known(name))
        self.device.join(tags=(_TAG,), slots=4)
        for _ in range(4):
            self.target.submit("sleep", {"duration": 1}, requirements={"required_tags": [_TAG]})
        self.device.next_task()

    def case(self, rng: random.Random) -> list[bytes]:
        """One message of ours or of a recording, about this session and what it was given."""
        if rng.random() < 0.5 and self._recorded:
            recorded = rng.choice(self._recorded)
            verb, header, blobs = recorded.verb.encode(), dict(recorded.header), recorded.blobs
        else:
            verb, header, blobs = self._written(rng)
        if "session" in header and rng.random() < 0.9:
            header["session"] = self.device.session
        if "device_id" in header:
            header["device_id"] = self.device.device_id
        message = wire.encode(wire.BUS, verb, header, blobs)
        return message if rng.random() < 0.05 else twist.frames(message, rng)

    def _written(self, rng: random.Random) -> tuple[bytes, dict[str, Any], list[bytes]]:
        given = [key for key, *_ in self.device.assigned] or [(1, 1, 1, 1)]
        key, session = rng.choice(given), self.device.session
        outcome = rng.choice(("success", "failed", "released", "timeout", "cancelled"))
        item = msg.FinishedItem(key, outcome, 0.1, None, "why" if outcome != "success" else None)
        held = (msg.Held(key, True, 1.5),)
        options: list[Any] = [
            msg.Heartbeat(session, rng.randrange(99), held=held, metrics={"cpu_percent": 5.0}),
            msg.Started(session, (key,)),
            msg.Finished.of(session, rng.randrange(9), (item,)),
            msg.Progress(session, (msg.ProgressItem(key, 50.0, "half"),)),
        ]
        message = rng.choice(options)
        verb, header = message.write()
        return verb, header, [b'{"ok":1}', b"{}"] if verb == b"FINISHED" else []


class TokenHolder(_MainNode):
    """The holder of a join token enrols, or says anything else."""

    name = "join"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.renew()

    def renew(self) -> None:
        self.device = self.target.device("newcomer", self.target.token(uses=1000))

    def send(self, case: list[bytes]) -> None:
        self._sent += 1
        if not self._sent % _SAYS_A_TOKEN:
            self.device.close()
            self.renew()
        super().send(case)

    def witness(self) -> None:
        keys = self.target.token()
        pair = curve.new_pair()
        newcomer = self.target.device("welcome", keys)
        self.target.call("device.remove", device_id="welcome") if self._knows("welcome") else None
        newcomer.send(msg.Enrol("s", "welcome", pair.public))
        newcomer.expect(msg.Enrolled, 10)
        member = self.target.device("welcome", ClientKeys(pair, keys.server))
        member.join(tags=("idle",), task_types=())
        member.close()
        super().witness()

    def _knows(self, device_id: str) -> bool:
        rows = self.target.call("device.list", page_size=100)["items"]
        return device_id in {row["device_id"] for row in rows}

    def case(self, rng: random.Random) -> list[bytes]:
        name = rng.choice(("newcomer", "fuzzed", "welcome", "vm", "../x", "summary"))
        public = rng.choice((curve.new_pair().public, self.target.server_key, "x" * 40, ""))
        enrol = msg.Enrol("s", name, public).write()
        message = wire.encode(wire.BUS, *enrol)
        if rng.random() < 0.3:
            message = next(fuzz.bus_messages(rng))
        return message if rng.random() < 0.05 else twist.frames(message, rng)


class Administrator(_MainNode):
    """A program with the tooling's key calls operations oddly."""

    name = "admin"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._task_id = target.submit("echo", {"n": 0})
        self.renew()

    def renew(self) -> None:
        self.device = RawDevice(
            self.target.admin_port, "tool", tag=wire.ADMIN, keys=self.target.tooling_keys()
        )
        self.target.keep(self.device)

    def case(self, rng: random.Random) -> list[bytes]:
        message = next(fuzz.admin_messages(rng, [self._task_id]))
        return message if rng.random() < 0.05 else twist.frames(message, rng)

    def answered(self, frames: list[bytes]) -> None:
        tag = frames[0][:4]  # a device that dials the wrong port is told so in its own words
        answer = wire.decode(wire.BUS if tag == wire.BUS else wire.ADMIN, frames)
        internal = answer.verb == b"ERROR" and answer.header["status"] == 500
        assert not internal, answer.header

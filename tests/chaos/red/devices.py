"""A device with a valid key that has gone bad, against the main node."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import zmq

from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.task_types import BUILTIN
from tests.chaos.red import Attack, Target, Went
from tests.command_kit import until
from tests.integration.main_kit import RawDevice

_SECONDS = 8.0
#: Attempts that a task without retries may get in that time: the first waits are short.
_ATTEMPTS = 12


def _gives_back_for_ever(target: Target) -> str:
    """It alone may run the task, and releases each attempt at once."""
    liar = target.device("gives-back", target.known("gives-back"))
    liar.join(tags=("gives-back",), task_types=(BUILTIN["sleep"],))
    task_id = target.submit("sleep", requirements={"required_tags": ["gives-back"]})
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        liar.pump(0.05)
        while liar.assigned:
            key, *_ = liar.assigned.pop(0)
            liar.finished(key, outcome="released")
    task = target.call("task.get", task_id=task_id)
    attempts = target.call("task.status", task_id=task_id)["attempt"]
    rows = len(task["attempts"])
    target.call("task.cancel", task_id=task_id)
    if attempts > _ATTEMPTS or rows > _ATTEMPTS:
        raise Went(f"{attempts} attempts and {rows} rows in {_SECONDS:g} s, max_retries 0")
    if task["status"] not in ("queued", "pending", "assigned"):
        raise Went(f"the task is {task['status']}, by what one device says")
    return f"{attempts} attempts, {rows} rows in {_SECONDS:g} s; it waits"


@contextmanager
def _saying(target: Target, name: str, frames: list[bytes], socket: RawDevice) -> Iterator[None]:
    """One message again and again, from a thread of its own."""
    over = Event()

    def say() -> None:
        while not over.is_set():
            with contextlib.suppress(zmq.Again):
                socket.socket.send_multipart(frames, zmq.NOBLOCK)
            while socket.socket.poll(0):
                socket.socket.recv_multipart()

    thread = Thread(target=say, name=name)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _submit_ms(target: Target, count: int = 20) -> float:
    took = []
    for _ in range(count):
        began = time.monotonic()
        target.submit("sleep", requirements={"required_tags": ["nowhere"]})
        took.append(time.monotonic() - began)
    return 1000 * statistics.median(took)


def _floods(kind: str) -> Callable[[Target], str]:
    def run(target: Target) -> str:
        name = f"floods-{kind.lower()}"
        target.call("token.create", token_id=f"before-{kind.lower()}")
        device = target.device(name, target.known(name))
        device.join(tags=(name,), task_types=(BUILTIN["sleep"],))
        if kind == "HELLO":
            hello = msg.Hello(
                wire.PROTOCOL, name, "x", device.session, "1", "worker", "linux", "host", (name,),
                1, {"cpu_count": 4}, (BUILTIN["sleep"],),
            )  # fmt: skip
            frames = wire.encode(wire.BUS, *hello.write())
        else:
            target.submit("sleep", requirements={"required_tags": [name]})
            key = device.next_task()[0]
            device.started(key)
            item = msg.ProgressItem(key, 1.0, "x" * 1_000)
            frames = wire.encode(wire.BUS, *msg.Progress(device.session, (item,) * 20).write())
        calm, memory = _submit_ms(target), target.rss_mb(target.main_pid)
        with _saying(target, name, frames, device):
            until(lambda: target.dropped("over_budget") > 200, "messages that are dropped")
            flooded = _submit_ms(target)
        grown = target.rss_mb(target.main_pid) - memory
        kept = {event["data"].get("token") for event in target.events("token.created")}
        seen = f"submit {calm:.1f} → {flooded:.1f} ms, memory +{grown:.0f} MB"
        if flooded > 100 or grown > 50:
            raise Went(seen)
        if f"before-{kind.lower()}" not in kept:
            raise Went("an audit event is gone")
        return f"{seen}; audit events stay"

    return run


def _endless_types(target: Target) -> str:
    """New own types with every HELLO; another's type described otherwise."""
    honest = target.device("honest", target.known("honest"))
    right = {"width": {"type": "strict_int", "required": True}}
    honest.join(task_types=(msg.TypeInfo("resize", "", right),))
    liar = target.device("liar", target.known("liar"))
    false = {"width": {"type": "string", "required": True}}
    for turn in range(8):
        some = tuple(
            msg.TypeInfo(f"t{turn}.{number}", "d" * 900, {"f" * 100: {"type": "string"}})
            for number in range(400)
        )
        liar.join(task_types=(msg.TypeInfo("resize", "", false), *some))
    answer = target.http("GET", "/api/v1/tasks/types")
    if answer.status != 200:
        raise Went(f"/tasks/types is {answer.status}")
    own = len(answer.data["custom_types"])
    if own > 150:
        raise Went(f"{own} own types are left of one device")
    target.submit("resize", {"width": 5})
    if answer.data["by_type"]["resize"]["described_otherwise_by"] != ["liar"]:
        raise Went("nobody says who describes the type otherwise")
    target.call("device.remove", device_id="liar")
    left = target.http("GET", "/api/v1/tasks/types").data["custom_types"]
    if left != ["resize"]:
        raise Went(f"{len(left)} types outlive their device")
    return f"{own} types while it is here, none of them after; the honest schema judges"


_STEERS = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202e\u2066\u2028"


def _names(target: Target) -> str:
    """Everything that a device may call itself steers a terminal; each verb is asked for it."""
    device = target.device("names", target.known("names"))
    device.join(
        hostname=f"host{_STEERS}", version=f"1{_STEERS}", left_out=(f"type {_STEERS}",),
        capabilities={f"os{_STEERS}": f"x{_STEERS}"},
        task_types=(msg.TypeInfo("named", f"d{_STEERS}", None, True, False, {}, f"p{_STEERS}"),),
    )  # fmt: skip
    task_id = target.submit("named", metadata={"name": f"n{_STEERS}"})
    key = device.next_task()[0]
    item = msg.FinishedItem(key, "failed", 0.1, "error", f"it {_STEERS} broke")
    device.send(msg.Finished.of(device.session, 1, [item]), [b"", b""])
    target.outcome(task_id)
    said = 0
    for verb in (
        "devices ls", "devices show names", "top --once", "status", "doctor", "tasks ls",
        f"tasks show {task_id}", f"tasks result {task_id}", f"tasks logs {task_id}",
        f"explain {task_id}", "devices show names --json",
    ):  # fmt: skip
        done = target.cli(*verb.split())
        shown = done.stdout + done.stderr
        said += len(shown)
        if bad := [char for char in _STEERS if char in shown and not char.isalnum()
                   and char not in "\n[];"]:  # fmt: skip
            raise Went(f"{verb} prints {bad}")
    log = target.log()
    if bad := [char for char in _STEERS if not char.isprintable() and char != "\n" and char in log]:
        raise Went(f"the log has {bad}")
    return f"{said} characters of 11 verbs and the log steer nothing"


ATTACKS = [
    Attack("S28", "a task is given back without end", _gives_back_for_ever),
    Attack("S29", "own types without end, and another's described otherwise", _endless_types),
    Attack("S30", "PROGRESS without end", _floods("PROGRESS")),
    Attack("S31", "HELLO without end", _floods("HELLO")),
    Attack("S32", "names that steer a terminal", _names),
]

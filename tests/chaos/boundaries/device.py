"""What comes to a worker: its main node's frames, its task processes' answers, its own spool."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import zmq

from retire_cluster.node.core.records import Result
from retire_cluster.node.process import frames
from retire_cluster.node.running import spool
from retire_cluster.node.running.spool import Spool
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from tests.chaos.boundaries import twist
from tests.chaos.boundaries.hammer import Boundary
from tests.integration.main_kit import quiet_environment
from tests.integration.node_kit import Bus
from tests.wire.fixtures import Recording, releases

#: The worker's settings: what a case starts must not be waited for.
_FLAGS: Final = ("--slots", "2", "--drain-seconds", "0")
#: A main node may send a device away for good; the worker then ends, as it should.
_SENT_AWAY: Final = frozenset({3, 4, 5})
_MAIN: Final = "from retire_cluster.node.cli import main; sys.exit(main(sys.argv[1:]))"
_PIPE_BYTES: Final = 60_000
_QUIET: Final = msg.HeartbeatConfig(version=1, interval=30, timeout=300, max_missed=6)


class _Worker(Boundary):
    """A real worker of a main node that is played here."""

    case_seconds = 10.0

    def __init__(self, folder: Path, *, code: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.bus = Bus(_QUIET)
        self._code = code + _MAIN
        self._log = (folder / "worker.log").open("ab")
        self._logged = 0
        self._start()

    def _start(self) -> None:
        words = ["--join", f"127.0.0.1:{self.bus.port}", "--data-dir", str(self.folder / "data")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; {self._code}", *words, *_FLAGS],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=quiet_environment(),
        )  # fmt: skip
        self.bus.welcome()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._log.close()
        self.bus.close()
        self.bus.context.term()

    def pids(self) -> Sequence[int]:
        return [self.process.pid]

    def complaints(self) -> list[str]:
        text = (self.folder / "worker.log").read_text("utf-8", "replace")
        new, self._logged = text[self._logged :], len(text)
        return [line for line in new.splitlines() if "Traceback" in line][:3]


class MainNode(_Worker):
    """A main node gone bad says what it likes to its device."""

    name = "device"
    must_live = False  # a main node may send its device away

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._nonce = 10**6
        self._recorded = [
            message
            for release in releases()
            for verb in ("WELCOME", "ASSIGN", "CANCEL", "ABANDON", "CONFIG", "PING", "RESUME",
                         "FINISHED_ACK", "HEARTBEAT_ACK", "REJECT", "ENROLLED")
            for message in Recording(release).all("main", verb)
        ]  # fmt: skip

    def case(self, rng: random.Random) -> list[bytes]:
        recorded = rng.choice(self._recorded)
        verb, header, blobs = recorded.verb.encode(), dict(recorded.header), recorded.blobs
        if rng.random() < 0.4:
            verb, header, blobs = self._written(rng)
        if "session" in header and rng.random() < 0.9:
            header["session"] = self.bus.session
        message = wire.encode(wire.BUS, verb, header, blobs)
        return message if rng.random() < 0.05 else twist.frames(message, rng)

    def _written(self, rng: random.Random) -> tuple[bytes, dict[str, Any], list[bytes]]:
        session, key = self.bus.session, (rng.randrange(1, 50), 1, 7, 1)
        kinds = ("echo", "sleep", "python_eval", "command", "system_info", "http_request", "nope")
        item = msg.AssignItem(key, 1, rng.choice(kinds), 1)
        options: list[Any] = [
            msg.Assign.of(session, (item,)),
            msg.Cancel(session, (key,), "why"),
            msg.Abandon(session, (key,)),
            msg.Config(session, _QUIET),
            msg.Ping(session, rng.randrange(99)),
            msg.FinishedAck(session, rng.randrange(9)),
            msg.Reject(session, rng.choice(("register", "busy", "x")), "no", 0.1),
        ]
        message = rng.choice(options)
        verb, header = message.write()
        payloads = (b"{}", b'{"duration":0}', b'{"expression":"1"}', b'{"command":["true"]}')
        return verb, header, [rng.choice(payloads)] if verb == b"ASSIGN" else []

    def send(self, case: list[bytes]) -> None:
        self.bus.socket.send_multipart([self.bus.peer, *case])
        if b"REJECT" not in b"".join(case[:2]):
            self._settle(self.case_seconds * 2)
            return
        try:
            self._settle(2.0)
        except AssertionError:  # told to come back in an hour: it may be, and is not waited for
            self.process.kill()
            self.process.wait()
            self._start()

    def _settle(self, seconds: float) -> None:
        """Until it answers a ping: what was sent before has been dealt with."""
        self._nonce += 1
        asked = 0.0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                self._begin_again()
                return
            if time.monotonic() - asked > 1.0:
                asked = time.monotonic()
                self.bus.send(msg.Ping(self.bus.session, self._nonce))
            try:
                message = self.bus.step(20)
            except zmq.ZMQError:  # it dials anew: its old address leads nowhere
                continue
            except (ValueError, RecursionError):  # `echo` of a payload that was no JSON
                continue
            if isinstance(message, msg.Hello):
                self._welcome(message)
                asked = 0.0
            elif isinstance(message, msg.Pong) and message.nonce == self._nonce:
                return
        raise AssertionError("it does not answer a ping")

    def _welcome(self, hello: msg.Hello) -> None:
        """Take it anew, and have it drop whatever it was given."""
        self.bus.session = hello.session
        given = (*(row.key for row in hello.held), *hello.unsent)
        self.bus.send(msg.Welcome(hello.session, self.bus.epoch, (), given, _QUIET))

    def _begin_again(self) -> None:
        code = self.process.returncode
        if code not in _SENT_AWAY:
            raise AssertionError(f"the worker ended with {code}")
        self._start()

    def witness(self) -> None:
        self.bus.send(msg.Reject(self.bus.session, "register", "again"))
        deadline = time.monotonic() + 15
        while not isinstance(hello := self.bus.step(100), msg.Hello):
            assert time.monotonic() < deadline, "it does not register again"
        self._welcome(hello)
        self.bus.seen.clear()
        self.bus.ended.clear()
        self.bus.last += 1_000
        for task_type, payload in (("echo", {"a": 1}), ("python_eval", {"expression": "6 * 7"})):
            ended = self.bus.run(task_type, payload)
            assert ended.item.outcome == "success", ended
        assert ended.data["result"] == 42


class TaskProcess(_Worker):
    """A task process answers its worker with bytes of its own."""

    name = "child"
    #: It starts processes, which takes longer than reading a frame.
    case_seconds = 15.0

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._next, program = folder / "next", folder / "hostile"
        # It waits for its task, says what it is told to say, and goes.
        program.write_text(f"#!/bin/sh\ndd bs=1 count=1 >/dev/null 2>&1\ncat '{self._next}'\n")
        program.chmod(0o755)
        folder.chmod(0o755)
        super().__init__(folder, code=f"sys.executable = {str(program)!r}; ")

    def case(self, rng: random.Random) -> bytes:
        header: dict[str, Any] = {
            "kind": "done", "outcome": rng.choice(("success", "failed", "timeout")), "cause": None,
            "error_message": "why", "details": {"logs": "l", "error_traceback": "t",
            "truncated": {"stdout": {"total_bytes": 9, "kept_bytes": 3, "missing": "middle"}}},
            "last": True,
        }  # fmt: skip
        told = [_frame({"kind": "started"}), _frame({"kind": "progress", "percent": 5.0,
                                                     "message": "half"})]  # fmt: skip
        result = twist.document({"result": 42, "more": [1, {"a": "b"}]}, rng)
        draw = rng.random()
        if draw < 0.4:
            kind, letter = rng.choice((("done", b"d"), ("progress", b"p"), ("described", b"t")))
            base = header if kind == "done" else {"percent": 5.0, "message": "m", "types": [{}]}
            text = twist.document({k: v for k, v in base.items() if k != "kind"}, rng)
            told.append(_head(letter, len(text), len(result)) + text + result)
        elif draw < 0.6:
            told.append(_frame(header, result[: wire.MAX_RESULT_BYTES]))
        elif draw < 0.8:
            letter = rng.choice((b"d", b"s", b"p", b"R", b"C", b"\x00", b"t"))
            sizes = (0, 1, 2, 2**16, 2**20, 2**31, 2**32 - 1)
            told.append(_head(letter, rng.choice(sizes), rng.choice(sizes)) + rng.randbytes(300))
        else:
            told.append(_frame(header, b"{}"))
            told = [twist.cut(b"".join(told), rng)]
        if rng.random() < 0.05:
            told = told[1:2] * 3_000 + told
        # More than a pipe holds is refused before it is written whole, and this process, which
        # watches over nothing, is then given its seconds to end: a few such cases are enough.
        data = b"".join(told)
        return data if rng.random() < 0.005 else data[:_PIPE_BYTES]

    def _say(self, told: bytes) -> Any:
        draft = self._next.with_suffix(".draft")
        draft.write_bytes(told)
        os.replace(draft, self._next)
        return self.bus.run("python_eval", {"expression": "1"})

    def send(self, case: bytes) -> None:
        ended = self._say(case)
        assert ended.item.outcome in ("success", "failed", "timeout"), ended.item
        assert len(json.dumps(ended.details)) <= 2 * wire.MAX_DETAILS_BYTES
        self.bus.seen.clear()
        self.bus.ended.clear()

    def witness(self) -> None:
        header = {"kind": "done", "outcome": "success", "cause": None, "error_message": None,
                  "details": None, "last": True}  # fmt: skip
        ended = self._say(_frame({"kind": "started"}) + _frame(header, b'{"result":42}'))
        assert (ended.item.outcome, ended.data) == ("success", {"result": 42}), ended


class DamagedSpool(Boundary):
    """The file of results on a device's disk is damaged, or was written by somebody."""

    name = "spool"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / "results.spool"
        self._whole = self._written()

    def _written(self) -> bytes:
        self._path.unlink(missing_ok=True)
        made = Spool(self._path)
        rows = [
            Result((n, 1, n + 9, 1), "success", 0.5, None, None, b'{"n":%d}' % n, b"{}")
            for n in range(1, 6)
        ]
        made.store(rows)
        made.forget([rows[1].key])
        made.close()
        return self._path.read_bytes()

    def pids(self) -> Sequence[int]:
        return [os.getpid()]

    def case(self, rng: random.Random) -> bytes:
        data = self._whole
        for _ in range(rng.choice((1, 1, 3))):
            if rng.random() < 0.5:
                data = twist.cut(data, rng)
            else:  # a record that checks out, with something odd in it
                row: list[Any] = [[7, 1, 7, 1], "success", 0.5, None, "why"]
                data += _record(rng, twist.document(row, rng))
        return data

    def send(self, case: bytes) -> None:
        self._path.write_bytes(case)
        opened = Spool(self._path)
        try:
            for row in opened.results():
                item = msg.FinishedItem(row.key, *row[1:5])
                verb, header = msg.Finished.of("s", 1, (item,)).write()
                whole = wire.encode(wire.BUS, verb, header, [row.data, row.details])
                read = wire.decode(wire.BUS, whole)
                msg.read_from_device(read.verb, read.header)
            good = Result((99, 1, 99, 1), "success", 0.1, None, None, b"1", b"")
            opened.store([good])
        finally:
            opened.close()
        again = Spool(self._path)
        try:
            assert good in again.results(), "what is stored after it is lost"
        finally:
            again.close()
        for path in self.folder.glob("results.*"):
            path.unlink()

    def witness(self) -> None:
        assert self._written() == self._whole


def _frame(header: dict[str, Any], blob: bytes = b"") -> bytes:
    """A frame as a task process writes it."""
    with tempfile.TemporaryFile() as file:
        frames.write_frame(file.fileno(), header, blob)
        file.seek(0)
        return file.read()


def _head(letter: bytes, header_size: int, blob_size: int) -> bytes:
    return frames._HEAD.pack(letter, header_size, blob_size)


def _record(rng: random.Random, head: bytes) -> bytes:
    kind = rng.choice((b"R", b"R", b"F"))
    return spool._record(kind, head, twist.document({"n": 1}, rng), rng.choice((b"", b"{}", b"x")))

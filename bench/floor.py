"""The floor: what the same job costs with no feature at all.

A broker without priorities, requirements, leases, events or devices that may fail: it takes packed
batches of payloads, commits them to SQLite (WAL, FULL) once a turn, hands them to whoever has
credit, commits the results and tells the client. It is the yardstick for the product's throughput
and latency, and like it runs in processes of its own over loopback.
"""

from __future__ import annotations

import multiprocessing as mp
import sqlite3
import struct
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from retire_cluster.schemas.protocol.wire import pack_blobs, unpack_blobs

_CREDIT = 1024
_CHUNK = 512
_ROWS = 250


class _Disk:
    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, cached_statements=512)
        for statement in (
            "pragma journal_mode=wal",
            "pragma synchronous=full",
            "pragma wal_autocheckpoint=4000",
            "create table tasks(id integer primary key, created real, payload blob)",
            "create table results(id integer primary key, done real, result blob)",
        ):
            self.db.execute(statement)

    def commit(self, new: list[tuple[int, bytes]], done: list[tuple[int, bytes]]) -> None:
        now = time.time()
        self.db.execute("begin immediate")
        for table, rows in (("tasks", new), ("results", done)):
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                marks = ",".join(["(?,?,?)"] * len(part))
                values = [value for number, text in part for value in (number, now, text)]
                self.db.execute(f"insert into {table} values {marks}", values)
        self.db.execute("commit")


def _broker(url: str, path: str, ready: Any) -> None:
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.bind(url)
    disk = _Disk(Path(path))
    backlog: deque[tuple[int, bytes]] = deque()
    credit: dict[bytes, int] = {}
    owner: dict[int, bytes] = {}
    newest = 0
    ready.set()
    while True:
        socket.poll(1000)
        new: list[tuple[int, bytes]] = []
        done: list[tuple[int, bytes]] = []
        acks: list[tuple[bytes, bytes]] = []
        for _ in range(200):
            try:
                peer, verb, *body = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if verb == b"S":
                texts = unpack_blobs(body[0], body[1])
                rows = list(enumerate(texts, newest + 1))
                newest += len(rows)
                owner.update(dict.fromkeys((number for number, _ in rows), peer))
                new += rows
                acks.append((peer, struct.pack("<qq", rows[0][0], len(rows))))
            elif verb == b"D":
                numbers = array("q")
                numbers.frombytes(body[0])
                credit[peer] += len(numbers)
                done += zip(numbers, unpack_blobs(body[1], body[2]), strict=True)
            elif verb == b"R":
                credit[peer] = _CREDIT
            else:
                return
        if new or done:
            disk.commit(new, done)
        for peer, ack in acks:
            socket.send_multipart([peer, b"A", ack])
        backlog.extend(new)
        told: dict[bytes, list[bytes]] = {}
        for number, text in done:
            told.setdefault(owner.pop(number), []).append(text)
        for peer, texts in told.items():
            socket.send_multipart([peer, b"N", *pack_blobs(texts)])
        for peer in credit:
            count = min(credit[peer], len(backlog), _CHUNK)
            if count:
                given = [backlog.popleft() for _ in range(count)]
                credit[peer] -= count
                packed = array("q", [number for number, _ in given]).tobytes()
                blobs = pack_blobs([text for _, text in given])
                socket.send_multipart([peer, b"T", packed, *blobs])


def _worker(url: str) -> None:
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(url)
    socket.send_multipart([b"R"])
    while True:
        _, numbers, lengths, blob = socket.recv_multipart()
        results = [b'{"echo":' + text + b"}" for text in unpack_blobs(lengths, blob)]
        socket.send_multipart([b"D", numbers, *pack_blobs(results)])


class FloorClient:
    """Submits and awaits on the floor."""

    def __init__(self, url: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(url)

    def throughput(self, payload: bytes, tasks: int, batch: int, window: int) -> float:
        """Seconds to get `tasks` results, `batch` a message, `window` under way at most."""
        began = time.perf_counter()
        sent = got = 0
        while got < tasks:
            while sent < tasks and sent - got < window:
                count = min(batch, tasks - sent)
                self._socket.send_multipart([b"S", *pack_blobs([payload] * count)])
                sent += count
            verb, *body = self._socket.recv_multipart()
            if verb == b"N":
                got += len(unpack_blobs(body[0], body[1]))
        return time.perf_counter() - began

    def latency(self, payload: bytes) -> float:
        """Seconds from submitting one task to its result."""
        return self.throughput(payload, 1, 1, 1)

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(0)


@contextmanager
def floor(workers: int = 2) -> Iterator[FloorClient]:
    """The floor's processes on loopback, and a client of them."""
    with tempfile.TemporaryDirectory() as folder:
        spawn = mp.get_context("spawn")
        ready = spawn.Event()
        probe: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        port = probe.bind_to_random_port("tcp://127.0.0.1")
        probe.close(0)
        url = f"tcp://127.0.0.1:{port}"
        database = str(Path(folder) / "floor.db")
        processes = [spawn.Process(target=_broker, args=(url, database, ready), daemon=True)]
        processes += [
            spawn.Process(target=_worker, args=(url,), daemon=True) for _ in range(workers)
        ]
        for process in processes:
            process.start()
        ready.wait(20)
        client = FloorClient(url)
        try:
            client.throughput(b"{}", 2000, 100, 1000)
            yield client
        finally:
            client.close()
            for process in processes:
                process.kill()
                process.join()

"""A TCP proxy that treats its connections badly: delays, swallows, cuts, resets, flips bits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

UP, DOWN = "up", "down"


class Proxy:
    """Passes connections on to one port of this machine; a thread with an event loop of its own.

    The faults are attributes; they act at once, also on open connections. "Up" is from the client
    that dialled to the server.
    """

    def __init__(self, target_port: int, seed: int = 1) -> None:
        self.target_port = target_port
        #: Seconds that every piece waits, by direction.
        self.delay_seconds = {UP: 0.0, DOWN: 0.0}
        #: Directions in which nothing arrives; what is sent meanwhile is lost.
        self.swallowed: set[str] = set()
        #: Directions in which pieces wait until the direction is taken out again.
        self.held: set[str] = set()
        #: Probability that a piece has one bit flipped, by direction.
        self.flips = {UP: 0.0, DOWN: 0.0}
        #: Probability that a connection is cut in the middle of a piece.
        self.cuts = 0.0
        #: New connections are accepted and closed at once.
        self.refuses = False
        self.connections = 0
        self.flipped = 0
        self._rng = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        #: Where clients dial.
        self.port: int = self._server.sockets[0].getsockname()[1]

    def reset_all(self) -> None:
        """Cut every connection with RST, as a crashed router does."""
        self._run(self._reset_all())

    def close(self) -> None:
        """Cut everything and stop."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    # --- on the loop -----------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        await self._reset_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reset_all(self) -> None:
        for writer in list(self._open):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuses:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            self._reset(writer)
            return
        self._open |= {writer, far_writer}
        ways = [
            asyncio.create_task(self._pass_on(reader, far_writer, UP)),
            asyncio.create_task(self._pass_on(far_reader, writer, DOWN)),
        ]
        self._tasks.update(ways)
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._tasks.difference_update(ways)
            for end in (writer, far_writer):
                self._open.discard(end)
                end.transport.abort() if self._rng.random() < 0.5 else end.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                if way in self.swallowed:
                    continue
                if self.delay_seconds[way]:
                    await asyncio.sleep(self.delay_seconds[way] * self._rng.uniform(0.5, 1.5))
                while way in self.held:
                    await asyncio.sleep(0.01)
                if self.cuts and self._rng.random() < self.cuts:
                    writer.write(piece[: self._rng.randrange(len(piece))])
                    await writer.drain()
                    return
                if self.flips[way] and self._rng.random() < self.flips[way]:
                    piece = self._flip(piece)
                writer.write(piece)
                await writer.drain()

    def _flip(self, piece: bytes) -> bytes:
        self.flipped += 1
        at = self._rng.randrange(len(piece))
        return piece[:at] + bytes([piece[at] ^ 1 << self._rng.randrange(8)]) + piece[at + 1 :]

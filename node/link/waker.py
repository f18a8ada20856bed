"""What ends a wait of the worker's loop from another thread or a signal handler."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """One byte on a socket pair that ends a poll; usable from any thread and signal handler."""

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)

    def __call__(self) -> None:
        """Wake the loop; when the pair is full it is about to wake anyway."""
        with contextlib.suppress(OSError):
            self.writer.send(b"\0")

    def drain(self) -> None:
        """Take the bytes out."""
        with contextlib.suppress(OSError):
            while self.reader.recv(4096):
                pass

    def close(self) -> None:
        """Give the pair back."""
        self.reader.close()
        self.writer.close()

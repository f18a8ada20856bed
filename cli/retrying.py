"""Calls that go on while the main node is away or has no room, saying so once each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from retire_cluster.cli.target import Caller
from retire_cluster.schemas.errors import ClusterUnavailable, QueueFull, TaskJustEnded

#: A restart takes a second or two; nobody needs to hear of it.
_SILENT_SECONDS: Final = 3.0
_AGAIN_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 15.0
_SOON_SECONDS: Final = 0.1
_TRIES: Final = 20


class SettlingClient:
    """A client that waits until the end of a task, which is known, is written as well."""

    def __init__(self, client: Caller, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._pause = pause

    def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Call as the wrapped client does; raise `TaskJustEnded` only after about two seconds."""
        for _ in range(_TRIES):
            try:
                return self._client.call(op, args, blobs, timeout_seconds=timeout_seconds)
            except TaskJustEnded:
                self._pause(_SOON_SECONDS)
        return self._client.call(op, args, blobs, timeout_seconds=timeout_seconds)


class ReconnectingClient:
    """A client for work that is to survive restarts of the main node.

    A main node that never answered is an error, as with any client: its address may be wrong. One
    that has answered is waited for. Only for calls that do no harm when they are made twice.

    :param tell: says a line to the person who waits
    :param address: of the main node, for what is said
    :param timeout_seconds: give up after this long, from now; None: never
    """

    def __init__(
        self,
        client: Caller,
        tell: Callable[[str], None],
        address: str,
        *,
        timeout_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._tell = tell
        self._address = address
        self._clock = clock
        self._pause = pause
        self._until = float("inf") if timeout_seconds is None else clock() + timeout_seconds
        self._met = False

    def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Call as the wrapped client does, again while the main node is away or has no room.

        Raises `ClusterUnavailable` or `QueueFull` when the time is over, or `ClusterUnavailable` at
        once from a main node that has never answered.
        """
        began = self._clock()
        told = ""
        while True:
            try:
                data = self._client.call(op, args, blobs, timeout_seconds=timeout_seconds)
            except (ClusterUnavailable, QueueFull) as error:
                away = isinstance(error, ClusterUnavailable)
                if (away and not self._met) or self._clock() >= self._until:
                    raise
                waited = self._clock() - began
                text = self._what(error)
                if text != told and (told or waited >= _SILENT_SECONDS):
                    told = text
                    self._tell(f"{time.strftime('%H:%M:%S')} {text}")
                wait = min(_LONGEST_SECONDS, max(_AGAIN_SECONDS, error.retry_after or 0.0))
                self._pause(min(wait, max(0.0, self._until - self._clock())))
                continue
            self._met = True
            if told:
                self._tell(f"going on after {self._clock() - began:.0f} s")
            return data

    def _what(self, error: ClusterUnavailable | QueueFull) -> str:
        if isinstance(error, QueueFull):
            return f"the cluster takes nothing more now: {error.message} Waiting (Ctrl-C ends this)"
        what = error.message
        away = ("did not answer within", "nothing listens at")
        if any(words in what for words in away) or what == error.sentence:
            what = f"the main node at {self._address} does not answer"
        return f"{what}; waiting for it, nothing is lost (Ctrl-C ends this)"

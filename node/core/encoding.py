"""A message as frames, whatever is in it: what cannot be written costs itself and nothing else.

Everything that a device sends is made clean where it comes in (replies.py, spool.py). This is the
second line: an error of ours must not end the worker, and less so at each start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Finished, FromDevice
from retire_cluster.schemas.text.json_text import JSONError
from retire_cluster.schemas.vocabulary import Cause, Outcome


class Encoded(NamedTuple):
    """The frames of a message, and what is wrong with it."""

    #: Empty when it cannot be written at all.
    frames: list[bytes]
    #: Why it cannot be sent as it is; empty when it can.
    error: str = ""
    #: Results in whose place a failure is sent, each with the reason.
    unsendable: Sequence[tuple[Result, str]] = ()


def encode(message: FromDevice, blobs: Sequence[bytes]) -> Encoded:
    """The frames of a message; in a batch of results a failure stands for each bad one."""
    verb, header = message.write()
    try:
        return Encoded(wire.encode(wire.BUS, verb, header, blobs))
    except JSONError as error:
        problem = str(error)
    if not isinstance(message, Finished):
        return Encoded([], problem)
    results, unsendable = [], []
    for index, item in enumerate(message.items):
        result = Result(*item, *blobs[2 * index : 2 * index + 2])
        _, header = Finished.of(message.session, message.batch, [result]).write()
        try:
            wire.encode(wire.BUS, verb, header)
        except JSONError as error:
            reason = f"its result cannot be sent: {error}"
            unsendable.append((result, reason))
            cause = Cause.ERROR.value
            result = Result(item.key, Outcome.FAILED.value, 0.0, cause, reason, b"", b"")
        results.append(result)
    _, header = Finished.of(message.session, message.batch, results).write()
    parts = [blob for result in results for blob in result[5:]]
    return Encoded(wire.encode(wire.BUS, verb, header, parts), problem, unsendable)

"""A message as frames, whatever is in it: what cannot be written costs itself and nothing else.

Everything that a device sends was made clean where it came in (replies.py, spool.py), so that this
is the second line: an error of ours must not end the worker, and less so at each start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Finished, FromDevice
from retire_cluster.schemas.text.jsontext import JSONError
from retire_cluster.schemas.vocabulary import Cause, Outcome

log = logging.getLogger("retire_cluster.node")


def encoded(
    message: FromDevice, blobs: Sequence[bytes], put_aside: Callable[[Result, str], None]
) -> list[bytes]:
    """The frames of a message; none when it cannot be written, which is logged.

    In a batch of results a failure stands in place of each that cannot be sent.

    :param put_aside: keeps such a result, with the reason
    """
    verb, header = message.write()
    try:
        return wire.encode(wire.BUS, verb, header, blobs)
    except JSONError as error:
        log.error("a message (%s) cannot be sent as it is: %s", verb.decode(), error)
    if not isinstance(message, Finished):
        return []
    results = []
    for index, item in enumerate(message.items):
        result = Result(*item, *blobs[2 * index : 2 * index + 2])
        _, header = Finished.of(message.session, message.batch, [result]).write()
        try:
            wire.encode(wire.BUS, verb, header)
        except JSONError as error:
            reason = f"its result cannot be sent: {error}"
            put_aside(result, reason)
            cause = Cause.ERROR.value
            result = Result(item.key, Outcome.FAILED.value, 0.0, cause, reason, b"", b"")
        results.append(result)
    _, header = Finished.of(message.session, message.batch, results).write()
    return wire.encode(wire.BUS, verb, header, [blob for result in results for blob in result[5:]])

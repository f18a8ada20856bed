"""The event feed."""

from __future__ import annotations

from itertools import groupby

import zmq

from retire_cluster.broker.admin.views import event
from retire_cluster.broker.core.records.event_log import EventLog
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text.json_text import dumps

# As plain numbers: combining pyzmq's enums costs more than sending a small frame.
_NOW = int(zmq.NOBLOCK)
_POLLIN = int(zmq.POLLIN)
Socket = zmq.Socket[bytes]


def _is_readable(socket: Socket) -> bool:
    events = socket.getsockopt(zmq.EVENTS)
    return isinstance(events, int) and bool(events & _POLLIN)


class Feed:
    """The event feed: reads and writes no event while nobody has subscribed."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self._subscriptions = 0
        self._published = 0

    def publish(self, log_: EventLog, ids: TaskIds) -> None:
        """Send the events since the last call to all subscribers."""
        while _is_readable(self.socket):
            message = self.socket.recv(_NOW)
            self._subscriptions += {1: 1, 0: -1}.get(message[0] if message else 2, 0)
        since, self._published = self._published, log_.last
        if self._subscriptions <= 0 or since == log_.last:
            return
        if since == 0:
            since = log_.last - 1  # the first call: what is older is no news
        rows = [event(ids, entry) for entry in log_.after(since)]
        for type_, group in groupby(rows, key=lambda row: row["type"]):
            frames = [wire.FEED, type_.encode(), dumps(list(group))]
            try:
                self.socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.ZMQError:
                return

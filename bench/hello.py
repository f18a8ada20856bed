"""The yardstick for REST: Falcon on waitress, 16 threads, one ZeroMQ round trip a request.

The least that the same libraries cost: no validation, no state, no disk.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import falcon
import waitress
import zmq

from retire_cluster.schemas.text.json_text import dumps, loads

_THREADS = 16


def _echo(ready: Any) -> None:
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
    ready.put(socket.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        socket.send_multipart(socket.recv_multipart())


def _serve(echo_port: int, ready: Any) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    local = threading.local()

    class Tasks:
        def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
            document = loads(request.bounded_stream.read())
            if not hasattr(local, "socket"):
                local.socket = context.socket(zmq.DEALER)
                local.socket.connect(f"tcp://127.0.0.1:{echo_port}")
            local.socket.send(dumps(document))
            response.data = dumps({"data": loads(local.socket.recv())})
            response.status = falcon.HTTP_201

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    app = falcon.App()
    app.add_route("/tasks", Tasks())
    server = waitress.create_server(
        app, host="127.0.0.1", port=0, threads=_THREADS, connection_limit=2000
    )
    ready.put(server.effective_port)
    server.run()


@contextmanager
def hello() -> Iterator[int]:
    """The port of the yardstick's server."""
    spawn = mp.get_context("spawn")
    ready = spawn.Queue()
    echo = spawn.Process(target=_echo, args=(ready,), daemon=True)
    echo.start()
    server = spawn.Process(target=_serve, args=(ready.get(timeout=20), ready), daemon=True)
    server.start()
    try:
        yield ready.get(timeout=20)
    finally:
        for process in (server, echo):
            process.kill()
            process.join()

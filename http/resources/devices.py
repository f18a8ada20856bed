"""Devices: list, look at, ping, drain, remove."""

from __future__ import annotations

import falcon

from retire_cluster.api.content import reading
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.resources.base import Resource, answer

PING_SECONDS = 1.5


class DeviceListResource(Resource):
    """Serve `/devices` and `/devices/summary`."""

    def __init__(self, link: MainNodeLink) -> None:
        self._link = link

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer one page of the devices that match, by device id."""
        data = self._link.data("device.list", req.context.query)
        answer(req, resp, data["items"], pagination=data["pagination"])

    def on_get_summary(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer counts and totals."""
        answer(req, resp, self._link.data("device.summary"))


class DeviceResource(Resource):
    """Serve `/devices/{device_id}`: one device."""

    def __init__(self, link: MainNodeLink) -> None:
        self._link = link

    def on_get(self, req: falcon.Request, resp: falcon.Response, device_id: str) -> None:
        """Answer everything that is known of it."""
        device_id = reading.device_id(device_id)
        answer(req, resp, self._link.data("device.get", {"device_id": device_id}))

    def on_get_status(self, req: falcon.Request, resp: falcon.Response, device_id: str) -> None:
        """Answer its status and load."""
        device_id = reading.device_id(device_id)
        answer(req, resp, self._link.data("device.status", {"device_id": device_id}))

    def on_post_ping(self, req: falcon.Request, resp: falcon.Response, device_id: str) -> None:
        """Make a round trip to it; 200 also when it did not answer, which `data` says."""
        device_id = reading.device_id(device_id)
        reading.checked_body(req)
        data = self._link.data(
            "device.ping",
            {"device_id": device_id, "timeout_seconds": PING_SECONDS},
            extra_seconds=PING_SECONDS,
        )
        reached = "The device answered" if data["ping_successful"] else "The device did not answer"
        answer(req, resp, data, message=reached)

    def on_post_drain(self, req: falcon.Request, resp: falcon.Response, device_id: str) -> None:
        """Give it nothing new."""
        self._steer(req, resp, "device.drain", device_id, "The device takes nothing new")

    def on_post_resume(self, req: falcon.Request, resp: falcon.Response, device_id: str) -> None:
        """End a drain."""
        self._steer(req, resp, "device.resume", device_id, "The device takes work again")

    def _steer(
        self, req: falcon.Request, resp: falcon.Response, op: str, device_id: str, message: str
    ) -> None:
        device_id = reading.device_id(device_id)
        reading.checked_body(req)
        answer(req, resp, self._link.data(op, {"device_id": device_id}), message=message)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, device_id: str) -> None:
        """Remove it; its running tasks go back to the queue."""
        device_id = reading.device_id(device_id)
        reading.checked_body(req)
        data = self._link.data("device.remove", {"device_id": device_id})
        answer(req, resp, data, message="Device removed")

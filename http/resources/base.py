"""The base of all resources, and how they answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import falcon

from retire_cluster.api.content import envelope


class Resource:
    """A Falcon resource that answers HEAD wherever it answers GET."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in [name for name in vars(cls) if name.startswith("on_get")]:
            setattr(cls, name.replace("on_get", "on_head", 1), getattr(cls, name))


def answer(
    req: falcon.Request,
    resp: falcon.Response,
    data: Any,
    *,
    message: str = "OK",
    status: int = 200,
    pagination: Mapping[str, Any] | None = None,
) -> None:
    """Make `data`, in its envelope, the answer."""
    if status != 200:
        resp.status = falcon.code_to_http_status(status)
    resp.content_type = envelope.JSON
    resp.data = envelope.success(
        data,
        now=req.context.clock(),
        request_id=req.context.request_id,
        message=message,
        pagination=pagination,
    )

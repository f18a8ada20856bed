"""The cluster as a whole: health, status, metrics, configuration summary."""

from __future__ import annotations

from typing import Any

import falcon

from retire_cluster.api.admission.shutdown import Shutdown
from retire_cluster.api.content import envelope
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.resources.base import Resource, answer
from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable

_HEALTHY, _DEGRADED, _UNHEALTHY = "healthy", "degraded", "unhealthy"


class HealthProbe:
    """Ask the main node for its health and add this facade's."""

    def __init__(self, link: MainNodeLink, shutdown: Shutdown) -> None:
        self._link = link
        self._shutdown = shutdown

    def look(self) -> tuple[str, dict[str, str], bool]:
        """Return a word for the whole, a word a component, and whether requests can be served."""
        try:
            found: dict[str, Any] = dict(self._link.data("health")["components"])
            serves = True
        except ClusterUnavailable:
            found = {"cluster_server": _UNHEALTHY, "task_scheduler": _UNHEALTHY}
            serves = False
        except (ClusterError, KeyError, TypeError, ValueError):
            found = {"cluster_server": _DEGRADED, "task_scheduler": _DEGRADED}
            serves = True
        components = {"api": _DEGRADED if self._shutdown.begun else _HEALTHY, **found}
        if not serves or self._shutdown.begun:
            return _UNHEALTHY, components, False
        words = set(components.values())
        if words == {_HEALTHY}:
            return _HEALTHY, components, True
        return _UNHEALTHY if words == {_UNHEALTHY} else _DEGRADED, components, True


class HealthResource(Resource):
    """Serve `/health`, without an envelope, for monitors."""

    def __init__(self, probe: HealthProbe) -> None:
        self._probe = probe

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200 while requests can be served, else 503."""
        word, components, serves = self._probe.look()
        if not serves:
            resp.status = falcon.HTTP_503
            resp.set_header("Retry-After", "1")
        resp.content_type = envelope.JSON
        resp.data = envelope.dump(
            {
                "status": word,
                "timestamp": envelope.utc(req.context.clock()),
                "components": components,
            }
        )


class ClusterHealthResource(Resource):
    """Serve `/cluster/health`: the health in the envelope."""

    def __init__(self, probe: HealthProbe) -> None:
        self._probe = probe

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200 when healthy, else a 503 whose envelope still has `data.components`."""
        word, components, _ = self._probe.look()
        data = {"status": word, "components": components}
        if word == _HEALTHY:
            answer(req, resp, data)
            return
        ill = sorted(name for name, state in components.items() if state != _HEALTHY)
        resp.status = falcon.HTTP_503
        resp.set_header("Retry-After", "1")
        resp.content_type = envelope.JSON
        resp.data = envelope.dump(
            {
                "status": "error",
                "data": data,
                "message": f"The cluster is {word}: {', '.join(ill)}",
                "error_code": ClusterUnavailable.code,
                "error_details": {"components": components},
                "timestamp": envelope.utc(req.context.clock()),
                "request_id": req.context.request_id,
            }
        )


class ClusterResource(Resource):
    """Serve `/cluster/status`, `/cluster/metrics` and `/cluster/config`."""

    def __init__(self, link: MainNodeLink, *, auth_required: bool) -> None:
        self._link = link
        self._auth_required = auth_required

    def on_get_status(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer devices, resources, tasks, and the main node itself."""
        answer(req, resp, self._link.data("cluster.status"))

    def on_get_metrics(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer performance and utilization."""
        answer(req, resp, self._link.data("cluster.metrics"))

    def on_get_config(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the settings that matter to a client."""
        data = self._link.data("cluster.config")
        features = {**data.get("features", {}), "api_enabled": True}
        data["features"] = {**features, "auth_required": self._auth_required}
        answer(req, resp, data)

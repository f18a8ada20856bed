"""Limit requests a client; the main node counts them for all processes of a facade."""

from __future__ import annotations

import math
from dataclasses import dataclass

import falcon

from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.schemas.errors import RateLimitExceeded

#: A dashboard open in a few tabs asks more often than the documented limits let a script.
DASHBOARD_TIMES = 4


@dataclass(frozen=True)
class Standing:
    """What a client has left of its limit after a request."""

    #: Requests a minute.
    limit: int
    #: Requests left of them.
    remaining: int
    #: Epoch second when the oldest request leaves the minute.
    reset: int

    def headers(self) -> dict[str, str]:
        """Return the documented response headers."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(self.reset),
        }


class RequestLimiter:
    """Count requests, and refuse those of a client beyond its limit.

    :param link: to the main node, which keeps the counters
    :param enabled: whether anything is counted at all
    :param per_minute: requests in any minute
    :param per_hour: requests in any hour
    :param burst: headroom on top of a minute's
    """

    def __init__(
        self,
        link: MainNodeLink,
        *,
        enabled: bool = True,
        per_minute: int = 60,
        per_hour: int = 1000,
        burst: int = 10,
    ) -> None:
        self.enabled = enabled
        self._link = link
        self._limits = {"per_minute": per_minute, "per_hour": per_hour, "burst": burst}
        self._dashboards = {name: DASHBOARD_TIMES * each for name, each in self._limits.items()}

    def charge(self, req: falcon.Request) -> None:
        """Count a request. Raises `RateLimitExceeded`, `ClusterUnavailable`."""
        identity = req.context.identity
        standing, over = self.hit(identity.client, dashboard=identity.dashboard)
        req.context.standing = standing
        if over is not None:
            raise over

    def hit(
        self, client: str, *, dashboard: bool = False
    ) -> tuple[Standing, RateLimitExceeded | None]:
        """Count one request of `client`; a dashboard may make more of them.

        Return where it stands and, when it is over its limit, the error to answer. Raises
        `ClusterUnavailable`.
        """
        limits = self._dashboards if dashboard else self._limits
        data = self._link.data("rate.hit", {"client": client, **limits})
        standing = Standing(int(data["limit"]), int(data["remaining"]), int(data["reset"]))
        if data["allowed"]:
            return standing, None
        wait = max(1, math.ceil(float(data.get("retry_after") or 1)))
        return standing, RateLimitExceeded(
            f"Too many requests; try again in {wait} s",
            details={"limit": standing.limit, "retry_after": wait},
            retry_after=wait,
        )

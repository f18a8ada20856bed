"""Client library for the REST interface; needs nothing but Python's standard library."""

from __future__ import annotations

from retire_cluster.sdk.api import RetireClusterAPI

__all__ = ["RetireClusterAPI"]

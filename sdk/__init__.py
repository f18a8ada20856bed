"""Client library for the REST interface; needs nothing but Python's standard library."""

from __future__ import annotations

from retire_cluster.sdk.aio import AsyncCluster, AsyncTask
from retire_cluster.sdk.api import RetireClusterAPI
from retire_cluster.sdk.cluster import Cluster
from retire_cluster.sdk.futures import TaskFailed, TaskFuture

__all__ = [
    "AsyncCluster",
    "AsyncTask",
    "Cluster",
    "RetireClusterAPI",
    "TaskFailed",
    "TaskFuture",
]

"""Client library for the REST interface; needs nothing but Python's standard library."""

from __future__ import annotations

from retire_cluster.sdk.aio import AsyncCluster, AsyncTask
from retire_cluster.sdk.api import RetireClusterAPI
from retire_cluster.sdk.cluster import Cluster
from retire_cluster.sdk.functions.executor import Executor
from retire_cluster.sdk.functions.pickling import CannotSend
from retire_cluster.sdk.functions.results import RemoteError, ResultNotPlain
from retire_cluster.sdk.futures import TaskFailed, TaskFuture

__all__ = [
    "AsyncCluster",
    "AsyncTask",
    "CannotSend",
    "Cluster",
    "Executor",
    "RemoteError",
    "ResultNotPlain",
    "RetireClusterAPI",
    "TaskFailed",
    "TaskFuture",
]

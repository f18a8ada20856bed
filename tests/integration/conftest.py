"""Fixtures of the tests with real sockets and processes."""

from __future__ import annotations

from tests.integration.main_kit import main_node, start_main
from tests.integration.node_kit import bus, start, without_walls
from tests.integration.sdk_kit import cluster, facade

__all__ = ["bus", "cluster", "facade", "main_node", "start", "start_main", "without_walls"]

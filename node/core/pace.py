"""How long the session waits for what."""

from __future__ import annotations

from dataclasses import dataclass

from retire_cluster.schemas.protocol.messages import HeartbeatConfig

#: Until the first WELCOME brings the main node's; the contract's defaults.
DEFAULT_CONFIG = HeartbeatConfig(version=0, interval=5.0, timeout=30.0, max_missed=3)


@dataclass(frozen=True)
class Pace:
    """Waiting times of the session, in seconds."""

    #: For WELCOME after HELLO.
    welcome_seconds: float = 5.0
    #: First and longest wait before the socket is rebuilt; doubles in between.
    backoff_seconds: float = 2.0
    backoff_cap_seconds: float = 30.0
    #: After a REJECT that may pass (`duplicate`, `max_connections`), which names no time.
    refused_seconds: float = 5.0
    #: Between two tries at a main node that speaks an older protocol.
    outdated_seconds: float = 60.0
    #: Least time between two PROGRESS messages.
    progress_seconds: float = 0.25
    #: For running work to end by itself after the first signal.
    grace_seconds: float = 10.0
    #: For killed work to be gone.
    kill_seconds: float = 5.0
    #: For the last results to be acknowledged.
    last_ack_seconds: float = 3.0
    #: For both after a second signal, at most.
    hurried_kill_seconds: float = 2.0
    hurried_ack_seconds: float = 1.0

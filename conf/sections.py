"""Every setting of the product: one frozen dataclass a section, one field a setting.

To add a setting, add a field here, a line to `retire-cluster.example.toml` and a row to
`docs/configuration.md`; the environment variable, the check and the REST view follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from retire_cluster.conf import ports
from retire_cluster.conf.spec import Problem, Section, setting
from retire_cluster.schemas.bounds import MAX_PORT
from retire_cluster.schemas.text.hosts import EVERYWHERE

#: What a device may be for.
ROLES = ("worker", "compute", "storage", "mobile")


def _port(default: int, what: str) -> Any:
    return setting(default, f"{what}; 0 lets the system pick one.", low=0, high=MAX_PORT)


@dataclass(frozen=True, slots=True)
class Server(Section):
    """The main node's sockets."""

    section: ClassVar[str] = "server"

    curve: bool = setting(
        True,
        "Encrypts the sockets and lets in only keys that are known. Without it everything listens"
        " on this machine only.",
    )
    host: str = setting(
        "127.0.0.1", "Address of the admin socket; elsewhere only with CURVE.", form="bound"
    )
    port: int = _port(ports.ADMIN, "Port of the admin socket")
    worker_host: str = setting(
        "",
        "Address of the worker bus; empty: `*`, every one of this machine, with CURVE, 127.0.0.1"
        " without.",
        form="bound",
    )
    worker_port: int = _port(ports.WORKER_BUS, "Port of the worker bus")
    event_host: str = setting(
        "127.0.0.1", "Address of the event feed; elsewhere only with CURVE.", form="bound"
    )
    event_port: int = _port(ports.EVENT_FEED, "Port of the event feed")
    join_port: int = _port(ports.INSTALLER, "Port where `up` serves the installer for new devices")
    public_host: str = setting(
        "",
        "Name or address by which devices reach this machine, for join lines; empty: its address"
        " on the network. A container has to be told.",
        form="host",
    )
    insecure: bool = setting(
        False,
        "Leaves the worker bus, and only that, without CURVE, also beyond this machine: anyone who"
        " reaches it can join. Not for real networks.",
    )
    max_connections: int = setting(
        1000, "How many devices may be online at once.", low=1, high=100_000, mutable=True
    )

    @property
    def bus_host(self) -> str:
        """Address that the worker bus is bound to: `worker_host`, or what stands for it."""
        everywhere = self.curve or self.insecure
        return self.worker_host or (EVERYWHERE if everywhere else "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Heartbeat(Section):
    """How the broker notices that a device has gone."""

    section: ClassVar[str] = "heartbeat"

    interval: float = setting(
        5, "Seconds between a device's heartbeats.", low=1, high=3600, mutable=True
    )
    timeout: float = setting(
        30,
        "Seconds of silence after which a device's running work goes to others (the lease).",
        low=1,
        high=86_400,
        mutable=True,
    )
    max_missed: int = setting(
        3, "Heartbeats missed in a row before a device is offline.", low=1, high=100, mutable=True
    )

    def conflicts(self) -> Iterator[Problem]:
        """Require the lease to outlast the silence that makes a device offline."""
        least = self.interval * self.max_missed
        if self.timeout < least:
            yield Problem(
                "timeout",
                f"must be at least interval x max_missed = {least:.15g} s, not {self.timeout:.15g}",
            )


@dataclass(frozen=True, slots=True)
class Scheduler(Section):
    """Placement, retries and the periodic sweeps."""

    section: ClassVar[str] = "scheduler"

    backlog_limit: int = setting(
        1_000_000,
        "Unfinished tasks the cluster keeps before it answers QUEUE_FULL.",
        low=1,
        high=100_000_000,
        mutable=True,
    )
    aging_seconds: float = setting(
        60,
        "Who waited longer than this may go before better-ranked work, one placement in ten.",
        low=1,
        high=86_400,
        mutable=True,
    )
    retry_base_seconds: float = setting(
        2, "A first retry waits up to this long; doubles each time.", low=0, high=3600, mutable=True
    )
    retry_cap_seconds: float = setting(
        300, "No retry waits longer than this.", low=0, high=86_400, mutable=True
    )
    poison_devices: int = setting(
        3,
        "Devices that may die on one task before it fails as POISON.",
        low=1,
        high=100,
        mutable=True,
    )
    sweep_interval_seconds: float = setting(
        1, "Seconds between passes over deadlines.", low=0.05, high=60
    )

    def conflicts(self) -> Iterator[Problem]:
        """Require the longest wait before a retry to be no shorter than the first one."""
        if self.retry_cap_seconds < self.retry_base_seconds:
            yield Problem(
                "retry_cap_seconds",
                f"must be at least retry_base_seconds = {self.retry_base_seconds}",
            )


@dataclass(frozen=True, slots=True)
class Retention(Section):
    """How long finished things are kept."""

    section: ClassVar[str] = "retention"

    finished_days: float = setting(
        7, "Days a finished task is kept.", low=0.001, high=3650, mutable=True
    )
    finished_rows: int = setting(
        1_000_000, "Finished tasks kept at most.", low=1, high=100_000_000, mutable=True
    )
    event_rows: int = setting(
        100_000, "Events kept for clients that resume.", low=100, high=10_000_000, mutable=True
    )
    audit_rows: int = setting(
        10_000,
        "Events about keys, tokens, joins, removals and settings kept beyond those.",
        low=100,
        high=1_000_000,
        mutable=True,
    )
    idempotency_hours: float = setting(
        24, "Hours an Idempotency-Key is remembered.", low=0.01, high=720, mutable=True
    )


@dataclass(frozen=True, slots=True)
class Database(Section):
    """Where the main node keeps its tasks."""

    section: ClassVar[str] = "database"

    url: str = setting(
        "", "sqlite:///FILE or memory:// (forgets); empty: a SQLite file in the data folder."
    )
    min_free_percent: float = setting(
        5, "Free disk space below which no new task is taken.", low=0, high=50, mutable=True
    )

    def conflicts(self) -> Iterator[Problem]:
        """Require an address with a scheme; the store judges the rest of it."""
        if self.url and "://" not in self.url:
            yield Problem("url", f"must be sqlite:///FILE or memory://, not {self.url!r:.80}")


@dataclass(frozen=True, slots=True)
class Logging(Section):
    """What is written to stderr."""

    section: ClassVar[str] = "logging"

    level: str = setting(
        "INFO", "Least serious level written.", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    format: str = setting(
        "auto", "auto: text on a terminal, JSON elsewhere.", choices=("auto", "json", "text")
    )
    debug: bool = setting(False, "Level DEBUG, and traces in the log; never in answers.")


@dataclass(frozen=True, slots=True)
class Api(Section):
    """The REST facade and how it, and the tools, reach the main node."""

    section: ClassVar[str] = "api"

    host: str = setting("127.0.0.1", "Address the REST API listens on.", form="bound")
    port: int = _port(ports.API, "Port of the REST API")
    cluster_host: str = setting(
        "127.0.0.1", "Where the main node is.", env="RETIRE_CLUSTER_CLUSTER_HOST", form="host"
    )
    cluster_port: int = setting(
        ports.ADMIN,
        "The main node's admin port.",
        env="RETIRE_CLUSTER_CLUSTER_PORT",
        low=1,
        high=MAX_PORT,
    )
    cluster_key_file: str = setting("", "File with the CURVE key for a main node elsewhere.")
    cluster_timeout_seconds: float = setting(
        2, "Wait for the main node before CLUSTER_UNAVAILABLE.", low=0.1, high=60
    )
    auth: bool = setting(False, "Asks for an API key; a key given turns this on.")
    auth_reads: bool = setting(False, "Asks for a key for everything but /health.")
    local_users: str = setting(
        "owner",
        "Who on this machine may do everything without authentication (Linux); owner: the user that"
        " runs the API, and root; all: everybody.",
        choices=("owner", "all"),
    )
    stranger_tasks: int = setting(
        100,
        "Tasks that callers without a right to submit may have waiting or running, all together;"
        " one address a quarter of it.",
        low=0,
        high=1_000_000,
    )
    stranger_seconds: int = setting(
        300, "What such a task may take at most, and wait before it is queued.", low=1, high=86_400
    )
    keys: tuple[str, ...] = setting(
        (),
        "API keys; several in the environment go one a line.",
        env="RETIRE_CLUSTER_API_KEY",
        secret=True,
        separator="\n",
    )
    cors: bool = setting(True, "Sends CORS headers to the origins below.")
    cors_origins: tuple[str, ...] = setting((), "Foreign origins whose pages may use the API.")
    allowed_hosts: tuple[str, ...] = setting(
        (), "Names this API is called by, beside localhost and addresses (DNS rebinding)."
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), "Addresses or networks whose X-Forwarded-For counts."
    )
    rate_limit: bool = setting(True, "Limits requests a client.")
    rate_limit_per_minute: int = setting(60, "Requests a minute.", low=1, high=1_000_000)
    rate_limit_per_hour: int = setting(1000, "Requests an hour.", low=1, high=100_000_000)
    rate_limit_burst: int = setting(10, "Headroom on top of a minute's.", low=0, high=1_000_000)
    threads: int = setting(16, "Requests worked on at once.", low=1, high=256)

    def conflicts(self) -> Iterator[Problem]:
        """Require an origin to be a scheme and an authority, as a browser sends it, or `*`."""
        for origin in self.cors_origins:
            scheme, _, authority = origin.partition("://")
            if origin != "*" and (not scheme or not authority or "/" in authority):
                yield Problem(
                    "cors_origins", f"must look like https://name:port, not {origin!r:.80}"
                )


@dataclass(frozen=True, slots=True)
class Worker(Section):
    """What a device says of itself."""

    section: ClassVar[str] = "worker"

    join: str = setting("", "HOST[:PORT] of the main node, or a join string.", secret=True)
    device_id: str = setting("", "Name in the cluster; empty: made once, kept in the data folder.")
    role: str = setting("worker", "What the device is for.", choices=ROLES)
    tags: tuple[str, ...] = setting((), "The owner's own tags.")
    slots: int = setting(0, "Tasks run at once; 0: one a core.", low=0, high=1024)
    on_lease_loss: str = setting(
        "kill",
        "What happens to work that may not run twice when the main node is out of reach.",
        choices=("kill", "finish"),
    )


@dataclass(frozen=True, slots=True)
class Policy(Section):
    """What this device's owner allows; decided here, never from remote."""

    section: ClassVar[str] = "policy"

    allow: tuple[str, ...] = setting(
        (), "Task types that are off until allowed here: command, python_call."
    )
    deny: tuple[str, ...] = setting((), "Task types never run here.")
    shell: bool = setting(False, "Lets `command` take one text for a shell.")
    private_addresses: bool = setting(False, "Lets `http_request` reach private addresses.")
    allow_root: bool = setting(
        False,
        "Lets a worker run by root run `command`, `python_call` and own types as root.",
        env="RETIRE_CLUSTER_ALLOW_ROOT",
    )
    pass_environment: tuple[str, ...] = setting(
        (), "Names of the worker's environment variables that tasks may see."
    )
    commands: tuple[str, ...] = setting(
        (),
        'What `command` may run, word by word, * for anything: "ffmpeg *". Empty: any program.',
    )
    folders: tuple[str, ...] = setting(
        (),
        "The owner's folders for tasks: where `command` may be told to run (empty: anywhere), and"
        " open to tasks in a sandbox.",
    )
    user: str = setting("", "User that tasks run as, when the worker is run by root.")
    sandbox: str = setting(
        "auto",
        "What keeps `command` and own types from files that are not theirs; auto: Landlock where"
        " the kernel has it.",
        choices=("auto", "bwrap", "landlock", "none"),
    )
    network: str = setting(
        "any", "none: tasks of this device use no network.", choices=("any", "none")
    )
    cpu_limit_seconds: int = setting(
        0, "Processor time one process of a task may use; 0: any.", low=0, high=31_536_000
    )
    cpu_percent: int = setting(
        0,
        "Percent of one processor that a task may use, where this device has control groups for"
        " tasks; 0: any.",
        low=0,
        high=100_000,
    )
    file_limit_mb: int = setting(
        0, "Size of a file that a task may write; 0: any.", low=0, high=1 << 24
    )
    process_limit: int = setting(
        512, "Processes and threads that tasks may add, when they do not run as root.",
        low=1, high=1_000_000,
    )  # fmt: skip
    output_limit_kb: int = setting(
        256, "Bytes kept of a task's output, in KiB; the rest is cut.", low=1, high=1024
    )
    memory_limit_mb: int = setting(
        0, "Memory one task may use; 0: three quarters of what the device has.", low=0, high=1 << 24
    )


#: Every section by name, in the order of the example file.
SECTIONS: Mapping[str, type[Section]] = MappingProxyType(
    {
        kind.section: kind
        for kind in (
            Server,
            Heartbeat,
            Scheduler,
            Retention,
            Database,
            Logging,
            Api,
            Worker,
            Policy,
        )
    }
)
#: The sections that `GET /config` shows.
PUBLIC_SECTIONS = ("server", "heartbeat", "scheduler", "retention", "database", "logging", "api")

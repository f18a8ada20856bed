"""The words of the contract: statuses, priorities, roles, platforms, causes.

The wire, the store and the REST API all use the same texts.
"""

from __future__ import annotations

from enum import Enum, IntEnum

#: Where the REST API is, below a facade's address.
API = "/api/v1"


class Text(str, Enum):
    """A string constant that prints and serialises as its value on every Python from 3.10."""

    def __str__(self) -> str:
        return str.__str__(self.value)

    # Enum's own hash is a Python function; tables of states are looked up for every message.
    __hash__ = str.__hash__


class TaskStatus(Text):
    """The status of a task. `pending` waits for its time, `queued` for a device."""

    PENDING = "pending"
    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


TERMINAL = frozenset(
    {TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMEOUT}
)
RETRYABLE = frozenset({TaskStatus.FAILED, TaskStatus.TIMEOUT, TaskStatus.CANCELLED})


class Priority(IntEnum):
    """The order of dispatch; a larger number goes first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3

    @property
    def word(self) -> str:
        """Return the contract's word: `low`, `normal`, `high` or `urgent`."""
        return self.name.lower()


PRIORITIES = tuple(priority.word for priority in Priority)
PRIORITY_BY_WORD = {priority.word: priority for priority in Priority}


class Role(Text):
    """What a device is for, as its owner (or detection) says."""

    WORKER = "worker"
    COMPUTE = "compute"
    STORAGE = "storage"
    MOBILE = "mobile"


class Platform(Text):
    """Operating system family; Termux is `android`, never `linux`."""

    LINUX = "linux"
    WINDOWS = "windows"
    ANDROID = "android"
    DARWIN = "darwin"


class DeviceStatus(Text):
    """Whether the main node hears from a device."""

    ONLINE = "online"
    OFFLINE = "offline"


class Outcome(Text):
    """How an attempt ended on its device."""

    SUCCESS = "success"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    #: Given back without having been run to an end (drain); costs no retry.
    RELEASED = "released"


class Cause(Text):
    """Why an attempt did not succeed; the retry policy tells them apart."""

    ERROR = "error"
    DETERMINISTIC = "deterministic"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    POLICY_DENIED = "policy_denied"
    #: A program, a package or a permission that this device lacks and another may have.
    NOT_HERE = "not_here"


#: Causes that say something of the device and nothing of the task: no retry is charged.
ELSEWHERE = frozenset({Cause.POLICY_DENIED, Cause.NOT_HERE})
#: A device is passed over for a kind of task because it fails what other devices do.
FAILING = "failing"
#: All reasons for which a device is passed over for a kind of task.
PASSED_OVER_CAUSES = (Cause.NOT_HERE.value, Cause.POLICY_DENIED.value, FAILING)


#: Types that run whatever a submitter wrote: off on a device until its owner allows them.
OFF_BY_DEFAULT = ("command", "python_call")
#: Types that anyone may submit while authentication is on (docs/contract.md, Authentication).
HARMLESS_TASK_TYPES = frozenset({"echo", "sleep", "system_info"})
TASK_TYPE_PATTERN = r"[a-z0-9_.\-]{1,100}"
DEVICE_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.:\-]{0,99}"
#: Ids no device may have: `/devices/ID` would be another resource of the REST API.
RESERVED_DEVICE_IDS = frozenset({"summary"})
TAG_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.:=\-]{0,63}"

#: Major and minor version of an interpreter, as a requirement names it.
PYTHON_PATTERN = r"3\.[0-9]{1,3}"

#: Instant attempts that may share one slot (docs/protocol.md, HELLO).
INSTANT_PER_SLOT = 512

"""Limit what strangers may submit: few and short tasks, none before everybody else's.

While authentication is on, a stranger is whoever sends no key, or one without `submit`; while it is
off, whoever is not on this machine, or is another user of it (`local_users`). The main node counts
their tasks, for all processes of the facade.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from retire_cluster.schemas.errors import Forbidden
from retire_cluster.schemas.rest.requests import REQUIREMENTS
from retire_cluster.schemas.rights import SEND_A_KEY, START_WITH_KEYS, SUBMIT

#: The default, which a submission that names none must get.
MOST_RETRIES: Final[int] = REQUIREMENTS["max_retries"]["default"]
PRIORITIES: Final = ("low", "normal")


class StrangerLimits(NamedTuple):
    """The limits for strangers, from the settings."""

    #: Tasks waiting or running, of all strangers.
    tasks: int
    #: Longest timeout, and delay.
    seconds: int

    def told(self, address: str, *, auth: bool) -> dict[str, Any]:
        """Return the argument of `task.submit` by which the main node counts these tasks."""
        each = -(-self.tasks // 4)
        told = {"address": address, "most": self.tasks, "most_each": each, "auth": auth}
        return {"stranger": told}

    def check(self, submissions: Iterable[dict[str, Any]], *, auth: bool, many: bool) -> None:
        """Raise `Forbidden` for a submission (defaults filled in) beyond the limits."""
        seen: set[int] = set()
        for index, fields in enumerate(submissions):
            if id(fields) in seen:
                continue
            seen.add(id(fields))
            requirements = fields["requirements"]
            where = f"tasks.{index}." if many else ""
            for field, found, good, most in (
                ("priority", fields["priority"], fields["priority"] in PRIORITIES, "normal"),
                *self._numbers(requirements, fields["delay_seconds"]),
            ):
                if not good:
                    raise _beyond(where + field, found, most, auth=auth)

    def _numbers(
        self, requirements: dict[str, Any], delay: float
    ) -> Iterable[tuple[str, object, bool, object]]:
        timeout = requirements["timeout_seconds"]
        retries = requirements["max_retries"]
        yield "requirements.timeout_seconds", timeout, timeout <= self.seconds, self.seconds
        yield "requirements.max_retries", retries, retries <= MOST_RETRIES, MOST_RETRIES
        yield "delay_seconds", delay, delay <= self.seconds, self.seconds


def _beyond(field: str, found: object, most: object, *, auth: bool) -> Forbidden:
    cure = SEND_A_KEY if auth else START_WITH_KEYS
    return Forbidden(
        f"{field}: {found} is more than the {most} that a task submitted without a key may have;"
        f" {cure}",
        details={"field": field, "most": most, "scope": SUBMIT},
    )

"""What an attack is, and how one ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.red.target import Target


class Went(Exception):
    """The attack went through; the text says what was seen."""


class NotHere(Exception):
    """It cannot be tried on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Attack:
    """One attack against a real cluster."""

    #: As in the table of docs/security.md: `S18`. Several attacks may have the same one.
    number: str
    #: A few words.
    name: str
    #: Says what was seen when it held; raises `Went` or `NotHere`.
    run: Callable[[Target], str]
    #: It is stopped after so long, and then counts as gone through: nothing may take for ever.
    seconds: float = 60.0
    #: It needs a cluster that nobody used before, or leaves one that nobody should use after.
    fresh: bool = False

    @property
    def order(self) -> tuple[int, str]:
        """By number, not by its spelling."""
        digits = "".join(filter(str.isdigit, self.number))
        return (int(digits or 0), self.number)

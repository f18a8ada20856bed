"""Tell all parts of the facade that the server was asked to stop."""

from __future__ import annotations


class Shutdown:
    """Whether the server was asked to stop."""

    def __init__(self) -> None:
        #: True from then on: `/health` says so, long polls end.
        self.begun = False

    def begin(self) -> None:
        """Say that the server is about to stop."""
        self.begun = True

"""The word that the server was asked to stop."""

from __future__ import annotations


class Shutdown:
    """Tells requests that the server was asked to stop."""

    def __init__(self) -> None:
        #: Set from then on: health says so, long polls end.
        self.begun = False

    def begin(self) -> None:
        """From now on the server is about to stop."""
        self.begun = True

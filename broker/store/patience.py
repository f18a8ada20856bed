"""Trouble of the medium that passes, told apart from damage that stays.

A worn SD card gives an error for one read and the right bytes for the next; a backup program locks
the file for a moment. Neither says anything about what is stored. Only what SQLite calls malformed,
or a row whose checksum does not fit, is damage.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds before each further try. The loop waits meanwhile, so all together are short.
PAUSES_SECONDS: Final = (0.002, 0.01, 0.04)


def is_damage(error: Exception) -> bool:
    """Tell whether SQLite says that the file itself is not what it wrote."""
    return "malformed" in str(error) or "not a database" in str(error)


class Patience:
    """Tries a read again while it may pass. Once tries were in vain, each read has one only.

    A medium that is in trouble for long must not hold up the loop at every read.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._troubled = False

    def read(self, action: Callable[[], T]) -> T:
        """Return what the action returns. Raises the `sqlite3.Error` of the last try."""
        for pause in () if self._troubled else PAUSES_SECONDS:
            try:
                return action()
            except sqlite3.Error as error:
                if is_damage(error):
                    raise
            self._sleep(pause)
        self._troubled = True
        found = action()
        self._troubled = False
        return found

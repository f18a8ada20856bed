"""Make public task ids, UUIDv7 of a task's number and creation time, and read them back.

The layout needs no index to find a task by its public id: 48 bits of creation time in milliseconds,
12 + 22 bits of the store's salt, 40 bits of the task's number.
"""

from __future__ import annotations

import re

_FORM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_NUMBER_BITS = 40
MAX_TASK = (1 << _NUMBER_BITS) - 1
SALT_BITS = 34


class TaskIds:
    """Turn task numbers of one store into public ids and back.

    :param salt: 34 bits chosen when the store was made
    """

    __slots__ = ("_group3", "_low_salt", "salt")

    def __init__(self, salt: int) -> None:
        self.salt = salt & ((1 << SALT_BITS) - 1)
        self._group3 = f"7{self.salt >> 22:03x}"
        self._low_salt = (0b10 << 62) | ((self.salt & 0x3FFFFF) << _NUMBER_BITS)

    def public(self, task: int, created_ms: int) -> str:
        """Return the public id of a task; `created_ms` is epoch milliseconds."""
        head = f"{created_ms:012x}"
        tail = f"{self._low_salt | task:016x}"
        return f"{head[:8]}-{head[8:]}-{self._group3}-{tail[:4]}-{tail[4:]}"

    def read(self, text: str) -> tuple[int, int] | None:
        """Return `(task, created_ms)` of a public id; None for malformed or foreign ones."""
        text = text.lower()
        if not _FORM.match(text):
            return None
        digits = text.replace("-", "")
        if digits[12:16] != self._group3:
            return None
        low = int(digits[16:], 16)
        if low & ~MAX_TASK != self._low_salt:
            return None
        return low & MAX_TASK, int(digits[:12], 16)

"""Check and name the text of public keys, without any cryptography."""

from __future__ import annotations

import hashlib
import string
from functools import reduce

KEY_CHARACTERS = 40
#: ZeroMQ RFC 32: 85 printable characters; five of them hold 32 bits, the first weighs most.
_Z85 = string.digits + string.ascii_lowercase + string.ascii_uppercase + ".-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {character: value for value, character in enumerate(_Z85)}


def is_key(text: object) -> bool:
    """Tell whether this is the Z85 text of 32 bytes, as keys have."""
    if not isinstance(text, str) or len(text) != KEY_CHARACTERS or not _VALUES.keys() >= set(text):
        return False
    groups = [text[start : start + 5] for start in range(0, KEY_CHARACTERS, 5)]
    return all(reduce(lambda v, one: v * 85 + _VALUES[one], group, 0) < 1 << 32 for group in groups)


def fingerprint(key: str) -> str:
    """Return a short name of a public key, for people: 12 hexadecimal characters."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:12]

"""Times as people and programs read them."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache


@lru_cache(maxsize=4096)
def _second(epoch_s: int) -> str:
    # Lists and batches show the same few seconds over and over; formatting one is slow.
    return datetime.fromtimestamp(epoch_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def stamp(epoch_ms: int) -> str:
    """Write epoch milliseconds as UTC, ISO 8601, with milliseconds if any, ending in `Z`."""
    seconds, millis = divmod(epoch_ms, 1000)
    text = _second(seconds)
    return f"{text}.{millis:03d}Z" if millis else f"{text}Z"


def optional_stamp(epoch_ms: int | None) -> str | None:
    """Do as `stamp` for a time that may not have come yet."""
    return None if epoch_ms is None else stamp(epoch_ms)


def duration(seconds: float) -> str:
    """Write seconds as `2d 4h 30m`, without parts that are zero; less than a minute is `0m`."""
    minutes = int(seconds // 60)
    days, minutes = divmod(minutes, 1440)
    hours, minutes = divmod(minutes, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m")]
    return " ".join(f"{count}{unit}" for count, unit in parts if count) or "0m"

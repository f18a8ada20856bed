"""An exception in words and as a trace, whatever its class does when it is asked. Pure."""

from __future__ import annotations

import traceback

from retire_cluster.schemas.text.clean_text import clean, shorten

MAX_WORDS = 2_000


def of(error: BaseException) -> str:
    """`TypeName: text`; an exception that cannot say its text keeps its type."""
    name = type_name(error)
    try:
        text = str(error)
    except BaseException as second:  # whatever a stranger's __str__ raises
        text = f"(its text cannot be had: __str__ raised {type_name(second)})"
    return shorten(clean(f"{name}: {text}"), MAX_WORDS)


def type_name(error: BaseException) -> str:
    """The name of its class."""
    name = type.__dict__["__name__"].__get__(type(error))
    return clean(name)


def trace(error: BaseException, *, skip: int = 0) -> str:
    """Its trace and those of what it came from, without the first `skip` lines of calls."""
    frames = error.__traceback__
    for _ in range(skip):
        frames = frames.tb_next if frames is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # an odd __cause__, __notes__ or source: the calls can still be told
        calls = "".join(traceback.format_tb(frames))
        text = f"Traceback (most recent call last):\n{calls}{of(error)}\n"
    return clean(text)

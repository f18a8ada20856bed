"""What a program cannot do as it was asked to."""

from __future__ import annotations


class Unusable(ValueError):
    """A flag, setting or file cannot be used as it is; the text is one line with the cure.

    A class of its own, so that no error of ours is told as a mistake of whoever started it.
    """

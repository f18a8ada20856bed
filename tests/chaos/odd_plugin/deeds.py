"""The table of odd deeds."""

# A stranger's code, which nobody has typed.
# mypy: ignore-errors

from __future__ import annotations

DEEDS = {}
#: Ends in a timeout: one second each.
SLOW = set()


def deed(function):
    DEEDS[function.__name__] = function
    return function


def slow(function):
    SLOW.add(function.__name__)
    return deed(function)

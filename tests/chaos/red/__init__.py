"""The red team's kit: each module beside this one holds attacks of one area in its `ATTACKS`.

    def _asks_without_a_key(target: Target) -> str:
        answer = target.guarded.http("GET", "/api/v1/config", key=None)
        if answer.status != 401:
            raise Went(f"/config answered {answer.status} to nobody")
        return "401"

    ATTACKS = [Attack("S6", "the configuration without a key", _asks_without_a_key)]

`python -m tests.chaos.redteam` finds the modules by itself. `target.py` says what a `Target` can.
"""

from tests.chaos.red.attack import Attack, NotHere, Went
from tests.chaos.red.target import Target
from tests.command_kit import Answer

__all__ = ["Answer", "Attack", "NotHere", "Target", "Went"]

"""The cluster's own clock, which no wall clock can move: by it things get old.

A main node without a battery-backed clock wakes up years behind and is set right minutes later;
what is counted by dates is then old, or young for ever, at once. So ages (retention, idempotency
keys, join tokens) are counted on a clock that only ever advances by time that passed: the monotonic
one while the process runs. A *mark* in the store carries it over a restart: within one boot of the
machine the monotonic clock goes on, so the gap is known exactly; over a reboot only the wall clock
knows anything, and it is believed up to `REBOOT_SECONDS`, never backwards. Where that is wrong,
things are kept too long, never too short.
"""

from __future__ import annotations

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.rows import Mark

#: What a reboot counts for at most; shorter than anything that is kept by default.
REBOOT_SECONDS = 12 * 3_600
#: Seconds by which the wall clock has to leave the monotonic one between two looks to be a jump.
JUMP_SECONDS = 5.0
#: Seconds between two marks that go along with other writes …
MARK_SECONDS = 10.0
#: … and between two when there is nothing else to write.
LONE_MARK_SECONDS = 3_600.0
#: A new cluster's age: 0 stands for "has not ended" in the ledger.
FIRST_MS = 1_000


class ClusterClock:
    """The clock of one broker process.

    :param now: when it begins
    :param age_ms: what it shows then
    :param boot: see `Mark`
    """

    def __init__(self, now: Now, age_ms: int = FIRST_MS, boot: str = "") -> None:
        self.boot = boot
        self._offset_ms = age_ms - int(now.mono * 1000)
        self._marked_mono: float | None = None

    def age_ms(self, now: Now) -> int:
        """Return the cluster's age in milliseconds."""
        return int(now.mono * 1000) + self._offset_ms

    def age_seconds(self, now: Now) -> int:
        """Return the cluster's age in whole seconds."""
        return self.age_ms(now) // 1000

    def mark(self, now: Now, last_event: int, after_seconds: float = MARK_SECONDS) -> Mark | None:
        """Return a mark for the store if the last one is `after_seconds` old, else None."""
        if self._marked_mono is not None and now.mono - self._marked_mono < after_seconds:
            return None
        self._marked_mono = now.mono
        return Mark(self.age_ms(now), now.mono, now.wall_ms, self.boot, last_event)


def resume(mark: Mark | None, now: Now, boot: str) -> tuple[ClusterClock, str]:
    """Return the clock of a process that follows another, and a warning if the wall clock moved."""
    if mark is None:
        return ClusterClock(now, boot=boot), ""
    wall_seconds = (now.wall_ms - mark.wall_ms) / 1000
    if boot and boot == mark.boot and now.mono >= mark.mono:
        passed = now.mono - mark.mono
        moved = wall_seconds - passed
        warning = ""
        if abs(moved) > JUMP_SECONDS:
            far = f"{_span(abs(moved))} {'ahead of' if moved > 0 else 'behind'}"
            warning = (
                f"the wall clock is {far} the one that the main node last ran by:"
                " dates follow it; ages, leases, limits and retries do not"
            )
    else:
        passed = min(max(0.0, wall_seconds), REBOOT_SECONDS)
        warning = ""
        if wall_seconds < -JUMP_SECONDS:
            warning = (
                f"the wall clock is {_span(-wall_seconds)} behind the time at which the main node"
                " last ran: ages go on from there as if no time had passed"
            )
        elif wall_seconds > passed:
            warning = (
                f"by the wall clock the main node was away for {_span(wall_seconds)}: counted as"
                f" {_span(passed)}, because a clock may be wrong after a reboot"
            )
    return ClusterClock(now, mark.age_ms + int(passed * 1000), boot), warning


def jump_seconds(before: Now, now: Now) -> float:
    """Return the seconds by which the wall clock jumped between two looks; 0 for no jump."""
    moved = (now.wall_ms - before.wall_ms) / 1000 - (now.mono - before.mono)
    return moved if abs(moved) > JUMP_SECONDS else 0.0


def describe_jump(moved_seconds: float) -> str:
    """Return the warning about a jump of the wall clock."""
    way = "ahead" if moved_seconds > 0 else "back"
    return (
        f"the wall clock was set {way} by {_span(abs(moved_seconds))} (or this machine slept):"
        " dates follow it; ages, leases, limits and retries do not"
    )


def _span(seconds: float) -> str:
    for size, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {word}"
    return f"{seconds:.0f} s"

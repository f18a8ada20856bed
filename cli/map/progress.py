"""How far a long command is: one line that is written over, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass
class Progress:
    """A count of results, shown where the stream is a terminal."""

    total: int
    stream: TextIO
    done: int = 0
    failed: int = 0
    #: Seconds of the monotonic clock.
    began: float = field(default_factory=time.monotonic)

    def step(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Count these results and draw the line anew."""
        self.done += len(results)
        self.failed += sum(result["status"] != "success" for result in results)
        if self.stream.isatty():
            rate = self.done / max(0.001, time.monotonic() - self.began)
            size = 24
            full = size * self.done // max(1, self.total)
            bar = "#" * full + "." * (size - full)
            failed = f", {self.failed} failed" if self.failed else ""
            self.stream.write(f"\r[{bar}] {self.done:,} of {self.total:,}{failed}, {rate:,.0f}/s ")
            self.stream.flush()

    def end(self) -> None:
        """End the line that is written over."""
        if self.stream.isatty() and self.done:
            self.stream.write("\n")

"""Figures of several runs as a table and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


class Unavailable(RuntimeError):
    """A benchmark needs what is not installed; the text says what."""


@dataclass
class Figure:
    """One measured quantity over several runs."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    def spread(self) -> tuple[float, float, float]:
        """Minimum, median, maximum."""
        return min(self.values), statistics.median(self.values), max(self.values)


def ratios(name: str, above: Figure, below: Figure) -> Figure:
    """`above / below`, run by run."""
    pairs = zip(above.values, below.values, strict=True)
    return Figure(name, "x", [a / b for a, b in pairs])


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def table(title: str, figures: Sequence[Figure]) -> str:
    """A table for people: minimum, median, maximum of each figure."""
    rows: list[tuple[str, ...]] = [("", "min", "median", "max", "unit")]
    rows += [(figure.name, *map(_number, figure.spread()), figure.unit) for figure in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [title]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4], strict=True)]
        lines.append("  ".join([*cells, row[4]]))
    return "\n".join(lines)


def as_json(title: str, figures: Sequence[Figure]) -> str:
    """The same for programs."""
    return json.dumps({"benchmark": title, "figures": [asdict(figure) for figure in figures]})

"""Draws `performance.svg` (shares of the yardsticks) and `curves.svg` of measured figures.

python -m bench all --json > figures.jsonl
python -m bench.picture figures.jsonl docs/images
"""

from __future__ import annotations

import json
import statistics
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

from bench import curves

_WIDTH, _ROW, _LEFT, _SCALE = 1000, 34, 330, 380


class Share(NamedTuple):
    """One bar."""

    label: str
    #: Median, smallest and largest share of the yardstick.
    share: float
    low: float
    high: float


#: Benchmark → (place among its ratios, label).
_BARS = {
    "batches": [(0, "durable tasks/s, batches of 500")],
    "singles": [(0, "durable tasks/s, one a call")],
    "rest": [
        (0, "POST /tasks, 8 connections"),
        (1, "POST /tasks, 64 connections"),
        (2, "GET status, 8 connections"),
        (3, "GET status, 64 connections"),
    ],
    "encryption": [(0, "encrypted / plain")],
    "slow-disk": [(0, "commits 10 ms slower / this disk")],
    "redis": [
        (0, "batches / Redis Streams, synced"),
        (1, "one a call / Redis Streams, synced"),
    ],
}


def shares(lines: list[str]) -> list[Share]:
    """The bars, of what is there."""
    found = []
    documents = {document["benchmark"]: document for document in map(json.loads, lines)}
    for name, bars in _BARS.items():
        if name not in documents:
            continue
        figures = documents[name]["figures"]
        ratios = [figure["values"] for figure in figures if figure["unit"] == "x"]
        for place, label in bars:
            values = ratios[place]
            found.append(Share(label, statistics.median(values), min(values), max(values)))
    return found


def draw(bars: list[Share]) -> str:
    """The picture; it suits light and dark pages."""
    height = _ROW * (len(bars) + 1) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="15">',
        "<title>Share of the yardstick measured in the same run</title>",
        "<style>text{fill:#24292f}.bar{fill:#2da44e}.line{stroke:#8c959f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>",
    ]
    for tenth in (0, 25, 50, 75, 100):
        x = _LEFT + _SCALE * tenth / 100
        parts.append(
            f'<line class="line" x1="{x}" y1="6" x2="{x}" y2="{height - _ROW}"'
            f' stroke-dasharray="2 4"/><text x="{x}" y="{height - 12}" text-anchor="middle">'
            f"{tenth} %</text>"
        )
    for index, bar in enumerate(bars):
        y = 10 + index * _ROW
        width = _SCALE * min(bar.share, 1.3)
        parts.append(
            f'<text x="{_LEFT - 12}" y="{y + 16}" text-anchor="end">{escape(bar.label)}</text>'
            f'<rect class="bar" x="{_LEFT}" y="{y}" width="{width:.1f}" height="22" rx="3"/>'
            f'<text x="{_LEFT + width + 8:.1f}" y="{y + 16}">{100 * bar.share:.0f} %'
            f" ({100 * bar.low:.0f} to {100 * bar.high:.0f})</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _panels(lines: list[str]) -> list[curves.Panel]:
    found = map(json.loads, lines)
    return curves.panels(
        {
            document["benchmark"]: {one["name"]: one["values"] for one in document["figures"]}
            for document in found
        }
    )


def main() -> int:
    """The command."""
    source, target = sys.argv[1:]
    lines = Path(source).read_text("utf-8").splitlines()
    for name, text in (
        ("performance", draw(shares(lines))),
        ("curves", curves.draw(_panels(lines))),
    ):
        (Path(target) / f"{name}.svg").write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The curves of `docs/images/curves.svg`: latency's distribution, placing against size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_PANEL, _HEIGHT, _MARGIN, _TOP, _BOTTOM = 320, 300, 52, 58, 44
_COLOURS = ("#2da44e", "#8250df")

#: Benchmark → its figures' values by name.
Measured = Mapping[str, Mapping[str, Sequence[float]]]


class Curve(NamedTuple):
    """One line of a panel."""

    label: str
    #: `(x, smallest, median, largest)` over the runs.
    points: Sequence[tuple[float, float, float, float]]


class Panel(NamedTuple):
    """One diagram; its vertical axis begins at 0."""

    title: str
    unit: str
    #: Each power of ten takes the same room.
    is_logarithmic: bool
    curves: Sequence[Curve]


def panels(measured: Measured) -> list[Panel]:
    """The diagrams, of what is there."""
    wanted = (
        ("latency", "submit to result, ms", "percentile", False, ("product p{}", "floor p{}")),
        ("queued", "result to next assignment, µs", "queued tasks", True, ("cycle at {} queued",)),
        ("devices", "result to next assignment, µs", "devices", True, ("cycle with {} devices",)),
    )
    found = []
    for name, title, unit, is_logarithmic, forms in wanted:
        figures = measured.get(name)
        if figures is not None:
            curves = [_curve(form, figures) for form in forms]
            found.append(Panel(title, unit, is_logarithmic, curves))
    return found


def _curve(form: str, figures: Mapping[str, Sequence[float]]) -> Curve:
    before, after = form.split("{}")
    points = []
    for name, values in figures.items():
        inner = name.removeprefix(before).removesuffix(after).replace(",", "")
        if name.startswith(before) and name.endswith(after) and inner.isdigit():
            middle = statistics.median(values)
            points.append((float(inner), min(values), middle, max(values)))
    return Curve(before.split()[0], sorted(points))


def draw(found: Sequence[Panel]) -> str:
    """The picture; it suits light and dark pages."""
    width = _PANEL * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        "<title>Latency by percentile; placing by queued tasks and by devices</title>",
        "<style>text{fill:#24292f}.axis{stroke:#8c959f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>",
    ]
    for index, panel in enumerate(found):
        parts += _panel(panel, index * _PANEL)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: int) -> list[str]:
    first, last = left + _MARGIN, left + _PANEL - 24
    base = _HEIGHT - _BOTTOM
    points = [point for curve in panel.curves for point in curve.points]
    top = 1.1 * max(point[3] for point in points)

    def place(x: float) -> float:
        return math.log10(x) if panel.is_logarithmic else x

    low, high = place(min(p[0] for p in points)), place(max(p[0] for p in points))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (place(x) - low) / (high - low)
        return first + across * (last - first), base - y / top * (base - _TOP)

    parts = [
        f'<text x="{left + 12}" y="22" font-weight="600">{escape(panel.title)}</text>',
        f'<text x="{last}" y="{_HEIGHT - 6}" text-anchor="end">{escape(panel.unit)}</text>',
        f'<path class="axis" fill="none" d="M{first} {_TOP}V{base}H{last}"/>',
    ]
    for share in (0.5, 1.0):
        value = top * share / 1.1
        text = f"{value:.0f}" if value >= 20 else f"{value:.1f}"
        _, y = at(points[0][0], value)
        parts.append(f'<text x="{first - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for x in sorted({point[0] for point in points}):
        centre, _ = at(x, 0)
        parts.append(
            f'<text x="{centre:.1f}" y="{base + 16}" text-anchor="middle">{_short(x)}</text>'
        )
    for number, (curve, colour) in enumerate(zip(panel.curves, _COLOURS, strict=False)):
        line = " ".join("{:.1f},{:.1f}".format(*at(x, middle)) for x, _, middle, _ in curve.points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        for x, least, middle, most in curve.points:
            (centre, y), (_, high_y), (_, low_y) = at(x, middle), at(x, most), at(x, least)
            parts.append(
                f'<circle cx="{centre:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
                f'<path stroke="{colour}" d="M{centre:.1f} {high_y:.1f}V{low_y:.1f}"/>'
            )
        if len(panel.curves) > 1:
            spot = first + 10 + 90 * number
            parts.append(
                f'<circle cx="{spot}" cy="40" r="4" fill="{colour}"/>'
                f'<text x="{spot + 9}" y="44">{escape(curve.label)}</text>'
            )
    return parts


def _short(x: float) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if x >= size:
            return f"{x / size:g}{letter}"
    return f"{x:g}"

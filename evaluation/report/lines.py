"""Line plots as SVG that take size, font and colors from the page.

Written by hand because a run draws ten of them after each epoch: a plot takes matplotlib 0.14 s of a core here
(0.07 s without its layout), and these functions a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34  # margins around the plot
POINTS = 240  # of a line; more are averaged, since a pixel shows one
COLORS = 8  # --c0 to --c7 of the page


@dataclass(frozen=True)
class Line:
    """Values over epochs. color: number of a color of the page. dashed: a second kind of line of the same color."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    dashed: bool = False


def line_plot(title: str, lines: Sequence[Line], unit: str = "", x_name: str = "epoch") -> str | None:
    """The plot as an SVG; None without a finite point. unit: "%" shows shares in percent, other text follows the
    numbers."""
    drawn = [_finite(line) for line in lines]
    drawn = [_averaged(line) for line in drawn if line.x]
    if not drawn:
        return None
    scale = 100.0 if unit == "%" else 1.0
    low_x, high_x, ticks_x = _axis([x for line in drawn for x in line.x], tight=True)
    low_y, high_y, ticks_y = _axis([y * scale for line in drawn for y in line.y])

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {HEIGHT}">']
    for tick in ticks_y:
        _, y = place(low_x, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick)}{escape(unit)}</text>')
    for tick in ticks_x:
        x, _ = place(tick, low_y)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    for line in drawn:
        points = [place(x, y * scale) for x, y in zip(line.x, line.y, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        style = f"stroke:var(--c{line.color % COLORS})" + (";stroke-dasharray:5 3" if line.dashed else "")
        parts.append(f'<path class="line" style="{style}" d="{path}"><title>{escape(line.name)}</title></path>')
        if len(points) <= 12:
            dots = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points)
            parts.append(f'<g style="fill:var(--c{line.color % COLORS})">{"".join(dots)}</g>')
    return "".join(parts) + "</svg>"


def key(lines: Sequence[Line], unit: str = "") -> str:
    """The names of the lines in their colors, each with its last value."""
    items = []
    for line in lines:
        values = [y for y in line.y if math.isfinite(y)]
        if not values:
            continue
        last = f"{values[-1]:.1%}" if unit == "%" else f"{values[-1]:,.4g}{escape(unit)}"
        kind = ' class="dashed"' if line.dashed else ""
        mark = f'<i{kind} style="border-color:var(--c{line.color % COLORS})"></i>'
        items.append(f"<span>{mark}{escape(line.name)} <b>{last}</b></span>")
    return f'<p class="names">{"".join(items)}</p>'


def _finite(line: Line) -> Line:
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Line(line.name, [x for x, _ in pairs], [y for _, y in pairs], line.color, line.dashed)


def _averaged(line: Line) -> Line:
    size = -(-len(line.x) // POINTS)
    parts = [slice(start, start + size) for start in range(0, len(line.x), size)]
    x, y = ([sum(values[part]) / len(values[part]) for part in parts] for values in (line.x, line.y))
    return Line(line.name, x, y, line.color, line.dashed)


def _axis(values: Sequence[float], tight: bool = False) -> tuple[float, float, list[float]]:
    """Ends of an axis and its ticks at multiples of 1, 2 or 5 times a power of ten. tight: ends at the values."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-9):
        low, high = low - (0.5 if tight else max(abs(low) * 0.05, 0.05)), high + max(abs(high) * 0.05, 0.05)
    elif not tight:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return low, high, [number * step for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""SVG plots that take size, font and colors from the page, and the drawing functions that plots share.

Colors are CSS variables of the page, so one plot serves the light and the dark scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

# Placeholder colors for matplotlib, each later replaced by a CSS variable; no other color has these digits.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
COLORS = tuple(f"#0102{number:02x}" for number in range(16, 26))
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    color: f"--c{number}" for number, color in enumerate(COLORS)
}
OURS, PEERS, LIMIT = COLORS[0], COLORS[5], COLORS[3]
WIDTH = 4.0  # inches; a page column and a phone enlarge it by 1.1 to 1.2, so that 9 points stay legible
STYLE: Any = {
    "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "swave",
    "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "axes.linewidth": 0.6,
    "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": GRID, "grid.linewidth": 0.6, "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none",
    "axes.facecolor": "none", "xtick.minor.size": 0, "ytick.minor.size": 0,
}  # fmt: skip
Draw = Callable[[Any, Mapping[str, Any]], float | None]


def drawn(draw: Draw, part: Mapping[str, Any], title: str) -> str | None:
    """The SVG of a plot of a report's part, or None. draw: returns the height in inches, None for nothing to draw."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(WIDTH, 2.8), layout="constrained")
        try:
            height = draw(axes, part)
            if height is None:
                return None
            figure.set_size_inches(WIDTH, height)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        finally:
            pyplot.close(figure)
    return themed(text.getvalue(), title)


def themed(svg: str, title: str) -> str:
    """The SVG without XML head, fixed size and font, with CSS variables for colors and a label for screen readers."""
    svg = svg[svg.index("<svg") :]
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg [^>]*?){size}="[^"]*" ?', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(font: [0-9.]+px )[^;\"]*", r"\1var(--sans)", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def bars(axes: Any, names: Sequence[str], values: Sequence[float], labels: Sequence[str], colors: Any) -> float:
    """Draw horizontal bars from the top, each with its label at its end; returns the height in inches."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    positions = range(len(names))
    axes.barh(positions, values, color=colors, height=0.62)
    axes.set_yticks(positions, names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.3 * max([*values, 1e-9]))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    for position, value, label in zip(positions, values, labels, strict=True):
        axes.annotate(label, (value, position), xytext=(4, 0), textcoords="offset points", va="center")
    return 0.75 + sum(0.27 if "\n" not in name else 0.38 for name in names)


def line_end(axes: Any, point: Sequence[float], text: str, color: str) -> None:
    """Write the name of a line at its end, in its color."""
    axes.annotate(text, point, xytext=(5, 0), textcoords="offset points", va="center", color=color)


def plain_ticks(axis: Any, ticks: Sequence[float], unit: float = 1.0) -> None:
    """Set the ticks of a logarithmic axis to these values, written as plain multiples of `unit`."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(ticks), [f"{tick / unit:,.6g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())

"""The plots of the report.

Each function draws figures of one part of the report, a mapping as in report.json, on matplotlib axes. It returns the
height of the plot in inches, or None if there is nothing to draw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from perf.report.svg import COLORS, GRID, INK, LIMIT, MUTED, OURS, PEERS, Draw, bars, drawn, line_end, plain_ticks

VARIANT_COLORS = {"ours": COLORS[0], "published": COLORS[1], "gather": COLORS[2]}
BACKEND_COLORS = {"ffcv": COLORS[0], "ffcv-affine": COLORS[0], "ffcv-kernel": COLORS[0], "dali": COLORS[7]}
SIZE = re.compile(r"\d+ x \d+")  # images of one size in perf.loader.sweep, by their name


def plots(report: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Title and SVG by name, for each plot that the report has figures for."""
    svgs = {}
    for name, (part, title, draw) in PLOTS.items():
        svg = report.get(part) and drawn(draw, report[part], title)
        if svg:
            svgs[name] = title, svg
    return svgs


# ---------------------------------------------------------------------------------------------- the step
def phases(axes: Any, step: Mapping[str, Any]) -> float:
    """Share of each phase."""
    names = list(step["shares"])
    shares = [100 * step["shares"][name] for name in names]
    colors = [PEERS if name in ("data_wait", "gradient_communication", "other") else OURS for name in names]
    labels = [f"{share:.1f} %" for share in shares]
    height = bars(axes, [name.replace("_", " ") for name in names], shares, labels, colors)
    axes.set_xlabel("share of a step, %")
    return height


def ranks(axes: Any, step: Mapping[str, Any]) -> float | None:
    """Time of each rank: one bar, its own time and then the time in collectives."""
    rows = step["per_rank"][:64]
    if len(rows) < 2:
        return None
    names = [f"rank {row['rank']}" for row in rows]
    own = [row["own_ms"] for row in rows]
    collectives = [row["communication_ms"] for row in rows]
    totals = [a + b for a, b in zip(own, collectives, strict=True)]
    labels = [f"{a:,.1f} + {b:,.1f}" for a, b in zip(own, collectives, strict=True)]
    height = bars(axes, names, totals, labels, PEERS)
    axes.barh(range(len(names)), own, color=OURS, height=0.62)
    axes.set_xlim(0, 1.35 * max(totals))
    axes.set_xlabel("ms a step: own time (first) + collectives")
    return height


def roofline(axes: Any, step: Mapping[str, Any]) -> float:
    """The two measured limits, and the point of this network."""
    line = step["roofline"]
    intensity, flops = line["intensity"], line["flops_per_second"]
    ridge = line["peak_flops"] / line["bandwidth"]
    left, right = min(intensity, ridge) / 8, max(intensity, ridge) * 8
    axes.loglog([left, ridge, right], [left * line["bandwidth"], line["peak_flops"], line["peak_flops"]], color=LIMIT)
    axes.annotate(
        "matrix products", (right, line["peak_flops"]), xytext=(0, 3), textcoords="offset points", ha="right",
        va="bottom", color=LIMIT,
    )  # fmt: skip
    label_at = left**0.85 * ridge**0.15
    axes.annotate(
        "memory\nbandwidth", (label_at, label_at * line["bandwidth"]), xytext=(6, 0),
        textcoords="offset points", ha="left", va="top", color=LIMIT,
    )  # fmt: skip
    axes.plot([intensity], [flops], "o", color=OURS, markersize=7)
    axes.annotate(
        f"this step, {line['share_of_roofline']:.0%} of it", (intensity, flops), xytext=(0, -12), color=INK,
        textcoords="offset points", ha="center", va="top",
    )  # fmt: skip
    bottom, top = min(axes.get_ylim()[0], flops / 6), 2 * axes.get_ylim()[1]
    axes.set(xlabel="operations a byte", ylabel="GFLOP/s", xlim=(left, right), ylim=(bottom, top))
    plain_ticks(axes.xaxis, [10.0**power for power in range(-3, 7) if left < 10.0**power < right])
    plain_ticks(axes.yaxis, [10.0**power for power in range(3, 19) if bottom < 10.0**power < top], 1e9)
    return 2.8


def variants(axes: Any, step: Mapping[str, Any]) -> float | None:
    """Images a second with the measured settings and with others."""
    rows = [row for row in step["variants"] if not row["skipped"]]
    if len(rows) < 2:
        return None
    base, names = rows[0], []
    for row in rows:
        changes = [
            f"{key.replace('channels_last', 'channels-last')}={str(row[key]).lower()}"
            for key in ("precision", "stage", "compile", "channels_last")
            if row[key] != base[key]
        ]
        names.append(",\n".join(changes) or "as measured")
    speeds = [row["images_per_second"] for row in rows]
    colors = [OURS, *[PEERS] * (len(rows) - 1)]
    height = bars(axes, names, speeds, [f"{speed:,.1f}" for speed in speeds], colors)
    axes.set_xlabel("images a second")
    return height


# ---------------------------------------------------------------------------------------------- the loader
def rates(axes: Any, loader: Mapping[str, Any]) -> float | None:
    """Images a second with all crops, by backend; bare decoding as a line."""
    rows = sorted((row for row in loader["results"] if row["mode"] == "full"), key=lambda r: -r["images_per_second"])
    if not rows:
        return None
    speeds = [row["images_per_second"] for row in rows]
    colors = [BACKEND_COLORS.get(row["backend"], PEERS) for row in rows]
    height = bars(axes, [row["backend"] for row in rows], speeds, [f"{speed:,.0f}" for speed in speeds], colors)
    decode = loader["decode_images_per_second"]
    if decode:
        axes.axvline(decode, color=LIMIT, linewidth=1)
        axes.set_xlim(0, 1.12 * max(decode, 1.1 * max(speeds)))
        axes.annotate(
            f"decoding alone, {decode:,.0f}", (decode, len(rows) - 0.15), xytext=(-4, 0), textcoords="offset points",
            ha="right", va="center", color=LIMIT,
        )  # fmt: skip
        axes.set_ylim(len(rows) + 0.25, -0.6)  # the lowest row is for the name of the line
        height += 0.27
    axes.set_xlabel("images a second, all crops")
    return height


def threads(axes: Any, loader: Mapping[str, Any]) -> float | None:
    """Images a second against worker threads, from the sweep."""
    settings = loader["settings"]
    rows = _swept(loader, "threads", source="files", batch=settings["batch"])
    return _lines(axes, rows, "threads")


def batches(axes: Any, loader: Mapping[str, Any]) -> float | None:
    """Images a second against the batch size, from the sweep."""
    rows = _swept(loader, "batch", source="files", threads=loader["settings"]["threads"])
    return _lines(axes, rows, "images a batch")


def sizes(axes: Any, loader: Mapping[str, Any]) -> float | None:
    """Images a second against the image size, from the sweep."""
    rows = [row for row in loader.get("sweep") or [] if SIZE.fullmatch(str(row["source"]))]
    if not rows:
        return None
    names = list(dict.fromkeys(row["source"] for row in rows))
    ordered = sorted(rows, key=lambda row: (names.index(row["source"]), row["backend"]))
    height = bars(
        axes,
        [f"{row['source'].replace(' x ', 'x')}, {row['backend']}" for row in ordered],
        [row["images_per_second"] for row in ordered],
        [f"{row['images_per_second']:,.0f}" for row in ordered],
        [BACKEND_COLORS.get(row["backend"], PEERS) for row in ordered],
    )
    axes.set_xlabel("images a second, by pixels of an image")
    return height


def _swept(loader: Mapping[str, Any], varied: str, **fixed: Any) -> dict[str, list[tuple[int, float]]]:
    """For each backend the sweep's points (value of `varied`, images a second) whose other settings are `fixed`."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in loader.get("sweep") or []:
        if all(row[key] == value for key, value in fixed.items()):
            lines.setdefault(row["backend"], []).append((row[varied], row["images_per_second"]))
    return {backend: sorted(points) for backend, points in lines.items() if len(points) > 1}


def _lines(axes: Any, lines: Mapping[str, Sequence[tuple[int, float]]], label: str) -> float | None:
    if not lines:
        return None
    for backend, points in lines.items():
        color = BACKEND_COLORS.get(backend, PEERS)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color)
        line_end(axes, points[-1], backend, color)
    counts = sorted({count for points in lines.values() for count, _ in points})
    axes.set_xscale("log", base=2)
    plain_ticks(axes.xaxis, counts)
    axes.set(
        xlabel=label, ylabel="images a second", xlim=(counts[0] / 1.2, counts[-1] * (counts[-1] / counts[0]) ** 0.3)
    )
    axes.set_ylim(0, 1.08 * max(rate for points in lines.values() for _, rate in points))
    return 2.6


def stages(axes: Any, loader: Mapping[str, Any]) -> float | None:
    """CPU time of each stage of the ffcv backend."""
    rows = {name: value for name, value in loader["stages_ms"].items() if name not in ("kernel", "loader")}
    if not rows:
        return None
    labels = [f"{value:.2f}" for value in rows.values()]
    height = bars(axes, [name.replace("_", " ") for name in rows], [max(v, 0) for v in rows.values()], labels, OURS)
    axes.set_xlabel("CPU ms an image")
    return height


# ---------------------------------------------------------------------------------------------- Sinkhorn
def nodes(axes: Any, sinkhorn: Mapping[str, Any]) -> float | None:
    """Share of a step that codes take on N nodes, at the middle one of the given latencies."""
    rows = [
        row for row in sinkhorn["predicted"]
        if row["link"] == sinkhorn["nodes_at_link"] and row["prototypes"] == sinkhorn["settings"]["prototypes"]
    ]  # fmt: skip
    if not rows:
        return None
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = [(row["nodes"], 100 * row["share"]) for row in rows if row["variant"] == variant]
        color = VARIANT_COLORS[variant]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=color)
        line_end(axes, points[-1], variant, color)
    for percent in (1, 5):
        axes.axhline(percent, color=LIMIT, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(f"{percent} %", (1, percent), xytext=(0, 2), textcoords="offset points", color=LIMIT)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain_ticks(axes.xaxis, (1, 4, 16, 64, 256))
    axes.set(xlabel=f"nodes ({sinkhorn['nodes_at_link']} a hop)", ylabel="share of the step, %", xlim=(0.85, 1800))
    shares = [100 * row["share"] for row in rows]
    plain_ticks(axes.yaxis, [tick for tick in (0.01, 0.1, 1, 10, 100) if min(shares) / 9 < tick < 9 * max(shares)])
    return 2.8


def held_out(axes: Any, sinkhorn: Mapping[str, Any]) -> float | None:
    """Predictions against measurements on which the model was not fitted."""
    rows = sinkhorn["held_out"]
    if not rows:
        return None
    times = [row[key] / 1e3 for row in rows for key in ("measured_us", "predicted_us")]
    ends = min(times) / 1.5, max(times) * 1.5
    axes.fill_between(ends, [0.75 * e for e in ends], [1.25 * e for e in ends], color=GRID, linewidth=0)
    axes.plot(ends, ends, color=MUTED, linewidth=0.8)
    for number, link in enumerate(dict.fromkeys(row["link"] for row in rows)):
        own_rows = [row for row in rows if row["link"] == link]
        points = [row["measured_us"] / 1e3 for row in own_rows], [row["predicted_us"] / 1e3 for row in own_rows]
        axes.plot(*points, "o", markersize=4.5, color=COLORS[number], label=link)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [tick for tick in (0.1, 1, 10, 100, 1000) if ends[0] < tick < ends[1]]
    plain_ticks(axes.xaxis, ticks)
    plain_ticks(axes.yaxis, ticks)
    axes.set(xlabel="measured, ms (band: 25 %)", ylabel="predicted, ms", xlim=ends, ylim=ends)
    axes.legend(frameon=False, loc="upper left", handletextpad=0.2, labelcolor=INK)
    return 3.0


def prototypes(axes: Any, sinkhorn: Mapping[str, Any]) -> float | None:
    """Time of the codes of a step against the number of prototypes, on the most ranks of this machine."""
    settings = sinkhorn["settings"]
    rows = [
        row for row in sinkhorn["measured"]
        if row["link"] == sinkhorn["measured"][0]["link"] and row["batch"] == settings["batch"]
        and row["iterations"] == settings["iterations"]
    ]  # fmt: skip
    most = max((row["ranks"] for row in rows), default=0)
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["ranks"] == most:
            lines.setdefault(row["variant"], []).append((row["prototypes"], row["ms"]))
    if max(map(len, lines.values()), default=0) < 2:
        return None
    for variant, pairs in lines.items():
        points = sorted(pairs)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=VARIANT_COLORS[variant])
        line_end(axes, points[-1], variant, VARIANT_COLORS[variant])
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({count for points in lines.values() for count, _ in points})
    times = [time for points in lines.values() for _, time in points]
    plain_ticks(axes.xaxis, counts)
    plain_ticks(axes.yaxis, [tick for tick in (0.1, 1, 10, 100, 1000) if min(times) / 5 < tick < 5 * max(times)])
    axes.set(xlabel=f"prototypes ({most} ranks)", ylabel="ms a step", xlim=(counts[0] / 1.3, counts[-1] * 6))
    return 2.8


PLOTS: dict[str, tuple[str, str, Draw]] = {
    "phases": ("step", "Where a step goes", phases),
    "ranks": ("step", "Ranks", ranks),
    "roofline": ("step", "Roofline", roofline),
    "variants": ("step", "Other settings", variants),
    "rates": ("loader", "Loaders", rates),
    "threads": ("loader", "Worker threads", threads),
    "batches": ("loader", "Batch size", batches),
    "sizes": ("loader", "Image size", sizes),
    "stages": ("loader", "Stages of the ffcv backend", stages),
    "nodes": ("sinkhorn", "Codes on N nodes, predicted", nodes),
    "held_out": ("sinkhorn", "The model against measurement", held_out),
    "prototypes": ("sinkhorn", "Codes by prototypes, measured", prototypes),
}

"""science.png: for each comparison the learning curves and the final figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.science.plan import mean_and_deviation
from perf.science.tables import counted, time_word


def draw(reports: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """A row of two plots for each report, by its title."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(
        len(reports), 2, figsize=(11, 4.2 * len(reports)), layout="constrained", squeeze=False,
        gridspec_kw={"width_ratios": [3, 2]},
    )  # fmt: skip
    for (title, report), (left, right) in zip(reports.items(), places, strict=True):
        draw_curves(report, left)
        left.set_title(f"{title}: learning curves")
        draw_scores(report, right)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def draw_curves(report: Mapping[str, Any], place: Any) -> None:
    """k-NN over the time of training; band: standard deviation over seeds."""
    rows = {row["name"]: row for row in report["rows"]}
    start = [run["curve_start"] for run in rows["random"]["runs"]] if "random" in rows else []
    for row in report["rows"]:
        if "curve" not in row["runs"][0]:
            continue
        times, middle, spread = curve(row["runs"], start)
        (line,) = place.plot(times, middle, marker="o", ms=3, lw=1.4, label=row["title"])
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
        place.fill_between(times, low, high, color=line.get_color(), alpha=0.18, lw=0)
    place.set(xlabel=time_word(report), ylabel="k-NN, %")
    place.grid(alpha=0.25)
    place.legend(loc="lower right", fontsize=8)


def draw_scores(report: Mapping[str, Any], place: Any) -> None:
    """The final figures as points with their spread."""
    positions = range(len(report["rows"]), 0, -1)
    for name, title, shift in (("knn", "k-NN", 0.12), ("linear", "linear", -0.12)):
        values = [row[name]["mean"] * 100 for row in report["rows"]]
        errors = [(row[name]["deviation"] or 0.0) * 100 for row in report["rows"]]
        places = [position + shift for position in positions]
        place.errorbar(values, places, xerr=errors, fmt="o", ms=4, capsize=3, label=title)
    place.set_yticks(list(positions), [row["title"] for row in report["rows"]], fontsize=8)
    place.set(xlabel="top-1, %", title=f"after training, {counted(report['seeds'])}")
    place.grid(alpha=0.25, axis="x")
    place.legend(fontsize=8)


def curve(runs: Sequence[Mapping[str, Any]], start: Sequence[float]) -> tuple[list[float], list[float], list[float]]:
    """Seconds, mean and deviation (in percent) of each point. start: k-NN of random weights, a share for each seed."""
    points = list(zip(*(run["curve"] for run in runs), strict=True))
    columns = [[point["knn"] for point in of_all_seeds] for of_all_seeds in points]
    times = [sum(point["training_seconds"] for point in of_all_seeds) / len(of_all_seeds) for of_all_seeds in points]
    if start:
        columns, times = [list(start), *columns], [0.0, *times]
    pairs = [mean_and_deviation(column) for column in columns]
    return times, [mean * 100 for mean, _ in pairs], [(deviation or 0.0) * 100 for _, deviation in pairs]

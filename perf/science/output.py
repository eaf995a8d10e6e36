"""Writes the report as science.json, science.md and science.png; all figures come from the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_atomically
from config.recipe import load_config
from perf.report.markdown import table as as_markdown
from perf.report.sections import Table
from perf.science.plan import RECIPES
from perf.science.score import CURVE_IMAGES

SEARCH = "science-search.json"
ENOUGH_EPOCHS = 3


def write(report: Mapping[str, Any], out: Path, search: bool) -> None:
    """Write the files into `out`, and print the table."""
    name = SEARCH if search else "science.json"
    write_atomically(out / name, json.dumps(report, indent=1) + "\n")
    table = searched(report) if search else results(report)
    print(as_markdown(table))
    if not search:
        draw(report, out / "science.png")
    if (out / "science.json").exists():
        search_file = out / SEARCH
        main_report = json.loads((out / "science.json").read_text())
        write_atomically(
            out / "science.md", page(main_report, json.loads(search_file.read_text()) if search_file.exists() else None)
        )
    print("written:", ", ".join(str(out / n) for n in (name, "science.md", "science.png") if (out / n).exists()))


def page(report: Mapping[str, Any], search: Mapping[str, Any] | None) -> str:
    """The text of science.md. search: the report of the search, if there is one."""
    machine, seeds = report["machine"], report["seeds"]
    parts = [
        "# Does it learn?",
        f"`make science`: {report['train_images']:,} training and {report['test_images']:,} test images, "
        f"{counted(seeds)} ({', '.join(map(str, seeds))}), budget {report['minutes']:g} minutes of "
        f"{machine['cores']} cores ({machine['cpu']}; {machine['date']}). The program writes all figures of this page; "
        "[science.json](science.json) has the figures of every run.",
        f"**{verdict(report)}**",
        as_markdown(results(report)),
        "Top-1 accuracy on the test images, mean and standard deviation over seeds. k-NN: weighted, k = 20, among all "
        "training images; linear: logistic regression on the standardized features. The seconds are for training only, "
        "on one core while another run uses the other; each method trained for the whole number of epochs that comes "
        f"nearest to the same time, from a measurement on {report['part_images']:,} images. The third column is for "
        "supervised training: its own classifier, trained with all labels.",
        "![learning curves](science.png)",
        "Left: k-NN during the runs (mean over seeds, band: standard deviation) among "
        f"{min(CURVE_IMAGES, report['train_images']):,} training images, so lower than in the table. Right: the table.",
        as_markdown(costs(report)),
    ]
    if search is not None:
        parts += [
            "## Search over settings",
            f"By `make science ARGS=--search`, with {counted(search['seeds'])} "
            f"({', '.join(map(str, search['seeds']))}) that the table above does not use, on the same test images: as "
            "many candidates for each method, and the same time for each candidate, as nearly as whole epochs allow "
            f"({search['machine']['date']}). The last column marks the settings that the recipes have." + short(search),
            as_markdown(searched(search)),
        ]
    return "\n\n".join(parts) + "\n"


def short(search: Mapping[str, Any]) -> str:
    """A warning if the candidates had so few epochs that their order says little; otherwise ""."""
    least = min(row["epochs"] for row in search["rows"])
    warning = f" With only {least} epoch{'s' * (least > 1)} a candidate, their order says little about long runs."
    return warning if least < ENOUGH_EPOCHS else ""


def verdict(report: Mapping[str, Any]) -> str:
    """A sentence that compares multi-crop with two crops at equal training time."""
    rows = {row["name"]: row for row in report["rows"]}
    if not {"multicrop", "two_crops"} <= set(rows):
        return "Multi-crop and two crops were not both run."
    comparisons = [
        against(rows["multicrop"], rows["two_crops"], *pair) for pair in (("knn", "k-NN"), ("linear", "linear"))
    ]
    return f"Multi-crop against two crops at equal time: {'; '.join(comparisons)}."


def against(one: Mapping[str, Any], other: Mapping[str, Any], figure: str, name: str) -> str:
    """`k-NN 86.10 % against 85.30 %: better by 0.80 points, ahead with 3 of 3 seeds`.

    The last number counts the seeds with which `one` is better. figure: a key of the runs; name: its name in the text.
    """
    pairs = list(zip(one["runs"], other["runs"], strict=True))
    ahead = sum(a[figure] > b[figure] for a, b in pairs)
    mean, rival = one[figure]["mean"], other[figure]["mean"]
    word = "better" if mean > rival else "worse" if mean < rival else "neither better nor worse"
    by = f" by {abs(mean - rival) * 100:.2f} points" if mean != rival else ""
    return f"{name} {mean:.2%} against {rival:.2%}, {word}{by}, ahead with {ahead} of {counted(pairs)}"


def results(report: Mapping[str, Any]) -> Table:
    """A row for each method."""
    head = ("method", "k-NN", "linear", "own classifier", "epochs", "training seconds")
    rows = []
    for row in report["rows"]:
        figures = [share(row.get(name)) for name in ("knn", "linear", "classifier")]
        rows.append([row["title"], *figures, str(row.get("epochs", "")), seconds(row.get("training_seconds"))])
    return Table("results", head, rows, ("method",))


def searched(report: Mapping[str, Any]) -> Table:
    """A row for each candidate."""
    head = ("method", "settings", "k-NN", "linear", "epochs", "training seconds", "recipe")
    rows = []
    for row in report["rows"]:
        settings, figures = " ".join(row["settings"]), [share(row.get(name)) for name in ("knn", "linear")]
        marker = "this" if holds(row) else ""
        rows.append([row["title"], settings, *figures, str(row["epochs"]), seconds(row["training_seconds"]), marker])
    return Table("search", head, sorted(rows, key=lambda row: row[0]), ("method", "settings", "recipe"))


def holds(row: Mapping[str, Any]) -> bool:
    """Whether the recipe already has the settings of a candidate."""
    recipe, data = str(RECIPES / f"{row['recipe']}.yaml"), "data.path=."
    return load_config([recipe, data, *row["settings"]]) == load_config([recipe, data])


def costs(report: Mapping[str, Any]) -> Table:
    """The rate of each method as measured first and as reached in the runs."""
    head = ("method", "images/s, measured first", "images/s in the runs", "seconds for start and end")
    rows = []
    for row in report["rows"]:
        if (cost := report["costs"].get(row["name"])) is not None:
            rate = sum(run["images"] for run in row["runs"]) / sum(run["training_seconds"] for run in row["runs"])
            rows.append([row["title"], f"{report['train_images'] / cost['epoch']:,.0f}", f"{rate:,.0f}",
                         f"{cost['around']:.0f}"])  # fmt: skip
    return Table("costs", head, rows, ("method",))


def counted(seeds: Sequence[Any]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"


def share(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    spread = f" ± {figure['deviation'] * 100:.2f}" if figure["deviation"] is not None else ""
    return f"{figure['mean'] * 100:.2f}{spread} %"


def seconds(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    spread = f" ± {figure['deviation']:.0f}" if figure["deviation"] is not None else ""
    return f"{figure['mean']:.0f}{spread}"


def draw(report: Mapping[str, Any], out: Path) -> None:
    """Draw learning curves over training seconds, and the final figures as points with their spread."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 4.2), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
    )
    rows = {row["name"]: row for row in report["rows"]}
    start = [run["curve_start"] for run in rows["random"]["runs"]] if "random" in rows else []
    for row in report["rows"]:
        if "curve" not in row["runs"][0]:
            continue
        times, middle, spread = curve(row["runs"], start)
        (line,) = left.plot(times, middle, marker="o", ms=3, lw=1.4, label=row["title"])
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
        left.fill_between(times, low, high, color=line.get_color(), alpha=0.18, lw=0)
    left.set(xlabel="seconds of training on one core", ylabel="k-NN, %", title="learning curves")
    left.grid(alpha=0.25)
    left.legend(loc="lower right", fontsize=8)
    positions = range(len(report["rows"]), 0, -1)
    for name, title, shift in (("knn", "k-NN", 0.12), ("linear", "linear", -0.12)):
        values = [row[name]["mean"] * 100 for row in report["rows"]]
        errors = [(row[name]["deviation"] or 0.0) * 100 for row in report["rows"]]
        right.errorbar(
            values, [position + shift for position in positions], xerr=errors, fmt="o", ms=4, capsize=3, label=title
        )
    right.set_yticks(list(positions), [row["title"] for row in report["rows"]], fontsize=8)
    right.set(xlabel="top-1, %", title=f"after training, {counted(report['seeds'])}")
    right.grid(alpha=0.25, axis="x")
    right.legend(fontsize=8)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def curve(runs: Sequence[Mapping[str, Any]], start: Sequence[float]) -> tuple[list[float], list[float], list[float]]:
    """Seconds, mean and deviation (in percent) of each point. start: k-NN of random weights, a share for each seed."""
    from perf.science.plan import mean_and_deviation

    points = list(zip(*(run["curve"] for run in runs), strict=True))
    columns = [[point["knn"] for point in of_all_seeds] for of_all_seeds in points]
    times = [sum(point["training_seconds"] for point in of_all_seeds) / len(of_all_seeds) for of_all_seeds in points]
    if start:
        columns, times = [list(start), *columns], [0.0, *times]
    pairs = [mean_and_deviation(column) for column in columns]
    return times, [mean * 100 for mean, _ in pairs], [(deviation or 0.0) * 100 for _, deviation in pairs]

"""The tables of science.md, and the sentences that compare methods. All figures come from the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config.recipe import load_config
from perf.report.sections import Table
from perf.science.choices import BASE, LARGE, NONE, WHOLE
from perf.science.measures import CALLED, ordering
from perf.science.plan import EQUAL_IMAGES, paired
from perf.science.sizes import SIZES, named

Report = Mapping[str, Any]


def seconds_of(report: Report) -> str:
    """The figure that says how long runs trained: reports of version 0.1.0's first weeks have wall time."""
    return "cpu_seconds" if any("cpu_seconds" in row for row in report["rows"]) else "training_seconds"


def time_word(report: Report) -> str:
    return "CPU seconds" if seconds_of(report) == "cpu_seconds" else "training seconds"


def verdict(report: Report) -> str:
    """Sentences that compare multi-crop with two crops, at equal training time and at equal images."""
    rows = {row["name"]: row for row in report["rows"]}
    if not {"multicrop", "two_crops"} <= set(rows):
        return "Multi-crop and two crops were not both run."
    figures = [("knn", "k-NN"), ("linear", "linear"), ("hands", "the same symbol by another hand")]
    sentences = []
    for name, equal in (("two_crops", "time"), (EQUAL_IMAGES, "images")):
        if name in rows:
            pairs = [pair for pair in figures if pair[0] in rows["multicrop"]]
            comparisons = [against(rows["multicrop"], rows[name], *pair) for pair in pairs]
            sentences.append(f"Multi-crop against two crops at equal {equal}: {'; '.join(comparisons)}.")
    means = [rows[name]["knn"]["mean"] for name in ("multicrop", "two_crops", EQUAL_IMAGES) if name in rows]
    if len(means) == 3 and means[0] < min(means[1:]):
        sentences.append(
            "In k-NN it is behind at equal images too: the time that more crops take is not the only reason."
        )
    return " ".join(sentences)


def against(one: Report, other: Report, figure: str, name: str) -> str:
    """`k-NN 86.10 % against 85.30 %: better by 0.80 points (± 0.30), ahead with 3 of 3 seeds`.

    ±: the 95 % interval of the difference, paired by seed. The last number counts the seeds with which `one` is better.
    figure: a key of the runs; name: its name in the text.
    """
    values = [[run[figure] for run in row["runs"]] for row in (one, other)]
    ahead = sum(a > b for a, b in zip(*values, strict=True))
    mean, rival, (difference, half) = one[figure]["mean"], other[figure]["mean"], paired(*values)
    word = "better" if difference > 0 else "worse" if difference < 0 else "neither better nor worse"
    by = f" by {abs(difference) * 100:.2f} points" if difference else ""
    interval = f" (± {half * 100:.2f})" if half is not None else ""
    return f"{name} {mean:.2%} against {rival:.2%}, {word}{by}{interval}, ahead with {ahead} of {counted(values[0])}"


def results(report: Report) -> Table:
    """A row for each method."""
    columns = {"knn": "k-NN", "linear": "linear", "hands": "other hand", "classifier": "own classifier"}
    columns = {key: title for key, title in columns.items() if any(key in row for row in report["rows"])}
    head = ("method", *columns.values(), "epochs", time_word(report))
    rows = []
    for row in report["rows"]:
        figures = [share(row.get(name)) for name in columns]
        rows.append([row["title"], *figures, str(row.get("epochs", "")), number(row.get(seconds_of(report)))])
    return Table("results", head, rows, ("method",))


def measured(report: Report) -> Table | None:
    """What a run's end tells without labels; None for reports without it."""
    names = [name for name in CALLED if any(name in row for row in report["rows"])]
    rows = [row for row in report["rows"] if any(name in row for name in names)]
    if not rows:
        return None
    head = ("method", "images", *(CALLED[name] for name in names))
    cells = [[row["title"], f"{row['runs'][0]['images']:,}", *(number(row.get(n), 2) for n in names)] for row in rows]
    return Table("measures", head, cells, ("method",))


def orderings(reports: Mapping[str, Report]) -> Table | None:
    """A row for each measure: the share of the pairs of runs that it orders as their k-NN does, in each of `reports`;
    None where they have no measures. Only of swave's own runs, which have the measures."""
    runs = {
        f"{name}, {len(own)} runs": ordering(own)
        for name, report in reports.items()
        if (own := [run for row in report["rows"] for run in row["runs"] if "mean_loss" in run])
    }
    names = [name for name in CALLED if any(name in shares for shares in runs.values())]
    if not names:
        return None
    cells = [
        [CALLED[name], *(f"{shares[name]:.0%}" if name in shares else "" for shares in runs.values())] for name in names
    ]
    return Table("orderings", ("measure", *runs), cells, ("measure",))


def chosen(report: Report) -> Table:
    """A row for each choice: its difference from the recipe, or from the choice it goes on from, paired by seed."""
    recipe, *others = report["rows"]
    bases = {"": recipe} | {row["name"]: row for row in others}
    head = ("choice", "k-NN", "difference", "ahead", "effective rank", "epochs", time_word(report))
    rows = []
    for row in (recipe, *others):
        base = bases[row.get("against", "")]
        compared = ["", ""] if row is base else apart(row, base)
        rest = [number(row.get("embedding_rank"), 1), str(row["epochs"]), number(row.get(seconds_of(report)))]
        rows.append([row["title"], share(row["knn"]), *compared, *rest])
    return Table("choices", head, rows, ("choice",))


def apart(row: Report, base: Report) -> list[str]:
    """The difference of two rows' k-NN in points with its 95 % interval, and how many seeds are ahead."""
    values = [[run["knn"] for run in r["runs"]] for r in (row, base)]
    mean, half = paired(*values)
    interval = f" ± {half * 100:.2f}" if half is not None else ""
    return [f"{mean * 100:+.2f}{interval}", f"{sum(a > b for a, b in zip(*values, strict=True))} of {len(values[0])}"]


def by_size(report: Report) -> Table:
    """A row for each size of the images: multi-crop beside two crops, at equal time and at equal images."""
    rows = {row["name"]: row for row in report["rows"]}
    equal = [column for word in ("time", "images") for column in (f"two crops, equal {word}", "difference", "ahead")]
    head = ("pixels", "multi-crop", *equal, "epochs", time_word(report))
    cells = []
    for pixels in SIZES:
        ours = rows[named("multicrop", pixels)]
        compared = []
        for name in ("two_crops", EQUAL_IMAGES):
            theirs = rows[named(name, pixels)]
            compared += [share(theirs["knn"]), *apart(ours, theirs)]
        epochs = f"{ours['epochs']} and {rows[named('two_crops', pixels)]['epochs']}"
        cells.append([str(pixels), share(ours["knn"]), *compared, epochs, number(ours[seconds_of(report)])])
    return Table("sizes", head, cells, ("pixels",))


def steps_to_multicrop(report: Report) -> str:
    """From two crops to multi-crop in three steps, each at equal images; "" without these choices."""
    rows = {row["name"]: row for row in report["rows"]}
    steps = (("more crops", LARGE, NONE), ("fewer pixels", WHOLE, LARGE), ("smaller parts of the image", BASE, WHOLE))
    if not {LARGE, NONE, WHOLE, BASE} <= set(rows):
        return ""
    told = "; ".join(f"{title}: {against(rows[one], rows[other], 'knn', 'k-NN')}" for title, one, other in steps)
    return f"From two crops to multi-crop in three steps, each at equal images. {told[0].upper()}{told[1:]}."


def searched(report: Report, recipes: Path) -> Table:
    """A row for each candidate. recipes: the folder whose settings the last column marks."""
    head = ("method", "settings", "k-NN", "linear", "epochs", time_word(report), "recipe")
    rows = []
    for row in report["rows"]:
        settings, figures = " ".join(row["settings"]), [share(row.get(name)) for name in ("knn", "linear")]
        marker = "this" if holds(row, recipes) else ""
        rows.append([row["title"], settings, *figures, str(row["epochs"]), number(row[seconds_of(report)]), marker])
    return Table("search", head, sorted(rows, key=lambda row: row[0]), ("method", "settings", "recipe"))


def holds(row: Report, recipes: Path) -> bool:
    """Whether the recipe already has the settings of a candidate."""
    recipe, data = recipes / f"{row['recipe']}.yaml", "data.path=."
    return recipe.exists() and load_config([str(recipe), data, *row["settings"]]) == load_config([str(recipe), data])


def costs(report: Report) -> Table:
    """The rate of each method as measured first and as reached in the runs, in images per second of `time_word`."""
    unit = "images a CPU second" if seconds_of(report) == "cpu_seconds" else "images/s"
    head = ("method", f"{unit}, measured first", f"{unit} in the runs", "seconds for start and end")
    rows = []
    for row in report["rows"]:
        if (cost := report["costs"].get(row["name"])) is not None:
            rate = sum(run["images"] for run in row["runs"]) / sum(run[seconds_of(report)] for run in row["runs"])
            rows.append([row["title"], f"{report['train_images'] / cost['epoch']:,.0f}", f"{rate:,.0f}",
                         f"{cost['around']:.0f}"])  # fmt: skip
    return Table("costs", head, rows, ("method",))


def counted(seeds: Sequence[Any]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"


def share(figure: Report | None) -> str:
    if figure is None:
        return ""
    spread = f" ± {figure['deviation'] * 100:.2f}" if figure["deviation"] is not None else ""
    return f"{figure['mean'] * 100:.2f}{spread} %"


def number(figure: Report | None, digits: int = 0) -> str:
    if figure is None:
        return ""
    spread = f" ± {figure['deviation']:.{digits}f}" if figure["deviation"] is not None else ""
    return f"{figure['mean']:.{digits}f}{spread}"

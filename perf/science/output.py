"""Writes a report as science/STUDY.json, and science.md and science.png from all reports that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_atomically
from perf.report.markdown import table as as_markdown
from perf.science.plan import RECIPES, STUDIES
from perf.science.plots import draw
from perf.science.score import CURVE_IMAGES
from perf.science.tables import (
    by_size,
    chosen,
    costs,
    counted,
    measured,
    orderings,
    results,
    searched,
    seconds_of,
    steps_to_multicrop,
    verdict,
)

FOLDER = "science"  # of the reports, in --out
PARTS = {  # of a study, in the order of the page, with the titles of their sections
    "": "", "long": "For longer", "sizes": "At several sizes", "choices": "What each choice contributes",
    "search": "Search over settings",
}  # fmt: skip
ENOUGH_EPOCHS = 3
ORDERINGS = (
    "The share of the pairs of SwAV's runs that each measure orders as their k-NN does: 100 % is all pairs, 50 % is "
    "chance. Better is a lower loss, an alpha-ReQ nearer to 1, and more of everything else. The papers of RankMe, "
    "LiDAR and alpha-ReQ compare settings of one method, as the search does (evaluation.md)."
)


def write(report: Mapping[str, Any], out: Path, study: str, part: str) -> None:
    """Write the files into `out`, and print the table. part: "", "search", "choices", "long" or "sizes"."""
    file = out / FOLDER / ("-".join(filter(None, (study, part))) + ".json")
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(report, indent=1) + "\n")
    tables = {"": results, "long": results, "sizes": by_size, "choices": chosen}
    print(as_markdown(searched(report, RECIPES / study) if part == "search" else tables[part](report)))
    drawn = {
        title + ending: found
        for name, title in STUDIES.items()
        for each, ending in (("", ""), ("long", ", for longer"))
        if (found := read(out, name, each))
    }
    written = [file, out / "science.md"]
    if drawn:
        draw(drawn, out / "science.png")
        written.append(out / "science.png")
    write_atomically(out / "science.md", page(out))
    print("written:", ", ".join(map(str, written)))


def read(out: Path, study: str, part: str = "") -> Mapping[str, Any] | None:
    """A report, if it was written."""
    file = out / FOLDER / ("-".join(filter(None, (study, part))) + ".json")
    return json.loads(file.read_text()) if file.exists() else None


def page(out: Path) -> str:
    """The text of science.md, from the reports in `out`."""
    parts = [
        "# Does it learn?",
        "`make science STUDY=NAME` trains every method for the same time, with several seeds. The program writes all "
        f"figures of this page; the files in {FOLDER}/ have those of every seed. Accuracy is top-1 on the test images, "
        "balanced over classes: mean and standard deviation over seeds. k-NN: weighted, k = 20, among all training "
        "images; linear: logistic regression on the standardized features. ± in a comparison is its 95 % interval, "
        "paired by seed.",
    ]
    if any(read(out, study, part) for study in STUDIES for part in ("", "long")):
        parts.append("![learning curves and results](science.png)")
    for study, title in STUDIES.items():
        found = {part: report for part in PARTS if (report := read(out, study, part))}
        if not found:
            continue
        parts.append(f"## {title}")
        for part, report in found.items():
            if part:
                parts.append(f"### {PARTS[part]}")
            parts += WRITTEN[part](report, study)
        if (table := orderings({part or "comparison": report for part, report in found.items()})) is not None:
            parts += ["### Measures without labels", ORDERINGS, as_markdown(table)]
    return "\n\n".join(parts) + "\n"


def said(report: Mapping[str, Any], study: str, part: str) -> str:
    """The command, the images, the seeds, the machine."""
    machine, seeds = report["machine"], report["seeds"]
    command = " ".join(["make science", f"STUDY={study}", *([f"ARGS={part}"] if part else [])])
    return (
        f"`{command}`, {report['minutes']:g} minutes of {machine['cores']} cores: {report['train_images']:,} training "
        f"and {report['test_images']:,} test images, {counted(seeds)} ({', '.join(map(str, seeds))}); "
        f"{machine['cpu']}, {machine['date']}."
    )


def compared(report: Mapping[str, Any], study: str) -> list[str]:
    """The paragraphs and tables of a comparison of methods."""
    if seconds_of(report) == "cpu_seconds":
        time = "Equal time is CPU time of training (user and system), which other work on the machine does not change."
    else:
        time = "The seconds are wall time of training, on one core while another run uses the other."
    parts = [
        said(report, study, ""),
        f"**{verdict(report)}**",
        as_markdown(results(report)),
        f"{time} Each method trained for the whole number of epochs that comes nearest to the same time, from a "
        f"measurement on {report['part_images']:,} images. Supervised training has a classifier of its own, trained "
        f"with all labels. The curves are among {min(CURVE_IMAGES, report['train_images']):,} training images.",
        as_markdown(costs(report)),
    ]
    if (measures := measured(report)) is not None:
        parts += ["Measures without labels, of the last epoch or the last weights:", as_markdown(measures)]
    return parts


def of_long(report: Mapping[str, Any], study: str) -> list[str]:
    """The paragraphs and tables of the comparison for longer."""
    parts = [said(report, study, "--long"), f"**{verdict(report)}**", as_markdown(results(report))]
    if (measures := measured(report)) is not None:
        parts += ["Measures without labels, of the last epoch or the last weights:", as_markdown(measures)]
    return parts


def of_sizes(report: Mapping[str, Any], study: str) -> list[str]:
    """The paragraph and the table of the comparison at several sizes."""
    told = (
        "Each row scales the images and all crops of both recipes to its size, and changes no other setting. A "
        "difference is multi-crop's k-NN less that of two crops, in points."
    )
    return [f"{said(report, study, '--sizes')} {told}", as_markdown(by_size(report))]


def of_choices(report: Mapping[str, Any], study: str) -> list[str]:
    """The paragraphs and the table of the choices."""
    steps = steps_to_multicrop(report)
    return [said(report, study, "--choices"), as_markdown(chosen(report)), *([steps] if steps else [])]


def of_search(report: Mapping[str, Any], study: str) -> list[str]:
    """The paragraph and the table of a search."""
    least = min(row["epochs"] for row in report["rows"])
    own = (
        "a fifth of the training images as the test" if seconds_of(report) == "cpu_seconds" else "the same test images"
    )
    text = (
        f"{said(report, study, '--search')} Seeds that the comparison does not use, on {own}: as many candidates for "
        "each method, and the same time for each candidate, as nearly as whole epochs allow. The last column marks the "
        "settings that the recipes have."
    )
    if least < ENOUGH_EPOCHS:
        text += f" With only {least} epoch{'s' * (least > 1)} a candidate, their order says little about long runs."
    return [text, as_markdown(searched(report, RECIPES / study))]


WRITTEN = {"": compared, "long": of_long, "sizes": of_sizes, "choices": of_choices, "search": of_search}

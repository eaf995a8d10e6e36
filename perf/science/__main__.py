"""Does it learn? Each method trained for the same time, with several seeds, scored by k-NN and a linear classifier.

    make science                                              45 minutes of two cores
    make science STUDY=emoji                                  other images: emoji, openclipart (`make data`)
    python -m perf.science [--study fashion-mnist] [--minutes 45] [--seeds 1,2,3] [--work runs/science/STUDY]
    python -m perf.science --search [--minutes 20]            a search over settings, on training images alone
    python -m perf.science --choices [--minutes 60]           what each published choice contributes
    python -m perf.science --long [--minutes 60]              multi-crop and two crops alone, each for longer
    python -m perf.science --sizes [--minutes 60]             both on the same images at 28, 64 and 96 pixels

The methods are the recipes of config/science/STUDY and supervised training of the same network; random weights and raw
pixels are baselines. Two programs run at a time, each on one core with one thread. First, short runs measure the CPU
time of an epoch of each method. Then each method trains for the number of epochs that takes the same CPU time (user and
system), as nearly as whole epochs allow, so other work on the machine changes no comparison. On a busy machine it takes
longer than --minutes. Time for scores is not training time.

The same command continues an interrupted check. It writes science/STUDY.json (and STUDY-search, STUDY-choices,
STUDY-long, STUDY-sizes), which have the figures of each seed, science.md and science.png to --out (docs).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.cli import Parser
from evaluation.arguments import numbers
from perf.program import program
from perf.science.plan import EQUAL_IMAGES, RECIPES, STUDIES, methods_of

MINUTES = {"": 45.0, "search": 20.0, "choices": 60.0, "long": 60.0, "sizes": 60.0}  # by `part_of`


def main(arguments: list[str]) -> int:
    options = parsed(arguments)

    def show(report: dict[str, Any]) -> None:
        from perf.science.output import write

        write(report, options.out, options.study, part_of(options))

    return program(lambda _stopped: run(options), show, None)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.science", __doc__)
    parser.add_argument("--minutes", type=float, help="time for all, about (default 45; search: 20; others: 60)")
    parser.add_argument("--study", default="fashion-mnist", help=f"{', '.join(STUDIES)} (default: %(default)s)")
    parser.add_argument("--seeds", help="separated by commas (default 1,2,3; search: 7)")
    parser.add_argument("--methods", help="some methods, separated by commas (default: all)")
    parser.add_argument("--data", type=Path, help="labelled images (default data/STUDY, which is fetched)")
    parser.add_argument("--work", type=Path, help="folder for runs and scores (default runs/science/STUDY)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the results (default docs)")
    parser.add_argument("--cores", type=int, default=0, help="programs at a time (default: 2, or 1 on one core)")
    parser.add_argument("--rounds", type=int, help="how often to time an epoch of each method (default 2; search: 1)")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--search", action="store_true", help="try the settings of perf/science/search.py instead")
    parts.add_argument("--choices", action="store_true", help="change one choice of multi-crop at a time instead")
    parts.add_argument("--long", action="store_true", help="only multi-crop and two crops, for longer")
    parts.add_argument("--sizes", action="store_true", help="only multi-crop and two crops, at 28, 64 and 96 pixels")
    parser.add_argument(
        "--recipes", type=Path, help="folder with a recipe for each method (default config/science/STUDY)"
    )
    options = parser.parse_args(arguments)
    if options.study not in STUDIES:
        parser.error(f"--study={options.study}: there are {', '.join(STUDIES)}")
    options.recipes = options.recipes or RECIPES / options.study
    return options


def part_of(options: argparse.Namespace) -> str:
    """Which part of a study: "search", "choices", "long", "sizes", or "" for the comparison of methods."""
    return next((part for part in MINUTES if part and getattr(options, part)), "")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole check. Raises ValueError for a mistake."""
    minutes, seeds, cores, rounds = checked(options)
    from perf.science.choices import choices
    from perf.science.search import candidates
    from perf.science.sizes import sizes

    methods = methods_of(options.recipes)
    known = [method.name for method in methods]
    names = known if options.methods is None else options.methods.split(",")
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"--methods={options.methods}: unknown {wrong[0]!r}; there are {', '.join(known)}")
    if EQUAL_IMAGES in names and not {"multicrop", "two_crops"} <= set(names):
        raise ValueError(f"--methods={options.methods}: {EQUAL_IMAGES} needs multicrop and two_crops")
    methods = [method for method in methods if method.name in names]
    if options.search:
        methods = candidates([m for m in methods if not m.supervised], options.study)
        if not methods:
            raise ValueError(f"--methods={options.methods}: there are no candidates for these methods")
    if options.choices:
        methods = choices(methods)
    if options.sizes:
        methods = sizes(methods)
    if options.long:
        methods = [method for method in methods if method.name in ("multicrop", "two_crops")]
    data = options.data or Path("data") / options.study
    check_settings(methods, data)

    from perf.science.check import compare, locked
    from perf.science.runs import Setup
    from pipeline.collections.prepare import prepare

    if options.data is None:
        prepare(options.study, data, workers=len(cores))
    work = options.work or Path("runs/science") / "-".join(filter(None, (options.study, part_of(options))))
    setup = Setup(work.absolute(), data.absolute(), cores, rounds)
    with locked(setup.work):
        if options.search:
            setup = of_training_images(setup)
        part = part_of(options)
        return compare(methods, seeds, minutes, setup, baselines=not part, curves=part in ("", "long"))


def of_training_images(setup: Any) -> Any:
    """The same for a split of the training images alone, so that a search sees no test image."""
    from perf.science.score import labelled_at
    from perf.science.subset import pack_for_search

    pack_for_search(labelled_at(setup.data, str(setup.tables)), setup.work / "split")
    return replace(setup, data=setup.work / "split")


def checked(options: argparse.Namespace) -> tuple[float, list[int], Sequence[int], int]:
    """Minutes, seeds, cores and rounds. Raises ValueError, one line."""
    minutes = options.minutes if options.minutes is not None else MINUTES[part_of(options)]
    if not 0 < minutes <= 10_000:
        raise ValueError(f"--minutes={minutes:g}: expected more than 0, at most 10000")
    text = options.seeds or ("7" if options.search else "1,2,3")
    seeds = [int(seed) for seed in numbers("--seeds", text, low=-1, whole=True)]
    rounds = options.rounds if options.rounds is not None else 1 if options.search else 2
    if rounds < 1:
        raise ValueError(f"--rounds={rounds}: expected 1 or more")
    available = sorted(os.sched_getaffinity(0))
    if not 0 <= options.cores <= len(available):
        raise ValueError(
            f"--cores={options.cores}: expected 1 to {len(available)}, the cores that this process may use"
        )
    if not options.out.is_dir():
        raise ValueError(f"--out={options.out}: no such folder")
    if not any(options.recipes.glob("*.yaml")):
        raise ValueError(f"--recipes={options.recipes}: no recipe (*.yaml) there")
    if options.data is not None and not options.data.exists():
        raise ValueError(f"--data={options.data}: no such folder or file")
    return minutes, seeds, available[-(options.cores or min(2, len(available))) :], rounds


def check_settings(methods: Sequence[Any], data: Path) -> None:
    """Raises ConfigError if a recipe with its settings does not load."""
    from config.recipe import load_config

    for method in methods:
        load_config([str(method.recipe), f"data.path={data}", *method.settings])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

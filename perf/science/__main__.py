"""Does it learn? Each method trained for the same time, with several seeds, scored by k-NN and a linear classifier.

    make science                                              45 minutes of two cores
    python -m perf.science [--minutes 45] [--seeds 1,2,3] [--data data/fashion-mnist] [--work runs/science]
    python -m perf.science --search [--minutes 20]            a search over settings, with another seed

The methods are the recipes of config/science and supervised training of the same network; random weights and raw pixels
are baselines. Two programs run at a time, each on one core with one thread, so that both cores are always busy. First,
short runs measure the time of an epoch of each method under these conditions. Then each method trains for the number of
epochs that takes the same time, as nearly as whole epochs allow. Time for scores is not training time.

The same command continues an interrupted check. It writes science.md, science.json and science.png to --out (docs); the
search writes science-search.json, which science.md also shows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import Parser
from evaluation.arguments import numbers
from perf.program import program
from perf.science.plan import RECIPES, methods_of

DEMO = Path("data/fashion-mnist")


def main(arguments: list[str]) -> int:
    options = parsed(arguments)

    def show(report: dict[str, Any]) -> None:
        from perf.science.output import write

        write(report, options.out, options.search)

    return program(lambda _stopped: run(options), show, None)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.science", __doc__)
    parser.add_argument("--minutes", type=float, help="time for the whole check, about (default 45; search: 20)")
    parser.add_argument("--seeds", help="separated by commas (default 1,2,3; search: 7)")
    parser.add_argument("--methods", help="some methods, separated by commas (default: all)")
    parser.add_argument(
        "--data", type=Path, default=DEMO, help="labelled images of about 28 pixels (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, help="folder for runs and scores (default runs/science)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the results (default docs)")
    parser.add_argument("--cores", type=int, default=0, help="programs at a time (default: 2, or 1 on one core)")
    parser.add_argument("--rounds", type=int, help="how often to time an epoch of each method (default 2; search: 1)")
    parser.add_argument("--search", action="store_true", help="try the settings of perf/science/search.py instead")
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="folder with a recipe for each method")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole check. Raises ValueError for a mistake."""
    minutes, seeds, cores, rounds = checked(options)
    from perf.science.search import candidates

    methods = methods_of(options.recipes)
    known = [method.name for method in methods]
    names = known if options.methods is None else options.methods.split(",")
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"--methods={options.methods}: unknown {wrong[0]!r}; there are {', '.join(known)}")
    methods = [method for method in methods if method.name in names]
    if options.search:
        methods = candidates([method for method in methods if not method.supervised])
        if not methods:
            raise ValueError(f"--methods={options.methods}: there are no candidates for these methods")
    check_settings(methods, options.data)

    from perf.science.check import compare, locked
    from perf.science.runs import Setup
    from pipeline.fashion_mnist import prepare

    if options.data == DEMO:
        prepare(DEMO, workers=len(cores))
    work = options.work or Path("runs/science-search" if options.search else "runs/science")
    setup = Setup(work.absolute(), options.data.absolute(), cores, rounds)
    with locked(setup.work):
        return compare(methods, seeds, minutes, setup, whole=not options.search)


def checked(options: argparse.Namespace) -> tuple[float, list[int], Sequence[int], int]:
    """Minutes, seeds, cores and rounds. Raises ValueError, one line."""
    minutes = options.minutes if options.minutes is not None else 20.0 if options.search else 45.0
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
    if options.data != DEMO and not options.data.exists():
        raise ValueError(f"--data={options.data}: no such folder or file")
    return minutes, seeds, available[-(options.cores or min(2, len(available))) :], rounds


def check_settings(methods: Sequence[Any], data: Path) -> None:
    """Raises ConfigError if a recipe with its settings does not load."""
    from config.recipe import load_config

    for method in methods:
        load_config([str(method.recipe), f"data.path={data}", *method.settings])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

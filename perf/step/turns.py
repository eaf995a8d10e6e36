"""Is a training step faster than that of an older checkout? Both train the same recipe, and take turns.

    python -m perf.step.turns RECIPE.yaml [key=value ...] --base CHECKOUT [--rounds 24] [--steps 8]

Each checkout runs its own train.py on the same JPEGs, made here unless data.path= is given. While one of them takes
--steps steps, the other one is stopped (SIGSTOP). What slows the machine for a while slows both, so that the ratio of a
round holds where a rate does not. Rounds begin with the one and the other in turn.

Prints the median and the quartiles of the ratios, and both rates. Settings must be known to both checkouts.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import quantiles

from common.cli import Parser, at_least
from common.progress import progress_bar
from common.signals import signal_on_parents_death
from config.recipe import ROOT
from perf.images import make_jpegs
from perf.machine import machine
from perf.program import Report, check_base, program

IMAGES = 600  # of each of two classes
WARM_UP = 2  # turns that do not count
POLL = 0.002  # seconds between two looks at the file of metrics
WITH_PARENT = partial(signal_on_parents_death, signal.SIGKILL)  # one that is stopped would stay for ever


class Training:
    """train.py of a checkout, which runs only in `turn`. folder: for its tables, its run and its log."""

    def __init__(self, checkout: Path, arguments: list[str], folder: Path) -> None:
        folder.mkdir()
        self.checkout = checkout
        self.metrics, self.log = folder / "run" / "metrics.jsonl", folder / "log"
        places = [f"run.directory={self.metrics.parent}", f"data.cache={folder / 'tables'}"]
        with self.log.open("w") as log:
            command = [sys.executable, "train.py", *arguments, *places]
            self.process = subprocess.Popen(command, cwd=checkout, stdout=log, stderr=log, preexec_fn=WITH_PARENT)

    def turn(self) -> float:
        """Go on until the next line of metrics. Returns the seconds; raises RuntimeError if training ends."""
        lines, start = self._lines(), time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        while self._lines() == lines:
            if self.process.poll() is not None:
                raise RuntimeError(f"train.py of {self.checkout} ended: {self.log.read_text()[-500:]}")
            time.sleep(POLL)
        taken = time.perf_counter() - start
        self.process.send_signal(signal.SIGSTOP)
        return taken

    def _lines(self) -> int:
        return self.metrics.read_bytes().count(b'"images_per_second"') if self.metrics.exists() else 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.step.turns", __doc__)
    parser.add_argument("recipe", help="a recipe, as of train.py")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, as of train.py")
    parser.add_argument("--base", type=Path, required=True, metavar="CHECKOUT", help="the older checkout")
    parser.add_argument("--rounds", type=at_least(4), default=24, help="turns of each (default 24)")
    parser.add_argument("--steps", type=at_least(1), default=8, help="steps of a turn (default 8)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_intermixed_args(arguments)
    return program(lambda _stopped: measure(options), show, options.json)


def measure(options: argparse.Namespace) -> Report:
    check_base(options.base, "train.py")
    if not Path(options.recipe).is_file():
        raise ValueError(f"{options.recipe}: no such recipe")
    with tempfile.TemporaryDirectory() as folder:
        given = [str(Path(options.recipe).resolve()), "run.epochs=100000", *options.settings]
        given += [f"run.log_every={options.steps}"]
        if not any(setting.startswith("data.path=") for setting in options.settings):
            for name in ("a", "b"):
                make_jpegs(Path(folder) / "images" / name, IMAGES, os.cpu_count() or 1)
            given += [f"data.path={folder}/images"]
        base, now = take_turns([options.base.resolve(), ROOT], given, Path(folder), options.rounds)
    lower, middle, upper = quantiles([old / new for old, new in zip(base, now, strict=True)], n=4)
    return {
        "recipe": [options.recipe, *options.settings],
        "speed": {"median": middle, "quartiles": [lower, upper]},
        "seconds": {"base": base, "now": now},
        "steps": options.steps,
        "machine": machine(),
    }


def show(report: Report) -> None:
    (lower, upper), seconds = report["speed"]["quartiles"], report["seconds"]
    rates = [report["steps"] * len(turns) / sum(turns) for turns in (seconds["now"], seconds["base"])]
    print(f"speed, now over base: {report['speed']['median']:.3f} (quartiles {lower:.3f} and {upper:.3f})")
    print(f"steps a second: now {rates[0]:.3g}, base {rates[1]:.3g}")


def take_turns(checkouts: list[Path], arguments: list[str], folder: Path, rounds: int) -> list[list[float]]:
    """The seconds of each turn of each checkout."""
    seconds: list[list[float]] = [[] for _ in checkouts]
    trainings: list[Training] = []
    try:
        with progress_bar((rounds + WARM_UP) * len(checkouts), "training", "turn") as bar:
            for index, checkout in enumerate(checkouts):  # one starts after the other
                trainings.append(Training(checkout, arguments, folder / str(index)))
                for _ in range(WARM_UP):
                    trainings[-1].turn()
                    bar.update()
            for number in range(rounds):
                for index in (0, 1) if number % 2 else (1, 0):
                    seconds[index].append(trainings[index].turn())
                    bar.update()
    finally:
        for training in trainings:
            training.end()
    return seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The programs of the check as jobs: training runs, scores, and the short runs that tell what an epoch costs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.recipe import load_config
from perf.science.jobs import Job, run_jobs
from perf.science.plan import Cost, Method, curve_epochs

WARM_UP = 0.2  # of the epochs, at most: a recipe's own is meant for its own number of them
PART, PART_EPOCHS = 10_000, 2  # images and epochs of a short run
AROUND = 15.0  # seconds that starting and ending a program takes, where it was not seen


@dataclass(frozen=True)
class Place:
    """work: folder of everything that is made. data: the images. cores: a program each. rounds: of timing."""

    work: Path
    data: Path
    cores: Sequence[int]
    rounds: int = 2

    @property
    def tables(self) -> Path:
        return self.work / "tables"


def training(method: Method, seed: int, epochs: int, seconds: float, place: Place, folder: Path, data: Path) -> Job:
    """One run of a method into `folder`; summary.json there is its marker."""
    every = curve_epochs(epochs)
    if method.supervised:
        words = ["-m", "perf.science.supervised", folder, method.recipe, data, "--epochs", epochs, "--seed", seed]
        words += ["--keep", every, "--tables", place.tables]
    else:
        warm_up = load_config([str(method.recipe), f"data.path={data}", *method.settings]).optimizer.warmup_epochs
        words = ["train.py", method.recipe, f"data.path={data}", f"data.cache={place.tables}", *method.settings]
        words += [f"run.directory={folder}", f"run.seed={seed}", f"run.epochs={epochs}", "pipeline.threads=1"]
        words += [f"optimizer.warmup_epochs={warmed(warm_up, epochs):g}"]
        # k-NN is scored from the checkpoints afterwards: here it would count as training time
        words += ["evaluation.every=0", "evaluation.max_train=1000", f"checkpoint.keep_epochs={every}"]
        words += [f"checkpoint.every={every} epochs", "checkpoint.keep=1", "data.workers=1"]
    return Job(f"{method.name} {seed}", tuple(map(str, words)), folder / "summary.json", seconds)


def warmed(recipe: float | str, epochs: int) -> float:
    """Epochs of warm-up: the recipe's, at most WARM_UP of all."""
    return min(WARM_UP * epochs, recipe) if isinstance(recipe, int | float) else WARM_UP * epochs


def scoring(
    name: str, weights: str, method: Method, seed: int, place: Place, seconds: float, along: Path | None = None
) -> Job:
    """The scores of weights, `random` or `pixels`; along: a run whose kept checkpoints are scored too."""
    out, words = place.work / "scores" / f"{name}.json", ["-m", "perf.science.score"]
    words += [str(out), weights, str(method.recipe), str(place.data), "--seed", str(seed)]
    words += ["--tables", str(place.tables), *([] if along is None else ["--along", str(along)])]
    return Job(f"score {name}", tuple(words), out, seconds)


def batch_of(method: Method) -> int:
    """Images a step that a training set has to have; supervised training takes fewer where there are fewer."""
    return 1 if method.supervised else load_config([str(method.recipe), "data.path=.", *method.settings]).run.batch_size


def clock_of(folder: Path) -> list[float]:
    """Seconds of training until the end of each epoch whose checkpoint a run has kept; without scores, nor start."""
    summary = json.loads((folder / "summary.json").read_text())
    if "training_seconds" in summary:
        return list(summary["training_seconds"])
    states = [json.loads(path.read_text()) for path in sorted((folder / "checkpoints").glob("step-*/state.json"))]
    return [state["clock"]["training_seconds"] for state in states]


def measured_costs(methods: Sequence[Method], seed: int, place: Place, images: tuple[int, int]) -> dict[str, Cost]:
    """What an epoch of `images` (training images, those of the part) costs each method while the other cores are
    busy with another: mean over the rounds, in each of which another one begins."""
    part, taken = place.work / "part", {}
    jobs = []
    for turn in range(place.rounds):
        for method in turned(methods, turn):
            folder = place.work / "speed" / f"{method.name}-{turn}"
            job = training(method, seed, PART_EPOCHS, 25.0, place, folder, part)
            jobs.append((method, turn, folder, job))
    taken = run_jobs(
        [Job(f"{m.name} speed {turn}", job.command, job.done, job.seconds) for m, turn, _, job in jobs],
        place.cores, "what an epoch costs",
    )  # fmt: skip
    found: dict[str, list[Cost]] = {}
    for method, turn, folder, _ in jobs:
        wall = taken.get(f"{method.name} speed {turn}")
        cost = cost_of(clock_of(folder), wall, images[0] / images[1], has_memory(method))
        found.setdefault(method.name, []).append(cost)
    return {name: average(costs) for name, costs in found.items()}


def cost_of(clock: Sequence[float], wall: float | None, scale: float, memory: bool) -> Cost:
    """The cost of a whole epoch from the clock after each of two short ones. What the first took longer grows with
    the images where it is a memory that was filled, and is the pipeline's start elsewhere."""
    first, second = clock
    longer = max(0.0, 2 * first - second)
    around = AROUND if wall is None else wall - second
    return Cost((second - first) * scale, longer * scale if memory else longer, around)


def has_memory(method: Method) -> bool:
    """Whether it begins by filling a memory of all images."""
    config = load_config([str(method.recipe), "data.path=.", *method.settings])
    return not method.supervised and config.get("method", "swav") != "swav"


def turned(methods: Sequence[Method], turn: int) -> list[Method]:
    """The methods in order, but another one begins."""
    first = turn % len(methods)
    return [*methods[first:], *methods[:first]]


def average(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.fmean(getattr(cost, name) for cost in costs) for name in ("epoch", "first", "around")))


def weights_in(folder: Path) -> str:
    """What a run's last weights are called for evaluation: its folder, or the supervised run's last file."""
    files = sorted(folder.glob("epoch-*.safetensors"))
    return str(files[-1] if files else folder)


def read_json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text())

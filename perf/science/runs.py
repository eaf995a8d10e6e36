"""The jobs of the check: training runs, scores, and short runs that measure the cost of an epoch."""

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

WARM_UP = 0.2  # of the epochs, at most: a recipe's warm-up is for its own number of epochs
PART, PART_EPOCHS = 10_000, 2  # images and epochs of a short run
AROUND = 15.0  # seconds to start and end a program, if not measured


@dataclass(frozen=True)
class Setup:
    """work: folder for all files. data: the images. cores: run one program each. rounds: of timing an epoch."""

    work: Path
    data: Path
    cores: Sequence[int]
    rounds: int = 2

    @property
    def tables(self) -> Path:
        return self.work / "tables"


def training(method: Method, seed: int, epochs: int, seconds: float, setup: Setup, folder: Path, data: Path) -> Job:
    """The job that trains a method in `folder`; it is done when summary.json is there. seconds: estimated."""
    every = curve_epochs(epochs)
    if method.supervised:
        words = ["-m", "perf.science.supervised", folder, method.recipe, data, "--epochs", epochs, "--seed", seed]
        words += ["--keep", every, "--tables", setup.tables]
    else:
        recipe_warm_up = load_config(
            [str(method.recipe), f"data.path={data}", *method.settings]
        ).optimizer.warmup_epochs
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={method.processes}"]
        words = words if method.processes > 1 else []
        words += ["train.py", method.recipe, f"data.path={data}", f"data.cache={setup.tables}", *method.settings]
        words += [f"run.directory={folder}", f"run.seed={seed}", f"run.epochs={epochs}"]
        words += ["pipeline.threads=1", "pipeline.backend=dali", "evaluation.watched=0"]
        words += [f"optimizer.warmup_epochs={warm_up_epochs(recipe_warm_up, epochs):g}"]
        # k-NN is computed from the checkpoints afterwards: here it would count as training time
        words += ["evaluation.every=0", "evaluation.max_train=1000", f"checkpoint.keep_epochs={every}"]
        words += [f"checkpoint.every={every} epochs", "checkpoint.keep=1", "data.workers=1"]
    return Job(f"{method.name} {seed}", tuple(map(str, words)), folder / "summary.json", seconds)


def warm_up_epochs(recipe: float | str, epochs: int) -> float:
    """Epochs of warm-up: the recipe's, but at most the share WARM_UP of all."""
    return min(WARM_UP * epochs, recipe) if isinstance(recipe, int | float) else WARM_UP * epochs


def scoring(
    name: str, weights: str, method: Method, seed: int, setup: Setup, seconds: float, along: Path | None = None
) -> Job:
    """The job that scores weights, `random` or `pixels`. along: a run whose earlier checkpoints it scores too."""
    out, words = setup.work / "scores" / f"{name}.json", ["-m", "perf.science.score"]
    words += [str(out), weights, str(method.recipe), str(setup.data), "--seed", str(seed)]
    words += ["--tables", str(setup.tables), *([] if along is None else ["--along", str(along)])]
    return Job(f"score {name}", tuple(words), out, seconds)


def batch_of(method: Method) -> int:
    """The least number of training images: a batch; supervised training also takes smaller batches."""
    return 1 if method.supervised else load_config([str(method.recipe), "data.path=.", *method.settings]).run.batch_size


def clock_of(folder: Path) -> list[float]:
    """CPU seconds of training until each checkpoint that a run has kept, without scores and without its start."""
    summary = json.loads((folder / "summary.json").read_text())
    if "training_seconds" in summary:
        return list(summary["training_seconds"])
    states = [json.loads(path.read_text()) for path in sorted((folder / "checkpoints").glob("step-*/state.json"))]
    return [state["clock"]["cpu_seconds"] for state in states]


def measured_costs(methods: Sequence[Method], seed: int, setup: Setup, images: tuple[int, int]) -> dict[str, Cost]:
    """The cost of each method while other methods use the other cores: mean over rounds, each of which begins with the
    next method. images: number of training images, and of those in the part that the short runs use."""
    part = setup.work / "part"
    jobs = []
    for turn in range(setup.rounds):
        for method in rotated(methods, turn):
            folder = setup.work / "speed" / f"{method.name}-{turn}"
            job = training(method, seed, PART_EPOCHS, 25.0, setup, folder, part)
            jobs.append((method, turn, folder, job))
    seconds = run_jobs(
        [Job(f"{m.name} speed {turn}", job.command, job.done, job.seconds) for m, turn, _, job in jobs],
        setup.cores, "cost of an epoch",
    )  # fmt: skip
    by_method: dict[str, list[Cost]] = {}
    for method, turn, folder, _ in jobs:
        wall = seconds.get(f"{method.name} speed {turn}")
        cost = cost_of(clock_of(folder), wall, images[0] / images[1], has_memory(method))
        by_method.setdefault(method.name, []).append(cost)
    return {name: average(costs) for name, costs in by_method.items()}


def cost_of(clock: Sequence[float], wall: float | None, scale: float, memory: bool) -> Cost:
    """The cost of a method from a run of two short epochs. clock: CPU seconds after each; wall: of the whole program,
    None if not measured; scale: images of a whole epoch / of a short one.

    The first epoch takes longer. With `memory` it fills a memory, so the difference grows with the images; otherwise it
    is the start of the pipeline.
    """
    first, second = clock
    longer = max(0.0, 2 * first - second)
    around = AROUND if wall is None else max(0.0, wall - second)
    return Cost((second - first) * scale, longer * scale if memory else longer, around)


def has_memory(method: Method) -> bool:
    """Whether training begins by filling a memory of all images."""
    config = load_config([str(method.recipe), "data.path=.", *method.settings])
    return not method.supervised and config.get("method", "swav") != "swav"


def rotated(methods: Sequence[Method], turn: int) -> list[Method]:
    """The methods in the same order, beginning with number `turn`."""
    first = turn % len(methods)
    return [*methods[first:], *methods[:first]]


def average(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.fmean(getattr(cost, name) for cost in costs) for name in ("epoch", "first", "around")))


def weights_in(folder: Path) -> str:
    """The last weights of a run, as evaluation names them: its folder, or the last file of supervised training."""
    files = sorted(folder.glob("epoch-*.safetensors"))
    return str(files[-1] if files else folder)


def read_json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text())

"""Runs the check: costs, plan, training runs, scores; and returns all figures in one report."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.files import lock, write_atomically
from config.recipe import ROOT
from perf.machine import machine
from perf.science.jobs import Job, run_jobs
from perf.science.measures import CALLED
from perf.science.plan import Cost, Method, epochs_for, mean_and_deviation, share_of
from perf.science.runs import PART, Setup, batch_of, clock_of, measured_costs, read_json, scoring, training, weights_in
from pipeline.dataset.table import DatasetError

SCORE_SECONDS = 40.0  # of a score job, as long as no job was timed; a learning curve takes half of that in addition
PIXEL_SECONDS = 200.0  # for scoring the pixels, whose linear classifier has more features than that of a network
FIGURES = ("knn", "linear", "hands", "classifier", "cpu_seconds", *CALLED)
BASELINES = {"random": "random weights", "pixels": "raw pixels"}


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Lock the folder for this process. Raises ValueError if another check has locked it."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(work / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(
            f"--work={work}: another science check works there; wait for its end, or choose another folder"
        ) from None
    with held:
        yield


def compare(
    methods: Sequence[Method],
    seeds: Sequence[int],
    minutes: float,
    setup: Setup,
    baselines: bool = True,
    curves: bool = True,
) -> dict[str, Any]:
    """Train and score every method with every seed in about `minutes`; returns the report.

    Jobs that are done already are not repeated. baselines: also score random weights and pixels. curves: also score
    earlier checkpoints.
    Raises ValueError if `setup.work` holds another plan, RuntimeError if a program fails.
    """
    settings = {
        "minutes": minutes, "seeds": list(seeds), "data": os.path.relpath(setup.data, ROOT),
        "methods": {method.name: [digest(method.recipe), *method.settings] for method in methods},
    }  # fmt: skip
    file = setup.work / "plan.json"
    if file.exists() and any(read_json(file)[name] != value for name, value in settings.items()):
        raise ValueError(
            f"--work={setup.work} holds a check with other settings; choose another folder, or remove this one"
        )
    bases = random_jobs(methods[0], seeds, setup) if baselines else []
    if not file.exists():
        made = settings | planned(methods, seeds, minutes, setup, bases, curves)
        write_atomically(file, json.dumps(made, indent=1) + "\n")
    plan = read_json(file)
    run_jobs(bases, setup.cores, "random weights")  # those that an interruption left undone

    jobs, scores = [], []
    for seed in seeds:  # seed by seed, so that changes of the machine over time affect all methods equally
        for method in methods:
            folder, epochs = setup.work / "runs" / f"{method.name}-{seed}", plan["epochs"][method.name]
            cost = Cost(**plan["costs"][method.name])
            seconds = cost.around + cost.first + epochs * cost.epoch
            jobs.append(training(method, seed, epochs, seconds, setup, folder, setup.data))
    run_jobs(jobs, setup.cores, "training")
    if baselines:
        scores.append(scoring("pixels", "pixels", methods[0], seeds[0], setup, PIXEL_SECONDS))
    for seed in seeds:
        for method in methods:
            folder = setup.work / "runs" / f"{method.name}-{seed}"
            scores.append(scored(method, seed, folder, setup, plan["score_seconds"], curves))
    run_jobs(scores, setup.cores, "scores")
    return report(methods, seeds, plan, setup, baselines)


def planned(
    methods: Sequence[Method],
    seeds: Sequence[int],
    minutes: float,
    setup: Setup,
    bases: Sequence[Job],
    curves: bool,
) -> dict[str, Any]:
    """The plan: costs, epochs and the machine. First scores random weights, which shows how long scores take."""
    from perf.science.score import labelled_at
    from perf.science.subset import pack_part

    began, before = time.monotonic(), cpu_seconds_of_jobs()
    data = labelled_at(setup.data, str(setup.tables))
    images = len(data.train_rows)
    part = min(PART, images // 2)
    if part < (least := max(map(batch_of, methods), default=1)):
        raise DatasetError(
            f"--data={setup.data}: {images} training images are too few; expected {2 * least} or more, with classes"
        )
    pack_part(data, part, min(200, len(data.test_rows)), setup.work / "part")
    run_jobs(bases, setup.cores, "random weights")
    score_seconds = max([read_json(job.done)["seconds"] for job in bases], default=SCORE_SECONDS)
    timed = [method for method in methods if not method.images_of]
    costs = measured_costs(timed, seeds[0], setup, (images, part))
    equal = {method.name: method for method in methods if method.images_of}
    all_costs = costs | {name: costs[as_costly(method, timed)] for name, method in equal.items()}
    around = [all_costs[method.name].around for method in methods for _ in seeds]
    spent = cpu_seconds_of_jobs() - before + (PIXEL_SECONDS if bases else 0.0)
    scoring_seconds = score_seconds * (1.5 if curves else 1.0)
    share = share_of(minutes * 60 * len(setup.cores), spent, around, scoring_seconds)
    epochs = epochs_for(costs, share)
    epochs |= {name: epochs[method.images_of] for name, method in equal.items()}
    return {
        "share_seconds": share,
        "score_seconds": scoring_seconds,
        "part_images": part,
        "train_images": images,
        "test_images": len(data.test_rows),
        "costs": {name: asdict(cost) for name, cost in all_costs.items()},
        "epochs": epochs,
        "planning_seconds": time.monotonic() - began,
        "machine": machine(setup.cores),
    }


def as_costly(method: Method, timed: Sequence[Method]) -> str:
    """The timed method whose epochs cost what those of `method` do: the same but for the epochs, or the nearest."""
    same = (other.name for other in timed if (other.recipe, other.settings) == (method.recipe, method.settings))
    return next(same, method.images_of)


def cpu_seconds_of_jobs() -> float:
    """User and system time of all jobs that have ended. Their wall time would count other work on the machine too."""
    times = os.times()
    return times.children_user + times.children_system


def random_jobs(method: Method, seeds: Sequence[int], setup: Setup) -> list[Job]:
    """The job that scores random weights, for each seed."""
    return [scoring(f"random-{seed}", "random", method, seed, setup, SCORE_SECONDS) for seed in seeds]


def scored(method: Method, seed: int, folder: Path, setup: Setup, seconds: float, curves: bool) -> Job:
    """The job that scores a run; if `curves`, also its earlier checkpoints."""
    name, along = f"{method.name}-{seed}", folder if curves else None
    return scoring(name, weights_in(folder), method, seed, setup, seconds, along)


def report(
    methods: Sequence[Method], seeds: Sequence[int], plan: Mapping[str, Any], setup: Setup, baselines: bool
) -> dict[str, Any]:
    """The plan and "rows": for each method mean and deviation over seeds, and the figures of each run."""
    rows = []
    for method in methods:
        runs = []
        for seed in seeds:
            scores = read_json(setup.work / "scores" / f"{method.name}-{seed}.json")
            seconds = clock_of(setup.work / "runs" / f"{method.name}-{seed}")[-1] * method.processes
            images = plan["train_images"] * plan["epochs"][method.name]
            measures = measures_of(setup.work / "runs" / f"{method.name}-{seed}")
            runs.append({"seed": seed, "cpu_seconds": seconds, **scores, **measures, "images": images})
        rows.append(row(method.name, method.title, runs) | {"epochs": plan["epochs"][method.name]})
        rows[-1] |= {"settings": list(method.settings), "recipe": method.recipe.stem, "against": method.against}
    if baselines:
        random = [{"seed": s, **read_json(setup.work / "scores" / f"random-{s}.json")} for s in seeds]
        pixels = [dict(read_json(setup.work / "scores" / "pixels.json"))]
        rows += [row("random", BASELINES["random"], random), row("pixels", BASELINES["pixels"], pixels)]
    return {**plan, "rows": rows}


def measures_of(folder: Path) -> dict[str, float]:
    """Of a run's last epoch: what may tell why it learned; nothing for supervised training."""
    summary = read_json(folder / "summary.json")
    return {name: summary[name] for name in CALLED if name in summary}


def digest(recipe: Path) -> str:
    """A hash of the recipe's text, to notice changes."""
    return hashlib.sha256(recipe.read_bytes()).hexdigest()[:16]


def row(name: str, title: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the report: a method's runs, and {"mean", "deviation"} of each of their figures."""
    figures: dict[str, Any] = {}
    for figure in FIGURES:
        values = [run[figure] for run in runs if figure in run]
        if values:
            mean, deviation = mean_and_deviation(values)
            figures[figure] = {"mean": mean, "deviation": deviation}
    return {"name": name, "title": title, **figures, "runs": runs}

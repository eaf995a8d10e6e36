"""The course of the check: costs, plan, runs, scores; and all figures in one report."""

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
from perf.science.plan import Cost, Method, epochs_for, mean_and_deviation, share_of
from perf.science.runs import PART, Place, batch_of, clock_of, measured_costs, read_json, scoring, training, weights_in
from pipeline.dataset.table import DatasetError

SCORE_SECONDS = 40.0  # of a score job, where none has been timed; a learning curve is about half as much again
PIXEL_SECONDS = 200.0  # of scoring the pixels: their linear classifier has more features than a network's
BASELINES = {"random": "random weights", "pixels": "raw pixels"}


@contextmanager
def held(work: Path) -> Iterator[None]:
    """The folder is ours alone meanwhile. Raises ValueError where another of these works in it."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        own = lock(work / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"--work={work}: another of these works there; wait for it, or choose another") from None
    with own:
        yield


def compare(
    methods: Sequence[Method], seeds: Sequence[int], minutes: float, place: Place, whole: bool = True
) -> dict[str, Any]:
    """Train and score every method with every seed, within about `minutes` of the cores; what is done already is
    taken as it is. whole: with random weights, pixels and learning curves. Raises ValueError where `place.work` holds
    another plan, RuntimeError where a program fails."""
    wanted = {
        "minutes": minutes, "seeds": list(seeds), "data": os.path.relpath(place.data, ROOT),
        "methods": {method.name: [digest(method.recipe), *method.settings] for method in methods},
    }  # fmt: skip
    file = place.work / "plan.json"
    if file.exists() and any(read_json(file)[name] != value for name, value in wanted.items()):
        raise ValueError(f"--work={place.work} holds what was begun with other settings; choose another, or remove it")
    bases = random_jobs(methods[0], seeds, place) if whole else []
    if not file.exists():
        write_atomically(file, json.dumps(wanted | planned(methods, seeds, minutes, place, bases), indent=1) + "\n")
    plan = read_json(file)
    run_jobs(bases, place.cores, "random weights")  # those of a machine that was lost meanwhile

    jobs, scores = [], []
    for seed in seeds:  # seed by seed, so that whatever drifts on the machine meets all methods alike
        for method in methods:
            folder, epochs = place.work / "runs" / f"{method.name}-{seed}", plan["epochs"][method.name]
            cost = Cost(**plan["costs"][method.name])
            seconds = cost.around + cost.first + epochs * cost.epoch
            jobs.append(training(method, seed, epochs, seconds, place, folder, place.data))
    run_jobs(jobs, place.cores, "training")
    if whole:
        scores.append(scoring("pixels", "pixels", methods[0], seeds[0], place, PIXEL_SECONDS))
    for seed in seeds:
        for method in methods:
            folder = place.work / "runs" / f"{method.name}-{seed}"
            scores.append(scored(method, seed, folder, place, plan["score_seconds"], whole))
    run_jobs(scores, place.cores, "scores")
    return report(methods, seeds, plan, place, whole)


def planned(
    methods: Sequence[Method], seeds: Sequence[int], minutes: float, place: Place, bases: Sequence[Job]
) -> dict[str, Any]:
    """Costs and epochs. The scores of random weights come first: they tell how long scores take."""
    from perf.science.score import labelled_at
    from perf.science.subset import pack_part

    began = time.monotonic()
    data = labelled_at(place.data, str(place.tables))
    images = len(data.train_rows)
    part = min(PART, images // 2)
    if part < (least := max(map(batch_of, methods), default=1)):
        raise DatasetError(
            f"--data={place.data}: {images} training images are too few; {2 * least} with classes at least"
        )
    pack_part(data, part, min(200, len(data.test_rows)), place.work / "part")
    run_jobs(bases, place.cores, "random weights")
    score_seconds = max([read_json(job.done)["seconds"] for job in bases], default=SCORE_SECONDS)
    costs = measured_costs(methods, seeds[0], place, (images, part))
    around = [costs[method.name].around for method in methods for _ in seeds]
    spent = (time.monotonic() - began) * len(place.cores) + (PIXEL_SECONDS if bases else 0.0)
    scoring_seconds = score_seconds * (1.5 if bases else 1.0)
    share = share_of(minutes * 60 * len(place.cores), spent, around, scoring_seconds)
    return {
        "share_seconds": share,
        "score_seconds": scoring_seconds,
        "part_images": part,
        "train_images": images,
        "test_images": len(data.test_rows),
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "epochs": epochs_for(costs, share),
        "planning_seconds": time.monotonic() - began,
        "machine": machine(place.cores),
    }


def random_jobs(method: Method, seeds: Sequence[int], place: Place) -> list[Job]:
    """Scores of random weights for each seed."""
    return [scoring(f"random-{seed}", "random", method, seed, place, SCORE_SECONDS) for seed in seeds]


def scored(method: Method, seed: int, folder: Path, place: Place, seconds: float, whole: bool) -> Job:
    """The scores of a run, and of the checkpoints along it."""
    name, along = f"{method.name}-{seed}", folder if whole else None
    return scoring(name, weights_in(folder), method, seed, place, seconds, along)


def report(
    methods: Sequence[Method], seeds: Sequence[int], plan: Mapping[str, Any], place: Place, whole: bool
) -> dict[str, Any]:
    """All figures: a row a method with mean and deviation over seeds, and every run's own."""
    rows = []
    for method in methods:
        runs = []
        for seed in seeds:
            found = read_json(place.work / "scores" / f"{method.name}-{seed}.json")
            seconds = clock_of(place.work / "runs" / f"{method.name}-{seed}")[-1]
            images = plan["train_images"] * plan["epochs"][method.name]
            runs.append({"seed": seed, "training_seconds": seconds, **found, "images": images})
        rows.append(row(method.name, method.title, runs) | {"epochs": plan["epochs"][method.name]})
        rows[-1] |= {"settings": list(method.settings), "recipe": method.recipe.stem}
    if whole:
        random = [{"seed": s, **read_json(place.work / "scores" / f"random-{s}.json")} for s in seeds]
        pixels = [dict(read_json(place.work / "scores" / "pixels.json"))]
        rows += [row("random", BASELINES["random"], random), row("pixels", BASELINES["pixels"], pixels)]
    return {**plan, "rows": rows}


def digest(recipe: Path) -> str:
    """What tells one text of a recipe from another."""
    return hashlib.sha256(recipe.read_bytes()).hexdigest()[:16]


def row(name: str, title: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A method's runs with {"mean", "deviation"} of each figure that all of them have."""
    figures: dict[str, Any] = {}
    for figure in ("knn", "linear", "classifier", "training_seconds"):
        values = [run[figure] for run in runs if figure in run]
        if values:
            mean, deviation = mean_and_deviation(values)
            figures[figure] = {"mean": mean, "deviation": deviation}
    return {"name": name, "title": title, **figures, "runs": runs}

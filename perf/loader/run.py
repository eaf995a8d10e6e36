"""Runs the loader benchmark: from checked arguments to its report."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from common.progress import progress_bar
from config.recipe import ROOT
from perf.loader.contenders import Key, Material, line_up, make
from perf.loader.plan import Plan, rounds_within, turn_seconds
from pipeline.crops import Crops
from pipeline.dataset.open import find_split, open_dataset

if TYPE_CHECKING:
    from perf.images import Jpegs
    from perf.interleaved import Contender, Turn
    from pipeline.dataset.table import SampleTable

FOLDER = Path("data/bench")  # made images, tables, and temporary files of a run
LIKE = {"bench": "photographs", "imagenet": "imagenet-like"}  # folders of made images
TURNS_SHARE, MEMORY_SHARE = 0.5, 0.4  # of the rest of a budget: for the turns, then of what these leave for memory
SWEEP_SHARE = 0.12  # of the budget for the sweep, at least, even if all else took too long
LOADERS = ("ffcv", "dali", "torchvision", "dali-random")  # those that a training can use


def run(options: argparse.Namespace, plan: Plan, crops: Crops, stopped: Sequence[BaseException] = ()) -> dict[str, Any]:
    """Run the whole benchmark; returns its report. Raises ValueError for a mistake.

    stopped: exceptions raised by signals so far (see perf.program); after each turn this raises the first of them.
    """
    begun = perf_counter()
    cores = sorted(os.sched_getaffinity(0))
    threads = options.threads or len(cores)
    used = cores[:threads]

    def left() -> float:
        return (options.budget or float("inf")) - (perf_counter() - begun)

    # ------------------------------------------------------------------ images
    from perf.images import choose, jpegs_in_memory, require_pictures
    from perf.interleaved import cpu_seconds, one_turn, play, use_cores
    from perf.loader import swave_loaders
    from perf.loader.figures import figures
    from perf.loader.gpus_fed import gpu_rate, gpus_fed
    from perf.loader.storage import read_ceilings
    from perf.machine import machine

    machine_facts = machine(cores)
    rate = gpu_rate(options.gpu_rate, options.step_json, ROOT / "perf" / "results", options.usual_crops)
    source = options.data or made_images(options.images_like, plan.images, threads)
    whole = open_dataset(find_split(source)[0], FOLDER / "tables", setting="--data")
    require_pictures(whole, source)
    table = choose(whole, plan.images)
    if len(table) < options.batch:
        problem = f"--batch={options.batch}: there are only {len(table)} images in {source} that every decoder reads"
        raise ValueError(f"{problem}; give more images or a smaller --batch")
    use_cores(used)

    def step(bar: Any) -> Callable[[], None]:
        def done() -> None:
            bar.update()
            if stopped:
                raise stopped[0]

        return done

    with tempfile.TemporaryDirectory(dir=_made(FOLDER)) as scratch:
        # ------------------------------------------------------------------ the contenders' turns
        jpegs = jpegs_in_memory(table, lambda jpegs: swave_loaders.accepted(jpegs, crops, threads))
        material = Material(table, jpegs, crops, options.batch, Path(scratch))
        keys = line_up(options.backends, len(jpegs) >= options.batch, threads)
        contenders = [make(key, material) for key in keys]
        with progress_bar(len(keys) * (plan.rounds + 1), "turns", "turn", True) as bar:
            fixed = []
            for contender in contenders:
                start = perf_counter()
                one_turn(contender, 0.0, used)  # does not count
                fixed.append(perf_counter() - start)
                step(bar)()
            available = TURNS_SHARE * left()
            seconds = plan.seconds or turn_seconds(fixed, plan.rounds, available)
            rounds = plan.rounds if options.budget is None else rounds_within(fixed, seconds, plan.rounds, available)
            bar.total = len(keys) * (rounds + 1)
            before, start = cpu_seconds(), perf_counter()
            turns = play(contenders, rounds, seconds, used, step(bar), warm_up=0)
            (busy, own), taken = np.subtract(cpu_seconds(), before), perf_counter() - start
        machine_facts["taken_by_others"] = round(max(0.0, busy - own) / (taken * (os.cpu_count() or 1)), 3)

        # ------------------------------------------------------------------ ceilings, stages, sweep, memory
        results = figures(contenders, turns, threads)
        stages = stage_figures(contenders, turns, jpegs, crops, threads, plan.stage_rounds)
        reading = read_ceilings(table, threads, min(1.0, seconds), min(3, rounds))
        del contenders
        swept = swept_figures(
            options,
            plan,
            crops,
            table,
            results["results"],
            used,
            max((1 - MEMORY_SHARE) * left(), SWEEP_SHARE * (options.budget or 0.0)),
            step,
        )
        memory = {}
        if plan.memory_of != "none":
            memory = memory_figures(options, plan, table, results["results"], threads, Path(scratch), left, step)

    for result in results["results"]:
        result["memory_mb"] = memory.get("each", {}).get((result["backend"], result["mode"], threads))
    return {
        **results,
        **swept,
        "ceilings": {"decode": results["decode_images_per_second"], **reading},
        "stages_ms": stages,
        "memory": memory.get("gpu_half", {}),
        "gpus_fed": gpus_fed(results["results"], rate),
        "gpu_rate": rate,
        "machine": machine_facts,
        "images": described(table, options) | {"jpegs_in_memory": len(jpegs)},
        "settings": {
            "backends": options.backends,
            "batch": options.batch,
            "threads": threads,
            "rounds": rounds,
            "seconds": round(seconds, 3),
            "budget": options.budget,
            "taken": round(perf_counter() - begun, 1),
            "config": options.config,
            "settings": options.settings,
            "crops": [[len(views), size] for size, views in crops.groups],
        },
    }


def made_images(like: str, count: int, threads: int) -> Path:
    """Make `count` JPEGs and return their folder. like: "bench" (about 500 x 375 pixels) or "imagenet"."""
    from perf.images import jpeg_of, make_jpegs
    from perf.loader.image_sizes import imagenet_like

    return make_jpegs(FOLDER / LIKE[like], count, threads, imagenet_like if like == "imagenet" else jpeg_of)


def described(table: SampleTable, options: argparse.Namespace) -> dict[str, Any]:
    """The facts about the images: count, mean sizes and source."""
    return {
        "count": len(table),
        "mean_bytes": round(float(table.length.mean())),
        "mean_width": round(float(table.width.mean())),
        "mean_height": round(float(table.height.mean())),
        "mean_megapixels": round(megapixels(table), 4),
        "longest_side": int(max(table.width.max(), table.height.max())),
        "like": None if options.data else options.images_like,
        "source": options.data or "photographs of scikit-image and scikit-learn",
    }


def megapixels(table: SampleTable) -> float:
    """Mean megapixels of an image."""
    return float((table.width.astype(float) * table.height).mean() / 1e6)


def stage_figures(
    contenders: Sequence[Contender],
    turns: Sequence[Sequence[Turn]],
    jpegs: Jpegs,
    crops: Crops,
    threads: int,
    rounds: int,
) -> dict[str, float]:
    """CPU milliseconds an image of the ffcv backend; {} without this backend or without JPEGs.

    Each stage of the kernel, "kernel" (their sum), "hand_over" (the loader's other work: reading, drawing, passing on;
    a difference within rounds), and "loader" (both together).
    """
    from perf.loader import swave_loaders

    milliseconds = {
        (contender.backend, contender.mode, contender.cores): [
            1000 * turn.cpu_seconds / turn.images for turn in own_turns
        ]
        for contender, own_turns in zip(contenders, turns, strict=True)
    }
    kernel_alone = milliseconds.get(("ffcv-kernel", "full", threads))
    if kernel_alone is None:
        return {}
    times = swave_loaders.stages(jpegs, crops, threads, rounds)
    kernel = times.pop("total")
    whole_loader = milliseconds[("ffcv", "full", threads)]
    hand_over = median(both - inner for both, inner in zip(whole_loader, kernel_alone, strict=True))
    times |= {"kernel": kernel, "hand_over": hand_over, "loader": kernel + hand_over}
    return {name: round(value, 4) for name, value in times.items()}


def swept_figures(
    options: argparse.Namespace,
    plan: Plan,
    crops: Crops,
    table: SampleTable,
    results: Sequence[dict[str, Any]],
    used: Sequence[int],
    available: float,
    step: Callable[[Any], Callable[[], None]],
) -> dict[str, Any]:
    """{"sweep": points with their rates, "sweep_left_out": points without enough time or memory, each with "why"}."""
    import psutil

    from perf.loader.sweep import FILES, SIZE_NAMES, choose, cost_of, has_room, points_of, sized_tables, sweep

    rates = {result["backend"]: result["images_per_second"] for result in results if result["mode"] == "full"}
    if not plan.sweep:
        return {"sweep": [], "sweep_left_out": []}
    points = points_of(list(rates), len(used), options.batch, list(SIZE_NAMES))
    costs = [
        cost_of(point, rates, len(used), megapixels(table), plan.sweep_rounds, plan.sweep_seconds) for point in points
    ]
    start = perf_counter()
    tables = {FILES: table}
    left_out = []
    try:
        tables |= sized_tables(FOLDER, len(used))
    except ValueError as error:  # there are no photographs to make images from
        left_out = [asdict(point) | {"why": str(error)} for point in points if point.source != FILES]
        points = [point for point in points if point.source == FILES]
    free, counts = psutil.virtual_memory().available, {name: len(of) for name, of in tables.items()}
    chosen, not_chosen = choose(
        points, costs, lambda point: has_room(point, crops, counts, free), available - (perf_counter() - start)
    )
    with progress_bar(len(chosen) * (plan.sweep_rounds + 1), "sweep", "turn", True) as bar:
        points_with_rates = sweep(chosen, tables, crops, used, plan.sweep_rounds, plan.sweep_seconds, step(bar))
    return {"sweep": points_with_rates, "sweep_left_out": left_out + not_chosen}


def memory_figures(
    options: argparse.Namespace,
    plan: Plan,
    table: SampleTable,
    results: Sequence[dict[str, Any]],
    threads: int,
    scratch: Path,
    left: Callable[[], float],
    step: Callable[[Any], Callable[[], None]],
) -> dict[str, Any]:
    """{"each": MB of each contender, "gpu_half": the figures of perf.loader.gpu_feed_memory}."""
    from perf.loader.memory import gpu_half, memory_of

    table.save(scratch / "table.npz", digests={name: "" for name in table.containers})
    keys: list[Key] = [(result["backend"], result["mode"], threads) for result in results]
    if plan.memory_of == "loaders":
        order = [(name, "full", threads) for name in LOADERS]
        keys = [key for key in order if key in keys]
    recipe = [*(["--config", options.config] if options.config else []), *options.settings]
    until = perf_counter() + left()
    memory: dict[str, Any] = {}
    with progress_bar(len(keys), "memory", "process", True) as bar:
        memory["each"] = memory_of(
            keys, scratch / "table.npz", options.batch, recipe, len(os.sched_getaffinity(0)), until, step(bar)
        )
    full = ("ffcv", "full") in {(result["backend"], result["mode"]) for result in results}
    if plan.gpu_half and full and left() > 0:
        memory["gpu_half"] = gpu_half(scratch / "table.npz", len(table), threads, recipe)
    return memory


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder

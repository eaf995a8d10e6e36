"""The training step by itself, on crops that lie on the device: images a second, memory, and how far from the roofline.

The roofline is perf/step/roofline.py's.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from perf.step.ceilings import ceilings
from perf.step.roofline import finish, roofline
from perf.step.waits import count_waits

WARM, TIMED = 5, 20
IMAGENET = 1_281_167  # images that the recipe fits itself to


@dataclass(frozen=True)
class StepCase:
    """A recipe's step with `batch` images a rank, in `precision`, at ZeRO `stage`; `changes` go into the recipe.

    peer: in its place the plain DDP loop of perf/step/peer_loop.py, on the same crops.
    """

    recipe: str
    batch: int
    ranks: int
    precision: str
    stage: int
    compile: bool = False
    changes: tuple[str, ...] = ()
    on_gpu: bool = True
    peer: bool = False


def run_rank(rank: int, case: StepCase, folder: Path) -> None:
    """As a rank of the case; rank 0 writes what it measured to `folder`/step.json."""
    from training.distributed import Cluster, connected

    cluster = Cluster(rank, case.ranks, rank, case.ranks)
    with connected(cluster):
        figures = measure_peer(case, cluster) if case.peer else measure(case, cluster)
        if rank == 0:
            (folder / "step.json").write_text(json.dumps(figures))


def measure(case: StepCase, cluster: Any) -> dict[str, Any]:
    """Steps as in train.py (perf/step/steps.py), without a loader; figures of this rank:

    images_per_second, step_seconds    of TIMED steps without marks
    host_share                         of the time until the device is done, what the host takes to issue the steps
    codes_share, codes_collectives     of as many steps with marks: share of a step, and collectives a step
    waits_in_a_step                    where the host waits for a GPU in a step that logs nothing, as file:line
    peak_gb, and the roofline's        (perf/step/roofline.py)
    """
    from perf.step.steps import Steps

    config = settings_of(case, cluster)
    steps = Steps(config, cluster, IMAGENET)
    device, batches = steps.device, itertools.repeat(steps.noise(channels_last=True))
    seconds, issued = time_steps(lambda: steps.step(batches), device)
    share, collectives = codes_of(steps, batches)
    for _ in range(2):
        if steps.number % config.run.log_every in (0, config.run.log_every - 1):  # a logging step's values are read
            steps.step(batches)
    waits = count_waits(lambda: steps.step(batches), device)
    figures = asdict(case) | {
        "images_per_second": case.batch / seconds,
        "step_seconds": seconds,
        "codes_share": share,
        "codes_collectives": collectives,
        "host_share": issued / seconds,
        "waits_in_a_step": waits,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }
    limits = ceilings(device, steps.dtype, steps.network, steps.groups)
    return figures | roofline(figures["images_per_second"], steps.work, steps.dtype.itemsize, limits)


def measure_peer(case: StepCase, cluster: Any) -> dict[str, Any]:
    """images_per_second and step_seconds of the plain loop."""
    from config.groups import groups_of
    from perf.step.peer_loop import plain_step
    from training.build import build_network

    config, device = settings_of(case, cluster), cluster.device()
    crops = groups_of(config.crops)
    torch.manual_seed(config.run.seed)
    network = build_network(config.model, [group["size"] for group in crops], own_code=True).to(device)
    step = plain_step(config, network, cluster, device, float(config.optimizer.base_lr) / 100)
    shapes = [(group["count"] * case.batch, 3, group["size"], group["size"]) for group in crops]
    noise = [torch.randn(shape, device=device) for shape in shapes]
    seconds, _ = time_steps(lambda: step(noise), device)
    return asdict(case) | {"images_per_second": case.batch / seconds, "step_seconds": seconds}


def settings_of(case: StepCase, cluster: Any) -> Any:
    """The case's recipe, fitted."""
    from config.recipe import load_config
    from training.auto import fit

    settings = [f"run.batch_size={case.batch * case.ranks}", f"engine.precision={case.precision}", "data.path=none"]
    settings += [f"engine.stage={case.stage}", f"engine.compile={str(case.compile).lower()}", *case.changes]
    config = load_config([case.recipe, *settings])
    fit(config, IMAGENET, cluster)
    return config


def time_steps(step: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Of TIMED steps after WARM: seconds of a step until the device is done, and until the host has issued it."""
    for _ in range(WARM):
        step()
    finish(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    for _ in range(TIMED):
        step()
    issued = time.perf_counter() - begun
    finish(device)
    return (time.perf_counter() - begun) / TIMED, issued / TIMED


def codes_of(steps: Any, batches: Any) -> tuple[float, float]:
    """Of TIMED steps, the codes' share (queue included, a teacher's forward pass not) and their collectives a step."""
    from perf.step.steps import no_mark
    from training.profiling.collectives import by_kind, counting, timed
    from training.profiling.timeline import Timeline, phase_sums, watching

    timeline = Timeline(steps.device)
    with watching(timeline, *steps.watched), counting(timeline) as calls:
        steps.mark = timeline.hear
        for _ in range(TIMED):
            steps.step(batches)
    steps.mark = no_mark
    sums = [phase_sums(spans) for spans in timeline.spans()]
    share = sum(one["codes"] for one in sums) / sum(sum(one.values()) for one in sums)
    counts = {row["kind"]: row["count"] for row in by_kind(timed(timeline, calls), TIMED)}
    return share, counts.get("codes", 0)

"""What each rank of perf.step does: the steps of train.py with its real loader, with marks and without, and the peer's.

All turns are taken by all ranks together, in the same order, and their times are rank 0's.
"""

from __future__ import annotations

import itertools
import json
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from config.recipe import load_config
from perf.interleaved import take_turns
from perf.step.ceilings import ceilings
from perf.step.peer_loop import beyond_it, plain_step
from perf.step.roofline import finish
from perf.step.steps import Steps, no_mark
from pipeline.batch import Batch
from pipeline.dataset.table import SampleTable
from training.auto import fit
from training.build import build_network
from training.distributed import Cluster, connected
from training.profiling.collectives import counting
from training.profiling.profile import of_rank, settings_of
from training.profiling.timeline import Timeline, watching

WARM, WARM_ON_GPU = 2, 10  # steps
TURN, TURN_ON_GPU = 1.0, 0.5  # seconds of a turn, about; a step at least
KEPT = 2  # batches that are held for steps without a loader
MOST_ROUNDS, FEWEST_ROUNDS = 20, 3


@dataclass(frozen=True)
class Case:
    """What is measured. arguments: recipe and settings, as for train.py. table: of the images, a file; None: noise in
    place of a loader, and no profile. images: those that the recipe fits itself to. seconds: for all turns, about.
    channels_last: the crops, as the loader makes them. classes: of the images' labels; 0: they have none."""

    arguments: tuple[str, ...]
    ranks: int
    images: int
    seconds: float
    table: Path | None = None
    peer: bool = False
    channels_last: bool = True
    on_gpu: bool = False
    classes: int = 0


def run_rank(rank: int, case: Case, folder: Path) -> None:
    """As a rank of the case: writes what it measured to `folder`/rankN.json."""
    cluster = Cluster(rank, case.ranks, rank, case.ranks)
    with connected(cluster, timeout=300.0):
        figures = measure(case, cluster)
    (folder / f"rank{rank}.json").write_text(json.dumps(figures))


def measure(case: Case, cluster: Cluster) -> dict[str, Any]:
    """This rank's figures; in "turns" the seconds of a step in each round."""
    config = load_config(list(case.arguments))
    fit(config, case.images, cluster)
    table = None if case.table is None else SampleTable.load(case.table)
    steps = Steps(config, cluster, case.images, table, case.classes)
    device, with_peer = steps.device, case.peer and table is not None and not beyond_it(config)
    with ExitStack() as stack:
        batches: Iterator[Batch] = itertools.repeat(steps.noise(case.channels_last))
        kept = batches
        if steps.loader is not None:
            stack.enter_context(closing(steps.loader))
            batches = steps.batches()
            fixed = [_copied(next(batches), device, steps.dtype) for _ in range(KEPT)]
            kept = itertools.cycle(fixed)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM_ON_GPU if device.type == "cuda" else WARM):
            steps.step(batches)
        seconds = _agreed(_turn(steps.step, batches, 1, device), device)
        share = case.seconds / 2 if with_peer else case.seconds
        count, rounds = turns_in(share, seconds, 2 if case.table else 1, device.type == "cuda")
        figures: dict[str, Any] = {"turns": {}, "steps_a_turn": count, "case": asdict(case) | {"table": None}}
        ours = partial(_turn, steps.step, kept, count, device)
        if case.table is None:
            figures["turns"] = _turns({"kept": lambda _: ours()}, rounds)
        else:
            timeline, calls = Timeline(device), list[Any]()
            plain = partial(_turn, steps.step, batches, count, device)

            def watched(counts: bool) -> float:
                return _watched(steps, batches, count, timeline, calls, counts)

            figures["turns"] |= _turns({"plain": lambda _: plain(), "watched": watched}, rounds)
            figures["profile"] = of_rank(cluster.rank, timeline, calls)
        figures["peak_gb"] = peak_gb(device)  # before the peer has a network of its own
        if with_peer:
            torch.manual_seed(config.run.seed)
            network = build_network(config.model, [size for size, _ in steps.crops.groups], own_code=True).to(device)
            peer = plain_step(config, network, cluster, device, steps.learning_rate)
            theirs = itertools.cycle([[crop.contiguous() for crop in batch.crops] for batch in fixed])
            other = partial(_turn, lambda crops: peer(next(crops)), theirs, count, device)
            figures["turns"] |= _turns({"kept": lambda _: ours(), "peer": lambda _: other()}, rounds)
        dist.barrier()
        if case.table is not None:  # the report's; a variant has a rate alone
            figures["ceilings"] = asdict(ceilings(device, steps.dtype, steps.network, steps.groups))
    figures |= {"work": asdict(steps.work), "itemsize": steps.dtype.itemsize, "batch": config.run.batch_size}
    settings = settings_of(config, device.type, cluster) | {"probe_labels": _origin_of_labels(steps, case)}
    return figures | {"device": device.type, "settings": settings}


def _copied(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on the device, in memory that the loader does not write again."""
    return Batch([crop.to(device, dtype).clone() for crop in batch.crops], batch.rows.copy())


def _origin_of_labels(steps: Steps, case: Case) -> str | None:
    """Where the probe's labels come from; None without a probe."""
    if steps.probe is None:
        return None
    return "images" if case.classes and case.table is not None else "drawn at random"


def _turns(works: Mapping[str, Callable[[bool], float]], rounds: int) -> dict[str, list[float]]:
    """What each of `works` returned, interleaved."""
    return dict(zip(works, take_turns(list(works.values()), rounds), strict=True))


def turns_in(seconds: float, step: float, works: int, on_gpu: bool) -> tuple[int, int]:
    """Steps a turn, and rounds of `works` turns that fit into `seconds` beside the one that does not count. Turns are
    shorter where too few of them would fit."""
    turn = min(TURN_ON_GPU if on_gpu else TURN, seconds / (works * (FEWEST_ROUNDS + 1)))
    count = max(1, round(turn / step))
    rounds = int(seconds / (works * count * step)) - 1
    return count, min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds))


def _turn(step: Callable[[Any], object], batches: Iterator[Any], count: int, device: torch.device) -> float:
    """Seconds of a step, on average over `count`, from idle to idle of all ranks."""
    finish(device)
    dist.barrier()
    begun = perf_counter()
    for _ in range(count):
        step(batches)
    finish(device)
    return (perf_counter() - begun) / count


def _watched(
    steps: Steps, batches: Iterator[Any], count: int, timeline: Timeline, calls: list[Any], counts: bool
) -> float:
    """A turn with marks; what they saw goes to `timeline` and `calls` if the turn counts."""
    seen = timeline if counts else Timeline(steps.device)
    with watching(seen, *steps.watched), counting(seen) as here:
        steps.mark = seen.hear
        try:
            seconds = _turn(steps.step, batches, count, steps.device)
        finally:
            steps.mark = no_mark
    calls += here if counts else []
    return seconds


def _agreed(seconds: float, device: torch.device) -> float:
    """The longest of the ranks'."""
    value = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value)


def peak_gb(device: torch.device) -> float:
    """The most memory that this rank has held: of the GPU, or resident in the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

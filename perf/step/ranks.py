"""What each rank of perf.step does: the steps of train.py with its real loader, with marks and without, and the peer's.

All turns are taken by all ranks together, in the same order, and their times are rank 0's.
"""

from __future__ import annotations

import itertools
import json
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from config.recipe import load_config
from model.loss import swapped_prediction
from model.monitor import CodeMonitor
from model.optimizer import build_optimizer, set_step
from model.sinkhorn import sinkhorn
from perf.interleaved import take_turns
from perf.roofline import ceilings, finish, work_of
from perf.step.peer_loop import plain_step
from pipeline.batch import split_batch
from pipeline.crops import crops_from_config
from pipeline.dataset.table import SampleTable
from training.auto import fit
from training.build import build_loader, build_network, build_queue
from training.deepspeed_engine import build_engine, input_dtype
from training.distributed import Cluster, connected
from training.profiling.collectives import counting
from training.profiling.profile import of_rank, settings_of
from training.profiling.timeline import Timeline, watching
from training.step_agreement import Agreement

WARM, WARM_ON_GPU = 2, 10  # steps
TURN, TURN_ON_GPU = 1.0, 0.5  # seconds of a turn, about; a step at least
KEPT = 2  # batches that are held for steps without a loader
MOST_ROUNDS, FEWEST_ROUNDS = 20, 3


@dataclass(frozen=True)
class Case:
    """What is measured. arguments: recipe and settings, as for train.py. table: of the images, a file; None: noise in
    place of a loader, and no profile. images: those that the recipe fits itself to. seconds: for all turns, about.
    channels_last: the crops, as the loader makes them."""

    arguments: tuple[str, ...]
    ranks: int
    images: int
    seconds: float
    table: Path | None = None
    peer: bool = False
    channels_last: bool = True
    on_gpu: bool = False


def run_rank(rank: int, case: Case, folder: Path) -> None:
    """As a rank of the case: writes what it measured to `folder`/rankN.json."""
    cluster = Cluster(rank, case.ranks, rank, case.ranks)
    with connected(cluster, timeout=300.0):
        torch.backends.cudnn.benchmark = True
        found = measure(case, cluster)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


class Steps:
    """A run's parts, and its step as train.py has it."""

    def __init__(self, case: Case, cluster: Cluster) -> None:
        self.config = config = load_config(case.arguments)
        fit(config, case.images, cluster)
        self.device, self.here = cluster.device(), config.run.batch_size // cluster.world_size
        self.dtype, self.assigning = input_dtype(config), list(config.swav.assigning)
        self.crops = crops_from_config(config.crops, config.pipeline.backend)
        self.loader = build_loader(config, SampleTable.load(case.table), self.crops, cluster) if case.table else None
        torch.manual_seed(config.run.seed)
        network = build_network(config.model).to(self.device)
        self.work = work_of(network, [(len(views), size) for size, views in self.crops.groups], self.device)
        self.optimizer = build_optimizer(config.optimizer, network)
        self.queue = build_queue(config, cluster)
        while self.queue is not None and not self.queue.full:  # the steps of a run's later epochs
            rows = torch.randn(len(self.assigning), self.here, config.model.embedding_dim, device=self.device)
            self.queue.push(torch.nn.functional.normalize(rows, dim=2))
        self.monitor = CodeMonitor(config.model.prototypes, config.model.embedding_dim, self.device)
        self.engine = build_engine(config, network, self.optimizer, cluster, self.device)
        self.agreement = Agreement(cluster.world_size, self.device, config.run.log_every)
        self.mark: Callable[[str], object] = _nothing
        self.number = 0

    def step(self, batches: Iterator[Sequence[Tensor]]) -> None:
        """One step on the next of `batches`: this rank's crops, a tensor a resolution."""
        config, mark = self.config, self.mark
        set_step(self.optimizer, self.learning_rate, frozen_prototypes=False)
        mark("data_wait")
        images = next(batches)
        mark("copy")
        crops = [crop.to(self.device, self.dtype, non_blocking=True) for crop in images]
        parts = config.engine.accumulation
        here = self.here // parts
        for part in split_batch(crops, self.here, parts):
            queued = None if self.queue is None else self.queue.queued()
            embeddings, scores, queue_scores, _ = self.engine(part, here, queued)
            mark("codes")
            with torch.no_grad():
                inputs = scores[self.assigning]
                if queue_scores is not None:
                    inputs = torch.cat([queue_scores, inputs], dim=1)
                codes = sinkhorn(inputs, config.swav.epsilon, config.swav.iterations, check=False)[:, -here:]
                if self.queue is not None:
                    self.queue.push(embeddings[self.assigning])
            mark("loss")
            loss = swapped_prediction(codes, scores, self.assigning, config.swav.temperature)
            self.monitor.update(codes, embeddings[self.assigning], loss)
            self.engine.backward(loss)
            self.engine.step()
        self.number += 1
        self.agreement.exchange(self.number, loss, stop=False)
        mark("end")

    @property
    def learning_rate(self) -> float:
        return float(self.config.optimizer.base_lr) / 100  # a run's first steps'

    def batches(self) -> Iterator[list[Tensor]]:
        """The loader's crops, epoch after epoch."""
        assert self.loader is not None
        for _ in itertools.count():
            for batch in self.loader:
                yield batch.crops

    def noise(self, channels_last: bool) -> list[Tensor]:
        """Crops that a network takes as long for as for a loader's."""
        order = torch.channels_last if channels_last else torch.contiguous_format
        return [
            torch.randn(len(views) * self.here, 3, size, size, device=self.device)
            .to(self.dtype)
            .contiguous(memory_format=order)
            for size, views in self.crops.groups
        ]


def measure(case: Case, cluster: Cluster) -> dict[str, Any]:
    """This rank's figures; in "turns" the seconds of a step in each round."""
    steps = Steps(case, cluster)
    device = steps.device
    with ExitStack() as stack:
        batches: Iterator[Sequence[Tensor]] = itertools.repeat(steps.noise(case.channels_last))
        kept = batches
        if steps.loader is not None:
            stack.enter_context(closing(steps.loader))
            batches = steps.batches()
            fixed = [[crop.to(device, steps.dtype).clone() for crop in next(batches)] for _ in range(KEPT)]
            kept = itertools.cycle(fixed)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM_ON_GPU if device.type == "cuda" else WARM):
            steps.step(batches)
        seconds = _agreed(_turn(steps.step, batches, 1, device), device)
        share = case.seconds / 2 if case.peer and case.table else case.seconds
        count, rounds = turns_in(share, seconds, 2 if case.table else 1, device.type == "cuda")
        found: dict[str, Any] = {"turns": {}, "steps_a_turn": count, "case": asdict(case) | {"table": None}}
        ours = partial(_turn, steps.step, kept, count, device)
        if case.table is None:
            found["turns"] = _turns({"kept": lambda _: ours()}, rounds)
        else:
            timeline, calls = Timeline(device), list[Any]()
            plain = partial(_turn, steps.step, batches, count, device)

            def watched(counts: bool) -> float:
                return _watched(steps, batches, count, timeline, calls, counts)

            found["turns"] |= _turns({"plain": lambda _: plain(), "watched": watched}, rounds)
            found["profile"] = of_rank(cluster.rank, timeline, calls)
        found["peak_gb"] = peak_gb(device)  # before the peer has a network of its own
        if case.peer and case.table:
            torch.manual_seed(steps.config.run.seed)
            network = build_network(steps.config.model).to(device)
            peer = plain_step(steps.config, network, cluster, device, steps.learning_rate)
            theirs = itertools.cycle([[crop.contiguous() for crop in crops] for crops in fixed])
            other = partial(_turn, lambda crops: peer(next(crops)), theirs, count, device)
            found["turns"] |= _turns({"kept": lambda _: ours(), "peer": lambda _: other()}, rounds)
        dist.barrier()
        found["ceilings"] = asdict(ceilings(device, steps.dtype))
    found |= {"work": asdict(steps.work), "itemsize": steps.dtype.itemsize, "batch": steps.config.run.batch_size}
    return found | {"device": device.type, "settings": settings_of(steps.config, device.type, cluster)}


def _turns(works: Mapping[str, Callable[[bool], float]], rounds: int) -> dict[str, list[float]]:
    """What each of `works` returned, interleaved."""
    return dict(zip(works, take_turns(list(works.values()), rounds), strict=True))


def turns_in(seconds: float, step: float, works: int, on_gpu: bool) -> tuple[int, int]:
    """Steps a turn, and rounds of `works` turns that fit into `seconds` beside the one that does not count."""
    count = max(1, round((TURN_ON_GPU if on_gpu else TURN) / step))
    rounds = int(seconds / (works * count * step)) - 1
    return count, min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds))


def _turn(step: Callable[[Any], None], batches: Iterator[Any], count: int, device: torch.device) -> float:
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
    with watching(seen, steps.engine, steps.monitor), counting(seen) as here:
        steps.mark = seen.hear
        try:
            seconds = _turn(steps.step, batches, count, steps.device)
        finally:
            steps.mark = _nothing
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


def _nothing(_place: str) -> None:
    """Nobody listens."""

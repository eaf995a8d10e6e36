"""The training step by itself, on crops that lie on the device: images a second, memory, and how far from the roofline.

The roofline is perf/roofline.py's.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from perf.roofline import ceilings, finish, roofline, work_of

WARM, TIMED = 5, 20


@dataclass(frozen=True)
class StepCase:
    """A recipe's step with `batch` images a rank, in `precision`, at ZeRO `stage`; `changes` go into the recipe."""

    recipe: str
    batch: int
    ranks: int
    precision: str
    stage: int
    compile: bool = False
    changes: tuple[str, ...] = ()
    on_gpu: bool = True


def run_rank(rank: int, case: StepCase, folder: Path) -> None:
    """As a rank of the case; rank 0 writes what it measured to `folder`/step.json."""
    from training.distributed import Cluster, connected

    cluster = Cluster(rank, case.ranks, rank, case.ranks)
    with connected(cluster):
        torch.backends.cudnn.benchmark = True
        found = measure(case, cluster)
        if rank == 0:
            (folder / "step.json").write_text(json.dumps(found))


def measure(case: StepCase, cluster: Any) -> dict[str, Any]:
    """Steps as in train.py, without a loader; figures of rank 0."""
    from config.recipe import load_config
    from model.loss import swapped_prediction
    from model.monitor import CodeMonitor
    from model.optimizer import build_optimizer, set_step
    from model.sinkhorn import sinkhorn
    from pipeline.crops import crops_from_config
    from training.auto import fit
    from training.build import build_network, build_queue
    from training.deepspeed_engine import build_engine, input_dtype
    from training.step_agreement import Agreement

    settings = [f"run.batch_size={case.batch * case.ranks}", f"engine.precision={case.precision}", "data.path=none"]
    settings += [f"engine.stage={case.stage}", f"engine.compile={str(case.compile).lower()}", *case.changes]
    config = load_config([case.recipe, *settings])
    fit(config, 1_281_167, cluster)
    device, here = cluster.device(), case.batch
    crops = crops_from_config(config.crops, config.pipeline.backend)
    torch.manual_seed(0)
    network = build_network(config.model).to(device)
    optimizer = build_optimizer(config.optimizer, network)
    work = work_of(network, [(len(views), size) for size, views in crops.groups], device)
    engine = build_engine(config, network, optimizer, cluster, device)
    queue, monitor = (
        build_queue(config, cluster),
        CodeMonitor(config.model.prototypes, config.model.embedding_dim, device),
    )
    agreement = Agreement(cluster.world_size, device, config.run.log_every)
    assigning = list(config.swav.assigning)
    images = [
        torch.randn(len(views) * here, 3, size, size, device=device)
        .to(input_dtype(config))
        .contiguous(memory_format=torch.channels_last)
        for size, views in crops.groups
    ]
    set_step(optimizer, float(config.optimizer.base_lr) / 10, frozen_prototypes=False)

    timer = CodesTimer(device)

    def step(number: int) -> None:
        queued = queue.queued() if queue is not None else None
        embeddings, scores, queue_scores, _ = engine(images, here, queued)
        with torch.no_grad():
            inputs = scores[assigning]
            if queue_scores is not None:
                inputs = torch.cat([queue_scores, inputs], dim=1)
            with timer:
                codes = sinkhorn(inputs, config.swav.epsilon, config.swav.iterations, check=False)[:, -here:]
            if queue is not None:
                queue.push(embeddings[assigning])
        loss = swapped_prediction(codes, scores, assigning, config.swav.temperature)
        monitor.update(codes, embeddings[assigning], loss)
        engine.backward(loss)
        engine.step()
        agreement.exchange(number, loss, stop=False)

    for number in range(WARM):
        step(number)
    finish(device)
    timer.reset()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    for number in range(TIMED):
        step(number)
    issued = time.perf_counter() - begun  # how long the host took to say what is to be done
    finish(device)
    seconds = (time.perf_counter() - begun) / TIMED
    codes_seconds, codes_collectives = timer.found()
    waits = count_waits(step) if device.type == "cuda" else []
    found = asdict(case) | {
        "images_per_second": case.batch / seconds,
        "step_seconds": seconds,
        "codes_share": codes_seconds / TIMED / seconds,
        "codes_collectives": codes_collectives / TIMED,
        "host_share": issued / TIMED / seconds,
        "waits_in_a_step": waits,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }
    dtype = input_dtype(config)
    return found | roofline(found["images_per_second"], work, dtype.itemsize, ceilings(device, dtype))


class CodesTimer:
    """Time and all-reduces of what is done within it: by events on a GPU, so that nothing waits, else by the clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        self.marks: list[Any] = []
        self.collectives = 0

    def __enter__(self) -> None:
        self.marks.append(self._now())
        self.original = dist.all_reduce
        dist.all_reduce = self._counted

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self.original
        self.marks.append(self._now())

    def found(self) -> tuple[float, int]:
        """Seconds in all since the last reset, and all-reduces. The device must have finished."""
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        seconds = sum(a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in pairs)
        return seconds, self.collectives

    def _counted(self, *arguments: Any, **named: Any) -> Any:
        self.collectives += 1
        return self.original(*arguments, **named)

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def count_waits(step: Any) -> list[str]:
    """Where the host waits for the GPU within a step, as torch's debug mode tells."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step(TIMED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in told if "synchroniz" in str(w.message)]

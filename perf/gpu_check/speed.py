"""Cases that time the step and the loader. Heavy imports are inside the functions: `--explain` works without torch."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perf.gpu_check.setup import Setup

if TYPE_CHECKING:
    from perf.step.device_step import StepCase

MAX_LEVELS = 2.0  # mean absolute difference of crops, in levels of 255, at most
WARM = 3  # batches


# ---------------------------------------------------------------------------------------------- the step
def step_rows(
    setup: Setup,
    limit: float,
    *,
    precision: str | None = None,
    stage: int | None = None,
    compile: bool = False,
    peer: bool = False,
    batch: int = 0,
    more: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """The row of a step in these settings, by default those that `auto` takes on a GPU. It holds if the host waits
    for nothing in it; a plain DDP loop (`peer`) is only timed."""
    from perf.step.device_step import StepCase

    precision = precision or ("bf16" if setup.on_gpu else "fp32")
    stage = (0 if setup.gpus == 1 else 1) if stage is None else stage
    size, changes = batch or setup.batch, (*setup.changes, *more)
    case = StepCase(setup.recipe, size, setup.gpus, precision, stage, compile, changes, setup.on_gpu, peer)
    row = run_step(case, limit)
    return [row | {"holds": not row.get("waits_in_a_step")}]


def run_step(case: StepCase, limit: float | None = None) -> dict[str, Any]:
    """What rank 0 of a case measures, with a new process for each rank. Raises RuntimeError if they fail, or take
    longer than `limit` seconds."""
    from perf.ranks import run_ranks
    from perf.step.device_step import run_rank

    with tempfile.TemporaryDirectory() as scratch:
        run_ranks(run_rank, case.ranks, case, Path(scratch), on_gpu=case.on_gpu, limit=limit)
        return json.loads((Path(scratch) / "step.json").read_text())


# ---------------------------------------------------------------------------------------------- the loader
@dataclass(frozen=True)
class Feed:
    """A loader of batches of `batch` images for `seconds`: on GPU 0 or on the CPU, with the share of the cores that a
    rank has on a machine with `gpus`."""

    backend: str
    on_gpu: bool
    batch: int
    images: int
    seconds: float
    folder: str
    hw_decoder_load: float | None
    fancy_upsampling: bool
    gpus: int


def feed_rows(
    setup: Setup,
    limit: float,
    *,
    backend: str,
    on_gpu: bool = True,
    hw_decoder_load: float | None = None,
    fancy_upsampling: bool = True,
) -> list[dict[str, Any]]:
    """The row of a loader: images/s, and the mean absolute difference of its crops from those of the same backend on
    the CPU, in levels of 255. Without fancy upsampling crops differ, so that row always holds."""
    from perf.ranks import run_ranks

    feed = Feed(
        backend, on_gpu and setup.on_gpu, setup.batch, setup.images, setup.seconds, setup.folder, hw_decoder_load,
        fancy_upsampling, setup.gpus,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        run_ranks(run_feed, 1, feed, Path(scratch), on_gpu=feed.on_gpu, limit=limit)
        row = json.loads((Path(scratch) / "feed.json").read_text())
    return [row | {"holds": row["levels"] <= MAX_LEVELS or not fancy_upsampling}]


def run_feed(_rank: int, feed: Feed, folder: Path) -> None:
    """In its own process: measures a loader; writes `folder`/feed.json."""
    from config.recipe import default_config
    from perf.images import make_jpegs
    from pipeline.backends.dali import DaliBackend
    from pipeline.crops import crops_from_config
    from pipeline.dataset.open import open_dataset
    from pipeline.loader import Loader
    from training.distributed import Cluster

    device = Cluster().take_device()
    threads = min(16, max(1, len(os.sched_getaffinity(0)) // feed.gpus))
    images = make_jpegs(Path(feed.folder) / "photographs", feed.images, threads)
    table = open_dataset(images, Path(feed.folder) / "tables", progress=False)
    crops = crops_from_config(default_config().crops, feed.backend)

    def loader(on_gpu: bool) -> Loader:
        made = Loader(
            table, crops, backend=feed.backend, seed=1, global_batch=min(feed.batch, len(table)), threads=threads,
            device_id=device.index if on_gpu else None, hw_decoder_load=feed.hw_decoder_load,
        )  # fmt: skip
        if isinstance(made.backend, DaliBackend):
            made.backend.decoder["jpeg_fancy_upsampling"] = feed.fancy_upsampling or not on_gpu
        return made

    first = []
    for on_gpu in (False, feed.on_gpu):
        one = loader(on_gpu)
        first.append([group.float().cpu() for group in next(iter(one)).crops])
        one.close()
    scale = 255 * sum(crops.std) / 3
    levels = max(float((a - b).abs().mean()) * scale for a, b in zip(*first, strict=True))
    timed = loader(feed.on_gpu)
    rate = images_per_second(timed, feed.seconds)
    timed.close()
    shown = {name: value for name, value in asdict(feed).items() if name not in ("folder", "images", "seconds")}
    row = shown | {"threads": threads, "images_per_second": rate, "levels": levels}
    (folder / "feed.json").write_text(json.dumps(row))


def images_per_second(loader: Any, seconds: float) -> float:
    """The rate of a loader over at least `seconds`, after WARM batches, epoch after epoch."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in range(WARM):
        next(batches)
    images, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        images += len(next(batches).rows)
    return images / (time.perf_counter() - begun)

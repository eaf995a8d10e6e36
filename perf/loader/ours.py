"""Our own contenders: the loader with its backends, the kernel alone, and libjpeg-turbo alone as the yardstick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from perf.images import Jpegs
from perf.interleaved import Contender, Turn, timed
from pipeline.crops import Crops
from pipeline.dataset.table import SampleTable
from pipeline.draw import Draw, draw
from pipeline.kernel.kernel import Kernel, stage_times
from pipeline.loader import Loader

DECODE_BATCH = 256  # images a call of the bare decoder: the more, the less the calls cost
STAGE_BATCH, STAGE_ROUNDS = 128, 10  # for the stages' times, which are differences: they need more rounds


def loader(
    name: str, table: SampleTable, crops: Crops, batch: int, cores: int, threads: int | None = None
) -> Contender:
    """The training loader over a table of files: order, reading, draw, backend and hand-over. name: "ffcv",
    "ffcv-affine" (color as one affine map) or "dali" (which has no other). threads: by default one a core."""
    if name == "ffcv-affine":
        crops = replace(crops, jitter=replace(crops.jitter, exact=False))
    source = Loader(table, crops, backend=name.split("-")[0], seed=0, global_batch=batch, threads=threads or cores)

    def batches() -> Iterator[int]:
        while True:
            for made in source:
                count = len(made.rows)
                del made
                yield count

    def turn(seconds: float) -> Turn:
        try:
            return timed(batches(), seconds, skip=3)  # DALI works two batches ahead
        finally:
            source.close()  # nothing is read ahead while others have their turn

    return Contender(name, "full", cores, turn)


def kernel(mode: str, jpegs: Jpegs, crops: Crops, batch: int, cores: int) -> Contender:
    """The fused kernel on bytes in memory: mode "full", or "crops": uint8 crops as a GPU takes them. "decode" switches
    all of its stages off: libjpeg-turbo, through ffcv's `imdecode`, in the same threads."""
    made = Kernel(
        crops, cores, "float32" if mode == "full" else "uint8", dct="fast" if mode == "decode" else "accurate"
    )
    if mode == "decode":
        made.stages = 0
        batch = DECODE_BATCH
    batch = min(batch, len(jpegs))
    parts = [jpegs.part(first, first + batch) for first in range(0, len(jpegs) - batch + 1, batch)]
    draws = [draw_of(part, crops) for part in parts]
    outputs = made.buffers(batch)

    def batches() -> Iterator[int]:
        while True:
            for part, drawn in zip(parts, draws, strict=True):
                made.run(part.encoded, np.ones(batch, bool), part.height, part.width, drawn, outputs)
                yield batch

    name = {"full": "ffcv-kernel", "crops": "ffcv", "decode": "libjpeg-turbo"}[mode]
    endless = batches()  # a turn goes on where the last one ended: short ones see all images too
    return Contender(name, mode, cores, lambda seconds: timed(endless, seconds, skip=1))


def stages(jpegs: Jpegs, crops: Crops, cores: int, rounds: int = STAGE_ROUNDS) -> dict[str, float]:
    """CPU milliseconds an image that the kernel takes for each stage of the full augmentation, and in all."""
    part = jpegs.part(0, STAGE_BATCH)
    made = Kernel(crops, cores)
    drawn = draw_of(part, crops)
    times = stage_times(made, part.encoded, np.ones(len(part), bool), part.height, part.width, drawn, rounds)
    made.close()
    return times


def accepted(jpegs: Jpegs, crops: Crops, cores: int) -> np.ndarray:
    """(N,) bool: which of these the kernel decodes itself; what EXIF turns or libjpeg warns of goes through Pillow."""
    made = Kernel(crops, cores, "uint8")
    made.stages = 0
    status = [
        made.run(part.encoded, np.ones(len(part), bool), part.height, part.width, draw_of(part, crops), outputs)
        for first in range(0, len(jpegs), DECODE_BATCH)
        for part in [jpegs.part(first, first + DECODE_BATCH)]
        for outputs in [made.buffers(len(part))]
    ]
    made.close()
    return np.concatenate([np.empty(0, np.uint8), *status]) == 0


def draw_of(jpegs: Jpegs, crops: Crops) -> Draw:
    """A draw for them, epoch 0."""
    return draw(crops, 0, 0, np.arange(len(jpegs)), jpegs.height, jpegs.width)

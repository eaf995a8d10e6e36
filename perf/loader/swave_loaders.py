"""swave's contenders: the loader with its backends, only the kernel, and only libjpeg-turbo as the reference."""

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

DECODE_BATCH = 256  # images a call of the bare decoder; large, so that calls cost little
STAGE_BATCH, STAGE_ROUNDS = 128, 10  # for the times of stages: differences, which need more rounds


def loader(
    name: str, table: SampleTable, crops: Crops, batch: int, cores: int, threads: int | None = None
) -> Contender:
    """The training loader over a table: order, reading, draw, backend and hand-over.

    name: "ffcv", "ffcv-affine" (color as one affine map) or "dali" (always so). threads: one for each core by default.
    """
    if name == "ffcv-affine":
        crops = replace(crops, jitter=replace(crops.jitter, exact=False))
    source = Loader(table, crops, backend=name.split("-")[0], seed=0, global_batch=batch, threads=threads or cores)

    def batches() -> Iterator[int]:
        while True:
            for images in source:
                count = len(images.rows)
                del images
                yield count

    def turn(seconds: float) -> Turn:
        try:
            return timed(batches(), seconds, skip=3)  # DALI works two batches ahead
        finally:
            source.close()  # stops reading ahead during the turns of others

    return Contender(name, "full", cores, turn)


def kernel(mode: str, jpegs: Jpegs, crops: Crops, batch: int, cores: int) -> Contender:
    """The fused kernel on bytes in memory. mode: "full"; "crops" for uint8 crops, as a GPU takes them; or "decode" with
    all stages off: only libjpeg-turbo, through ffcv's `imdecode`, in the same threads."""
    kernel = Kernel(
        crops, cores, "float32" if mode == "full" else "uint8", dct="fast" if mode == "decode" else "accurate"
    )
    if mode == "decode":
        kernel.stages = 0
        batch = DECODE_BATCH
    batch = min(batch, len(jpegs))
    parts = [jpegs.part(first, first + batch) for first in range(0, len(jpegs) - batch + 1, batch)]
    draws = [draw_of(part, crops) for part in parts]
    outputs = kernel.buffers(batch)

    def batches() -> Iterator[int]:
        while True:
            for part, drawn in zip(parts, draws, strict=True):
                kernel.run(part.encoded, np.ones(batch, bool), part.height, part.width, drawn, outputs)
                yield batch

    name = {"full": "ffcv-kernel", "crops": "ffcv", "decode": "libjpeg-turbo"}[mode]
    endless = batches()  # a turn continues where the last one ended, so that short turns see all images
    return Contender(name, mode, cores, lambda seconds: timed(endless, seconds, skip=1))


def stages(jpegs: Jpegs, crops: Crops, cores: int, rounds: int = STAGE_ROUNDS) -> dict[str, float]:
    """CPU milliseconds an image of each stage of the kernel with the full augmentation, and "total"."""
    part = jpegs.part(0, STAGE_BATCH)
    kernel = Kernel(crops, cores)
    drawn = draw_of(part, crops)
    times = stage_times(kernel, part.encoded, np.ones(len(part), bool), part.height, part.width, drawn, rounds)
    kernel.close()
    return times


def accepted(jpegs: Jpegs, crops: Crops, cores: int) -> np.ndarray:
    """(N,) bool: which JPEGs the kernel decodes itself. Pillow decodes those with warnings."""
    kernel = Kernel(crops, cores, "uint8")
    kernel.stages = 0
    status = [
        kernel.run(part.encoded, np.ones(len(part), bool), part.height, part.width, draw_of(part, crops), outputs)
        for first in range(0, len(jpegs), DECODE_BATCH)
        for part in [jpegs.part(first, first + DECODE_BATCH)]
        for outputs in [kernel.buffers(len(part))]
    ]
    kernel.close()
    return np.concatenate([np.empty(0, np.uint8), *status]) == 0


def draw_of(jpegs: Jpegs, crops: Crops) -> Draw:
    """A draw of crops for these images, epoch 0."""
    return draw(crops, 0, 0, np.arange(len(jpegs)), jpegs.height, jpegs.width)

"""The fused multi-crop kernel for images with their own channels and depth.

    samples -> for each view: resample its window -> color -> blur -> normalize, store

It executes the same draws as `pipeline.kernel.kernel`, and its operations are those of `pipeline.backends.native`.
Threads take rows from a shared counter, without the GIL.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.crops import Crops
from pipeline.dataset.channels.format import PixelFormat
from pipeline.draw import Draw
from pipeline.kernel.channels.driver import (
    FLOAT32,
    UINT8,
    UINT16,
    Scratch,
    Setting,
    Work,
    compiled_driver,
    plane_stride,
)
from pipeline.kernel.channels.resample import STRIP, odd_lines
from pipeline.kernel.channels.simd import FLOATS, TILE
from pipeline.kernel.compiling import compiling
from pipeline.kernel.kernel import empty_draw
from pipeline.priority import computing_threads

SAMPLES = {"float32": FLOAT32, "uint16": UINT16, "uint8": UINT8}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class ChannelKernel:
    """Crops batches of images in its own `threads` threads.

    pixels: of all images. dtype: of the crops; "bfloat16" returns the bits as uint16. Raises ValueError for other
    values.
    """

    def __init__(
        self,
        crops: Crops,
        pixels: PixelFormat,
        threads: int,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        nice: int = 0,
    ):
        if dtype not in DTYPES or threads < 1:
            raise ValueError(f"dtype={dtype!r}, threads={threads}: give one of {', '.join(DTYPES)}, and a thread")
        self.crops, self.pixels, self.dtype = crops, pixels, dtype
        self.setting = _setting(crops, pixels, dtype)
        self.process = compiled_driver()
        self.threads = threads
        self.side = 0  # of the largest image that scratch is for
        self.scratch: list[Scratch] = []
        self.pool = computing_threads(threads, "kernel", nice)
        self._end = weakref.finalize(self, self.pool.shutdown)
        self.lock = threading.Lock()
        with compiling(Path(__file__).parent):
            self.run([], empty_draw(len(crops.views)), self.buffers(0))

    def buffers(self, batch: int) -> list[np.ndarray]:
        """Uninitialized outputs for `run`, (views of the group, batch, size, size, C) for each resolution group."""
        shapes = [(len(members), batch, size, size, self.pixels.channels) for size, members in self.crops.groups]
        return [np.empty(shape, DTYPES[self.dtype]) for shape in shapes]

    def run(self, images: Sequence[NDArray], draw: Draw, outputs: Sequence[np.ndarray]) -> None:
        """Execute a draw on images (H, W, C) of the format, whose windows must be inside. Writes `outputs`, shaped as
        from `buffers` and C-contiguous. Channels that come first in memory are taken as they are.

        Two threads may call this at once: the second one waits. Raises ValueError if the arguments do not fit.
        """
        work, _alive = self._work(images, draw, outputs)
        with self.lock:
            self._make_room(work)
            scratch = self.scratch[: max(1, len(images))]
            tasks = [self.pool.submit(self.process, work, self.setting, one) for one in scratch]
            wait(tasks)  # for all, even if one fails: the others write to the outputs until they end
            for task in tasks:
                task.result()

    def close(self) -> None:
        """End the threads."""
        self._end()

    def _work(self, images: Sequence[NDArray], draw: Draw, outputs: Sequence[np.ndarray]) -> tuple[Work, list[NDArray]]:
        """The batch in the form that the compiled code reads, and the images whose memory it points to."""
        batch, views, pixels = len(images), len(self.crops.views), self.pixels
        expected = [(len(members), batch, size, size, pixels.channels) for size, members in self.crops.groups]
        if [out.shape for out in outputs] != expected or draw.window.shape[:2] != (batch, views):
            raise ValueError(f"draw and outputs must be for {batch} rows and {views} views")
        if any(image.ndim != 3 or image.shape[2] != pixels.channels or image.dtype != pixels.dtype for image in images):
            raise ValueError(f"images must be of {pixels}")
        for out in outputs:
            if out.dtype != DTYPES[self.dtype] or not out.flags.c_contiguous or not out.flags.writeable:
                raise ValueError(f"outputs: need writeable, C-contiguous {np.dtype(DTYPES[self.dtype])} arrays")
        height, width = (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))
        top, left, tall, wide = np.moveaxis(draw.window, -1, 0)
        inside = (top >= 0) & (left >= 0) & (tall > 0) & (wide > 0)
        if not (inside & (tall <= height[:, None] - top) & (wide <= width[:, None] - left)).all():
            raise ValueError("a window lies outside its image")
        target = np.zeros(views, np.int64)
        for (_, members), out in zip(self.crops.groups, outputs, strict=True):
            for position, view in enumerate(members):
                target[view] = out.ctypes.data + position * out.strides[0]
        planar = [not image.flags.c_contiguous and image.transpose(2, 0, 1).flags.c_contiguous for image in images]
        ordered = [image.transpose(2, 0, 1) if first else image for image, first in zip(images, planar, strict=True)]
        alive = [np.require(image, requirements=["C", "A"]) for image in ordered]
        mirror, upside, exchange = draw.oriented
        work = Work(  # always copies: a read-only array is another numba type, which would compile everything again
            address=np.array([image.ctypes.data for image in alive], np.int64),
            length=np.array([image.size for image in alive], np.int64),
            planar=np.array(planar, bool),
            height=height,
            width=width,
            window=np.array(draw.window, np.int64, order="C"),
            mirror=np.array(mirror, bool, order="C"),
            upside=np.array(upside, bool, order="C"),
            exchange=np.array(exchange, bool, order="C"),
            jitter=np.array(draw.jitter, bool, order="C"),
            factors=np.array(draw.factors, np.float32, order="C"),
            order=np.array(draw.order, np.uint8, order="C"),
            gains=np.array(np.broadcast_to(draw.gains, (batch, views, pixels.channels)), np.float32, order="C"),
            grayscale=np.array(draw.grayscale, bool, order="C"),
            blur=np.array(draw.blur, bool, order="C"),
            sigma=np.array(draw.sigma, np.float32, order="C"),
            solarize=np.array(draw.solarize, bool, order="C"),
            posterize=np.array(draw.posterize, bool, order="C"),
            target=target,
            counter=np.zeros(1, np.int64),
        )
        return work, alive

    def _make_room(self, work: Work) -> None:
        """Scratch memory for the batch's largest image."""
        side = int(np.max(np.maximum(work.height, work.width), initial=1))
        if side > self.side:
            self.scratch = []  # frees the old memory before the new is allocated
            self.scratch = [_scratch(side, self.setting) for _ in range(self.threads)]
            self.side = side


def _setting(crops: Crops, pixels: PixelFormat, dtype: str) -> Setting:
    size = max(view.size for view in crops.views)
    rim = crops.blur_rim
    mean, std = np.array(crops.mean), np.array(crops.std)
    return Setting(
        sample=SAMPLES[pixels.dtype],
        channels=pixels.channels,
        white=pixels.white,
        is_color=pixels.is_color,
        clips=pixels.has_range,
        kind=list(DTYPES).index(dtype),
        size=np.array([view.size for view in crops.views], np.int64),
        threshold=np.array([own.solarize.threshold for own in crops.changes], np.float32),
        levels=np.array([2**own.posterize.bits for own in crops.changes], np.float32),
        rim=rim,
        margin=(rim + FLOATS - 1) // FLOATS * FLOATS,
        mean=np.pad(np.tile(mean, size), (0, TILE - 1)).astype(np.float32),
        gain=np.pad(np.tile(1 / std, size), (0, TILE - 1)).astype(np.float32),
    )


def _scratch(side: int, setting: Setting) -> Scratch:
    """Memory for images of up to `side` pixels a side, and for the largest crop."""
    size, channels = int(setting.size.max()), setting.channels
    line = odd_lines.py_func(side * channels + TILE)
    planes = (channels * (size + 2 * setting.rim) + TILE) * plane_stride.py_func(size, setting.margin) + FLOATS
    floats = {
        "strip": STRIP * line,
        "transposed": STRIP * line,
        "planes": planes,
        "half_blurred": planes,
        "row_weights": 2 * side + 3 * size,
        "column_weights": 2 * side + 3 * size,
        "blur_weights": 2 * setting.rim + 1,
        "mean": channels,
    }
    return Scratch(
        first_row=np.empty(size, np.int64),
        first_column=np.empty(size, np.int64),
        edge=np.empty(4 * TILE * (channels * size + TILE), np.uint8),
        **{name: np.zeros(count, np.float32) for name, count in floats.items()},
    )

"""The fused multi-crop kernel: decodes each image once, then makes all of its crops while it is in the cache.

    JPEG bytes -> header -> libjpeg-turbo -> for each view: resample its window -> color -> blur -> normalize, store

Compiled by numba on first use and cached on disk. Threads take rows from a shared counter, without the GIL.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8

from pipeline.color import color_matrices
from pipeline.crops import Crops
from pipeline.dataset.images import MOST_PIXELS
from pipeline.draw import Draw, unchanged
from pipeline.kernel.compiling import compiling
from pipeline.kernel.decode import free_decompressor, function_address, new_decompressor
from pipeline.kernel.driver import (
    EVERYTHING,
    HEADERS,
    RESAMPLE,
    STAGES,
    STORE,
    Scratch,
    Setting,
    Work,
    compiled_driver,
    plane_stride,
)
from pipeline.kernel.resample import STRIP
from pipeline.priority import computing_threads
from pipeline.scaling import shrinks

PLANES = ("scaled", "accurate")  # values of crops.decode and dct for which JPEGs are decoded to planes
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "uint8": np.uint8}


class Kernel:
    """Decodes and crops batches in its own `threads` threads.

    dtype: of the crops; "bfloat16" returns the bits as uint16; "uint8" stops after resampling and flip (no color, blur
    or normalization). crops.jitter.exact: torchvision's color steps one by one, else composed to one affine map (see
    color.py). crops.decode: "scaled" decodes JPEGs to their planes or as small as the windows allow, "exact" to PIL's
    very pixels. dct: "fast" is ffcv's own decoder, on average one level off PIL and always exact in size. nice: of the
    threads, see `computing_threads`. Raises ValueError for other values, ImportError if ffcv is not installed.
    """

    def __init__(
        self,
        crops: Crops,
        threads: int,
        dtype: Literal["float32", "float16", "bfloat16", "uint8"] = "float32",
        dct: Literal["fast", "accurate"] = "accurate",
        nice: int = 0,
    ):
        if dtype not in DTYPES or dct not in ("fast", "accurate") or threads < 1:
            raise ValueError(
                f"dtype={dtype!r}, dct={dct!r}, threads={threads}: give a dtype of {', '.join(DTYPES)}, "
                "dct fast or accurate, and at least 1 thread"
            )
        self.crops = crops
        self.dtype = dtype
        self.stages = RESAMPLE | STORE if dtype == "uint8" else EVERYTHING
        self.setting = _setting(crops, dtype, dct)
        self.process = compiled_driver()
        self.capacity = (0, 0)  # bytes and longest side of the largest decoded image that scratch holds
        self.scratch: list[Scratch] = []
        self.handles = [new_decompressor() if dct == "accurate" else 0 for _ in range(threads)]
        self.pool = computing_threads(threads, "kernel", nice)
        self._end = weakref.finalize(self, _end, self.pool, self.handles)
        self.lock = threading.Lock()
        empty = np.empty(0, np.int64)
        with compiling():
            self.run([], empty.astype(bool), empty, empty, empty_draw(len(crops.views)), self.buffers(0))

    def buffers(self, batch: int) -> list[np.ndarray]:
        """Uninitialized outputs for `run`, (views of the group, batch, size, size, 3) for each resolution group.

        They start at multiples of 64 bytes. `run` accepts other addresses too, but takes longer to fill them.
        """
        dtype = np.dtype(DTYPES[self.dtype])
        outputs = []
        for size, members in self.crops.groups:
            shape = (len(members), batch, size, size, 3)
            room = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
            start = -room.ctypes.data % 64
            outputs.append(room[start : start + len(room) - 64].view(dtype).reshape(shape))
        return outputs

    def run(
        self,
        images: Sequence[np.ndarray],
        jpeg: Bool[np.ndarray, " B"],
        height: Int[np.ndarray, " B"],
        width: Int[np.ndarray, " B"],
        draw: Draw,
        outputs: Sequence[np.ndarray],
    ) -> UInt8[np.ndarray, " B"]:
        """Execute a draw: images[i] holds JPEG bytes (1-d uint8) where jpeg[i], else RGB pixels (H, W, 3) uint8.

        height, width: of the upright images, so as EXIF turns them. Writes `outputs` (shaped as from `buffers`,
        C-contiguous) and returns the status of each row: 0 fine; 1 the JPEG is broken, or the library warned about it;
        2 the image is not height x width, or a window lies outside it. Crops of a row whose status is not 0 are all 0.

        Two threads may call this at once: one prepares its batch while the other's runs. Raises ValueError if the
        shapes or dtypes of the arguments do not fit.
        """
        work, _alive = self._work(images, jpeg, height, width, draw, outputs)
        with self.lock:
            self._execute(work, self.stages)
        return work.status

    def close(self) -> None:
        """End the threads; the kernel cannot run again. Garbage collection closes a kernel too."""
        self._end()

    def _work(self, images, jpeg, height, width, draw, outputs) -> tuple[Work, list[np.ndarray]]:
        """The batch in the form that the compiled code reads, and the images whose memory it points to."""
        images = [np.ascontiguousarray(image, np.uint8) for image in images]
        batch, views = len(images), len(self.crops.views)
        expected = [(len(members), batch, size, size, 3) for size, members in self.crops.groups]
        rows = {len(jpeg), len(height), len(width)}
        if [out.shape for out in outputs] != expected or rows != {batch} or draw.window.shape[:2] != (batch, views):
            raise ValueError(f"jpeg, height, width, draw and outputs must be for {batch} rows and {views} views")
        for out in outputs:
            if out.dtype != DTYPES[self.dtype] or not out.flags.c_contiguous or not out.flags.writeable:
                raise ValueError(f"outputs: need writeable, C-contiguous {np.dtype(DTYPES[self.dtype])} arrays")
        target = np.zeros(views, np.int64)
        for (_, members), out in zip(self.crops.groups, outputs, strict=True):
            for position, view in enumerate(members):
                target[view] = out.ctypes.data + position * out.strides[0]
        height, width = np.asarray(height, np.int64), np.asarray(width, np.int64)
        fits = (height > 0) & (width > 0) & (height <= MOST_PIXELS // np.maximum(width, 1))
        height, width = np.where(fits, height, 0), np.where(fits, width, 0)  # size 0 makes the driver reject the row
        length = [
            image.size if encoded or image.shape == shape else 0
            for image, encoded, shape in zip(images, jpeg, zip(height, width, [3] * batch, strict=True), strict=True)
        ]
        linear, offset = color_matrices(draw)
        mirror, upside, exchange = draw.oriented
        work = Work(  # always copies: a read-only array is another numba type, which would compile everything again
            address=np.array([image.ctypes.data for image in images], np.int64),
            length=np.array(length, np.int64),
            jpeg=np.array(jpeg, bool),
            height=height,
            width=width,
            shrink=shrinks(draw.window, self.setting.size),
            room=np.zeros(batch, np.int64),
            orientation=np.ones(batch, np.int64),
            across=np.full(batch, -1),
            down=np.full(batch, -1),
            window=np.array(draw.window, np.int64, order="C"),
            mirror=np.array(mirror, bool, order="C"),
            upside=np.array(upside, bool, order="C"),
            exchange=np.array(exchange, bool, order="C"),
            linear=linear,
            offset=offset,
            jitter=np.array(draw.jitter, bool, order="C"),
            factors=np.array(draw.factors, np.float32, order="C"),
            order=np.array(draw.order, np.uint8, order="C"),
            gains=np.array(np.broadcast_to(draw.gains, (batch, views, 3)), np.float32, order="C"),
            grayscale=np.array(draw.grayscale, bool, order="C"),
            blur=np.array(draw.blur, bool, order="C"),
            sigma=np.array(draw.sigma, np.float32, order="C"),
            solarize=np.array(draw.solarize, bool, order="C"),
            posterize=np.array(draw.posterize, bool, order="C"),
            target=target,
            status=np.zeros(batch, np.uint8),
            counter=np.zeros(1, np.int64),
        )
        return work, images

    def _execute(self, work: Work, stages: int) -> None:
        self._make_room(work)
        work.counter[0] = 0
        tasks = [self.pool.submit(self.process, work, self.setting, scratch, stages) for scratch in self.scratch]
        wait(tasks)  # for all, even if one fails: the others write to the outputs until they end
        for task in tasks:
            task.result()

    def _make_room(self, work: Work) -> None:
        """Read the headers, and grow the scratch memory to hold the batch's largest decoded image."""
        if not self.scratch:
            self.scratch = [_scratch(1, 1, self.setting, handle) for handle in self.handles]
        work.counter[0] = 0
        self.process(work, self.setting, self.scratch[0], HEADERS)
        size = int(np.max(work.room, initial=1))
        side = int(np.max(np.maximum(work.height, work.width) // work.shrink + 4, initial=1, where=work.room > 0))
        if size > self.capacity[0] or side > self.capacity[1]:
            room = max(size, self.capacity[0]), max(side, self.capacity[1])
            self.capacity, self.scratch = (0, 0), []  # frees the old memory before the new is allocated
            self.scratch = [_scratch(*room, self.setting, handle) for handle in self.handles]
            self.capacity = room


def _end(pool: ThreadPoolExecutor, handles: list[int]) -> None:
    pool.shutdown()
    while handles:
        if handle := handles.pop():
            free_decompressor(handle)


def _setting(crops: Crops, dtype: str, dct: str) -> Setting:
    size = max(view.size for view in crops.views)
    rim = crops.blur_rim
    mean, std = np.array(crops.mean), np.array(crops.std)
    return Setting(
        decoder=function_address("imdecode" if dct == "fast" else "tjDecompress2"),
        planes_decoder=function_address("tjDecompressToYUVPlanes") if (crops.decode, dct) == PLANES else 0,
        exact=crops.jitter.exact,
        kind=list(DTYPES).index(dtype),
        size=np.array([view.size for view in crops.views], np.int64),
        threshold=np.ceil([255 * own.solarize.threshold for own in crops.changes]).astype(np.uint8),
        mask=np.array([256 - 2 ** (8 - own.posterize.bits) for own in crops.changes], np.uint8),
        rim=rim,
        margin=max(16, (rim + 15) // 16 * 16),
        gain=np.tile(1 / (255 * std), size).astype(np.float32),
        bias=np.tile(-mean / std, size).astype(np.float32),
    )


def _scratch(decoded: int, side: int, setting: Setting, handle: int) -> Scratch:
    """Memory for decoded images of up to `decoded` bytes and `side` pixels a side, and for the largest crop."""
    size = int(setting.size.max())
    row = 3 * max(side, size) + 256  # bytes; vectors read and write beyond the end of a row
    planes = (3 * (size + 2 * setting.rim) + 16) * plane_stride.py_func(size, setting.margin) + 64
    return Scratch(
        handle=handle,
        image=np.empty(decoded + 128, np.uint8),
        pointers=np.empty(3, np.int64),
        strip=np.empty(STRIP * row, np.uint8),
        transposed=np.empty(STRIP * row, np.uint8),
        planes=np.zeros(planes, np.uint8),
        half_blurred=np.zeros(planes, np.uint8),
        first_row=np.empty(size, np.int32),
        first_column=np.empty(size, np.int32),
        row_weights=np.empty(2 * side + 4 * size, np.uint16),
        column_weights=np.empty(2 * side + 4 * size, np.uint16),
        chroma_row=np.empty(size, np.int32),
        chroma_column=np.empty(size, np.int32),
        chroma_row_weights=np.empty(2 * side + 4 * size, np.uint16),
        chroma_column_weights=np.empty(2 * side + 4 * size, np.uint16),
        taps=np.empty((4, size), np.float32),
        blur_weights=np.empty(2 * setting.rim + 1, np.uint16),
        mean=np.empty(3, np.float32),
    )


def empty_draw(views: int) -> Draw:
    """The draw of an empty batch."""
    return unchanged(np.empty(0, np.int64), np.empty((0, views, 4), np.int64))


def stage_times(
    kernel: Kernel,
    images: Sequence[np.ndarray],
    jpeg: Bool[np.ndarray, " B"],
    height: Int[np.ndarray, " B"],
    width: Int[np.ndarray, " B"],
    draw: Draw,
    rounds: int = 5,
) -> dict[str, float]:
    """CPU milliseconds per image of decode, resample, color, blur and store (which normalizes), and `total`.

    Each round runs the batch several times, with one more stage switched on each time; a stage's time is the median
    over rounds of the difference. CPU time is measured because other processes disturb it less; other threads of this
    process must be idle.
    """
    outputs = kernel.buffers(len(images))
    names = ["decode", *(name for name, bit in STAGES.items() if kernel.stages & bit)]
    masks = np.cumsum([STAGES.get(name, 0) for name in names]).tolist()
    times = np.empty((rounds, len(masks)))
    work, _alive = kernel._work(images, jpeg, height, width, draw, outputs)
    with kernel.lock:
        for round in range(-1, rounds):  # round -1 warms up
            for position, mask in enumerate(masks):
                start = time.process_time()
                kernel._execute(work, mask)
                times[round, position] = time.process_time() - start
    each = 1000 / len(images)
    steps = np.median(np.diff(times, axis=1, prepend=0), axis=0)
    return {name: float(step * each) for name, step in zip(names, steps, strict=True)} | {
        "total": float(np.median(times[:, -1]) * each)
    }

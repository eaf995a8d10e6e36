"""The fused multi-crop kernel: one decode of each image, then all of its crops while it is hot in the cache.

    JPEG bytes -> libjpeg-turbo -> for each view: resample its window -> colour -> blur -> normalise and store

Compiled by numba on first use and cached on disk. Threads take rows off a shared counter, without the GIL.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from numba import njit

from pipeline.color import color_matrices
from pipeline.crops import Crops
from pipeline.draw import Draw
from pipeline.kernel_decode import FINE, MISFIT, imdecode_address, pixels_of
from pipeline.kernel_hsv import stepwise_colour
from pipeline.kernel_pixels import affine_colour, blur, is_identity, mean_colour, store_crop
from pipeline.kernel_resample import STRIP, resample
from pipeline.kernel_simd import array_at, take_next

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "uint8": np.uint8}
MAX_PIXELS = 89_478_485  # of an image, as in images.py

# Stages, as bits: all of them make crops, fewer are for timing.
RESAMPLE, COLOUR, BLUR, STORE = (1 << bit for bit in range(4))
STAGES = {"resample": RESAMPLE, "colour": COLOUR, "blur": BLUR, "store": STORE}
EVERYTHING = sum(STAGES.values())


class Scratch(NamedTuple):
    """What one thread works in; see `_scratch`."""

    image: np.ndarray  # the decoded image, uint8
    strip: np.ndarray  # 32 rows before or after a transpose, uint8
    turned: np.ndarray  # the same transposed, uint8
    planes: np.ndarray  # the crop, uint8
    other: np.ndarray  # the crop blurred one way, uint8
    first_row: np.ndarray  # taps of the resampling: int32, weights uint16
    first_column: np.ndarray
    row_weights: np.ndarray
    column_weights: np.ndarray
    taps: np.ndarray  # (4, size) float32, for the weights on their way
    blur_weights: np.ndarray  # uint16
    mean: np.ndarray  # (3,) float32
    table: np.ndarray  # (256,) uint8


class Work(NamedTuple):
    """A batch of B rows and V views as the compiled code reads it."""

    address: np.ndarray  # (B,) int64, of the encoded bytes or pixels
    length: np.ndarray  # (B,) int64, bytes
    jpeg: np.ndarray  # (B,) bool
    height: np.ndarray  # (B,) int64
    width: np.ndarray  # (B,) int64
    window: np.ndarray  # (B, V, 4) int64
    flip: np.ndarray  # (B, V) bool
    linear: np.ndarray  # (B, V, 3, 3) float32
    offset: np.ndarray  # (B, V, 3, 3) float32
    jitter: np.ndarray  # (B, V) bool
    factors: np.ndarray  # (B, V, 4) float32
    order: np.ndarray  # (B, V, 4) uint8
    grayscale: np.ndarray  # (B, V) bool
    blur: np.ndarray  # (B, V) bool
    sigma: np.ndarray  # (B, V) float32
    target: np.ndarray  # (V,) int64, address of the view's (B, size, size, 3) block
    status: np.ndarray  # (B,) uint8
    counter: np.ndarray  # (1,) int64, the next row


class Setting(NamedTuple):
    """What stays the same from batch to batch."""

    imdecode: int  # address of the C function
    hsv: bool  # colour step by step
    kind: int  # of the output, as in `store_crop`
    size: np.ndarray  # (V,) int64
    rim: int  # pixels around a crop, for the blur
    margin: int  # bytes on either side of the planes' rows, at least `rim` and a multiple of 16
    gain: np.ndarray  # (3 * largest size,) float32
    bias: np.ndarray


@cache
def _compiled() -> Any:
    """The compiled driver, process(work, setting, scratch, stages).

    numba renews its disk cache when this file changes, but not when those that it calls do: hence the digest of their
    sources, which is part of the key because the function closes over it.
    """
    sources = sorted(Path(__file__).parent.glob("kernel*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()

    def process(work, setting, scratch, stages):
        """Take rows until none is left; returns the digest of the sources."""
        while True:
            row = take_next(work.counter)
            if row >= len(work.status):
                return digest
            work.status[row] = _image(work, setting, scratch, stages, row)

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(process)
    except RuntimeError:  # nowhere to write a cache
        return njit(**options)(process)


@njit(nogil=True, error_model="numpy")
def _image(work, setting, scratch, stages, row):
    """Decode one image and make its crops; returns the status. Crops of a row that fails are 0."""
    height, width = work.height[row], work.width[row]
    status = MISFIT
    if height > 0 and width > 0 and 3 * height * width + 64 <= len(scratch.image):
        status = FINE
        for view in range(len(setting.size)):
            top, left, rows, columns = work.window[row, view]
            if top < 0 or left < 0 or rows < 1 or columns < 1 or rows > height - top or columns > width - left:
                status = MISFIT
    if status == FINE:
        status = pixels_of(
            setting.imdecode, work.address[row], work.length[row], work.jpeg[row], height, width, scratch.image
        )
    for view in range(len(setting.size)):
        size = setting.size[view]
        bytes_each = 4 if setting.kind == 0 else 1 if setting.kind == 3 else 2
        crop = 3 * size * size * bytes_each
        target = work.target[view] + row * crop
        if status != FINE:
            array_at(target, crop, np.uint8)[:] = 0
        elif stages & RESAMPLE:
            _crop(work, setting, scratch, stages, row, view, size, target)
    return status


@njit(nogil=True, error_model="numpy")
def _crop(work, setting, scratch, stages, row, view, size, target):
    """One crop of the decoded image, written to the address `target`."""
    planes = scratch.planes
    stride = _stride(size, setting.margin)
    at = 3 * setting.rim * stride + setting.margin
    resample(
        scratch.image, work.width[row], work.window[row, view], size, work.flip[row, view], scratch, planes, at, stride
    )
    if stages & COLOUR:
        linear, offset = work.linear[row, view], work.offset[row, view]
        if setting.hsv:
            stepwise_colour(
                planes,
                at,
                stride,
                size,
                work.jitter[row, view],
                work.factors[row, view],
                work.order[row, view],
                work.grayscale[row, view],
                scratch.table,
            )
        elif not is_identity(linear, offset):
            mean_colour(planes, at, stride, size, scratch.mean)
            affine_colour(planes, at, stride, size, linear, offset, scratch.mean)
    if stages & BLUR and work.blur[row, view]:
        blur(planes, scratch.other, at, stride, size, work.sigma[row, view], setting.rim, scratch.blur_weights)
    if stages & STORE:
        store_crop(planes, at, stride, size, scratch.strip, target, setting.kind, setting.gain, setting.bias)


@njit(nogil=True, error_model="numpy")
def _stride(size, margin):
    """Bytes between the rows of the planes, a multiple of 32."""
    return (size + 31) // 32 * 32 + 2 * margin


class Kernel:
    """Decodes and crops batches in `threads` threads of its own.

    dtype: of the crops; "bfloat16" gives its bits as uint16; "uint8" stops after resampling and flip: no colour, no blur,
    no normalisation. hue: "affine" composes all colour steps to one map (see color.py), "hsv" takes torchvision's steps
    one by one. Not more than one `run` is under way at a time. Raises ImportError where ffcv is not installed.
    """

    def __init__(
        self,
        crops: Crops,
        threads: int,
        dtype: Literal["float32", "float16", "bfloat16", "uint8"] = "float32",
        hue: Literal["affine", "hsv"] = "affine",
    ):
        if dtype not in DTYPES or hue not in ("affine", "hsv") or threads < 1:
            raise ValueError(
                f"dtype={dtype!r}, hue={hue!r}, threads={threads}: give a dtype of {', '.join(DTYPES)}, "
                "hue affine or hsv, and at least 1 thread"
            )
        self.crops = crops
        self.dtype = dtype
        self.stages = RESAMPLE | STORE if dtype == "uint8" else EVERYTHING
        self.setting = _setting(crops, dtype, hue)
        self.process = _compiled()
        self.capacity = (0, 0)  # pixels and longest side of the images that scratch has room for
        self.scratch: list[Scratch] = []
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="kernel")
        self.lock = threading.Lock()
        nobody = np.empty(0, np.int64)
        self.run([], nobody.astype(bool), nobody, nobody, _no_draw(len(crops.views)), self.buffers(0))  # compiles

    def buffers(self, batch: int) -> list[np.ndarray]:
        """Uninitialised outputs for `run`, (views of the group, batch, size, size, 3) for each resolution group.

        They begin at multiples of 64 bytes; others are as good, but take longer to fill.
        """
        dtype = np.dtype(DTYPES[self.dtype])
        outputs = []
        for size, members in self.crops.groups:
            shape = (len(members), batch, size, size, 3)
            room = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
            begin = -room.ctypes.data % 64
            outputs.append(room[begin : begin + len(room) - 64].view(dtype).reshape(shape))
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

        Writes `outputs` as from `buffers` (C-contiguous; batch B) and returns a status per row: 0 fine; 1 the JPEG is
        broken (or the library warned of it); 2 height x width are not the image's own, or a window lies outside; 3 the
        JPEG's EXIF wants it turned: give its pixels instead. Crops of rows that are not fine are 0.
        """
        with self.lock:
            return self._run(images, jpeg, height, width, draw, outputs, self.stages)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()

    def _run(self, images, jpeg, height, width, draw, outputs, stages) -> np.ndarray:
        images = [np.ascontiguousarray(image, np.uint8) for image in images]
        batch = len(images)
        expected = [(len(members), batch, size, size, 3) for size, members in self.crops.groups]
        if [out.shape for out in outputs] != expected or draw.window.shape != (batch, len(self.crops.views), 4):
            raise ValueError(f"outputs and draw must be for {batch} rows and {len(self.crops.views)} views")
        for out in outputs:
            if out.dtype != DTYPES[self.dtype] or not out.flags.c_contiguous or not out.flags.writeable:
                raise ValueError(f"outputs: need writeable, C-contiguous {np.dtype(DTYPES[self.dtype])} arrays")
        target = np.zeros(len(self.crops.views), np.int64)
        for (_, members), out in zip(self.crops.groups, outputs, strict=True):
            for position, view in enumerate(members):
                target[view] = out.ctypes.data + position * out.strides[0]
        height, width = np.asarray(height, np.int64), np.asarray(width, np.int64)
        fits = (height > 0) & (width > 0) & (height <= MAX_PIXELS // np.maximum(width, 1))
        height, width = np.where(fits, height, 0), np.where(fits, width, 0)  # what does not fit is refused
        linear, offset = color_matrices(draw)
        work = Work(
            address=np.array([image.ctypes.data for image in images], np.int64),
            length=np.array([image.size for image in images], np.int64),
            jpeg=np.ascontiguousarray(jpeg, bool),
            height=height,
            width=width,
            window=np.ascontiguousarray(draw.window, np.int64),
            flip=np.ascontiguousarray(draw.flip, bool),
            linear=linear,
            offset=offset,
            jitter=np.ascontiguousarray(draw.jitter, bool),
            factors=np.ascontiguousarray(draw.factors, np.float32),
            order=np.ascontiguousarray(draw.order, np.uint8),
            grayscale=np.ascontiguousarray(draw.grayscale, bool),
            blur=np.ascontiguousarray(draw.blur, bool),
            sigma=np.ascontiguousarray(draw.sigma, np.float32),
            target=target,
            status=np.zeros(batch, np.uint8),
            counter=np.zeros(1, np.int64),
        )
        self._make_room(height, width)
        tasks = [self.pool.submit(self.process, work, self.setting, scratch, stages) for scratch in self.scratch]
        for task in tasks:
            task.result()
        return work.status

    def _make_room(self, height: np.ndarray, width: np.ndarray) -> None:
        """Grow the scratch to the batch's largest image."""
        pixels = int(np.max(height * width, initial=1))
        side = int(np.max(np.maximum(height, width), initial=1))
        if pixels > self.capacity[0] or side > self.capacity[1]:
            self.capacity = (max(pixels, self.capacity[0]), max(side, self.capacity[1]))
            self.scratch = []  # the old goes before the new comes
            self.scratch = [_scratch(*self.capacity, self.setting) for _ in range(self.threads)]


def _setting(crops: Crops, dtype: str, hue: str) -> Setting:
    size = max(view.size for view in crops.views)
    rim = int(np.ceil(3 * crops.blur.sigma[1])) if crops.blur.probability > 0 else 0
    mean, std = np.array(crops.mean), np.array(crops.std)
    return Setting(
        imdecode=imdecode_address(),
        hsv=hue == "hsv",
        kind=list(DTYPES).index(dtype),
        size=np.array([view.size for view in crops.views], np.int64),
        rim=rim,
        margin=max(16, (rim + 15) // 16 * 16),
        gain=np.tile(1 / (255 * std), size).astype(np.float32),
        bias=np.tile(-mean / std, size).astype(np.float32),
    )


def _scratch(pixels: int, side: int, setting: Setting) -> Scratch:
    """Room for images of up to `pixels` pixels and `side` pixels a side, and for the largest crop."""
    size = int(setting.size.max())
    row = 3 * max(side, size) + 128  # bytes; vectors read and write past the end of a row
    planes = (3 * (size + 2 * setting.rim) + 16) * _stride(size, setting.margin) + 64
    return Scratch(
        image=np.empty(3 * pixels + 128, np.uint8),
        strip=np.empty(STRIP * row, np.uint8),
        turned=np.empty(STRIP * row, np.uint8),
        planes=np.zeros(planes, np.uint8),
        other=np.zeros(planes, np.uint8),
        first_row=np.empty(size, np.int32),
        first_column=np.empty(size, np.int32),
        row_weights=np.empty(2 * side + 4 * size, np.uint16),
        column_weights=np.empty(2 * side + 4 * size, np.uint16),
        taps=np.empty((4, size), np.float32),
        blur_weights=np.empty(2 * setting.rim + 1, np.uint16),
        mean=np.empty(3, np.float32),
        table=np.empty(256, np.uint8),
    )


def _no_draw(views: int) -> Draw:
    """The draw of an empty batch."""
    none = np.empty((0, views), bool)
    return Draw(
        rows=np.empty(0, np.int64),
        window=np.empty((0, views, 4), np.int64),
        flip=none,
        jitter=none,
        factors=np.empty((0, views, 4), np.float32),
        order=np.empty((0, views, 4), np.uint8),
        grayscale=none,
        blur=none,
        sigma=np.empty((0, views), np.float32),
    )


def stage_times(
    kernel: Kernel,
    images: Sequence[np.ndarray],
    jpeg: Bool[np.ndarray, " B"],
    height: Int[np.ndarray, " B"],
    width: Int[np.ndarray, " B"],
    draw: Draw,
    rounds: int = 5,
) -> dict[str, float]:
    """CPU milliseconds per image of decode, resample, colour, blur and store (which normalises), and `total`.

    The batch runs with ever more stages switched on, in turn within each round; medians over rounds of the differences.
    CPU time, so that other processes disturb less; other threads of this process must be idle.
    """
    outputs = kernel.buffers(len(images))
    names = ["decode", *(name for name, bit in STAGES.items() if kernel.stages & bit)]
    masks = np.cumsum([STAGES.get(name, 0) for name in names]).tolist()
    times = np.empty((rounds, len(masks)))
    with kernel.lock:
        for round in range(-1, rounds):  # the first warms up
            for position, mask in enumerate(masks):
                start = time.process_time()
                kernel._run(images, jpeg, height, width, draw, outputs, mask)
                times[round, position] = time.process_time() - start
    each = 1000 / len(images)
    steps = np.median(np.diff(times, axis=1, prepend=0), axis=0)
    return {name: float(step * each) for name, step in zip(names, steps, strict=True)} | {
        "total": float(np.median(times[:, -1]) * each)
    }

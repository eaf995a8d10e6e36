"""The compiled loop: takes rows of a batch and makes all crops of each image."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pipeline.kernel.channels.blur_store import blur, store_crop
from pipeline.kernel.channels.color import ZERO, jitter, posterize, saturate, solarize
from pipeline.kernel.channels.resample import odd_lines, resample
from pipeline.kernel.driver import source_digest
from pipeline.kernel.native import array_at, take_next
from pipeline.kernel.tones import exchange

FLOAT32, UINT16, UINT8 = range(3)  # of samples


class Scratch(NamedTuple):
    """Working memory of one thread; `_scratch` in kernel.py allocates it."""

    strip: np.ndarray  # 16 rows before a transpose, float32
    transposed: np.ndarray  # the same rows transposed
    planes: np.ndarray  # the crop, float32
    half_blurred: np.ndarray  # the crop blurred along one axis
    first_row: np.ndarray  # int64, first input row of each output row
    first_column: np.ndarray
    row_weights: np.ndarray  # float32, the taps' weights
    column_weights: np.ndarray
    blur_weights: np.ndarray
    mean: np.ndarray  # (C,) float32
    edge: np.ndarray  # uint8, see `store_crop`


class Work(NamedTuple):
    """A batch of B rows and V views in the form that the compiled code reads."""

    address: np.ndarray  # (B,) int64, of the samples
    length: np.ndarray  # (B,) int64, samples
    planar: np.ndarray  # (B,) bool, channels first
    height: np.ndarray  # (B,) int64
    width: np.ndarray  # (B,) int64
    window: np.ndarray  # (B, V, 4) int64
    mirror: np.ndarray  # (B, V) bool, as the next two from `Draw.oriented`
    upside: np.ndarray
    exchange: np.ndarray
    jitter: np.ndarray  # (B, V) bool
    factors: np.ndarray  # (B, V, 4) float32
    order: np.ndarray  # (B, V, 4) uint8
    gains: np.ndarray  # (B, V, C) float32
    grayscale: np.ndarray  # (B, V) bool
    blur: np.ndarray  # (B, V) bool
    sigma: np.ndarray  # (B, V) float32
    solarize: np.ndarray  # (B, V) bool
    posterize: np.ndarray  # (B, V) bool
    target: np.ndarray  # (V,) int64, address of each view's (B, size, size, C) block
    counter: np.ndarray  # (1,) int64, the next row to process


class Setting(NamedTuple):
    """Values that stay the same from batch to batch."""

    sample: int  # FLOAT32, UINT16 or UINT8
    channels: int
    white: float  # the value that mean and std count as 1
    is_color: bool
    clips: bool  # values end at 0 and white
    kind: int  # output dtype, numbered as in `store_crop`
    size: np.ndarray  # (V,) int64
    threshold: np.ndarray  # (V,) float32, of solarizing
    levels: np.ndarray  # (V,) float32, that posterizing leaves
    rim: int  # pixels around a crop that the blur reads
    margin: int  # floats on either side of the planes' rows, at least `rim` and a multiple of 16
    mean: np.ndarray  # (C * largest size + 7,) float32
    gain: np.ndarray


@cache
def compiled_driver() -> Any:
    """The compiled driver, process(work, setting, scratch). Its closure over a digest of the sources renews numba's
    disk cache, as in `pipeline.kernel.driver.compiled_driver`."""
    here = Path(__file__).parent
    digest = source_digest(here) + source_digest(here.parent)

    def process(work, setting, scratch):
        """Process rows of the batch until all are taken; returns the digest of the sources."""
        while True:
            row = take_next(work.counter)
            if row >= len(work.height):
                return digest
            if setting.sample == FLOAT32:
                _process_row(work, setting, scratch, row, array_at(work.address[row], work.length[row], np.float32))
            elif setting.sample == UINT16:
                _process_row(work, setting, scratch, row, array_at(work.address[row], work.length[row], np.uint16))
            else:
                _process_row(work, setting, scratch, row, array_at(work.address[row], work.length[row], np.uint8))

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(process)
    except RuntimeError:  # numba finds no writable cache folder
        return njit(**options)(process)


@njit(nogil=True, error_model="numpy")
def _process_row(work, setting, scratch, row, image):
    """Make the crops of one image; image: its samples, 1-d."""
    channels = setting.channels
    for view in range(len(setting.size)):
        size = setting.size[view]
        stride = plane_stride(size, setting.margin)
        at = channels * setting.rim * stride + setting.margin
        resample(
            image, work.planar[row], work.height[row], work.width[row], channels, work.window[row, view], size,
            work.mirror[row, view], setting.white, scratch, at, stride,
        )  # fmt: skip
        finish_crop(work, setting, scratch, row, view, at, stride)


@njit(nogil=True, error_model="numpy")
def finish_crop(work, setting, scratch, row, view, at, stride):
    """The steps after resampling."""
    size, channels, planes = setting.size[view], setting.channels, scratch.planes
    if work.jitter[row, view]:
        factors, order, gains = work.factors[row, view], work.order[row, view], work.gains[row, view]
        jitter(planes, at, stride, size, channels, factors, order, gains, setting.is_color, setting.clips, scratch.mean)
    if work.grayscale[row, view] and setting.is_color:
        saturate(planes, at, stride, size, ZERO)
    if work.blur[row, view]:
        sigma, weights = work.sigma[row, view], scratch.blur_weights
        blur(planes, scratch.half_blurred, at, stride, size, channels, sigma, setting.rim, weights)
    if work.solarize[row, view]:
        solarize(planes, at, stride, size, channels, setting.threshold[view])
    if work.posterize[row, view]:
        posterize(planes, at, stride, size, channels, setting.levels[view], setting.clips)
    upside = work.upside[row, view]
    if work.exchange[row, view]:
        exchange(scratch.half_blurred, planes, at, stride, size, channels, upside)
        planes, upside = scratch.half_blurred, False
    target = work.target[view] + row * channels * size * size * (4 if setting.kind == 0 else 2)
    store_crop(
        planes, at, stride, size, upside, channels, scratch.edge, target, setting.kind, setting.mean, setting.gain
    )


@njit(nogil=True, error_model="numpy")
def plane_stride(size, margin):
    """Floats from one row of the planes to the next: whole cache lines, an odd number of them."""
    return odd_lines(size + 2 * margin)

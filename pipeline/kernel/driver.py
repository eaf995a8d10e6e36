"""The compiled loop of the fused kernel: takes rows of a batch, decodes each once and makes all of its crops."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pipeline.kernel.decode import NO_PLANE, copy_pixels, read_planes, read_rgb, room_for
from pipeline.kernel.header import FINE, MISFIT, read_header
from pipeline.kernel.hsv import stepwise_color
from pipeline.kernel.native import array_at, take_next
from pipeline.kernel.pixels import affine_color, blur, is_identity, mean_color, store_crop
from pipeline.kernel.planes import resample_planes
from pipeline.kernel.resample import resample
from pipeline.kernel.tones import exchange, posterize, solarize

# Stages as bits of a mask. Crops need all of them; `stage_times` runs fewer.
RESAMPLE, COLOR, BLUR, STORE = (1 << bit for bit in range(4))
STAGES = {"resample": RESAMPLE, "color": COLOR, "blur": BLUR, "store": STORE}
EVERYTHING = sum(STAGES.values())
HEADERS = -1  # in place of a mask: only read the headers, into `Work`


class Scratch(NamedTuple):
    """Working memory of one thread; `_scratch` in kernel.py allocates it."""

    handle: int  # libjpeg-turbo's, or 0 for imdecode
    image: np.ndarray  # the decoded image, uint8
    pointers: np.ndarray  # (3,) int64
    strip: np.ndarray  # 32 rows before or after a transpose, uint8
    transposed: np.ndarray  # the same rows transposed, uint8
    planes: np.ndarray  # the crop, uint8
    half_blurred: np.ndarray  # the crop blurred along one axis, uint8
    first_row: np.ndarray  # int32, first input row of each output row
    first_column: np.ndarray
    row_weights: np.ndarray  # uint16, the taps' weights
    column_weights: np.ndarray
    chroma_row: np.ndarray  # the same of chroma, if the image is in planes
    chroma_column: np.ndarray
    chroma_row_weights: np.ndarray
    chroma_column_weights: np.ndarray
    taps: np.ndarray  # (4, size) float32, intermediate values of `tap_weights`
    blur_weights: np.ndarray  # uint16
    mean: np.ndarray  # (3,) float32


class Work(NamedTuple):
    """A batch of B rows and V views in the form that the compiled code reads."""

    address: np.ndarray  # (B,) int64, of the encoded bytes or pixels
    length: np.ndarray  # (B,) int64, bytes
    jpeg: np.ndarray  # (B,) bool
    height: np.ndarray  # (B,) int64
    width: np.ndarray  # (B,) int64
    shrink: np.ndarray  # (B,) int64, 1 / the scale at which to decode
    room: np.ndarray  # (B,) int64, bytes of the decoded image; this and the next four are made from the headers
    orientation: np.ndarray  # (B,) int64, EXIF's
    across: np.ndarray  # (B,) int64, luma samples for each chroma sample; -1: decode to RGB
    down: np.ndarray  # (B,) int64
    window: np.ndarray  # (B, V, 4) int64
    mirror: np.ndarray  # (B, V) bool, as the next two from `Draw.oriented`
    upside: np.ndarray
    exchange: np.ndarray
    linear: np.ndarray  # (B, V, 3, 3) float32
    offset: np.ndarray  # (B, V, 3, 3) float32
    jitter: np.ndarray  # (B, V) bool
    factors: np.ndarray  # (B, V, 4) float32
    order: np.ndarray  # (B, V, 4) uint8
    gains: np.ndarray  # (B, V, 3) float32
    grayscale: np.ndarray  # (B, V) bool
    blur: np.ndarray  # (B, V) bool
    sigma: np.ndarray  # (B, V) float32
    solarize: np.ndarray  # (B, V) bool
    posterize: np.ndarray  # (B, V) bool
    target: np.ndarray  # (V,) int64, address of each view's (B, size, size, 3) block
    status: np.ndarray  # (B,) uint8
    counter: np.ndarray  # (1,) int64, the next row to process


class Setting(NamedTuple):
    """Values that stay the same from batch to batch."""

    decoder: int  # address of the C function that decodes to RGB
    planes_decoder: int  # address of the C function that decodes to planes, or 0
    exact: bool  # color step by step, else as one affine map
    kind: int  # output dtype, numbered as in `store_crop`
    size: np.ndarray  # (V,) int64
    threshold: np.ndarray  # (V,) uint8, of solarizing
    mask: np.ndarray  # (V,) uint8, the bits that posterizing keeps
    rim: int  # pixels around a crop that the blur reads
    margin: int  # bytes on either side of the planes' rows, at least `rim` and a multiple of 16
    gain: np.ndarray  # (3 * largest size,) float32
    bias: np.ndarray


@cache
def compiled_driver() -> Any:
    """The compiled driver, process(work, setting, scratch, stages).

    numba renews its disk cache when this file changes, but not when a module that it calls changes. So the function
    closes over a digest of this folder's sources, which makes the digest part of the cache key.
    """
    digest = source_digest(Path(__file__).parent)

    def process(work, setting, scratch, stages):
        """Process rows of the batch until all are taken; returns the digest of the sources."""
        while True:
            row = take_next(work.counter)
            if row >= len(work.status):
                return digest
            if stages == HEADERS:
                work.status[row] = _plan_row(work, setting, row)
            else:
                work.status[row] = _process_row(work, setting, scratch, stages, row)

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(process)
    except RuntimeError:  # numba finds no writable cache folder
        return njit(**options)(process)


def source_digest(folder: Path) -> str:
    """SHA-256 of all Python files in `folder`, in hexadecimal."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


@njit(nogil=True, error_model="numpy")
def _plan_row(work, setting, row):
    """Read a row's header and choose how to decode it; returns its status."""
    height, width = work.height[row], work.width[row]
    status, orientation, across, down = (FINE, 1, -1, -1) if height > 0 and width > 0 else (MISFIT, 1, -1, -1)
    for view in range(len(setting.size)):
        top, left, rows, columns = work.window[row, view]
        if top < 0 or left < 0 or rows < 1 or columns < 1 or rows > height - top or columns > width - left:
            status = MISFIT
    if status == FINE and work.jpeg[row]:
        status, orientation, across, down = read_header(
            array_at(work.address[row], work.length[row], np.uint8), height, width
        )
    scaled = setting.planes_decoder != 0 and work.jpeg[row]
    if not scaled:
        work.shrink[row] = 1
    elif work.shrink[row] > 1 and across != down:  # of chroma the library leaves too little in one direction
        work.shrink[row] //= 2
    if not scaled or work.shrink[row] > 1:
        across = -1
    work.orientation[row], work.across[row], work.down[row] = orientation, across, down
    work.room[row] = room_for(height, width, orientation, work.shrink[row]) if status == FINE else 0
    return status


@njit(nogil=True, error_model="numpy")
def _process_row(work, setting, scratch, stages, row):
    """Decode one image and make its crops; returns the row's status. The crops of a row that fails are all 0."""
    height, width = work.height[row], work.width[row]
    status = work.status[row]
    rgb = luma = blue = red = NO_PLANE
    if status == FINE and not work.jpeg[row]:
        status, rgb = copy_pixels(work.address[row], work.length[row], height, width, scratch.image)
    elif status == FINE and work.across[row] < 0:
        status, rgb = read_rgb(
            setting.decoder,
            scratch.handle,
            work.address[row],
            work.length[row],
            work.orientation[row],
            work.shrink[row],
            height,
            width,
            scratch.image,
        )
    elif status == FINE:
        status, luma, blue, red = read_planes(
            setting.planes_decoder,
            scratch.handle,
            work.address[row],
            work.length[row],
            work.orientation[row],
            work.across[row],
            work.down[row],
            height,
            width,
            scratch.image,
            scratch.pointers,
        )
    for view in range(len(setting.size)):
        size = setting.size[view]
        bytes_each = 4 if setting.kind == 0 else 1 if setting.kind == 3 else 2
        crop = 3 * size * size * bytes_each
        target = work.target[view] + row * crop
        if status != FINE:
            array_at(target, crop, np.uint8)[:] = 0
        elif stages & RESAMPLE:
            _make_crop(work, setting, scratch, stages, row, view, size, target, rgb, luma, blue, red)
    return status


@njit(nogil=True, error_model="numpy")
def _make_crop(work, setting, scratch, stages, row, view, size, target, rgb, luma, blue, red):
    """Write one crop of the decoded image, which is RGB or in three planes, to the address `target`."""
    planes = scratch.planes
    stride = plane_stride(size, setting.margin)
    at = 3 * setting.rim * stride + setting.margin
    image, window, flip = scratch.image, work.window[row, view], work.mirror[row, view]
    if work.across[row] < 0:
        resample(image, rgb, window, size, flip, scratch, planes, at, stride)
    else:
        resample_planes(image, luma, blue, red, window, size, flip, scratch, planes, at, stride)
    if stages & COLOR:
        linear, offset = work.linear[row, view], work.offset[row, view]
        if setting.exact:
            stepwise_color(
                planes,
                at,
                stride,
                size,
                work.jitter[row, view],
                work.factors[row, view],
                work.order[row, view],
                work.gains[row, view],
                work.grayscale[row, view],
            )
        elif not is_identity(linear, offset):
            mean_color(planes, at, stride, size, scratch.mean)
            affine_color(planes, at, stride, size, linear, offset, scratch.mean)
    if stages & BLUR and work.blur[row, view]:
        blur(planes, scratch.half_blurred, at, stride, size, work.sigma[row, view], setting.rim, scratch.blur_weights)
    if stages & BLUR and work.solarize[row, view]:
        solarize(planes, at, stride, size, setting.threshold[view])
    if stages & BLUR and work.posterize[row, view]:
        posterize(planes, at, stride, size, setting.mask[view])
    if stages & STORE:
        upside = work.upside[row, view]
        if work.exchange[row, view]:
            exchange(scratch.half_blurred, planes, at, stride, size, 3, upside)
            planes, upside = scratch.half_blurred, False
        store_crop(planes, at, stride, size, upside, scratch.strip, target, setting.kind, setting.gain, setting.bias)


@njit(nogil=True, error_model="numpy")
def plane_stride(size, margin):
    """Bytes from one row of the planes to the next, a multiple of 32."""
    return (size + 31) // 32 * 32 + 2 * margin

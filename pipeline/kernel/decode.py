"""JPEG bytes to pixels inside compiled code, by libjpeg-turbo: its own API or ffcv's C function `imdecode`.

Pixels are RGB, at full size or shrunk, or the JPEG's own planes: luma, and chroma of lower resolution. A shrunk image
is never in planes: for RGB the library shrinks chroma less, so that it keeps luma's resolution. TurboJPEG 2, which
ffcv links, decodes no part of an image; cropping came with 3.0.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.kernel.header import BROKEN, FINE, MISFIT, TRANSPOSES
from pipeline.kernel.native import array_at, call_decompress, call_imdecode, call_planes

TILE = 32  # pixels a side of what is turned at a time: its rows and columns stay in the L1 cache


class Plane(NamedTuple):
    """Where samples (RGB pixels, or luma or chroma) are in an image buffer: `height` rows of `width`, the first at
    `at`, `pitch` bytes apart.

    The pixel position (y, x) of the upright image is at (down + y * y_step, right + x * x_step) of its samples.
    """

    at: int
    pitch: int
    height: int
    width: int
    down: float
    right: float
    y_step: float
    x_step: float


NO_PLANE = Plane(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)


@cache
def _library() -> ctypes.CDLL:
    """ffcv's shared library, which links libjpeg-turbo. Importing the package itself would load torch and OpenCV."""
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec else None
    for path in sorted(path for folder in folders or [] for path in Path(folder).glob("_libffcv*.so")):
        return ctypes.CDLL(str(path))
    raise ImportError("pipeline.backend=ffcv: ffcv is not installed; run `make setup`, or take pipeline.backend=dali")


def function_address(name: str) -> int:
    """Address of a C function of ffcv or libjpeg-turbo. Raises ImportError if ffcv is not installed."""
    return ctypes.cast(getattr(_library(), name), ctypes.c_void_p).value or 0


def new_decompressor() -> int:
    """A handle for tjDecompress2, for one thread at a time; `free_decompressor` frees it."""
    create = _library().tjInitDecompress
    create.restype = ctypes.c_void_p
    return create()


def free_decompressor(handle: int) -> None:
    _library().tjDestroy(ctypes.c_void_p(handle))


@njit(nogil=True, error_model="numpy")
def room_for(height, width, orientation, shrink):
    """Bytes that `read_rgb` or `read_planes` needs for an upright image of height x width pixels."""
    size = 3 * (height // shrink + 4) * (width // shrink + 4)  # a plane may have 3 more samples a side
    return size if orientation == 1 else 2 * size


@njit(nogil=True, error_model="numpy")
def read_rgb(function, handle, address, length, orientation, shrink, height, width, image):
    """Decode the JPEG at `address` to upright RGB, each side 1/shrink as long. Returns the status and the plane.

    function: address of tjDecompress2, or of imdecode if `handle` is 0. height, width: of the whole upright image.
    """
    rows, columns = (width, height) if orientation >= TRANSPOSES else (height, width)
    rows, columns = -(-rows // shrink), -(-columns // shrink)
    if handle:
        failed = call_decompress(function, handle, address, length, rows, columns, image.ctypes.data)
    else:
        failed = call_imdecode(function, address, length, rows, columns, image.ctypes.data)
    plane = Plane(0, 3 * columns, rows, columns, 0.0, 0.0, 1.0 / shrink, 1.0 / shrink)
    if failed or orientation == 1:
        return BROKEN if failed else FINE, plane
    return FINE, _upright(image, plane, 3, orientation, height, width, 3 * rows * columns)


@njit(nogil=True, error_model="numpy")
def read_planes(function, handle, address, length, orientation, across, down, height, width, image, pointers):
    """Decode the JPEG at `address` to its planes. Returns the status, luma's plane, blue's chroma and red's; the chroma
    of a gray image is one sample of 128.

    function: address of tjDecompressToYUVPlanes. pointers: (3,) int64, scratch. Other arguments as of `read_rgb`.
    """
    rows, columns = (width, height) if orientation >= TRANSPOSES else (height, width)
    x, y = max(across, 1), max(down, 1)
    m, n = -(-columns // x), -(-rows // y)  # chroma
    area, chroma = m * x * n * y, m * n  # the library writes whole chroma samples
    luma = Plane(0, m * x, rows, columns, 0.0, 0.0, 1.0, 1.0)
    blue = Plane(area, m, n, m, 0.0, 0.0, 1.0 / y, 1.0 / x)
    red = Plane(area + chroma, m, n, m, 0.0, 0.0, 1.0 / y, 1.0 / x)
    start = image.ctypes.data
    pointers[0], pointers[1], pointers[2] = start, start + blue.at, start + red.at
    if call_planes(function, handle, address, length, rows, columns, pointers.ctypes.data):
        return BROKEN, luma, blue, red
    if across == 0:
        image[area] = 128
        blue = red = Plane(area, 1, 1, 1, 0.0, 0.0, 1.0 / height, 1.0 / width)
    if orientation == 1:
        return FINE, luma, blue, red
    free = area + 2 * chroma
    luma = _upright(image, luma, 1, orientation, height, width, free)
    if across > 0:
        blue = _upright(image, blue, 1, orientation, height, width, free + area)
        red = _upright(image, red, 1, orientation, height, width, free + area + chroma)
    return FINE, luma, blue, red


@njit(nogil=True, error_model="numpy")
def _upright(image, plane, channels, orientation, height, width, at):
    """Turn a plane of an image of (upright) height x width pixels to `at`; returns it. channels: bytes of a sample."""
    turn(image, plane.at, plane.pitch, plane.height, plane.width, channels, orientation, at)
    rows, columns, y_step, x_step = plane.height, plane.width, plane.y_step, plane.x_step
    from_bottom, from_right = _mirrors(orientation)
    if orientation >= TRANSPOSES:
        rows, columns, y_step, x_step = columns, rows, x_step, y_step
        from_bottom, from_right = from_right, from_bottom
    # A mirrored plane begins with the part of its last sample that is outside the image.
    down = rows - height * y_step if from_bottom else 0.0
    right = columns - width * x_step if from_right else 0.0
    return Plane(at, channels * columns, rows, columns, down, right, y_step, x_step)


@njit(nogil=True, error_model="numpy")
def _mirrors(orientation):
    """Whether an upright image starts at the stored last row, and at the stored last column."""
    return orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)


@njit(nogil=True, error_model="numpy")
def turn(image, source, pitch, height, width, channels, orientation, target):
    """Write the height x width pixels of `channels` bytes at `source`, rows of `pitch` bytes, upright to `target`: rows
    without gaps."""
    last_row, last_column = _mirrors(orientation)
    start = source + (height - 1 if last_row else 0) * pitch + (width - 1 if last_column else 0) * channels
    y, x = -pitch if last_row else pitch, -channels if last_column else channels
    rows, columns = height, width
    if orientation >= TRANSPOSES:
        y, x, rows, columns = x, y, columns, rows
    for top in range(0, rows, TILE):
        for left in range(0, columns, TILE):
            for row in range(top, min(top + TILE, rows)):
                read, write = start + row * y + left * x, target + (row * columns + left) * channels
                for _ in range(left, min(left + TILE, columns)):
                    for channel in range(channels):
                        image[write + channel] = image[read + channel]
                    read += x
                    write += channels


@njit(nogil=True, error_model="numpy")
def copy_pixels(address, length, height, width, image):
    """Copy the RGB pixels at `address`. Returns the status: MISFIT if there are not as many as the image has; and the
    plane."""
    plane = Plane(0, 3 * width, height, width, 0.0, 0.0, 1.0, 1.0)
    if length != 3 * height * width:
        return MISFIT, plane
    image[:length] = array_at(address, length, np.uint8)
    return FINE, plane

"""JPEG bytes to pixels inside compiled code, by libjpeg-turbo: its own API or ffcv's C function `imdecode`."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numba import njit

from pipeline.kernel.native import array_at, call_decompress, call_imdecode

FINE, BROKEN, MISFIT, ROTATED = range(4)  # status of a row
ORIENTATION = 0x0112  # TIFF tag


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
def header_status(data, height, width):
    """The status of a JPEG (`data`, its bytes) by its header: FINE for an upright image of height x width, MISFIT for
    another size, ROTATED if its EXIF orientation is not 1, BROKEN without a frame header."""
    if len(data) < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return BROKEN
    at = np.int64(2)
    while at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xD9 or marker == 0xDA:
            return BROKEN
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
            continue
        length = np.int64(data[at + 2]) << 8 | np.int64(data[at + 3])
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            rows = np.int64(data[at + 5]) << 8 | np.int64(data[at + 6])
            columns = np.int64(data[at + 7]) << 8 | np.int64(data[at + 8])
            return FINE if rows == height and columns == width else MISFIT
        if marker == 0xE1 and _orientation(data[at + 4 : at + 2 + length]) != 1:
            return ROTATED
        at += 2 + length
    return BROKEN


@njit(nogil=True, error_model="numpy")
def _orientation(block):
    """EXIF orientation in an APP1 block of a JPEG; 1 if it is absent or invalid."""
    if len(block) < 16 or block[0] != 0x45 or block[1] != 0x78 or block[2] != 0x69 or block[3] != 0x66:  # "Exif"
        return 1
    tiff = block[6:]
    little = tiff[0] == 0x49
    directory = _number(tiff, 4, 4, little)
    for entry in range(_number(tiff, directory, 2, little)):
        at = directory + 2 + 12 * entry
        if at + 12 > len(tiff):
            return 1
        if _number(tiff, at, 2, little) == ORIENTATION:
            value = _number(tiff, at + 8, 2, little)
            return value if 2 <= value <= 8 else 1
    return 1


@njit(nogil=True, error_model="numpy")
def _number(data, at, count, little):
    """Unsigned integer of `count` bytes at `at`; 0 if `data` ends before it does."""
    if at + count > len(data):
        return 0
    value = np.int64(0)
    for i in range(count):
        value = value << 8 | np.int64(data[at + (count - 1 - i if little else i)])
    return value


@njit(nogil=True, error_model="numpy")
def read_pixels(function, handle, address, length, jpeg, height, width, image):
    """Write the RGB bytes of a row to `image` (>= 3 * height * width,) and return the row's status.

    A JPEG at `address` is decoded; raw pixels there are copied. `function`: address of tjDecompress2, or of imdecode if
    `handle` is 0.
    """
    data = array_at(address, length, np.uint8)
    if not jpeg:
        if length != 3 * height * width:
            return MISFIT
        image[:length] = data
        return FINE
    status = header_status(data, height, width)
    if status != FINE:
        return status
    target = image.ctypes.data
    if handle:
        failed = call_decompress(function, handle, address, length, height, width, target)
    else:
        failed = call_imdecode(function, address, length, height, width, target)
    return BROKEN if failed else FINE

"""Arrays as images: .npy and .npz files, axes and types."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.channels.tiff import MOST_VALUES
from pipeline.dataset.images import BadImage

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
EXACT_IN_FLOAT32 = 1 << 24  # larger integers are not


def read_array(data: bytes) -> NDArray:
    """The array of a .npy file, or of a .npz file: its only one, or the one called `image`. Raises BadImage."""
    return _read_npz(data) if data[:4] == ZIP else _read_npy(data)


def with_channels_last(array: NDArray, layout: str) -> NDArray:
    """An array (H, W), (H, W, C) or (C, H, W) as (H, W, C).

    layout: 'hwc', 'chw', or 'auto': of three axes the channels are the first one if it is shorter than the last, else
    the last. Raises BadImage for another number of axes and an array without values.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and (layout == "chw" or (layout == "auto" and array.shape[0] < array.shape[2])):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3:
        raise BadImage(f"an array of {array.ndim} axes")
    if not array.size:
        raise BadImage("an array without values")
    if array.size > MOST_VALUES:
        raise BadImage("too large")
    return array


def plain_type(dtype: np.dtype) -> str:
    """The type of `plain_values` of an array of this type."""
    return f"uint{8 * dtype.itemsize}" if dtype.kind == "u" and dtype.itemsize <= 2 else "float32"


def plain_values(array: NDArray) -> NDArray:
    """The same values as uint8, uint16 or float32, in this machine's byte order; axes keep their order in memory.

    Other types become float32: float64 rounded, integers only if all values are exact. Raises BadImage for what has no
    exact value, and for infinite or NaN values.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size <= 2:
        return array.astype(f"u{size}", copy=False)
    if kind not in "buif":
        raise BadImage(f"an array of {array.dtype}")
    if kind in "ui" and size > 2 and max(abs(int(array.min())), abs(int(array.max()))) > EXACT_IN_FLOAT32:
        raise BadImage(f"{array.dtype} values that float32 does not have")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite
        values = array.astype(np.float32, copy=False)
    if kind == "f" and not np.isfinite(values).all():
        raise BadImage("infinite or NaN values")
    return values


def _read_npy(data: bytes) -> NDArray:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
    except Exception:  # NumPy raises anything on a broken header, even SyntaxError
        raise BadImage("unreadable") from None
    if dtype.hasobject or dtype.kind not in "buif":
        raise BadImage(f"an array of {dtype}")
    values = math.prod(shape)
    if len(data) - stream.tell() < values * dtype.itemsize:
        raise BadImage("truncated")
    flat = np.frombuffer(data, dtype, values, stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _read_npz(data: bytes) -> NDArray:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            chosen = names if len(names) == 1 else [name for name in names if name == "image.npy"]
            if len(chosen) != 1:
                raise BadImage(f"{len(names)} arrays, none of them called image")
            if archive.getinfo(chosen[0]).file_size > 8 * MOST_VALUES:
                raise BadImage("too large")
            return _read_npy(archive.read(chosen[0]))
    except BadImage:
        raise
    except Exception:  # zipfile and zlib raise anything on broken data
        raise BadImage("unreadable") from None

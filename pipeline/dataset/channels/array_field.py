"""The arrays of a .beton: FFCV's NDArrayField and TorchTensorField, whose arguments state one type and shape."""

from __future__ import annotations

import json

import numpy as np

from pipeline.dataset.channels.arrays import plain_type
from pipeline.dataset.channels.format import PixelFormat

ARGUMENTS = np.dtype([("shape", "<u8", (32,)), ("type_length", "<u8")])  # then the type, in JSON
ROOM = 1024  # bytes of a field's arguments
LONGEST_SIDE = 1 << 20  # of an image; a damaged file may state any number


def arguments_of(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The arguments of an NDArrayField of arrays of this type and shape, ROOM bytes."""
    head = np.zeros(1, ARGUMENTS)
    text = json.dumps(dtype.descr).encode()
    head["shape"][0, : len(shape)], head["type_length"] = shape, len(text)
    return (head.tobytes() + text).ljust(ROOM, b"\0")


def type_and_shape(arguments: bytes) -> tuple[np.dtype, tuple[int, ...]] | None:
    """What the arguments of such a field state; None if they are damaged, or of a type that has fields."""
    head = np.frombuffer(arguments, ARGUMENTS, 1)[0]
    start, length = ARGUMENTS.itemsize, int(head["type_length"])
    try:
        ((name, *rest),) = json.loads(arguments[start : start + length])
        if name or len(rest) != 1:
            return None
        return np.dtype(rest[0]), tuple(int(side) for side in head["shape"] if side)
    except Exception:  # NumPy raises anything on a broken type, even SyntaxError
        return None


def image_format(dtype: np.dtype, shape: tuple[int, ...], layout: str) -> tuple[PixelFormat, int, int] | None:
    """Format, height and width of arrays of this type and shape; None if they are no images. layout: `data.layout`."""
    if dtype.kind not in "buif" or len(shape) not in (2, 3) or max(shape) > LONGEST_SIDE:
        return None
    planar = len(shape) == 3 and (layout == "chw" or (layout == "auto" and shape[0] < shape[2]))
    height, width, channels = (*shape, 1) if len(shape) == 2 else (*shape[1:], shape[0]) if planar else shape
    order = "chw" if planar else "hwc"
    return PixelFormat(channels, plain_type(dtype), order, native=True, stored=dtype.str), height, width

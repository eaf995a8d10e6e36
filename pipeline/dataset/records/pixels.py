"""Raw pixels as other libraries store them, as a PNG."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from pipeline.dataset.idx import stored_png
from pipeline.dataset.records.listing import Pixels

GRAY, COLOR, PLANES = "L", "RGB", "RGB planes"


def of_shape(shape: tuple[int, ...], planes_first: bool) -> Pixels | None:
    """The order of the pixels in an array of bytes of this shape; None if it is no image.

    planes_first: what (3, h, 3) is.
    """
    if len(shape) == 2:
        return Pixels(*shape, GRAY)
    if len(shape) != 3 or not math.prod(shape):
        return None
    orders = [Pixels(*shape[1:], {1: GRAY, 3: PLANES}.get(shape[0], "")), Pixels(*shape[:2], _of_channels(shape[2]))]
    return next((one for one in (orders if planes_first else orders[::-1]) if one.order), None)


def _of_channels(channels: int) -> str:
    return {1: GRAY, 3: COLOR, 4: "RGBA"}.get(channels, "")


def to_png(data: bytes, pixels: Pixels) -> bytes:
    """The image as an uncompressed PNG, gray or RGB; b'' if the number of bytes is not that of the pixels."""
    height, width, order = pixels
    if order.endswith(" planes"):
        if len(data) != 3 * height * width:
            return b""
        planes = np.frombuffer(data, np.uint8).reshape(3, height, width)
        return stored_png(np.ascontiguousarray((planes if order == PLANES else planes[::-1]).transpose(1, 2, 0)))
    try:
        image = Image.frombytes(order, (width, height), data)
    except ValueError:
        return b""
    return stored_png(np.asarray(image if order == GRAY else image.convert("RGB")))

"""Decoded pixels as binary PPM (P6): the form in which an odd image goes to a backend, which decodes it exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_ppm(rgb: NDArray[np.uint8]) -> bytes:
    """`(H, W, 3)` uint8 -> binary PPM (P6), which every decoder reads back exactly."""
    height, width, _ = rgb.shape
    return b"P6\n%d %d\n255\n" % (width, height) + rgb.tobytes()


def from_ppm(data: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Pixels of what `to_ppm` made, without a copy; None for anything else."""
    header = data[:32].tobytes().split(b"\n", 3)
    if header[0] != b"P6" or len(header) < 4 or header[2] != b"255":
        return None
    width, height = (int(number) for number in header[1].split())
    start = 8 + len(header[1])
    return data[start:].reshape(height, width, 3) if len(data) == start + 3 * height * width else None

"""Solarizing and posterizing, and the exchange of rows and columns, on the planes that resample.py describes."""

from __future__ import annotations

import numpy as np
from numba import njit

WHITE = np.uint8(255)


@njit(nogil=True, error_model="numpy")
def solarize(planes, at, stride, size, threshold):
    """Invert the bytes from `threshold` (uint8) on, in place."""
    for row in range(3 * size):
        line = planes[at + row * stride : at + row * stride + size]
        for i in range(size):
            line[i] = line[i] ^ WHITE if line[i] >= threshold else line[i]


@njit(nogil=True, error_model="numpy")
def posterize(planes, at, stride, size, mask):
    """Keep the bits of `mask` (uint8) of each byte, in place."""
    for row in range(3 * size):
        line = planes[at + row * stride : at + row * stride + size]
        for i in range(size):
            line[i] &= mask


@njit(nogil=True, error_model="numpy")
def exchange(target, planes, at, stride, size, channels, upside):
    """Write the crop with rows and columns exchanged to `target`, of the planes' shape; upside: of its mirror image
    top to bottom. For planes of any type."""
    for column in range(size):
        for channel in range(channels):
            source = planes[at + (channels * column + channel) * stride :]
            for row in range(size):
                target[at + (channels * row + channel) * stride + column] = source[size - 1 - row if upside else row]

"""The last steps on planes in float32: Gaussian blur, normalization and store."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernel.channels.resample import weigh
from pipeline.kernel.channels.simd import (
    FLOATS,
    TILE,
    load_floats,
    splat_float,
    store_bfloat16,
    store_float16,
    store_float32,
    store_floats,
)
from pipeline.kernel.native import array_at

LEAST_SIGMA = 1e-3  # of a Gaussian's formula


@njit(nogil=True, error_model="numpy")
def gaussian_weights(sigma, largest, weights):
    """Write the 2 r + 1 weights (float32, sum 1) of a Gaussian of `sigma` pixels; returns r, at most `largest`."""
    radius = min(int(np.ceil(3.0 * sigma)), largest)
    width = max(sigma, LEAST_SIGMA)
    total = 0.0
    for k in range(-radius, radius + 1):
        total += np.exp(-0.5 * (k / width) ** 2)
    for k in range(-radius, radius + 1):
        weights[k + radius] = np.float32(np.exp(-0.5 * (k / width) ** 2) / total)
    return radius


@njit(nogil=True, error_model="numpy")
def blur(planes, half_blurred, at, stride, size, channels, sigma, rim, weights):
    """Gaussian blur of `sigma` pixels in place; edges are repeated. `half_blurred` is scratch of the planes' shape;
    both have `rim` spare pixels on all sides."""
    radius = gaussian_weights(sigma, rim, weights)
    if radius == 0:
        return
    n = 2 * radius + 1
    for row in range(channels * size):  # all edges first: a load waits for a store just before it that it overlaps
        start = at + row * stride
        first, last = splat_float(planes[start]), splat_float(planes[start + size - 1])
        for i in range(0, radius, FLOATS):
            store_floats(planes, start - i - FLOATS, first)
            store_floats(planes, start + size + i, last)
    pixel = channels * stride
    # Blurs along each column, and across columns `radius` behind, while they are in the cache.
    for column in range(size + radius):
        here = at + column * pixel
        if column < size:
            for channel in range(channels):
                along = here + channel * stride
                weigh(half_blurred, along, planes, along - radius, 1, weights, 0, n, size)
        if column == 0:
            _repeat(half_blurred, here, -pixel, radius, stride, channels, size)
        if column == size - 1:
            _repeat(half_blurred, here, pixel, radius, stride, channels, size)
        if column >= radius:
            here -= radius * pixel
            for channel in range(channels):
                across = here + channel * stride
                weigh(planes, across, half_blurred, across - radius * pixel, pixel, weights, 0, n, size)


@njit(nogil=True, error_model="numpy")
def _repeat(target, at, step, times, stride, channels, size):
    """Copy a column at `at` to at + step, at + 2 * step, ..., `times` times."""
    for channel in range(channels):
        start = at + channel * stride
        for i in range(start, start + size, FLOATS):
            value = load_floats(target, i)
            for k in range(1, times + 1):
                store_floats(target, i + k * step, value)


@njit(nogil=True, error_model="numpy")
def store_crop(planes, at, stride, size, upside, channels, edge, address, kind, mean, gain):
    """Write the crop as (size, size, channels) values at `address`: (value - mean) * gain, both (channels * size + 7,)
    float32. upside: the last row first. kind: 0 float32, 1 float16, 2 bfloat16. edge: scratch of 8 rows of
    channels * size + 7 values."""
    samples = channels * size
    each = 4 if kind == 0 else 2
    pitch = samples * each
    first, down = (address + (size - 1) * pitch, -pitch) if upside else (address, pitch)
    for row in range(0, size, TILE):
        whole = row + TILE <= size
        inside = samples // TILE * TILE if whole else 0
        for q in range(0, samples, TILE):
            start = at + q * stride + row
            if q < inside:
                target, step = first + row * down + q * each, down
            else:  # beyond the crop's last row or value: through `edge`
                target, step = edge.ctypes.data + q * each, (samples + TILE - 1) * each
            if kind == 0:
                store_float32(target, step, planes, start, stride, mean, gain, q)
            elif kind == 1:
                store_float16(target, step, planes, start, stride, mean, gain, q)
            else:
                store_bfloat16(target, step, planes, start, stride, mean, gain, q)
        for r in range(min(TILE, size - row)):
            line = (samples + TILE - 1) * each * r
            rest = array_at(first + (row + r) * down, pitch, np.uint8)
            for i in range(inside * each, pitch):
                rest[i] = edge[line + i]

"""Antialiased bilinear resampling of a window in float32, as torchvision resizes a cropped tensor.

The vertical pass comes first: 16 output rows at a time are weighted sums of image rows. They are transposed, so that
the horizontal pass is a weighted sum of rows too. All later steps work on these *planes*: row C * column + channel
holds that column of the crop from top to bottom. The last step, the store, transposes back.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernel.channels.simd import FLOATS, TILE, load_floats, multiply_add, splat_float, store_floats, transpose8

STRIP = FLOATS  # output rows that are resampled together: one vector for each column and channel


@njit(nogil=True, error_model="numpy")
def tap_weights(length, size, scale, first, weights):
    """Triangle filter from `length` inputs to `size` pixels: output i is the sum over k < n of input first[i] + k times
    weights[i * n + k]; an output's weights sum to `scale`. Returns n, the same for all i; some weights may be 0.

    first: (>= size,) int64; weights: (>= n * size,) float32, n <= 2 * max(length / size, 1) + 1.
    """
    stretch = max(length / size, 1.0)
    n = min(int(np.ceil(2.0 * stretch)), length)
    for i in range(size):
        center = (i + 0.5) * length / size
        start = min(max(int(center - stretch + 0.5), 0), length - n)
        first[i] = start
        total = 0.0
        for k in range(n):
            total += max(0.0, 1.0 - abs(start + k + 0.5 - center) / stretch)
        for k in range(n):
            part = max(0.0, 1.0 - abs(start + k + 0.5 - center) / stretch)
            weights[i * n + k] = np.float32(part / total * scale)
    return n


@njit(nogil=True, error_model="numpy")
def weigh(target, at, source, start, stride, weights, w, n, count):
    """target[at + i] = sum over k < n of source[start + k * stride + i] * weights[w + k], for i < count.

    target, weights: float32; source: uint8, uint16 or float32. Nothing is read or written beyond `count`.
    """
    zero = splat_float(np.float32(0))
    i = 0
    while i + 3 * FLOATS < count:  # four vectors at a time share each weight
        a = b = c = d = zero
        for k in range(n):
            weight, here = splat_float(weights[w + k]), start + k * stride + i
            a = multiply_add(load_floats(source, here), weight, a)
            b = multiply_add(load_floats(source, here + FLOATS), weight, b)
            c = multiply_add(load_floats(source, here + 2 * FLOATS), weight, c)
            d = multiply_add(load_floats(source, here + 3 * FLOATS), weight, d)
        store_floats(target, at + i, a)
        store_floats(target, at + i + FLOATS, b)
        store_floats(target, at + i + 2 * FLOATS, c)
        store_floats(target, at + i + 3 * FLOATS, d)
        i += 4 * FLOATS
    while i < count and count >= FLOATS:
        i = min(i, count - FLOATS)  # the last vector may overlap the one before
        a = zero
        for k in range(n):
            a = multiply_add(load_floats(source, start + k * stride + i), splat_float(weights[w + k]), a)
        store_floats(target, at + i, a)
        i += FLOATS
    while i < count:
        value = np.float32(0)
        for k in range(n):
            value += np.float32(source[start + k * stride + i]) * weights[w + k]
        target[at + i] = value
        i += 1


@njit(nogil=True, error_model="numpy")
def odd_lines(count):
    """`count` floats rounded up to an odd number of cache lines, which puts the rows of a transpose into different
    cache sets."""
    lines = (count + FLOATS - 1) // FLOATS
    return (lines + (lines + 1) % 2) * FLOATS


@njit(nogil=True, error_model="numpy")
def resample(image, planar, height, width, channels, window, size, flip, white, scratch, at, stride):
    """Resize the window (top, left, height, width) to size x size, in units of `white`.

    image: 1-d, uint8, uint16 or float32, of (height, width, channels) samples, or (channels, height, width) if
    `planar`. Writes float32 to scratch.planes[at + (channels * column + channel) *
    stride + row]; rows from `size` up to a full strip become 0.
    """
    top, left, tall, wide = window
    strip, transposed, planes = scratch.strip, scratch.transposed, scratch.planes
    n_rows = tap_weights(tall, size, 1.0 / white, scratch.first_row, scratch.row_weights)
    n = tap_weights(wide, size, 1.0, scratch.first_column, scratch.column_weights)
    samples = wide * channels
    line = odd_lines(samples + TILE)
    across, deep = (1, wide) if planar else (channels, 1)  # samples from a column to the next, and of a channel
    for row in range(0, size, STRIP):
        for r in range(STRIP):
            place = r * line
            if row + r >= size:
                strip[place : place + samples] = 0
                continue
            y, w = top + scratch.first_row[row + r], (row + r) * n_rows
            if planar:
                for channel in range(channels):
                    start = (channel * height + y) * width + left
                    weigh(strip, place + channel * wide, image, start, width, scratch.row_weights, w, n_rows, wide)
            else:
                start, pitch = (y * width + left) * channels, width * channels
                weigh(strip, place, image, start, pitch, scratch.row_weights, w, n_rows, samples)
        for q in range(0, samples, TILE):
            for r in range(0, STRIP, TILE):
                transpose8(transposed, q * STRIP + r, STRIP, strip, r * line + q, line)
        for column in range(size):
            source = scratch.first_column[column] * across * STRIP
            target = at + channels * (size - 1 - column if flip else column) * stride + row
            for _ in range(channels):
                value = splat_float(np.float32(0))
                for k in range(n):
                    weight = splat_float(scratch.column_weights[column * n + k])
                    value = multiply_add(load_floats(transposed, source + k * across * STRIP), weight, value)
                store_floats(planes, target, value)
                source += deep * STRIP
                target += stride

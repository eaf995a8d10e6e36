"""Antialiased bilinear resampling of a window in bytes and 16-bit sums, as PIL resizes a cropped image.

Vertical first: 32 output rows at a time are weighted sums of image rows. These are transposed, so that the horizontal
pass is a weighted sum of rows too, and everything after it works on *planes*: row 3 * (column + RIM) + channel holds
that column of the crop from top to bottom. The last step, the store, transposes back.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernel.simd import BYTES, add, even_bytes, load, packed, scaled, splat, store, transpose16

STRIP = 32  # output rows that are resampled together: their intermediate stays in the L1 cache


@njit(nogil=True, error_model="numpy")
def tap_weights(length, size, first, weights, work):
    """Triangle filter from `length` to `size` pixels: output i takes inputs first[i] + k, k < n, with weights
    weights[k * size + i] that sum to 65535. Returns n, the same for all i; some weights may be 0.

    first: (>= size,) int32; weights: (>= n * size,) uint16, n <= 2 * max(length / size, 1) + 1; work: (4, >= size)
    float32.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    n = min(int(np.ceil(2.0 * stretch)), length)
    slope, one, none = np.float32(1.0 / stretch), np.float32(1), np.float32(0)
    middle, factor, cumulated, reached = work[0], work[1], work[2], work[3]
    for i in range(size):
        center = (i + 0.5) * scale
        start = min(max(int(center - stretch + 0.5), 0), length - n)
        first[i] = start
        middle[i] = center - 0.5 - start
        factor[i] = none
    for k in range(n):
        for i in range(size):
            factor[i] += max(none, one - abs(np.float32(k) - middle[i]) * slope)
    for i in range(size):
        factor[i] = np.float32(65535) / factor[i]
        cumulated[i] = np.float32(0.5)
        reached[i] = none
    for k in range(n):  # rounded as running sums, so that their sum is exact
        for i in range(size):
            cumulated[i] += max(none, one - abs(np.float32(k) - middle[i]) * slope) * factor[i]
            upto = np.float32(np.int32(cumulated[i]))
            weights[k * size + i] = np.uint16(np.int32(upto - reached[i]))
            reached[i] = upto
    return n


@njit(nogil=True, error_model="numpy")
def weigh_rows(target, at, source, start, stride, weights, w, step, n, count):
    """target[at + i] = sum over k < n of source[start + k * stride + i] * weights[w + k * step] / 65536, rounded;
    for i < count.

    Bytes; reads and writes up to 31 beyond `count`. Products are rounded down: `half` gives back what that loses.
    """
    half = splat(np.uint16(128 + min(n, 254) // 2))
    i = 0
    while i + BYTES < count:  # two vectors at a time share each weight
        even0 = odd0 = even1 = odd1 = splat(np.uint16(0))
        for k in range(n):
            weight = splat(weights[w + k * step])
            x, y = load(source, start + k * stride + i), load(source, start + k * stride + i + BYTES)
            even0, odd0 = add(even0, scaled(even_bytes(x), weight)), add(odd0, scaled(x, weight))
            even1, odd1 = add(even1, scaled(even_bytes(y), weight)), add(odd1, scaled(y, weight))
        store(target, at + i, packed(even0, odd0, half))
        store(target, at + i + BYTES, packed(even1, odd1, half))
        i += 2 * BYTES
    if i < count:
        even = odd = splat(np.uint16(0))
        for k in range(n):
            x, weight = load(source, start + k * stride + i), splat(weights[w + k * step])
            even, odd = add(even, scaled(even_bytes(x), weight)), add(odd, scaled(x, weight))
        store(target, at + i, packed(even, odd, half))


@njit(nogil=True, error_model="numpy")
def resample(image, image_width, window, size, flip, scratch, planes, at, stride):
    """Window (top, left, height, width) of `image`, RGB bytes with rows of image_width pixels, to `size` x `size`.

    planes[at + (3 * column + channel) * stride + row]: bytes. Rows from `size` up to a full strip come out as 0.
    """
    top, left, height, width = window[0], window[1], window[2], window[3]
    strip, turned = scratch.strip, scratch.turned
    n_rows = tap_weights(height, size, scratch.first_row, scratch.row_weights, scratch.taps)
    n_columns = tap_weights(width, size, scratch.first_column, scratch.column_weights, scratch.taps)
    pitch = 3 * image_width
    samples = 3 * width
    strip_stride = (samples + 63) // 64 * 64
    if strip_stride // 64 % 2 == 0:
        strip_stride += 64  # an odd number of cache lines: the rows of a transpose fall into different sets
    half = splat(np.uint16(128 + min(n_columns, 254) // 2))
    for row in range(0, size, STRIP):
        for r in range(STRIP):
            if row + r < size:
                begin = (top + scratch.first_row[row + r]) * pitch + 3 * left
                weigh_rows(
                    strip, r * strip_stride, image, begin, pitch, scratch.row_weights, row + r, size, n_rows, samples
                )
            else:
                strip[r * strip_stride : r * strip_stride + samples] = 0
        for q in range(0, samples, 16):
            for r in range(0, STRIP, 16):
                transpose16(turned, q * STRIP + r, STRIP, strip, r * strip_stride + q, strip_stride)
        for column in range(size):
            source = scratch.first_column[column] * 3 * STRIP
            even0 = odd0 = even1 = odd1 = even2 = odd2 = splat(np.uint16(0))
            for k in range(n_columns):
                weight = splat(scratch.column_weights[k * size + column])
                x = load(turned, source + 3 * STRIP * k)
                even0, odd0 = add(even0, scaled(even_bytes(x), weight)), add(odd0, scaled(x, weight))
                x = load(turned, source + 3 * STRIP * k + STRIP)
                even1, odd1 = add(even1, scaled(even_bytes(x), weight)), add(odd1, scaled(x, weight))
                x = load(turned, source + 3 * STRIP * k + 2 * STRIP)
                even2, odd2 = add(even2, scaled(even_bytes(x), weight)), add(odd2, scaled(x, weight))
            target = at + 3 * (size - 1 - column if flip else column) * stride + row
            store(planes, target, packed(even0, odd0, half))
            store(planes, target + stride, packed(even1, odd1, half))
            store(planes, target + 2 * stride, packed(even2, odd2, half))

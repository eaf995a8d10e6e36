"""Antialiased bilinear resampling of a window in bytes and 16-bit sums, as PIL resizes a cropped image.

The vertical pass comes first: 32 output rows at a time are weighted sums of image rows. They are transposed, so that
the horizontal pass is a weighted sum of rows too. All later steps work on these *planes*: row 3 * (column + rim) +
channel holds that column of the crop from top to bottom. The last step, the store, transposes back.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernel.simd import BYTES, add, even_bytes, load, packed, scaled, splat, store, transpose16

STRIP = 32  # output rows that are resampled together: their intermediate stays in the L1 cache


@njit(nogil=True, error_model="numpy")
def tap_weights(begin, length, samples, size, first, weights, work):
    """Triangle filter from `length` of `samples` inputs, which begin at `begin`, to `size` pixels: output i is the sum
    over k < n of input first[i] + k times weights[k * size + i]; an output's weights sum to 65535. Returns n, the same
    for all i; some weights may be 0.

    first: (>= size,) int32; weights: (>= n * size,) uint16, n <= 2 * max(length / size, 1) + 1; work: (4, >= size)
    float32.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    n = min(int(np.ceil(2.0 * stretch)), samples)
    slope, one, zero = np.float32(1.0 / stretch), np.float32(1), np.float32(0)
    middle, factor, cumulated, reached = work[0], work[1], work[2], work[3]
    for i in range(size):
        center = begin + (i + 0.5) * scale
        start = min(max(int(center - stretch + 0.5), 0), samples - n)
        first[i] = start
        middle[i] = center - 0.5 - start
        factor[i] = zero
    for k in range(n):
        for i in range(size):
            factor[i] += max(zero, one - abs(np.float32(k) - middle[i]) * slope)
    for i in range(size):
        factor[i] = np.float32(65535) / factor[i]
        cumulated[i] = np.float32(0.5)
        reached[i] = zero
    for k in range(n):  # running sums are rounded, so that the weights sum to 65535 exactly
        for i in range(size):
            cumulated[i] += max(zero, one - abs(np.float32(k) - middle[i]) * slope) * factor[i]
            upto = np.float32(np.int32(cumulated[i]))
            weights[k * size + i] = np.uint16(np.int32(upto - reached[i]))
            reached[i] = upto
    return n


@njit(nogil=True, error_model="numpy")
def weigh_rows(target, at, source, start, stride, weights, w, step, n, count):
    """target[at + i] = sum over k < n of source[start + k * stride + i] * weights[w + k * step] / 65536, rounded;
    for i < count.

    All are bytes; reads and writes up to 31 bytes beyond `count`. Each product is rounded down; `half` makes up for it.
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
def odd_lines(count):
    """`count` bytes rounded up to an odd number of cache lines, which puts the rows of a transpose into different cache
    sets."""
    lines = (count + 63) // 64
    return (lines + (lines + 1) % 2) * 64


@njit(nogil=True, error_model="numpy", forceinline=True)
def span(begin, length, samples):
    """The first of `samples` that [begin, begin + length) touches, and the one behind the last."""
    first = min(int(begin), samples - 1)
    return first, max(min(int(np.ceil(begin + length)), samples), first + 1)


@njit(nogil=True, error_model="numpy")
def resample(image, plane, window, size, flip, scratch, planes, at, stride):
    """Resize the window (top, left, height, width), in pixels of the whole image, to size x size. plane: a
    `decode.Plane` of RGB in `image`.

    Writes bytes to planes[at + (3 * column + channel) * stride + row]; rows from `size` up to a full strip become 0.
    """
    y, tall = plane.down + window[0] * plane.y_step, window[2] * plane.y_step
    x, wide = plane.right + window[1] * plane.x_step, window[3] * plane.x_step
    top, bottom = span(y, tall, plane.height)
    left, right = span(x, wide, plane.width)
    strip, transposed = scratch.strip, scratch.transposed
    taps = scratch.taps
    n_rows = tap_weights(y - top, tall, bottom - top, size, scratch.first_row, scratch.row_weights, taps)
    n_columns = tap_weights(x - left, wide, right - left, size, scratch.first_column, scratch.column_weights, taps)
    samples = 3 * (right - left)
    strip_stride = odd_lines(samples)
    half = splat(np.uint16(128 + min(n_columns, 254) // 2))
    for row in range(0, size, STRIP):
        for r in range(STRIP):
            if row + r < size:
                begin, pitch = plane.at + (top + scratch.first_row[row + r]) * plane.pitch + 3 * left, plane.pitch
                weigh_rows(
                    strip, r * strip_stride, image, begin, pitch, scratch.row_weights, row + r, size, n_rows, samples
                )
            else:
                strip[r * strip_stride : r * strip_stride + samples] = 0
        for q in range(0, samples, 16):
            for r in range(0, STRIP, 16):
                transpose16(transposed, q * STRIP + r, STRIP, strip, r * strip_stride + q, strip_stride)
        for column in range(size):
            source = scratch.first_column[column] * 3 * STRIP
            even0 = odd0 = even1 = odd1 = even2 = odd2 = splat(np.uint16(0))
            for k in range(n_columns):
                weight = splat(scratch.column_weights[k * size + column])
                x = load(transposed, source + 3 * STRIP * k)
                even0, odd0 = add(even0, scaled(even_bytes(x), weight)), add(odd0, scaled(x, weight))
                x = load(transposed, source + 3 * STRIP * k + STRIP)
                even1, odd1 = add(even1, scaled(even_bytes(x), weight)), add(odd1, scaled(x, weight))
                x = load(transposed, source + 3 * STRIP * k + 2 * STRIP)
                even2, odd2 = add(even2, scaled(even_bytes(x), weight)), add(odd2, scaled(x, weight))
            target = at + 3 * (size - 1 - column if flip else column) * stride + row
            store(planes, target, packed(even0, odd0, half))
            store(planes, target + stride, packed(even1, odd1, half))
            store(planes, target + 2 * stride, packed(even2, odd2, half))

"""Resampling of a JPEG's own planes, luma and chroma, with the conversion to RGB: only pixels of crops are converted.

As `resample.resample`, with a strip of 32 output rows that holds the three planes' samples side by side. The planes
have resolutions of their own, and a window's edges may lie within a sample.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernel.resample import STRIP, odd_lines, span, tap_weights, weigh_rows
from pipeline.kernel.simd import (
    add,
    add_signed,
    centered,
    even_bytes,
    load,
    odd_alone,
    packed_64ths,
    quarter,
    scaled,
    scaled_signed,
    splat,
    store,
    transpose16,
)

# JFIF's matrix. A product is divided by 2^16, and chroma is in 256ths, the sum in 64ths: so 2^14 is 1.
RED_OF_RED, BLUE_OF_BLUE = np.uint16(round(1.402 * (1 << 14))), np.uint16(round(1.772 * (1 << 14)))
GREEN_OF_BLUE = np.uint16(65536 - round(0.344136 * (1 << 14)))
GREEN_OF_RED = np.uint16(65536 - round(0.714136 * (1 << 14)))


@njit(nogil=True, error_model="numpy")
def _window(plane, window, size, first_row, row_weights, first_column, column_weights, taps):
    """Make the taps of a plane. Returns the first row, the first column and the number of columns that the window
    touches, and how many taps there are for a row and for a column."""
    y, tall = plane.down + window[0] * plane.y_step, window[2] * plane.y_step
    x, wide = plane.right + window[1] * plane.x_step, window[3] * plane.x_step
    top, bottom = span(y, tall, plane.height)
    left, right = span(x, wide, plane.width)
    rows = tap_weights(y - top, tall, bottom - top, size, first_row, row_weights, taps)
    columns = tap_weights(x - left, wide, right - left, size, first_column, column_weights, taps)
    return top, left, right - left, rows, columns


@njit(nogil=True, error_model="numpy", forceinline=True)
def _column_sums(transposed, at, weights, column, size, n):
    """Weighted sums of n rows of STRIP bytes, times 256: of the even and of the odd bytes."""
    even = odd = splat(np.uint16(0))
    for k in range(n):
        x, weight = load(transposed, at + STRIP * k), splat(weights[k * size + column])
        even, odd = add(even, scaled(even_bytes(x), weight)), add(odd, scaled(x, weight))
    return even, odd_alone(even, odd)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _green(luma, blue, red):
    chroma = add_signed(scaled_signed(blue, splat(GREEN_OF_BLUE)), scaled_signed(red, splat(GREEN_OF_RED)))
    return add_signed(luma, chroma)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _plus(luma, chroma, factor):
    return add_signed(luma, scaled_signed(chroma, splat(factor)))


@njit(nogil=True, error_model="numpy")
def resample_planes(image, luma, blue, red, window, size, flip, scratch, planes, at, stride):
    """Resize the window (top, left, height, width), in pixels of the whole image, to size x size RGB.

    luma, blue, red: `decode.Plane`s in `image`. Output as of `resample.resample`.
    """
    strip, transposed = scratch.strip, scratch.transposed
    top, left, samples, n_rows, n = _window(
        luma, window, size, scratch.first_row, scratch.row_weights, scratch.first_column, scratch.column_weights,
        scratch.taps,
    )  # fmt: skip
    chroma_top, chroma_left, chroma, m_rows, m = _window(
        blue, window, size, scratch.chroma_row, scratch.chroma_row_weights, scratch.chroma_column,
        scratch.chroma_column_weights, scratch.taps,
    )  # fmt: skip
    blues = (samples + 31) // 32 * 32  # where in a row of the strip
    reds = blues + (chroma + 31) // 32 * 32
    total = reds + chroma
    strip_stride = odd_lines(total)
    rounding = splat(np.uint16(128 + (min(n, 254) + 1) // 2))  # half a level, and what rounding down n products loses
    # The same for chroma. `odd_alone` subtracts half too little on average; gray has to stay gray.
    centering, odd_centering = splat(np.uint16((min(m, 254) + 1) // 2)), splat(np.uint16(min(m, 254) // 2))
    for row in range(0, size, STRIP):
        for r in range(STRIP):
            line = r * strip_stride
            if row + r >= size:
                strip[line : line + blues] = 0  # black
                strip[line + blues : line + total] = 128
                continue
            begin = luma.at + (top + scratch.first_row[row + r]) * luma.pitch + left
            weigh_rows(strip, line, image, begin, luma.pitch, scratch.row_weights, row + r, size, n_rows, samples)
            begin = (chroma_top + scratch.chroma_row[row + r]) * blue.pitch + chroma_left
            weights = scratch.chroma_row_weights
            weigh_rows(strip, line + blues, image, blue.at + begin, blue.pitch, weights, row + r, size, m_rows, chroma)
            weigh_rows(strip, line + reds, image, red.at + begin, blue.pitch, weights, row + r, size, m_rows, chroma)
        for q in range(0, total, 16):
            for r in range(0, STRIP, 16):
                transpose16(transposed, q * STRIP + r, STRIP, strip, r * strip_stride + q, strip_stride)
        for column in range(size):
            source = scratch.first_column[column] * STRIP
            even, odd = _column_sums(transposed, source, scratch.column_weights, column, size, n)
            even, odd = quarter(even, rounding), quarter(odd, rounding)
            source = (blues + scratch.chroma_column[column]) * STRIP
            even_blue, odd_blue = _column_sums(transposed, source, scratch.chroma_column_weights, column, size, m)
            source += (reds - blues) * STRIP
            even_red, odd_red = _column_sums(transposed, source, scratch.chroma_column_weights, column, size, m)
            even_blue, odd_blue = centered(even_blue, centering), centered(odd_blue, odd_centering)
            even_red, odd_red = centered(even_red, centering), centered(odd_red, odd_centering)
            target = at + 3 * (size - 1 - column if flip else column) * stride + row
            store(planes, target, packed_64ths(_plus(even, even_red, RED_OF_RED), _plus(odd, odd_red, RED_OF_RED)))
            store(
                planes, target + stride, packed_64ths(_green(even, even_blue, even_red), _green(odd, odd_blue, odd_red))
            )
            store(
                planes,
                target + 2 * stride,
                packed_64ths(_plus(even, even_blue, BLUE_OF_BLUE), _plus(odd, odd_blue, BLUE_OF_BLUE)),
            )

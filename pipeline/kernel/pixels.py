"""The steps after resampling: color as one affine map, Gaussian blur, normalization and store.

All work on the planes that resample.py describes: bytes, where row 3 * column + channel holds a column of the crop.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernel.native import copy_bytes
from pipeline.kernel.resample import STRIP, weigh_rows
from pipeline.kernel.simd import (
    BYTES,
    add,
    add_signed,
    byte_pair_sums,
    even_128,
    lane_sum,
    load,
    odd_128,
    packed_eighths,
    scaled_signed,
    splat,
    store,
    store_bfloat,
    store_float,
    store_half,
    store_half_float,
    stream_bfloats,
    stream_floats,
    stream_halves,
    transpose16,
)

FLUSH = 128  # a 16-bit lane holds this many sums of two bytes


@njit(nogil=True, error_model="numpy")
def mean_color(planes, at, stride, size, mean):
    """Write the mean of each channel to `mean` (3,) float32, in levels of 255; rows beyond `size` must be 0."""
    for channel in range(3):
        total, summed = 0, 0
        lanes = splat(np.uint16(0))
        for column in range(size):
            start = at + (3 * column + channel) * stride
            for i in range(0, size, BYTES):
                lanes = add(lanes, byte_pair_sums(load(planes, start + i)))
                summed += 1
                if summed == FLUSH:
                    total += lane_sum(lanes)
                    lanes, summed = splat(np.uint16(0)), 0
        mean[channel] = (total + lane_sum(lanes)) / (size * size)


@njit(nogil=True, error_model="numpy")
def is_identity(linear, offset):
    """Whether x' = linear x + offset m leaves every pixel as it is."""
    for i in range(3):
        for j in range(3):
            if linear[i, j] != (i == j) or offset[i, j] != 0.0:
                return False
    return True


@njit(nogil=True, error_model="numpy", forceinline=True)
def _fixed(value, one):
    """All lanes `value` as a signed 16-bit fixed-point number in which `one` is 1.0."""
    return splat(np.uint16(int(min(max(np.rint(value * one), -32768.0), 32767.0)) & 0xFFFF))


@njit(nogil=True, error_model="numpy", forceinline=True)
def _mixed(red, green, blue, a, b, c, base):
    """a red + b green + c blue + base, in signed lanes."""
    return add_signed(
        add_signed(scaled_signed(red, a), scaled_signed(green, b)), add_signed(scaled_signed(blue, c), base)
    )


@njit(nogil=True, error_model="numpy")
def affine_color(planes, at, stride, size, linear, offset, mean):
    """x' = linear x + offset mean for each pixel, in place; rounded and clipped. `mean` (3,) float32 in levels.

    Sums are in eighths of a level, in 16 bits: before rounding they are 0.06 levels off on average and 0.3 at most, as
    long as no entry of `linear` exceeds 8 (SwAV's strengths give at most 6).
    """
    one = 4096.0  # bytes are multiplied by 128 and the product is divided by 2^16: eighths
    half = 4.0 + 1.5  # eighths: half a level, and what rounding down the three products loses
    a, b, c = _fixed(linear[0, 0], one), _fixed(linear[0, 1], one), _fixed(linear[0, 2], one)
    d, e, f = _fixed(linear[1, 0], one), _fixed(linear[1, 1], one), _fixed(linear[1, 2], one)
    g, h, k = _fixed(linear[2, 0], one), _fixed(linear[2, 1], one), _fixed(linear[2, 2], one)
    u = _fixed(8.0 * (offset[0, 0] * mean[0] + offset[0, 1] * mean[1] + offset[0, 2] * mean[2]) + half, 1.0)
    v = _fixed(8.0 * (offset[1, 0] * mean[0] + offset[1, 1] * mean[1] + offset[1, 2] * mean[2]) + half, 1.0)
    w = _fixed(8.0 * (offset[2, 0] * mean[0] + offset[2, 1] * mean[1] + offset[2, 2] * mean[2]) + half, 1.0)
    for column in range(size):
        start = at + 3 * column * stride
        for i in range(start, start + size, BYTES):
            x, y, z = load(planes, i), load(planes, i + stride), load(planes, i + 2 * stride)
            red, green, blue = even_128(x), even_128(y), even_128(z)
            odd_red, odd_green, odd_blue = odd_128(x), odd_128(y), odd_128(z)
            store(
                planes,
                i,
                packed_eighths(_mixed(red, green, blue, a, b, c, u), _mixed(odd_red, odd_green, odd_blue, a, b, c, u)),
            )
            store(
                planes,
                i + stride,
                packed_eighths(_mixed(red, green, blue, d, e, f, v), _mixed(odd_red, odd_green, odd_blue, d, e, f, v)),
            )
            store(
                planes,
                i + 2 * stride,
                packed_eighths(_mixed(red, green, blue, g, h, k, w), _mixed(odd_red, odd_green, odd_blue, g, h, k, w)),
            )


@njit(nogil=True, error_model="numpy")
def gaussian_weights(sigma, largest, weights):
    """Write the 2 r + 1 weights (uint16, sum 65535) of a Gaussian of `sigma` pixels; returns r, at most `largest`."""
    radius = min(int(np.ceil(3.0 * sigma)), largest)
    if radius == 0:
        return 0
    total = 1.0
    for k in range(1, radius + 1):
        total += 2.0 * np.exp(-0.5 * (k / sigma) ** 2)
    while radius > 0 and np.exp(-0.5 * (radius / sigma) ** 2) / total < 0.5 / 1024:
        radius -= 1
    reached, cumulated = 0, 0.5
    total = 0.0
    for k in range(-radius, radius + 1):
        total += np.exp(-0.5 * (k / sigma) ** 2)
    for k in range(-radius, radius + 1):
        cumulated += 65535.0 * np.exp(-0.5 * (k / sigma) ** 2) / total
        upto = int(cumulated)
        weights[k + radius] = upto - reached
        reached = upto
    return radius


@njit(nogil=True, error_model="numpy")
def blur(planes, half_blurred, at, stride, size, sigma, rim, weights):
    """Gaussian blur of `sigma` pixels in place; edges are repeated. `half_blurred` is scratch of the planes' shape;
    both have `rim` spare pixels on all sides."""
    radius = gaussian_weights(sigma, rim, weights)
    if radius == 0:
        return
    n = 2 * radius + 1
    for row in range(3 * size):  # all edges first: a load waits for a store just before it that it overlaps
        start = at + row * stride
        first, last = _splat_byte(planes[start]), _splat_byte(planes[start + size - 1])
        for i in range(0, radius, 16):
            store_half(planes, start - i - 16, first)
            store_half(planes, start + size + i, last)
    pixel = 3 * stride
    count = 2 * stride + size  # bytes from the first to the last of a column's three channels
    # Blurs along each column, and across columns `radius` behind, while they are in the L1 cache.
    for column in range(size + radius):
        here = at + column * pixel
        if column < size:
            weigh_rows(half_blurred, here, planes, here - radius, 1, weights, 0, 1, n, count)
        if column == 0:
            _repeat(half_blurred, here, -pixel, radius, count)
        if column == size - 1:
            _repeat(half_blurred, here, pixel, radius, count)
        if column >= radius:
            here -= radius * pixel
            weigh_rows(planes, here, half_blurred, here - radius * pixel, pixel, weights, 0, 1, n, count)


@njit(nogil=True, error_model="numpy")
def _repeat(target, at, step, times, count):
    """Copy the `count` bytes at `at` to at + step, at + 2 * step, ..., `times` times."""
    for i in range(at, at + count, BYTES):
        value = load(target, i)
        for k in range(1, times + 1):
            store(target, i + k * step, value)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _splat_byte(byte):
    return splat(np.uint16(np.uint16(byte) * 257))


@njit(nogil=True, error_model="numpy")
def store_crop(planes, at, stride, size, upside, strip, address, kind, gain, bias):
    """Write the crop as (size, size, 3) values at `address`: byte * gain + bias, both (3 * size,) float32, red, green
    and blue in turn. upside: the last row first. `kind`: 0 float32, 1 float16, 2 bfloat16, 3 the bytes themselves."""
    samples = 3 * size
    pitch = (samples + 15) // 16 * 16
    each = 4 if kind == 0 else 1 if kind == 3 else 2
    streams = samples % 16 == 0 and address % 64 == 0
    for row in range(0, size, STRIP):
        for q in range(0, samples, 16):
            for r in range(0, STRIP, 16):
                transpose16(strip, r * pitch + q, pitch, planes, at + q * stride + row + r, stride)
        for r in range(min(STRIP, size - row)):
            line = r * pitch
            target = address + (size - 1 - row - r if upside else row + r) * samples * each
            if kind == 3:
                copy_bytes(target, strip, line, samples)
            elif streams and kind == 0:
                for i in range(0, samples, 16):
                    stream_floats(target + 4 * i, strip, line + i, gain, bias, i)
            elif streams and kind == 1:
                for i in range(0, samples, 16):
                    stream_halves(target + 2 * i, strip, line + i, gain, bias, i)
            elif streams:
                for i in range(0, samples, 16):
                    stream_bfloats(target + 2 * i, strip, line + i, gain, bias, i)
            elif kind == 0:
                for i in range(samples):
                    store_float(target + 4 * i, strip, line + i, gain, bias, i)
            elif kind == 1:
                for i in range(samples):
                    store_half_float(target + 2 * i, strip, line + i, gain, bias, i)
            else:
                for i in range(samples):
                    store_bfloat(target + 2 * i, strip, line + i, gain, bias, i)

"""Colour jitter step by step, as torchvision does it on PIL images: rounded and clipped after each, hue in HSV.

The arithmetic is PIL's own, in bytes and float32, so that the same resampled crop gives the same bytes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

ZERO, FULL, ONE = np.float32(0), np.float32(255), np.float32(1)


@njit(nogil=True, error_model="numpy", inline="always")
def _gray(red, green, blue):
    """PIL's luma: 16-bit fixed point, rounded."""
    return (np.int32(red) * 19595 + np.int32(green) * 38470 + np.int32(blue) * 7471 + 0x8000) >> 16


@njit(nogil=True, error_model="numpy", inline="always")
def _blend(base, value, factor):
    """base + factor * (value - base), clipped and cut to a byte: PIL's ImageEnhance."""
    base = np.float32(base)
    return np.uint8(np.int32(min(max(base + factor * (np.float32(value) - base), ZERO), FULL)))


@njit(nogil=True, error_model="numpy", inline="always")
def _rounded(value):
    return np.uint8(np.int32(value + 0.5))


@njit(nogil=True, error_model="numpy")
def _turned(red, green, blue, shift):
    """Hue raised by `shift` of 256 steps, through HSV in bytes as PIL converts."""
    value, lowest = max(red, green, blue), min(red, green, blue)
    if value == lowest:
        return red, green, blue
    spread = np.float32(value - lowest)
    saturation = np.uint8(np.int32(np.float32(spread / np.float32(value)) * 255.0))
    x = np.float32(np.float32(value - red) / spread)
    y = np.float32(np.float32(value - green) / spread)
    z = np.float32(np.float32(value - blue) / spread)
    if red == value:
        angle = np.float32(z - y)
    elif green == value:
        angle = np.float32(2.0 + np.float64(x) - np.float64(z))
    else:
        angle = np.float32(4.0 + np.float64(y) - np.float64(x))
    part = np.float64(angle) / 6.0 + 1.0
    hue = np.uint8(np.int32(np.float64(np.float32(part - np.floor(part))) * 255.0))
    if saturation == 0:
        return value, value, value
    hue = np.uint8(hue + shift)
    sixths = np.float64(np.float32(hue)) * 6.0 / 255.0
    sector = np.int32(sixths)
    f = np.float64(np.float32(sixths - sector))
    s = np.float64(np.float32(np.float64(saturation) / 255.0))
    v = np.float64(value)
    p, q, t = _rounded(v * (1.0 - s)), _rounded(v * (1.0 - s * f)), _rounded(v * (1.0 - s * (1.0 - f)))
    if sector == 0 or sector == 6:
        return value, t, p
    if sector == 1:
        return q, value, p
    if sector == 2:
        return p, value, t
    if sector == 3:
        return p, q, value
    if sector == 4:
        return t, p, value
    return value, p, q


@njit(nogil=True, error_model="numpy")
def _mean_gray(planes, at, stride, size):
    """Mean luma of the crop, rounded."""
    total = 0
    for column in range(size):
        start = at + 3 * column * stride
        reds, greens, blues = planes[start:], planes[start + stride :], planes[start + 2 * stride :]
        part = np.int32(0)
        for i in range(size):
            part += _gray(reds[i], greens[i], blues[i])
        total += part
    return np.int32(total / (size * size) + 0.5)


@njit(nogil=True, error_model="numpy")
def _map_bytes(planes, at, stride, size, table):
    """Every byte of the crop through `table` (256,), in place."""
    for row in range(3 * size):
        line = planes[at + row * stride : at + row * stride + size]
        for i in range(size):
            line[i] = table[line[i]]


@njit(nogil=True, error_model="numpy")
def _saturate(planes, at, stride, size, factor):
    """Each pixel blended with its own gray, in place; factor 0 is grayscale."""
    for column in range(size):
        start = at + 3 * column * stride
        reds = planes[start : start + size]
        greens = planes[start + stride : start + stride + size]
        blues = planes[start + 2 * stride : start + 2 * stride + size]
        for i in range(size):
            red, green, blue = reds[i], greens[i], blues[i]
            gray = _gray(red, green, blue)
            reds[i], greens[i], blues[i] = (
                _blend(gray, red, factor),
                _blend(gray, green, factor),
                _blend(gray, blue, factor),
            )


@njit(nogil=True, error_model="numpy")
def _turn_hue(planes, at, stride, size, factor):
    """Hue turned by `factor` of a circle, in place."""
    shift = np.uint8(np.int32(np.float64(factor) * 255) & 0xFF)
    for column in range(size):
        start = at + 3 * column * stride
        for i in range(start, start + size):
            planes[i], planes[i + stride], planes[i + 2 * stride] = _turned(
                planes[i], planes[i + stride], planes[i + 2 * stride], shift
            )


@njit(nogil=True, error_model="numpy")
def stepwise_colour(planes, at, stride, size, jitter, factors, order, grayscale, table):
    """Brightness, contrast, saturation and hue by `factors` in `order` if `jitter`, then grayscale; in place.

    table: (256,) uint8 to work in.
    """
    for position in range(4 if jitter else 0):
        step = order[position]
        factor = factors[step]
        if step == 3:
            _turn_hue(planes, at, stride, size, factor)
        elif step == 2:
            _saturate(planes, at, stride, size, factor)
        else:
            base = _mean_gray(planes, at, stride, size) if step == 1 else np.int32(0)
            for value in range(256):
                table[value] = _blend(base, value, factor)
            _map_bytes(planes, at, stride, size, table)
    if grayscale:
        _saturate(planes, at, stride, size, ZERO)

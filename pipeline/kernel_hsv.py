"""Colour jitter step by step, as torchvision does it on PIL images: rounded and clipped after each, hue in HSV.

The arithmetic is PIL's own, in bytes and float32, so that the same resampled crop gives the same bytes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

ZERO, FULL, ONE = np.float32(0), np.float32(255), np.float32(1)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _gray(red, green, blue):
    """PIL's luma: 16-bit fixed point, rounded; int32."""
    return np.int32(np.int32(np.int32(red) * 19595 + np.int32(green) * 38470 + np.int32(blue) * 7471 + 0x8000) >> 16)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _blend(base, value, factor):
    """base + factor * (value - base), clipped and cut to a byte: PIL's ImageEnhance."""
    base = np.float32(base)
    return np.uint8(np.int32(min(max(base + factor * (np.float32(value) - base), ZERO), FULL)))


@njit(nogil=True, error_model="numpy", forceinline=True)
def _turned(red, green, blue, shift):
    """Hue raised by `shift` of 256 steps, through HSV in bytes as PIL converts; int32 in and out.

    Mixed precision as in PIL. Without branches, so that LLVM makes vectors of it; cast, as numba adds int32 as int64.
    """
    value, lowest = max(max(red, green), blue), min(min(red, green), blue)
    spread = np.float32(np.int32(value - lowest))
    whole = max(spread, ONE)
    saturation = np.int32(np.float64(spread / max(np.float32(value), ONE)) * 255.0)
    x = np.float64(np.float32(np.int32(value - red)) / whole)
    y = np.float64(np.float32(np.int32(value - green)) / whole)
    z = np.float64(np.float32(np.int32(value - blue)) / whole)
    if_red, if_green, if_blue = np.float32(z - y), np.float32(2.0 + x - z), np.float32(4.0 + y - x)
    angle = if_red if red == value else (if_green if green == value else if_blue)
    part = np.float64(angle) / 6.0
    part = part + 1.0 if part < 0.0 else (part + 1.0) - 1.0
    hue = np.int32(np.int32(np.float64(np.float32(part)) * 255.0) + shift) & np.int32(0xFF)
    sixths = np.float64(hue) * 6.0 / 255.0
    sector = np.int32(sixths)
    f = np.float64(np.float32(sixths - np.float64(sector)))
    s, v = np.float64(np.float32(np.float64(saturation) / 255.0)), np.float64(value)
    p, q, t = (
        np.int32(v * (1.0 - s) + 0.5),
        np.int32(v * (1.0 - s * f) + 0.5),
        np.int32(v * (1.0 - s * (1.0 - f)) + 0.5),
    )
    sector = np.int32(0) if sector == 6 else sector
    return (
        value if sector == 0 or sector == 5 else (q if sector == 1 else (t if sector == 4 else p)),
        value if sector == 1 or sector == 2 else (t if sector == 0 else (q if sector == 3 else p)),
        value if sector == 3 or sector == 4 else (t if sector == 2 else (q if sector == 5 else p)),
    )


@njit(nogil=True, error_model="numpy")
def _mean_gray(planes, at, stride, size):
    """Mean luma of the crop, rounded."""
    total = 0
    for column in range(size):
        start = at + 3 * column * stride
        reds, greens, blues = planes[start:], planes[start + stride :], planes[start + 2 * stride :]
        for i in range(size):
            total += _gray(reds[i], greens[i], blues[i])
    return np.int32(total / (size * size) + 0.5)


@njit(nogil=True, error_model="numpy")
def _blend_all(planes, at, stride, size, base, factor):
    """Every byte blended with the same `base`, in place."""
    for row in range(3 * size):
        line = planes[at + row * stride : at + row * stride + size]
        for i in range(size):
            line[i] = _blend(base, line[i], factor)


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
    shift = np.int32(np.float64(factor) * 255)
    for column in range(size):
        start = at + 3 * column * stride
        reds = planes[start : start + size]
        greens = planes[start + stride : start + stride + size]
        blues = planes[start + 2 * stride : start + 2 * stride + size]
        for i in range(size):
            red, green, blue = _turned(np.int32(reds[i]), np.int32(greens[i]), np.int32(blues[i]), shift)
            reds[i], greens[i], blues[i] = np.uint8(red), np.uint8(green), np.uint8(blue)


@njit(nogil=True, error_model="numpy")
def stepwise_colour(planes, at, stride, size, jitter, factors, order, grayscale):
    """Brightness, contrast, saturation and hue by `factors` in `order` if `jitter`, then grayscale; in place."""
    for position in range(4 if jitter else 0):
        step = order[position]
        factor = factors[step]
        if step == 3:
            _turn_hue(planes, at, stride, size, factor)
        elif step == 2:
            _saturate(planes, at, stride, size, factor)
        else:
            base = _mean_gray(planes, at, stride, size) if step == 1 else np.int32(0)
            _blend_all(planes, at, stride, size, base, factor)
    if grayscale:
        _saturate(planes, at, stride, size, ZERO)

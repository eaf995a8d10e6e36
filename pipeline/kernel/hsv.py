"""Color jitter step by step, as torchvision does it on PIL images: rounded and clipped after each step, hue in HSV.

The arithmetic is that of PIL, in bytes and float32, so that the same resampled crop gives the same bytes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

ZERO, ONE, TWO, THREE, FOUR, FIVE, SIX = (np.float32(number) for number in range(7))
FULL, STEPS, HALF = np.float32(255), np.float32(256), np.float32(0.5)
OVER_FULL, OVER_SQUARE = np.float32(1 / 255), np.float32(1 / 255**2)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _gray(red, green, blue):
    """PIL's luma: 16-bit fixed point, rounded; int32."""
    return np.int32(np.int32(np.int32(red) * 19595 + np.int32(green) * 38470 + np.int32(blue) * 7471 + 0x8000) >> 16)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _blend(base, value, factor):
    """base + factor * (value - base), clipped to [0, 255] and truncated: PIL's ImageEnhance."""
    base = np.float32(base)
    return np.uint8(np.int32(min(max(base + factor * (np.float32(value) - base), ZERO), FULL)))


@njit(nogil=True, error_model="numpy", forceinline=True)
def _shift_hue(red, green, blue, shift):
    """(red, green, blue) with the hue raised by `shift` of 256 steps, through HSV in bytes as PIL converts.

    All values are whole numbers in float32. PIL mixes 32 and 64 bits; 32 bits give the same bytes for every color and
    hue (all were compared). The code has no branches, so that LLVM makes full vectors of it.
    """
    value, lowest = max(max(red, green), blue), min(min(red, green), blue)
    spread = value - lowest
    saturation = np.floor(spread / max(value, ONE) * FULL)
    part = (value - (red + green + blue - value - lowest)) / max(spread, ONE)  # distance of middle from top
    if_red = ONE - part if green > blue else part - ONE
    if_green = ONE + part if red > blue else THREE - part
    if_blue = THREE + part if green > red else FIVE - part
    angle = (if_red if red == value else (if_green if green == value else if_blue)) / SIX
    hue = np.floor((angle + ONE if angle < ZERO else angle) * FULL) + shift
    hue = hue + STEPS if hue < ZERO else hue
    hue = hue - STEPS if hue >= STEPS else hue
    sixths = hue * SIX
    sector = np.floor((sixths + HALF) * OVER_FULL)
    fraction = sixths - sector * FULL
    falls = (sector == ONE) | (sector == THREE) | (sector == FIVE)
    # numerators are whole numbers below 2^24, so exact; no quotient is half-way between two levels
    low = np.floor(value * (FULL - saturation) * OVER_FULL + HALF)
    middle = value * (FULL * FULL - saturation * (fraction if falls else FULL - fraction))
    middle = np.floor(middle * OVER_SQUARE + HALF)
    sector = ZERO if sector == SIX else sector
    return (
        value if (sector == ZERO) | (sector == FIVE) else (middle if (sector == ONE) | (sector == FOUR) else low),
        value if (sector == ONE) | (sector == TWO) else (middle if (sector == ZERO) | (sector == THREE) else low),
        value if (sector == THREE) | (sector == FOUR) else (middle if (sector == TWO) | (sector == FIVE) else low),
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
    """Blend every byte with the same `base`, in place."""
    for row in range(3 * size):
        line = planes[at + row * stride : at + row * stride + size]
        for i in range(size):
            line[i] = _blend(base, line[i], factor)


@njit(nogil=True, error_model="numpy")
def _amplify(planes, at, stride, size, gains):
    """Multiply each channel by its gain, as brightness does with all of them; in place."""
    for row in range(3 * size):
        gain = gains[row % 3]
        if gain != ONE:
            line = planes[at + row * stride : at + row * stride + size]
            for i in range(size):
                line[i] = _blend(np.int32(0), line[i], gain)


@njit(nogil=True, error_model="numpy")
def _saturate(planes, at, stride, size, factor):
    """Blend each pixel with its own gray, in place; factor 0 is grayscale."""
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
def _rotate_hue(planes, at, stride, size, factor):
    """Rotate the hue of every pixel by `factor` of a full circle, in place."""
    shift = np.float32(np.int32(np.float64(factor) * 255))
    for column in range(size):
        start = at + 3 * column * stride
        reds = planes[start : start + size]
        greens = planes[start + stride : start + stride + size]
        blues = planes[start + 2 * stride : start + 2 * stride + size]
        for i in range(size):
            red, green, blue = _shift_hue(np.float32(reds[i]), np.float32(greens[i]), np.float32(blues[i]), shift)
            reds[i], greens[i], blues[i] = np.uint8(np.int32(red)), np.uint8(np.int32(green)), np.uint8(np.int32(blue))


@njit(nogil=True, error_model="numpy")
def stepwise_color(planes, at, stride, size, jitter, factors, order, gains, grayscale):
    """Apply brightness, contrast, saturation and hue by `factors` in `order`, then the channels' `gains`, if `jitter`;
    then grayscale; in place."""
    for position in range(4 if jitter else 0):
        step = order[position]
        factor = factors[step]
        if step == 3:
            if factor != ZERO:  # ColorJitter skips a step without strength; a rotation by 0 would still round in HSV
                _rotate_hue(planes, at, stride, size, factor)
        elif step == 2:
            _saturate(planes, at, stride, size, factor)
        else:
            base = _mean_gray(planes, at, stride, size) if step == 1 else np.int32(0)
            _blend_all(planes, at, stride, size, base, factor)
    if jitter:
        _amplify(planes, at, stride, size, gains)
    if grayscale:
        _saturate(planes, at, stride, size, ZERO)

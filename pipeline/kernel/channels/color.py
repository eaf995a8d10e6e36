"""Color in float32 on planes, as torchvision's transforms.v2 does it on float tensors; in place.

Brightness, contrast and gains are for any channels; the others are for the three of color images.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernel.channels.simd import FLOATS, load_floats, multiply_add, splat_float, store_floats, within

ZERO, ONE, TWO, FOUR, SIX = (np.float32(number) for number in (0, 1, 2, 4, 6))
SIXTH = np.float32(1 / 6)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # torchvision's luma
GREATEST = np.float32(np.finfo(np.float32).max)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the steps of `Draw.order`


@njit(nogil=True, error_model="numpy")
def jitter(planes, at, stride, size, channels, factors, order, gains, is_color, clips, mean):
    """Apply brightness, contrast, saturation and hue by `factors` (4,) float32 in `order` (4,), then multiply each
    channel by its gain (channels,) float32.

    is_color: 3 channels that are red, green and blue; else there is no saturation and no hue. clips: values end at 0
    and 1. mean: (channels,) float32, scratch.
    """
    for position in range(4):
        step = order[position]
        factor = factors[step]
        if step == BRIGHTNESS:
            for row in range(channels * size):
                _affine(planes, at + row * stride, size, factor, ZERO, clips)
        elif step == CONTRAST:
            _means(planes, at, stride, size, channels, mean)
            if is_color:
                mean[:] = RED * mean[0] + GREEN * mean[1] + BLUE * mean[2]
            for row in range(channels * size):
                _affine(planes, at + row * stride, size, factor, (ONE - factor) * mean[row % channels], clips)
        elif is_color and step == SATURATION:
            saturate(planes, at, stride, size, factor)
        elif is_color and factor != ZERO:
            _rotate_hue(planes, at, stride, size, factor)
    for row in range(channels * size):
        gain = gains[row % channels]
        if gain != ONE:
            _affine(planes, at + row * stride, size, gain, ZERO, clips)


@njit(nogil=True, error_model="numpy")
def _affine(planes, start, size, factor, offset, clips):
    """One row times `factor` plus `offset`."""
    low, high = splat_float(ZERO if clips else -GREATEST), splat_float(ONE if clips else GREATEST)
    factors, offsets = splat_float(factor), splat_float(offset)
    for i in range(start, start + size, FLOATS):
        store_floats(planes, i, within(multiply_add(load_floats(planes, i), factors, offsets), low, high))


@njit(nogil=True, error_model="numpy")
def _means(planes, at, stride, size, channels, mean):
    """Write the mean of each channel; rows beyond `size` must be 0."""
    lanes, one = np.empty(FLOATS, np.float32), splat_float(ONE)
    for channel in range(channels):
        total = 0.0
        for column in range(size):
            start = at + (channels * column + channel) * stride
            sums = splat_float(ZERO)
            for i in range(start, start + size, FLOATS):
                sums = multiply_add(load_floats(planes, i), one, sums)
            store_floats(lanes, 0, sums)
            for i in range(FLOATS):
                total += lanes[i]
        mean[channel] = np.float32(total / (size * size))


@njit(nogil=True, error_model="numpy")
def saturate(planes, at, stride, size, factor):
    """Blend each pixel with its own gray; factor 0 is grayscale."""
    rest = ONE - factor
    for column in range(size):
        start = at + 3 * column * stride
        reds = planes[start : start + size]
        greens = planes[start + stride : start + stride + size]
        blues = planes[start + 2 * stride : start + 2 * stride + size]
        for i in range(size):
            red, green, blue = reds[i], greens[i], blues[i]
            gray = rest * (RED * red + GREEN * green + BLUE * blue)
            reds[i] = min(max(factor * red + gray, ZERO), ONE)
            greens[i] = min(max(factor * green + gray, ZERO), ONE)
            blues[i] = min(max(factor * blue + gray, ZERO), ONE)


@njit(nogil=True, error_model="numpy")
def solarize(planes, at, stride, size, channels, threshold):
    """Invert the values from `threshold` on."""
    for row in range(channels * size):
        line = planes[at + row * stride : at + row * stride + size]
        for i in range(size):
            line[i] = ONE - line[i] if line[i] >= threshold else line[i]


@njit(nogil=True, error_model="numpy")
def posterize(planes, at, stride, size, channels, levels, clips):
    """Round values down to multiples of 1 / levels; clips: white becomes the one below it."""
    highest = levels - ONE if clips else GREATEST
    for row in range(channels * size):
        line = planes[at + row * stride : at + row * stride + size]
        for i in range(size):
            line[i] = min(np.floor(line[i] * levels), highest) * (ONE / levels)


@njit(nogil=True, error_model="numpy", forceinline=True)
def _turned(red, green, blue, turns):
    """(red, green, blue) with the hue raised by `turns`, through HSV. There are no branches, so that LLVM makes
    vectors of it."""
    value, lowest = max(max(red, green), blue), min(min(red, green), blue)
    spread = value - lowest
    saturation = spread / (value if spread > ZERO else ONE)
    divisor = spread if spread > ZERO else ONE
    from_red, from_green, from_blue = (value - red) / divisor, (value - green) / divisor, (value - blue) / divisor
    if_green, if_blue = TWO + from_red - from_blue, FOUR + from_green - from_red
    sixths = from_blue - from_green if red == value else (if_green if green == value else if_blue)
    hue = sixths * SIXTH + turns
    hue = hue - np.floor(hue)
    hue = (hue if hue < ONE else ZERO) * SIX
    sector = np.floor(hue)
    part = saturation * (hue - sector)
    low, falling = (ONE - saturation) * value, (ONE - part) * value
    rising = (ONE - saturation + part) * value
    sector = ZERO if sector == SIX else sector
    first, second, third = sector == ZERO, sector == ONE, sector == TWO
    fourth, fifth = sector == ONE + TWO, sector == FOUR
    return (
        value if first | (sector > FOUR) else (falling if second else (rising if fifth else low)),
        value if second | third else (rising if first else (falling if fourth else low)),
        value if fourth | fifth else (rising if third else (falling if sector > FOUR else low)),
    )


@njit(nogil=True, error_model="numpy")
def _rotate_hue(planes, at, stride, size, turns):
    """Rotate the hue of every pixel by `turns` of a full circle."""
    for column in range(size):
        start = at + 3 * column * stride
        reds = planes[start : start + size]
        greens = planes[start + stride : start + stride + size]
        blues = planes[start + 2 * stride : start + 2 * stride + size]
        for i in range(size):
            red, green, blue = _turned(reds[i], greens[i], blues[i], turns)
            reds[i], greens[i], blues[i] = red, green, blue

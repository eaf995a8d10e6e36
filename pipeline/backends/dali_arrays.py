"""The DALI backend's nodes for images that keep their channels and depth, in float32, where 1 is white.

DALI's operators of hue and saturation are for 8-bit color, so images that count as color are not among them. Its blur
mirrors the crop at its edges, where the other backends repeat them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.backends.device_hsv import BRIGHTNESS, CONTRAST
from pipeline.crops import Changes
from pipeline.dataset.channels.format import PixelFormat
from pipeline.draw import Draw

TYPES = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FLOAT"}  # DALI's names
JITTER = {"before": 0, "contrast": 0, "after": 0, "gains": 1}  # arguments and their dimensions


def jitter_arrays(draw: Draw, channels: int) -> dict[str, np.ndarray]:
    """The arguments of JITTER, (B, V, ...). Of the two factors of brightness, before and after contrast, one is 1."""
    place = {step: np.argmax(draw.order == step, axis=-1) for step in (BRIGHTNESS, CONTRAST)}
    brightness, contrast = (np.where(draw.jitter, draw.factors[..., step], 1) for step in (BRIGHTNESS, CONTRAST))
    first = place[BRIGHTNESS] < place[CONTRAST]
    gains = np.where(draw.jitter[..., None], draw.gains, 1)
    arrays = {"before": np.where(first, brightness, 1), "contrast": contrast, "after": np.where(first, 1, brightness)}
    arrays["gains"] = np.broadcast_to(gains, (*first.shape, channels))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def scaled(x: Any, pixels: PixelFormat) -> Any:
    """The node for resampled images in float32, of which white becomes 1."""
    return x * (1 / pixels.white)


def jittered(x: Any, before: Any, contrast: Any, after: Any, gains: Any, pixels: PixelFormat, on_gpu: bool) -> Any:
    """The node for brightness, contrast about each channel's mean, and gains."""
    from nvidia.dali import fn

    x = _clipped(x * before, pixels)
    mean = fn.reductions.mean(x, axes=(0, 1), keep_dims=True)
    x = _clipped((x - mean) * contrast + mean, pixels)
    x = _clipped(x * after, pixels)
    gains = fn.reshape(gains.gpu() if on_gpu else gains, shape=[1, 1, pixels.channels])
    return _clipped(x * gains, pixels)


def solarized(x: Any, changes: Changes) -> Any:
    """The node for crops with the values from the threshold on inverted."""
    from nvidia.dali import fn, types

    bright = fn.cast(x >= changes.solarize.threshold, dtype=types.FLOAT)
    return x + bright * (1.0 - 2.0 * x)


def posterized(x: Any, changes: Changes, pixels: PixelFormat) -> Any:
    """The node for crops whose values are rounded down to 2^bits levels."""
    from nvidia.dali import math

    levels = float(2**changes.posterize.bits)
    steps = math.floor(x * levels)
    return (math.min(steps, levels - 1) if pixels.has_range else steps) * (1 / levels)


def _clipped(x: Any, pixels: PixelFormat) -> Any:
    from nvidia.dali import math

    return math.clamp(x, 0.0, 1.0) if pixels.has_range else x

"""The color part of a draw on a GPU for images that keep their channels and depth: the steps of kernel/channels after
resampling, in compiled torch code on float32 crops, where 1 is white. Nothing is rounded between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipeline.backends.device_hsv import BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION
from pipeline.crops import Crops
from pipeline.dataset.channels.format import PixelFormat
from pipeline.draw import Draw

LUMA = (0.2989, 0.587, 0.114)  # torchvision's
NEVER = float("inf")  # a threshold of solarizing

Images = Float[Tensor, "views batch size size channels"]
Each = Float[Tensor, "views batch 1 1 1"]


class NativeSteps(NamedTuple):
    """The color steps of each crop, all float32."""

    step: Float[Tensor, "views batch 4"]  # in each round: BRIGHTNESS, ... or NOTHING
    amount: Float[Tensor, "views batch 4"]  # the factor; for HUE the shift in turns
    gray: Float[Tensor, "views batch"]  # 1 for a crop that becomes gray at the end
    gains: Float[Tensor, "views batch channels"]  # of each channel, after the rounds


def native_steps(draw: Draw, pixels: PixelFormat) -> tuple[np.ndarray, ...]:
    """The fields of `NativeSteps` for a draw, as arrays (B, V, ...)."""
    amount = np.take_along_axis(draw.factors, draw.order.astype(np.int64), axis=-1)
    idle = ~draw.jitter[..., None] | ((draw.order == HUE) & (amount == 0))
    if not pixels.is_color:
        idle |= draw.order >= SATURATION
    gains = np.where(draw.jitter[..., None], draw.gains, 1)
    gray = draw.grayscale & pixels.is_color
    return np.where(idle, NOTHING, draw.order), amount, gray, np.broadcast_to(gains, (*gray.shape, pixels.channels))


def native_blur(draw: Draw, crops: Crops) -> Float[np.ndarray, "batch views taps"]:
    """Weights along one axis, over three standard deviations; 1 in the middle for a crop without blur."""
    reach = np.arange(-crops.blur_rim, crops.blur_rim + 1)
    sigma = draw.sigma[..., None].astype(np.float64)
    weights = np.exp(-0.5 * (reach / np.maximum(sigma, 1e-3)) ** 2)
    weights = np.where(draw.blur[..., None] & (abs(reach) <= np.ceil(3 * sigma)), weights, reach == 0)
    return weights / weights.sum(-1, keepdims=True)


def native_tones(draw: Draw, crops: Crops) -> tuple[np.ndarray, np.ndarray]:
    """The threshold of solarizing and the number of levels that posterizing leaves (0: all), (B, V)."""
    threshold = np.array([own.solarize.threshold for own in crops.changes])
    levels = np.array([2**own.posterize.bits for own in crops.changes])
    return np.where(draw.solarize, threshold, NEVER), np.where(draw.posterize, levels, 0)


def finish_native(
    pixels: Images,
    color: NativeSteps | None,
    weights: Float[Tensor, "views batch taps"] | None,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    tones: tuple[Float[Tensor, "views batch"], Float[Tensor, "views batch"]] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    is_color: bool,
    clips: bool,
) -> Images:
    """Color, blur, tones and normalization of `pixels`, float32.

    color, weights, tones: of `native_steps`, `native_blur` and `native_tones`; None leaves them out. is_color: see
    `PixelFormat`. clips: values end at 0 and 1.
    """
    x = pixels
    if color is not None:
        for turn in range(4):
            x = _round(x, _each(color.step[..., turn]), _each(color.amount[..., turn]), is_color, clips)
        x = _clipped(x * color.gains[:, :, None, None, :], clips)
        if is_color:
            x = torch.where(_each(color.gray) > 0, _gray(x).clamp(0, 1), x)
    if weights is not None:
        x = _blur(_blur(x, weights, 2), weights, 3)
    if tones is not None:
        threshold, levels = (_each(values) for values in tones)
        x = torch.where(x >= threshold, 1 - x, x)
        steps = torch.floor(x * levels)
        steps = torch.minimum(steps, levels - 1) if clips else steps
        x = torch.where(levels > 0, steps / levels.clamp(min=1), x)
    return ((x - mean) / std).to(dtype)


def _each(values: Float[Tensor, "views batch"]) -> Each:
    return values[:, :, None, None, None]


def _clipped(x: Tensor, clips: bool) -> Tensor:
    return x.clamp(0, 1) if clips else x


def _gray(x: Images) -> Float[Tensor, "views batch size size 1"]:
    return (x[..., 0] * LUMA[0] + x[..., 1] * LUMA[1] + x[..., 2] * LUMA[2])[..., None]


def _round(x: Images, step: Each, amount: Each, is_color: bool, clips: bool) -> Images:
    """One step of every crop. All kinds are computed and one is chosen, as in device_hsv.py."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    base = torch.where(step == CONTRAST, _gray(mean) if is_color else mean, 0.0)
    if is_color:
        base = torch.where(step == SATURATION, _gray(x), base)
    changed = _clipped(amount * x + (1 - amount) * base, clips)
    changed = torch.where((step == BRIGHTNESS) | (step == CONTRAST) | (step == SATURATION), changed, x)
    return torch.where(step == HUE, _turned(x, amount), changed) if is_color else changed


def _turned(x: Images, turns: Each) -> Images:
    """The hue raised by `turns`, through HSV: `_turned` of kernel/channels/color.py."""
    red, green, blue = x.unbind(-1)
    value, lowest = x.amax(-1), x.amin(-1)
    spread = value - lowest
    some = spread > 0
    saturation = spread / torch.where(some, value, 1.0)
    divisor = torch.where(some, spread, 1.0)
    from_red, from_green, from_blue = ((value - plane) / divisor for plane in (red, green, blue))
    sixths = torch.where(green == value, 2 + from_red - from_blue, 4 + from_green - from_red)
    sixths = torch.where(red == value, from_blue - from_green, sixths)
    hue = sixths / 6 + turns[..., 0]
    hue = hue - torch.floor(hue)
    hue = torch.where(hue < 1, hue, 0.0) * 6
    sector = torch.floor(hue)
    part = saturation * (hue - sector)
    low, falling, rising = (1 - saturation) * value, (1 - part) * value, (1 - saturation + part) * value
    sector = torch.where(sector == 6, 0.0, sector)

    def channel(whole: tuple[int, int], rises: int, falls: int) -> Tensor:
        """`value` in two sectors of the circle, on the way up and down in one each, `low` in the others."""
        between = torch.where(sector == rises, rising, torch.where(sector == falls, falling, low))
        return torch.where((sector == whole[0]) | (sector == whole[1]), value, between)

    return torch.stack([channel((0, 5), 4, 1), channel((1, 2), 0, 3), channel((3, 4), 2, 5)], dim=-1)


def _blur(x: Images, weights: Float[Tensor, "views batch taps"], axis: int) -> Images:
    """Gaussian blur along axis 2 or 3 with repeated edges, as a sum of shifted crops."""
    taps, size = weights.shape[-1], x.shape[axis]
    radius = taps // 2
    sides = (0, 0, 0, 0, radius, radius) if axis == 2 else (0, 0, radius, radius, 0, 0)
    padded = functional.pad(x, sides, mode="replicate")
    result = torch.zeros_like(x)
    for t in range(taps):
        result = result + _each(weights[..., t]) * padded.narrow(axis, t, size)
    return result

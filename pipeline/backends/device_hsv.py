"""Color jitter step by step on a GPU: the arithmetic of kernel/hsv.py on whole batches, each crop in its own order.

There are four rounds; in each, every crop takes the next step of its order. Values are whole numbers in float32, and
bytes between the rounds, as in PIL: that is also a quarter of the memory traffic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.draw import Draw

BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = range(5)

Plane = Float[Tensor, "views batch size size"]


class Steps(NamedTuple):
    """The color steps of each crop, all float32."""

    step: Float[Tensor, "views batch 4"]  # in each round: BRIGHTNESS, ... or NOTHING
    amount: Float[Tensor, "views batch 4"]  # the factor; for HUE the shift in 256ths of a circle
    gray: Float[Tensor, "views batch"]  # 1 for a crop that becomes gray at the end
    gains: Float[Tensor, "views batch 3"]  # of red, green and blue, after the rounds


def jitter_steps(draw: Draw) -> tuple[np.ndarray, ...]:
    """The fields of `Steps` for a draw, as arrays (B, V, ...)."""
    turns = draw.factors[..., 3:]
    shift = np.trunc(turns.astype(np.float64) * 255)
    amount = np.take_along_axis(np.concatenate([draw.factors[..., :3], shift], axis=-1), draw.order, axis=-1)
    idle = ~draw.jitter[..., None] | ((draw.order == HUE) & (turns == 0))
    gains = np.where(draw.jitter[..., None], draw.gains, 1)
    return np.where(idle, NOTHING, draw.order), amount, draw.grayscale, np.broadcast_to(gains, (*gains.shape[:2], 3))


def stepwise(planes: list[UInt8[Tensor, "views batch size size"]], steps: Steps) -> list[Plane]:
    """Red, green and blue after all steps, in levels from 0 to 255."""
    for turn in range(4):
        planes = _round(planes, steps.step[..., turn, None, None], steps.amount[..., turn, None, None])
    gains = steps.gains[..., None, None].unbind(2)
    red, green, blue = ((plane * gain).clamp(0, 255).floor() for plane, gain in zip(planes, gains, strict=True))
    gray, to_gray = _gray(red, green, blue), steps.gray[..., None, None] > 0
    return [torch.where(to_gray, gray, plane) for plane in (red, green, blue)]


def _round(
    planes: list[UInt8[Tensor, "views batch size size"]],
    step: Float[Tensor, "views batch 1 1"],
    amount: Float[Tensor, "views batch 1 1"],
) -> list[UInt8[Tensor, "views batch size size"]]:
    """One step of every crop. All four kinds are computed and one is chosen: that costs less than reading the crops."""
    red, green, blue = (plane.float() for plane in planes)
    gray = _gray(red, green, blue)
    base = torch.where(step == CONTRAST, _mean(gray), torch.where(step == BRIGHTNESS, 0.0, gray))
    result = []
    for plane, shifted in zip((red, green, blue), _shift_hue(red, green, blue, amount), strict=True):
        blended = (base + amount * (plane - base)).clamp(0, 255).floor()
        result.append(torch.where(step == HUE, shifted, torch.where(step == NOTHING, plane, blended)).to(torch.uint8))
    return result


def _gray(red: Plane, green: Plane, blue: Plane) -> Plane:
    """PIL's luma, rounded; exact, because all sums are whole numbers below 2^24."""
    return torch.floor((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536)


def _mean(gray: Plane) -> Float[Tensor, "views batch 1 1"]:
    """Mean of each crop, rounded. The sum is an integer, since float32 cannot hold that of a large crop."""
    pixels = gray.shape[-2] * gray.shape[-1]
    total = gray.sum(dim=(-2, -1), keepdim=True, dtype=torch.int64)
    return ((2 * total + pixels) // (2 * pixels)).float()


def _shift_hue(red: Plane, green: Plane, blue: Plane, shift: Float[Tensor, "views batch 1 1"]) -> list[Plane]:
    """Hue raised by `shift` of 256 steps, through HSV in bytes: `_shift_hue` of kernel/hsv.py."""
    value = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    spread = value - lowest
    saturation = torch.floor(spread / value.clamp(min=1) * 255)
    part = (value - (red + green + blue - value - lowest)) / spread.clamp(min=1)
    if_red = torch.where(green > blue, 1 - part, part - 1)
    if_green = torch.where(red > blue, 1 + part, 3 - part)
    if_blue = torch.where(green > red, 3 + part, 5 - part)
    angle = torch.where(red == value, if_red, torch.where(green == value, if_green, if_blue)) / 6
    hue = torch.floor(torch.where(angle < 0, angle + 1, angle) * 255) + shift
    hue = torch.where(hue < 0, hue + 256, hue)
    hue = torch.where(hue >= 256, hue - 256, hue)
    sector = torch.floor((hue * 6 + 0.5) * (1 / 255))
    fraction = hue * 6 - sector * 255
    falls = (sector == 1) | (sector == 3) | (sector == 5)
    low = torch.floor(value * (255 - saturation) * (1 / 255) + 0.5)
    middle = value * (255**2 - saturation * torch.where(falls, fraction, 255 - fraction))
    middle = torch.floor(middle * (1 / 255**2) + 0.5)
    sector = torch.where(sector == 6, 0.0, sector)

    def channel(whole: tuple[int, int], between: tuple[int, int]) -> Plane:
        """`value` in two sectors of the circle, `middle` in two, `low` in the others."""
        is_whole = (sector == whole[0]) | (sector == whole[1])
        is_between = (sector == between[0]) | (sector == between[1])
        return torch.where(is_whole, value, torch.where(is_between, middle, low))

    return [channel((0, 5), (1, 4)), channel((1, 2), (0, 3)), channel((3, 4), (2, 5))]

"""Color jitter step by step on a GPU: kernel_hsv.py's arithmetic on whole batches, each crop in an order of its own.

Four rounds; in each of them every crop takes the step that is its turn. Values are whole numbers in float32, and bytes
between the rounds, as PIL has them: that is also a quarter of the memory to move.
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
    """What each crop's color takes, all float32."""

    step: Float[Tensor, "views batch 4"]  # in each round: BRIGHTNESS, ... or NOTHING
    amount: Float[Tensor, "views batch 4"]  # its factor; of HUE the shift in 256ths of a circle
    gray: Float[Tensor, "views batch"]  # 1 for a crop that turns gray at the end


def steps_of(draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Steps` of a draw as arrays of (B, V, ...)."""
    turns = draw.factors[..., 3:]
    shift = np.trunc(turns.astype(np.float64) * 255)
    amount = np.take_along_axis(np.concatenate([draw.factors[..., :3], shift], axis=-1), draw.order, axis=-1)
    idle = ~draw.jitter[..., None] | ((draw.order == HUE) & (turns == 0))
    return np.where(idle, NOTHING, draw.order), amount, draw.grayscale


def stepwise(planes: list[UInt8[Tensor, "views batch size size"]], steps: Steps) -> list[Plane]:
    """Red, green and blue after all steps, in levels."""
    for turn in range(4):
        planes = _round(planes, steps.step[..., turn, None, None], steps.amount[..., turn, None, None])
    red, green, blue = (plane.float() for plane in planes)
    gray, wanted = _gray(red, green, blue), steps.gray[..., None, None] > 0
    return [torch.where(wanted, gray, plane) for plane in (red, green, blue)]


def _round(
    planes: list[UInt8[Tensor, "views batch size size"]],
    step: Float[Tensor, "views batch 1 1"],
    amount: Float[Tensor, "views batch 1 1"],
) -> list[UInt8[Tensor, "views batch size size"]]:
    """One step of every crop. All four kinds are computed and one is chosen: they cost less than to read the crops."""
    red, green, blue = (plane.float() for plane in planes)
    gray = _gray(red, green, blue)
    base = torch.where(step == CONTRAST, _mean(gray), torch.where(step == BRIGHTNESS, 0.0, gray))
    done = []
    for plane, turned in zip((red, green, blue), _turned(red, green, blue, amount), strict=True):
        blended = (base + amount * (plane - base)).clamp(0, 255).floor()
        done.append(torch.where(step == HUE, turned, torch.where(step == NOTHING, plane, blended)).to(torch.uint8))
    return done


def _gray(red: Plane, green: Plane, blue: Plane) -> Plane:
    """PIL's luma, rounded; all sums are whole numbers below 2^24, so exact."""
    return torch.floor((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536)


def _mean(gray: Plane) -> Float[Tensor, "views batch 1 1"]:
    """Mean of each crop, rounded. In integers: float32 could not hold the sum of a large crop."""
    pixels = gray.shape[-2] * gray.shape[-1]
    total = gray.sum(dim=(-2, -1), keepdim=True, dtype=torch.int64)
    return ((2 * total + pixels) // (2 * pixels)).float()


def _turned(red: Plane, green: Plane, blue: Plane, shift: Float[Tensor, "views batch 1 1"]) -> list[Plane]:
    """Hue raised by `shift` of 256 steps through HSV in bytes: `_turned` of kernel_hsv.py."""
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

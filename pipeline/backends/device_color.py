"""The color part of a draw on a GPU: the fused kernel's steps after resampling, in compiled torch code.

Takes the uint8 crops that the kernel makes for a GPU, and computes the same values up to rounding: color step by step
(see device_hsv.py) or as one affine map about the crop's mean (see color.py), blur, normalization.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from pipeline.backends.device_hsv import Steps, jitter_steps, stepwise
from pipeline.color import color_matrices
from pipeline.crops import Crops
from pipeline.draw import Draw


class Affine(NamedTuple):
    """The map x' = A x + B m of each crop, with m its mean color; x and m in levels from 0 to 255."""

    linear: Float[Tensor, "views batch 3 3"]
    offset: Float[Tensor, "views batch 3 3"]


def finish_on_gpu(
    groups: list[Tensor], draw: Draw, crops: Crops, device: torch.device, dtype: torch.dtype = torch.float16
) -> list[Tensor]:
    """Finish the uint8 crops of each resolution, (views, B, s, s, 3) in pinned memory; returns them on `device`.

    Runs on a separate stream and waits for it, so that the caller may reuse the host memory.
    """
    stream, compiled = _stream(device), _compiled()
    with torch.cuda.stream(stream):
        finished = [
            compiled(group.to(device, non_blocking=True), *arguments, dtype=dtype)
            for group, arguments in zip(groups, arguments_of(draw, crops, device), strict=True)
        ]
    stream.synchronize()
    for tensor in finished:  # used on the default stream by the training step: keeps the memory until then
        tensor.record_stream(torch.cuda.default_stream(device))
    return finished


def arguments_of(draw: Draw, crops: Crops, device: torch.device) -> list[tuple[Any, ...]]:
    """The arguments of `finish` after the pixels, for each resolution."""
    kind, color = (Steps, jitter_steps(draw)) if crops.jitter.exact else (Affine, color_matrices(draw))
    radius = int(np.ceil(3 * crops.blur.sigma[1])) if crops.blur.probability > 0 else 0
    reach = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (reach / np.maximum(draw.sigma, 1e-3)[..., None]) ** 2)
    weights = np.where(draw.blur[..., None], weights, reach == 0)
    weights /= weights.sum(-1, keepdims=True)
    mean = torch.tensor(crops.mean, device=device)
    std = torch.tensor(crops.std, device=device)

    def on_device(array: np.ndarray, members: list[int]) -> Tensor:
        """(B, V, ...) -> (views of the group, B, ...) on the device."""
        part = np.ascontiguousarray(np.moveaxis(array[:, members], 0, 1), np.float32)
        return torch.from_numpy(part).to(device, non_blocking=True)

    return [
        (kind(*(on_device(array, members) for array in color)), on_device(weights, members), mean, std)
        for _, members in crops.groups
    ]


def finish(
    pixels: UInt8[Tensor, "views batch size size 3"],
    color: Steps | Affine,
    weights: Float[Tensor, "views batch taps"],
    mean: Float[Tensor, " 3"],
    std: Float[Tensor, " 3"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "views batch size size 3"]:
    """Color, blur and normalization of `pixels`.

    weights: of the blur along one axis, for each crop; a single tap of 1 changes nothing. Values are rounded to levels
    after each step, as in the kernel.
    """
    channels = stepwise(list(pixels.unbind(-1)), color) if isinstance(color, Steps) else _mapped(pixels, color)
    if weights.shape[-1] > 1:
        channels = [_blur(channel, weights) for channel in channels]
    x = torch.stack(channels, dim=-1)
    return ((x / 255 - mean) / std).to(dtype)


def _mapped(
    pixels: UInt8[Tensor, "views batch size size 3"], color: Affine
) -> list[Float[Tensor, "views batch size size"]]:
    """Red, green and blue after the affine map."""
    x = pixels.float()
    center = x.mean(dim=(2, 3))  # (views, batch, 3)
    shift = (color.offset * center[:, :, None, :]).sum(-1)
    red, green, blue = x.unbind(-1)
    channels = []
    for c in range(3):  # written out: a matrix product would go through TF32
        a = color.linear[:, :, c, :, None, None]
        value = a[:, :, 0] * red + a[:, :, 1] * green + a[:, :, 2] * blue + shift[:, :, c, None, None]
        channels.append(value.clamp(0, 255).round())
    return channels


def _blur(
    plane: Float[Tensor, "views batch size size"], weights: Float[Tensor, "views batch taps"]
) -> Float[Tensor, "views batch size size"]:
    """Separable blur with repeated edges, as sums of shifted planes: compiled, these are two fused passes."""
    taps, size = weights.shape[-1], plane.shape[-1]
    radius = taps // 2
    padded = functional.pad(plane, (0, 0, radius, radius), mode="replicate")
    down = torch.zeros_like(plane)
    for t in range(taps):
        down = down + weights[..., t, None, None] * padded[:, :, t : t + size]
    padded = functional.pad(down, (radius, radius, 0, 0), mode="replicate")
    across = torch.zeros_like(plane)
    for t in range(taps):
        across = across + weights[..., t, None, None] * padded[..., t : t + size]
    return across.round()


@cache
def _compiled() -> Any:
    return torch.compile(finish, dynamic=False)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)

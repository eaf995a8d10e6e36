"""The color part of a draw on a GPU: the fused kernel's steps after resampling, in compiled torch code.

Takes the crops that the kernel makes for a GPU, and computes the same values up to rounding. Those of pictures are
uint8: color step by step (see device_hsv.py) or as one affine map about the crop's mean (see color.py), blur,
normalization. Those of images that keep their channels and depth are float32 (see device_native.py).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from pipeline.backends.device_hsv import Steps, jitter_steps, stepwise
from pipeline.backends.device_native import NativeSteps, finish_native, native_blur, native_steps, native_tones
from pipeline.color import color_matrices
from pipeline.crops import Crops
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.draw import Draw


class Affine(NamedTuple):
    """The map x' = A x + B m of each crop, with m its mean color; x and m in levels from 0 to 255."""

    linear: Float[Tensor, "views batch 3 3"]
    offset: Float[Tensor, "views batch 3 3"]


class Tones(NamedTuple):
    """Solarizing from `threshold` on, 256 for never; posterizing to multiples of `step`, 1 for never."""

    threshold: Float[Tensor, "views batch"]
    step: Float[Tensor, "views batch"]


def finish_on_gpu(
    groups: list[Tensor],
    draw: Draw,
    crops: Crops,
    device: torch.device,
    dtype: torch.dtype = torch.float16,
    batch: int = 0,
    pixels: PixelFormat = COLOR,
) -> list[Tensor]:
    """Finish the crops of each resolution, (views, B, s, s, C) in pinned memory; returns them on `device`.

    pixels: of the images. batch: as for `finish_groups`. Runs on a separate stream and waits for it, so that the caller
    may reuse the host memory. The stream has a high priority: its kernels are short, and the next step needs their
    result.
    """
    stream = _stream(device)
    with torch.cuda.stream(stream):
        function = _compiled(pixels.native, pixels.is_color, pixels.has_range)
        finished = finish_groups(groups, draw, crops, device, dtype, batch, function, pixels)
    stream.synchronize()
    for tensor in finished:  # used on the default stream by the training step: keeps the memory until then
        tensor.record_stream(torch.cuda.default_stream(device))
    return finished


def finish_groups(
    groups: list[Tensor],
    draw: Draw,
    crops: Crops,
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    function: Any,
    pixels: PixelFormat = COLOR,
) -> list[Tensor]:
    """The crops of each resolution after `function`, which is `finish` or `finish_native`, or its compiled form.

    batch: shorter batches are padded to so many rows, because each length would be another graph.
    """
    rows = len(draw.rows)
    return [
        function(
            padded(group.to(device, non_blocking=True), batch),
            None if color is None else type(color)(*(padded(values, batch) for values in color)),
            None if weights is None else padded(weights, batch),
            mean,
            std,
            None if tones is None else Tones(*(padded(values, batch) for values in tones)),
            dtype=dtype,
        )[:, :rows]
        for group, (color, weights, mean, std, tones) in zip(
            groups, arguments_of(draw, crops, device, pixels), strict=True
        )
    ]


def padded(values: Shaped[Tensor, "views rows *rest"], batch: int) -> Shaped[Tensor, "views batch *rest"]:
    """The same with `batch` rows, if it has fewer; the last one is repeated."""
    missing = batch - values.shape[1]
    if missing <= 0:
        return values
    return torch.cat([values, values[:, -1:].expand(-1, missing, *values.shape[2:])], dim=1)


def arguments_of(draw: Draw, crops: Crops, device: torch.device, pixels: PixelFormat = COLOR) -> list[tuple[Any, ...]]:
    """The arguments of `finish`, or of `finish_native`, after the pixels, for each resolution. Color and blur are None
    for crops without."""
    mean = torch.tensor(crops.mean, device=device)
    std = torch.tensor(crops.std, device=device)
    kind: Any
    color: Any
    if pixels.native:
        kind, color = NativeSteps, partial(native_steps, pixels=pixels)
        weights, tones = native_blur(draw, crops), native_tones(draw, crops)
    else:
        kind, color = (Steps, jitter_steps) if crops.jitter.exact else (Affine, color_matrices)
        weights, tones = _blur_weights(draw, crops), _tones(draw, crops)
    changes = crops.changes
    colors = color(draw) if any(own.colors for own in changes) else ()

    def on_device(array: np.ndarray, members: list[int]) -> Tensor:
        """(B, V, ...) -> (views of the group, B, ...) on the device."""
        part = np.ascontiguousarray(np.moveaxis(array[:, members], 0, 1), np.float32)
        return torch.from_numpy(part).to(device, non_blocking=True)

    arguments = []
    for _, members in crops.groups:
        own = [changes[view] for view in members]
        arguments.append(
            (
                kind(*(on_device(array, members) for array in colors)) if any(one.colors for one in own) else None,
                on_device(weights, members) if any(one.blurs for one in own) else None,
                mean,
                std,
                Tones(*(on_device(array, members) for array in tones)) if any(one.tones for one in own) else None,
            )
        )
    return arguments


def _tones(draw: Draw, crops: Crops) -> tuple[np.ndarray, np.ndarray]:
    """The fields of `Tones`, (B, V)."""
    threshold = np.array([255 * own.solarize.threshold for own in crops.changes])
    step = np.array([2 ** (8 - own.posterize.bits) for own in crops.changes])
    return np.where(draw.solarize, threshold, 256), np.where(draw.posterize, step, 1)


def _blur_weights(draw: Draw, crops: Crops) -> Float[np.ndarray, "batch views taps"]:
    radius = crops.blur_rim
    reach = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (reach / np.maximum(draw.sigma, 1e-3)[..., None]) ** 2)
    weights = np.where(draw.blur[..., None], weights, reach == 0)
    return weights / weights.sum(-1, keepdims=True)


def finish(
    pixels: UInt8[Tensor, "views batch size size 3"],
    color: Steps | Affine | None,
    weights: Float[Tensor, "views batch taps"] | None,
    mean: Float[Tensor, " 3"],
    std: Float[Tensor, " 3"],
    tones: Tones | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "views batch size size 3"]:
    """Color, blur and normalization of `pixels`.

    color: None leaves it out. weights: of the blur along one axis, for each crop; None leaves it out, and a crop's
    weights of 1 in the middle change nothing. tones: None leaves them out. Values are rounded to levels after each
    step, as in the kernel.
    """
    if isinstance(color, Steps):
        channels = stepwise(list(pixels.unbind(-1)), color)
    elif isinstance(color, Affine):
        channels = _mapped(pixels, color)
    else:
        channels = list(pixels.float().unbind(-1))
    if weights is not None:
        channels = [_blur(channel, weights) for channel in channels]
    x = torch.stack(channels, dim=-1)
    if tones is not None:
        threshold, step = (values[:, :, None, None, None] for values in tones)
        x = torch.where(x >= threshold, 255 - x, x)
        x = torch.floor(x / step) * step
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
def _compiled(native: bool, is_color: bool, clips: bool) -> Any:
    function = partial(finish_native, is_color=is_color, clips=clips) if native else finish
    return torch.compile(function, dynamic=False)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)

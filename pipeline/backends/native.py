"""The crops of images with their own channels and depth, as the torchvision backend makes them: the reference.

A draw is executed by torchvision's transforms.v2 on float32 tensors. Nothing is rounded between the file and the
normalized crop. Values of integer types are clipped to their range after each step, those of float32 are not.

For color images (3 channels of an integer type) the steps are ColorJitter's. For others contrast moves each channel
away from its own mean, and saturation, hue and gray do not exist.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pipeline.crops import Crops
from pipeline.dataset.channels.format import PixelFormat
from pipeline.draw import Draw

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the steps of `Draw.order`
BLUR_REACH = 3.0  # standard deviations


def native_view(
    image: NDArray, pixels: PixelFormat, crops: Crops, draw: Draw, index: int, view: int
) -> Float[Tensor, "size size channels"]:
    """One crop of an image (H, W, C) of this format, not yet normalized: float32, 1 is the type's white."""
    from torchvision.transforms.v2 import functional

    top, left, height, width = draw.window[index, view].tolist()
    window = np.ascontiguousarray(image[top : top + height, left : left + width].transpose(2, 0, 1), np.float32)
    x = torch.from_numpy(window / np.float32(pixels.white))
    x = functional.resize(x, [crops.views[view].size] * 2, antialias=True)
    if draw.flip[index, view]:
        x = x.flip(-1)
    x = x.rot90(int(draw.turns[index, view]), (-2, -1))
    if draw.jitter[index, view]:
        for step in draw.order[index, view].tolist():
            x = _jittered(x, step, float(draw.factors[index, view, step]), pixels)
        x = _clipped(x * torch.from_numpy(draw.gains[index, view])[:, None, None], pixels)
    if draw.grayscale[index, view] and pixels.is_color:
        x = functional.rgb_to_grayscale(x, num_output_channels=3)
    if draw.blur[index, view]:
        x = gaussian_blur(x, float(draw.sigma[index, view]))
    if draw.solarize[index, view]:
        x = functional.solarize(x, crops.changes[view].solarize.threshold)
    if draw.posterize[index, view]:
        bits = crops.changes[view].posterize.bits
        x = functional.posterize(x, bits) if pixels.has_range else (x * 2**bits).floor() / 2**bits
    return x.permute(1, 2, 0).contiguous()


def _jittered(x: Float[Tensor, "c h w"], step: int, factor: float, pixels: PixelFormat) -> Float[Tensor, "c h w"]:
    from torchvision.transforms.v2 import functional

    if step == BRIGHTNESS:
        return _clipped(x * factor, pixels)
    if step == CONTRAST:
        gray = functional.rgb_to_grayscale(x).mean() if pixels.is_color else x.mean((-2, -1), keepdim=True)
        return _clipped(factor * x + (1 - factor) * gray, pixels)
    if not pixels.is_color:
        return x
    if step == SATURATION:
        return functional.adjust_saturation(x, factor)
    return functional.adjust_hue(x, factor) if factor else x


def _clipped(x: Tensor, pixels: PixelFormat) -> Tensor:
    return x.clamp(0, 1) if pixels.has_range else x


def gaussian_blur(x: Float[Tensor, "c h w"], sigma: float) -> Float[Tensor, "c h w"]:
    """Gaussian blur of `sigma` pixels, over three standard deviations; edges are repeated."""
    radius = int(np.ceil(BLUR_REACH * sigma))
    reach = torch.arange(-radius, radius + 1, dtype=x.dtype)
    weights = torch.exp(-0.5 * (reach / max(sigma, 1e-3)) ** 2)
    weights = weights / weights.sum()
    channels = x.shape[0]
    for axis in (-2, -1):
        sides = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        kernel = weights.view(1, 1, *((-1, 1) if axis == -2 else (1, -1))).expand(channels, 1, -1, -1)
        x = torch.nn.functional.conv2d(pad(x[None], sides, mode="replicate"), kernel, groups=channels)[0]
    return x

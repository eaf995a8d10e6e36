"""Fits the positions and patch embeddings of a vision transformer to another size of images or patches.

Positions: bicubic interpolation of the square grid with antialiasing; class and register tokens stay. Patch embeddings:
the pseudo-inverse of the bicubic resampling, so that features of resized patches stay (FlexiViT, arXiv 2212.08013).

Channels: the first layer of a network of RGB images is repeated for another number of channels; see `_for_channels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def resized(name: str, value: Tensor, own: Tensor, backbone: nn.Module) -> tuple[Tensor, str] | None:
    """`value` in the shape of the backbone's own tensor, and words for what was done ("" for nothing); None if it does
    not fit."""
    if value.shape == own.shape:
        return value, ""
    if [side for side in value.shape if side != 1] == [side for side in own.shape if side != 1]:
        return value.reshape(own.shape), ""  # a linear layer as a convolution of 1 x 1, or a leading axis of 1
    if value.ndim == own.ndim == 4 and value.shape[1] == 3 != own.shape[1] and value.shape[0] == own.shape[0]:
        repeated, words = _for_channels(value, int(own.shape[1]))
        fitted = resized(name, repeated, own, backbone)
        return fitted and (fitted[0], "; ".join(filter(None, (words, fitted[1]))))
    if name == "pos_embed" and value.ndim == own.ndim == 3 and value.shape[2] == own.shape[2]:
        return _positions(value, own, backbone)
    if name == "patch_embed.proj.weight" and value.ndim == own.ndim == 4 and value.shape[:2] == own.shape[:2]:
        from timm.layers import resample_patch_embed  # only timm's networks have patches

        size = [int(side) for side in own.shape[2:]]
        return resample_patch_embed(
            value.float(), size
        ), f"patches resampled from {value.shape[-1]} to {size[1]} pixels"
    return None


def without_class_position(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformer with registers as timm has them: without a position of the class token, which is
    added to the token itself."""
    own, given, token = expected.get("pos_embed"), weights.get("pos_embed"), weights.get("cls_token")
    if own is None or given is None or token is None or "reg_token" not in expected or given.ndim != 3:
        return dict(weights)
    if _side(own.shape[1]) is None or _side(given.shape[1] - 1) is None:
        return dict(weights)
    return {**weights, "cls_token": token + given[:, :1], "pos_embed": given[:, 1:]}


def _for_channels(value: Tensor, channels: int) -> tuple[Tensor, str]:
    """A convolution of RGB [out, 3, h, w] for other images [out, channels, h, w], and words for it.

    Channel i takes the weights of color i mod 3, times 3 / channels; with a multiple of 3 channels, equal ones then
    give what gray gave in RGB. One channel takes the sum, which does so too.
    """
    if channels == 1:
        return value.sum(1, keepdim=True), "the first layer's colors added up for one channel"
    repeated = value[:, [channel % 3 for channel in range(channels)]] * (3 / channels)
    return repeated, f"the first layer's colors repeated for {channels} channels"


def _positions(value: Tensor, own: Tensor, backbone: nn.Module) -> tuple[Tensor, str] | None:
    grid: Sequence[int] = getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or ()
    prefix = own.shape[1] - math.prod(grid) if len(grid) == 2 else -1
    side = _side(value.shape[1] - prefix)
    if prefix < 0 or side is None:
        return None
    from timm.layers import resample_abs_pos_embed

    words = f"positions interpolated from {side} x {side} to {grid[0]} x {grid[1]}"
    return resample_abs_pos_embed(value, list(grid), [side, side], num_prefix_tokens=prefix), words


def _side(tokens: int) -> int | None:
    """The side of a square of so many tokens."""
    side = math.isqrt(max(tokens, 0))
    return side if side and side * side == tokens else None

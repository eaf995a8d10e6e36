"""Resamples tables of positions to another number of patches, as a linear function of the table.

Each axis that differs is bicubically interpolated with antialiasing: a square of patches in both directions, everything
else along one. So positions stay where they are relative to the edges of the image, as in ViT (arXiv 2010.11929,
section 3.2). A linear layer over patches, as in MLP-Mixer, becomes the layer that interpolates the patches to those of
the own size, applies the own matrix, and interpolates its output back; this too is a linear function of the matrix.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

MOST_TOKENS = 16  # class, distillation and register tokens before a grid of patches


def resample(table: Tensor, shape: Sequence[int], over_patches: bool = False) -> Tensor:
    """`table` in `shape`, in its own dtype, differentiable. over_patches: it belongs to a linear layer over patches.

    Raises ValueError if the shapes have no common meaning.
    """
    if table.ndim != len(shape):
        raise ValueError(f"a table of {list(table.shape)} cannot become {list(shape)}")
    axes = [axis for axis, (own, new) in enumerate(zip(table.shape, shape, strict=True)) if own != new]
    grid = not over_patches and len(axes) == 2 and axes[1] == axes[0] + 1
    value = table if table.dtype == torch.float64 else table.float()
    for axis in axes:
        old, new = table.shape[axis], shape[axis]
        inputs = over_patches and axis == 1  # weights of linear layers are [outputs, inputs]
        prefix = None if grid else prefix_tokens(old, new)
        if prefix is None:
            value = _along(value, axis, old, new, inputs)
        else:
            value = _square(value, axis, prefix, math.isqrt(old - prefix), math.isqrt(new - prefix), inputs)
    return value.to(table.dtype)


def prefix_tokens(old: int, new: int) -> int | None:
    """How many tokens stand before two squares of so many patches, None if they are no squares."""
    for prefix in range(MOST_TOKENS + 1):
        if min(old, new) > prefix and all(math.isqrt(n - prefix) ** 2 == n - prefix for n in (old, new)):
            return prefix
    return None


def _square(value: Tensor, axis: int, prefix: int, old: int, new: int, inputs: bool) -> Tensor:
    """Interpolates rows and columns of the square on an axis, behind `prefix` tokens."""
    tokens, patches = value.split([prefix, old * old], dim=axis)
    patches = patches.unflatten(axis, (old, old))
    patches = _along(_along(patches, axis, old, new, inputs), axis + 1, old, new, inputs).flatten(axis, axis + 1)
    return torch.cat([tokens, patches], dim=axis) if prefix else patches


def _along(value: Tensor, axis: int, old: int, new: int, inputs: bool) -> Tensor:
    """Interpolates an axis; inputs: it is multiplied with what has to be interpolated from `new` to `old` before."""
    matrix = (_interpolation(new, old).T if inputs else _interpolation(old, new)).to(value.device, value.dtype)
    return torch.tensordot(value, matrix, dims=([axis], [1])).movedim(-1, axis)


@functools.lru_cache(maxsize=256)
@torch.compiler.disable
def _interpolation(old: int, new: int) -> Tensor:
    """The matrix [new, old] of bicubic interpolation with antialiasing, float32 on the CPU."""
    with torch.device("cpu"), torch.no_grad():
        each = torch.eye(old)[None, None]
        return functional.interpolate(each, (new, old), mode="bicubic", antialias=True)[0, 0].clone()

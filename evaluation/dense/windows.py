"""Sliding windows: logits of an image that is larger than the crops a network takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of windows that cover `length` pixels; the last one ends with the image."""
    return [*range(0, max(length - size, 0), stride), max(length - size, 0)]


def sliding_logits(
    function: Callable[[Tensor], Tensor], image: Float[Tensor, "3 height width"], size: int, stride: int, batch: int = 8
) -> Float[Tensor, "classes height width"]:
    """The mean over all windows of `size` pixels that contain a pixel, each enlarged to its window bilinearly.

    function: windows [n, 3, size, size] -> logits [n, classes, h, w]. Height and width are at least `size`.
    """
    height, width = image.shape[1:]
    places = [(top, left) for top in starts(height, size, stride) for left in starts(width, size, stride)]
    total, seen = None, torch.zeros(height, width, device=image.device)
    for first in range(0, len(places), batch):
        part = places[first : first + batch]
        logits = function(torch.stack([image[:, top : top + size, left : left + size] for top, left in part]))
        logits = functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
        if total is None:
            total = torch.zeros(logits.shape[1], height, width, device=image.device)
        for (top, left), one in zip(part, logits, strict=True):
            total[:, top : top + size, left : left + size] += one
            seen[top : top + size, left : left + size] += 1
    assert total is not None
    return total / seen

"""The all-reduce of gradients at ZeRO stage 0, in parts: the large ones as they lie, the small ones together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PART = 1 << 20  # elements of small gradients that go at once
UNDER_WAY = 2  # parts


class Averaging:
    """In place of DeepSpeed's `allreduce_and_copy`, with the same sums: it copies all gradients into a new buffer,
    sends that as one, and copies it back. Here a gradient of PART elements or more goes as it lies, without a copy,
    smaller ones together in buffers that stay from step to step, and a part is on its way while the next is copied.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []  # those that are not on their way

    def __call__(self, gradients: Sequence[Tensor], group: Any, world_size: int | None = None) -> None:
        """Their mean over the ranks of `group`, in place. All of one dtype."""
        factor = 1.0 / (world_size or dist.get_world_size(group))
        under_way: deque[tuple[Any, Tensor | None, list[Tensor]]] = deque()

        def end_one() -> None:
            work, buffer, part = under_way.popleft()
            work.wait()
            if buffer is None:
                part[0].mul_(factor)
                return
            for gradient, place in zip(part, _places(buffer, part), strict=True):
                torch.mul(place, factor, out=gradient)
            self._buffers.append(buffer)

        for part in _parts(gradients):
            if len(under_way) == UNDER_WAY:
                end_one()
            if _as_it_lies(part[0]):
                under_way.append((dist.all_reduce(part[0], group=group, async_op=True), None, part))
                continue
            size = sum(gradient.numel() for gradient in part)
            buffer = self._buffer(size, part[0])
            for gradient, place in zip(part, _places(buffer, part), strict=True):
                place.copy_(gradient)
            under_way.append((dist.all_reduce(buffer[:size], group=group, async_op=True), buffer, part))
        while under_way:
            end_one()

    def _buffer(self, size: int, like: Tensor) -> Tensor:
        """One that is free and has `size` elements, or more; what is too small goes."""
        buffer = self._buffers.pop() if self._buffers else like.new_empty(0)
        fits = buffer.numel() >= size and buffer.dtype == like.dtype
        return buffer if fits else like.new_empty(max(size, 2 * PART))


def _as_it_lies(gradient: Tensor) -> bool:
    return gradient.numel() >= PART and gradient.is_contiguous()


def _parts(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """The large ones each by itself, and of the others, in their order, PART elements or more together."""
    parts = [[gradient] for gradient in gradients if _as_it_lies(gradient)]
    together: list[Tensor] = []
    for gradient in gradients:
        if not _as_it_lies(gradient):
            together.append(gradient)
            if sum(one.numel() for one in together) >= PART:
                parts.append(together)
                together = []
    return [*parts, together] if together else parts


def _places(buffer: Tensor, part: Sequence[Tensor]) -> list[Tensor]:
    """Of the gradients of a part, one behind the other in its buffer."""
    sizes = [gradient.numel() for gradient in part]
    flat = buffer[: sum(sizes)].split(sizes)
    return [place.view(gradient.shape) for place, gradient in zip(flat, part, strict=True)]

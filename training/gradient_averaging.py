"""The all-reduce of gradients at ZeRO stage 0: large gradients in place, small ones together in buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.optimizer.segments import in_memory_order

PART = 1 << 20  # elements; small gradients are sent in parts of this size
IN_FLIGHT = 2  # parts that are reduced at the same time


class Averaging:
    """Replaces DeepSpeed's `allreduce_and_copy`, with the same sums.

    DeepSpeed copies all gradients into a new buffer, reduces it as one, and copies it back. This class reduces a
    gradient of PART elements or more in place, without a copy. It gathers smaller ones in buffers that it reuses from
    step to step, and reduces one part while it copies the next.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []  # buffers that are not in flight

    def __call__(self, gradients: Sequence[Tensor], group: Any, world_size: int | None = None) -> None:
        """Replace the gradients, all of one dtype, by their mean over the ranks of `group`, in place.

        gradients: without gaps in memory, and in the same memory format on all ranks.
        """
        gradients = [in_memory_order(gradient) for gradient in gradients]
        factor = 1.0 / (world_size or dist.get_world_size(group))
        in_flight: deque[tuple[Any, Tensor | None, list[Tensor]]] = deque()

        def finish_oldest() -> None:
            work, buffer, part = in_flight.popleft()
            work.wait()
            if buffer is None:
                part[0].mul_(factor)
                return
            for gradient, place in zip(part, _places(buffer, part), strict=True):
                torch.mul(place, factor, out=gradient)
            self._buffers.append(buffer)

        for part in _parts(gradients):
            if len(in_flight) == IN_FLIGHT:
                finish_oldest()
            if _in_place(part[0]):
                in_flight.append((dist.all_reduce(part[0], group=group, async_op=True), None, part))
                continue
            size = sum(gradient.numel() for gradient in part)
            buffer = self._buffer(size, part[0])
            for gradient, place in zip(part, _places(buffer, part), strict=True):
                place.copy_(gradient)
            in_flight.append((dist.all_reduce(buffer[:size], group=group, async_op=True), buffer, part))
        while in_flight:
            finish_oldest()

    def _buffer(self, size: int, like: Tensor) -> Tensor:
        """A free buffer of at least `size` elements, of the dtype of `like`. A smaller one is replaced."""
        buffer = self._buffers.pop() if self._buffers else like.new_empty(0)
        fits = buffer.numel() >= size and buffer.dtype == like.dtype
        return buffer if fits else like.new_empty(max(size, 2 * PART))


def _in_place(gradient: Tensor) -> bool:
    return gradient.numel() >= PART


def _parts(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Each large gradient by itself; the others, in their order, in parts of PART elements or more."""
    parts = [[gradient] for gradient in gradients if _in_place(gradient)]
    small: list[Tensor] = []
    for gradient in gradients:
        if not _in_place(gradient):
            small.append(gradient)
            if sum(one.numel() for one in small) >= PART:
                parts.append(small)
                small = []
    return [*parts, small] if small else parts


def _places(buffer: Tensor, part: Sequence[Tensor]) -> list[Tensor]:
    """Views of the buffer, one for each gradient of the part, one behind the other."""
    sizes = [gradient.numel() for gradient in part]
    return list(buffer[: sum(sizes)].split(sizes))

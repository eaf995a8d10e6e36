"""The all-reduce of gradients at ZeRO stage 0, in parts that overlap their own copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PART = 1 << 20  # elements that go at once


class Averaging:
    """In place of DeepSpeed's `allreduce_and_copy`, with the same sums: it copies all gradients into a new buffer,
    sends that as one, and copies it back; here one part is on its way while the next is copied, and the buffer stays
    from step to step (new memory of 113 MB costs more than a copy into it).
    """

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def __call__(self, gradients: Sequence[Tensor], group: Any, world_size: int | None = None) -> None:
        """Their mean over the ranks of `group`, in place. All of one dtype."""
        ranks, total = world_size or dist.get_world_size(group), sum(g.numel() for g in gradients)
        flat = self._flat
        if flat is None or flat.numel() < total or flat.dtype != gradients[0].dtype:
            flat = self._flat = gradients[0].new_empty(total)
        sent: list[tuple[Any, list[tuple[Tensor, Tensor]]]] = []
        copies: list[tuple[Tensor, Tensor]] = []
        begin = end = 0
        for number, gradient in enumerate(gradients):
            place = flat[end : end + gradient.numel()].view(gradient.shape)
            place.copy_(gradient)
            copies.append((gradient, place))
            end += gradient.numel()
            if end - begin >= PART or number == len(gradients) - 1:
                work = dist.all_reduce(flat[begin:end], group=group, async_op=True)
                sent.append((work, copies))
                begin, copies = end, []
        for work, copies in sent:
            work.wait()
            for gradient, place in copies:
                torch.mul(place, 1.0 / ranks, out=gradient)

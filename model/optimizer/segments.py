"""Which part of which parameter lies where in the tensors that an optimizer steps on this rank.

ZeRO hands an optimizer flat partitions: slices of parameters one after the other, cut at the ranks' borders. Whatever
is computed for a whole parameter (a norm, the norms of its rows) is a sum over its segments on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Elements [start, start + length) of the flattened parameter number `parameter` of a layout; they lie in an
    optimizer's tensor from element `offset` on."""

    parameter: int
    start: int
    offset: int
    length: int


class Layout:
    """The segments of an optimizer's tensors on this rank.

    names, shapes: of all trainable parameters, alike on all ranks and whatever the partitioning.
    groups: the numbers of the parameters in each of the optimizer's groups, on whichever rank they lie.
    tensors: the optimizer's tensor -> its segments, ascending, none of them overlapping. What lies between or behind
        them is padding, and may hold anything.
    group: the ranks over which parameters are partitioned; `partitioned` False says that this rank has all of them.
    device: where collectives are possible.
    """

    def __init__(
        self,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        groups: Sequence[Sequence[int]],
        tensors: Mapping[Tensor, Sequence[Segment]],
        *,
        partitioned: bool = False,
        group: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.names = tuple(names)
        self.shapes = tuple(torch.Size(shape) for shape in shapes)
        self.groups = tuple(tuple(group) for group in groups)
        self.tensors = dict(tensors)
        self.partitioned = partitioned
        self.group = group
        self.device = device or next((tensor.device for tensor in self.tensors), torch.device("cpu"))
        where = next((tensor.device for tensor in self.tensors), self.device)
        self._members = [torch.tensor(group, dtype=torch.int64, device=where) for group in self.groups]
        self._cuts = {tensor: _cuts(tensor.numel(), segments) for tensor, segments in self.tensors.items()}
        self._numbers = {
            tensor: torch.tensor([s.parameter for s in segments], device=tensor.device)
            for tensor, segments in self.tensors.items()
        }

    @classmethod
    def of_whole(cls, param_groups: Sequence[dict[str, Any]], names: Mapping[Tensor, str] | None = None) -> Layout:
        """The layout of an optimizer's groups of whole parameters: a segment each."""
        parameters = [p for group in param_groups for p in group["params"]]
        number = {p: index for index, p in enumerate(parameters)}
        return cls(
            [names[p] if names else f"parameter {index}" for index, p in enumerate(parameters)],
            [p.shape for p in parameters],
            [[number[p] for p in group["params"]] for group in param_groups],
            {p: [Segment(index, 0, 0, p.numel())] for p, index in number.items()},
        )

    def pieces(self, tensor: Tensor, values: Tensor) -> list[Tensor]:
        """Views of the segments of `tensor` in `values`, which is shaped like it: itself, its gradient, its state."""
        sizes, kept = self._cuts[tensor]
        if len(sizes) == 1:
            return [values] if kept else []
        parts = values.view(-1).split(sizes)
        return [parts[index] for index in kept]

    def numbers(self, tensor: Tensor) -> Tensor:
        """The parameter that each segment of `tensor` belongs to, (segments,) int64 on its device."""
        return self._numbers[tensor]

    def members(self, group: int) -> Tensor:
        """The numbers of a group's parameters, int64 on the device of the optimizer's tensors."""
        return self._members[group]

    def add_up(self, values: Tensor) -> Tensor:
        """Sums over the ranks, in place where it can be. Nothing to do where each rank has everything."""
        if not self.partitioned:
            return values
        here = values.to(self.device)  # an offloaded optimizer works on the CPU, where NCCL does not
        dist.all_reduce(here, group=self.group)
        return here.to(values.device)

    @torch.no_grad()
    def unit_rows_(self, tensors: Iterable[Tensor], parameters: Sequence[int]) -> None:
        """L2-normalise the rows of matrices in place; a row of zeros stays one.

        tensors: those of the optimizer that hold this rank's segments of `parameters`, numbers of 2-d parameters.
        One all-reduce of all rows' squared norms where they are partitioned.
        """
        found = [
            (piece, segment)
            for tensor in tensors
            for piece, segment in zip(self.pieces(tensor, tensor.detach()), self.tensors[tensor], strict=True)
        ]
        if not self.partitioned:
            for piece, segment in found:
                unit_rows_(piece.view(self.shapes[segment.parameter]))
            return
        begins, total = {}, 0
        for number in parameters:
            begins[number] = total
            total += self.shapes[number][0]
        example = found[0][0] if found else torch.empty(0, device=self.device)
        squares = torch.zeros(total, dtype=torch.float64, device=example.device)
        blocks = []
        for piece, segment in found:
            width = self.shapes[segment.parameter][1]
            first, last = segment.start // width, -(-(segment.start + segment.length) // width)
            at, place = segment.start - first * width, begins[segment.parameter] + first
            block = piece.new_zeros(last - first, width)  # whole rows, of which we may have only a part
            block.view(-1)[at : at + segment.length] = piece.view(-1)
            squares[place : place + len(block)] += block.double().square().sum(1)
            blocks.append((piece, block, at, place))
        norms = self.add_up(squares).sqrt_().clamp_min_(1e-12).to(example.dtype)
        for piece, block, at, place in blocks:
            block /= norms[place : place + len(block), None]
            piece.view(-1).copy_(block.view(-1)[at : at + piece.numel()])


@torch.no_grad()
def unit_rows_(weight: Float[Tensor, "rows dim"]) -> None:
    """L2-normalises the rows in place, by norms added up in float64. A row of zeros stays one."""
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True, dtype=torch.float64)
    weight.div_(norms.clamp_min_(1e-12).to(weight.dtype))


def _cuts(size: int, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
    """Sizes that cut a tensor of `size` elements into segments and padding, and which of the cuts are segments."""
    sizes: list[int] = []
    kept: list[int] = []
    position = 0
    for segment in segments:
        if segment.offset < position or segment.offset + segment.length > size:
            raise ValueError(f"segments overlap or leave a tensor of {size} elements: {segment}")
        if segment.offset > position:
            sizes.append(segment.offset - position)
        kept.append(len(sizes))
        sizes.append(segment.length)
        position = segment.offset + segment.length
    if position < size:
        sizes.append(size - position)
    return sizes, kept

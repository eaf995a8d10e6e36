"""Maps the tensors that an optimizer updates on this rank to the parameters whose parts they hold.

ZeRO gives an optimizer flat partitions: slices of parameters one after the other, cut at the borders of ranks. A
quantity of a whole parameter (its norm, the norms of its rows) is a sum over its segments on all ranks.
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
    """Elements [start, start + length) of the flattened parameter number `parameter`, stored in an optimizer's tensor
    from element `offset` on."""

    parameter: int
    start: int
    offset: int
    length: int


class Layout:
    """The segments of an optimizer's tensors on this rank.

    names, shapes: of all trainable parameters, equal on all ranks and for every partitioning.
    groups: numbers of the parameters in each of the optimizer's groups, over all ranks.
    tensors: the optimizer's tensor -> its segments, ascending and without overlap. Elements between or after them are
        padding with any values.
    partitioned: False if this rank has all parameters; else they are partitioned over the ranks of `group`.
    device: of collectives.

    Raises ValueError for segments that overlap or do not fit into their tensor.
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
        tensor_device = next((tensor.device for tensor in self.tensors), self.device)
        self._members = [torch.tensor(group, dtype=torch.int64, device=tensor_device) for group in self.groups]
        self._cuts = {tensor: _cuts(tensor.numel(), segments) for tensor, segments in self.tensors.items()}
        self._numbers = {
            tensor: torch.tensor([s.parameter for s in segments], device=tensor.device)
            for tensor, segments in self.tensors.items()
        }

    @classmethod
    def of_whole(cls, param_groups: Sequence[dict[str, Any]], names: Mapping[Tensor, str] | None = None) -> Layout:
        """The layout of an optimizer whose tensors are whole parameters: one segment each."""
        parameters = [p for group in param_groups for p in group["params"]]
        number = {p: index for index, p in enumerate(parameters)}
        return cls(
            [names[p] if names else f"parameter {index}" for index, p in enumerate(parameters)],
            [p.shape for p in parameters],
            [[number[p] for p in group["params"]] for group in param_groups],
            {p: [Segment(index, 0, 0, p.numel())] for p, index in number.items()},
        )

    def pieces(self, tensor: Tensor, values: Tensor) -> list[Tensor]:
        """Views of the segments of `tensor` in `values`: the tensor, its gradient or its state, of the same shape."""
        sizes, used = self._cuts[tensor]
        if len(sizes) == 1:
            return [values] if used else []
        parts = values.view(-1).split(sizes)
        return [parts[index] for index in used]

    def numbers(self, tensor: Tensor) -> Tensor:
        """Number of the parameter of each segment of `tensor`, (segments,) int64 on its device."""
        return self._numbers[tensor]

    def members(self, group: int) -> Tensor:
        """Numbers of the parameters of a group, int64 on the device of the optimizer's tensors."""
        return self._members[group]

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place if possible; `values` itself if this rank has all parameters."""
        if not self.partitioned:
            return values
        total = values.to(self.device)  # an offloaded optimizer works on the CPU, NCCL does not
        dist.all_reduce(total, group=self.group)
        return total.to(values.device)

    @torch.no_grad()
    def unit_rows_(self, tensors: Iterable[Tensor], parameters: Sequence[int]) -> None:
        """L2-normalize the rows of matrices in place; a row of zeros stays zero.

        parameters: numbers of 2-d parameters; tensors: the optimizer's tensors with this rank's segments of them. One
        all-reduce of the squared norms of all rows if parameters are partitioned.
        """
        segments = [
            (piece, segment)
            for tensor in tensors
            for piece, segment in zip(self.pieces(tensor, tensor.detach()), self.tensors[tensor], strict=True)
        ]
        if not self.partitioned:
            for piece, segment in segments:
                unit_rows_(piece.view(self.shapes[segment.parameter]))
            return
        starts, total = {}, 0
        for number in parameters:
            starts[number] = total
            total += self.shapes[number][0]
        example = segments[0][0] if segments else torch.empty(0, device=self.device)
        squares = torch.zeros(total, dtype=torch.float64, device=example.device)
        blocks = []
        for piece, segment in segments:
            width = self.shapes[segment.parameter][1]
            first, last = segment.start // width, -(-(segment.start + segment.length) // width)
            at, row = segment.start - first * width, starts[segment.parameter] + first
            block = piece.new_zeros(last - first, width)  # whole rows, of which this rank may have parts
            block.view(-1)[at : at + segment.length] = piece.view(-1)
            squares[row : row + len(block)] += block.double().square().sum(1)
            blocks.append((piece, block, at, row))
        norms = _divisors(self.add_up(squares).sqrt_()).to(example.dtype)
        for piece, block, at, row in blocks:
            block /= norms[row : row + len(block), None]
            piece.view(-1).copy_(block.view(-1)[at : at + piece.numel()])


def in_memory_order(values: Tensor) -> Float[Tensor, " elements"]:
    """A view of all elements of a tensor without gaps, in the order in which they lie in memory."""
    return values.as_strided((values.numel(),), (1,))


@torch.no_grad()
def unit_rows_(weight: Float[Tensor, "rows dim"]) -> None:
    """L2-normalize the rows in place, with norms summed in float64. A row of zeros stays zero."""
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True, dtype=torch.float64)
    weight.div_(_divisors(norms).to(weight.dtype))


def _divisors(norms: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """The norms, with 1 for 0."""
    return norms.masked_fill(norms == 0, 1.0)


def _cuts(size: int, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
    """Sizes of the segments and paddings that make up a tensor of `size` elements, and the indices of the segments."""
    sizes: list[int] = []
    used: list[int] = []
    position = 0
    for segment in segments:
        if segment.offset < position or segment.offset + segment.length > size:
            raise ValueError(f"segments overlap or leave a tensor of {size} elements: {segment}")
        if segment.offset > position:
            sizes.append(segment.offset - position)
        used.append(len(sizes))
        sizes.append(segment.length)
        position = segment.offset + segment.length
    if position < size:
        sizes.append(size - position)
    return sizes, used

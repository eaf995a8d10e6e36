"""Muon (Jordan, kellerjordan.github.io/posts/muon, 2024) for the matrices of a backbone, with AdamW for all else.

    v <- momentum * v + (1 - momentum) * g
    m = momentum * v + (1 - momentum) * g
    p <- (1 - lr * weight_decay) * p - lr * 0.2 * sqrt(max(rows, columns)) * orthogonal(m)

`orthogonal` keeps the singular vectors of a matrix and brings its singular values near 1. The factor behind the
learning rate gives a step AdamW's root mean square, so AdamW's learning rates hold (Liu et al., arXiv 2502.16982,
section 2.2).

A step needs whole matrices, and ZeRO gives the optimizer slices of them (see segments.py): the ranks add up their
slices, and each orthogonalizes the matrices of which it has a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.optimizer.adamw import AdamW
from model.optimizer.segments import Layout, Segment

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's polynomial: singular values from 0.01 on come to 0.7 to 1.2
ITERATIONS = 5
BUCKET = 2**25  # elements that are whole on a rank at a time


class Muon(AdamW):
    """AdamW, but Muon for the groups with the option `orthogonal`, whose parameters have two axes or more; all axes but
    the first count as columns.

    momentum: of Muon, as above. The other settings, and the options of groups, are AdamW's.

    State per tensor of Muon: "momentum_buffer". Matrices are orthogonalized in bfloat16 on a CUDA device, as is usual,
    and in the parameters' dtype on a CPU. No GPU has run this.
    """

    def __init__(self, params: list[dict[str, Any]], momentum: float = 0.95, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As AdamW's; with partitioned parameters one all-reduce more for each BUCKET elements of matrices."""
        loss = super().step(closure)
        assert self.layout is not None
        for index, group in enumerate(self.param_groups):
            if group["orthogonal"] and not group["frozen"]:
                for numbers in _buckets(self.layout.groups[index], self.layout.shapes):
                    self._update(group, self.layout, numbers)
        return loss

    def _update(self, group: dict[str, Any], layout: Layout, numbers: Sequence[int]) -> None:
        """Update this rank's slices of the parameters `numbers`, and their momenta."""
        slices = list(self._slices(group, layout, set(numbers)))
        sizes = [layout.shapes[number].numel() for number in numbers]
        example = next(iter(layout.tensors))  # alike on all ranks, also on one that has no slice
        dtype = torch.bfloat16 if example.is_cuda else example.dtype
        whole = torch.zeros(sum(sizes), dtype=dtype, device=example.device)
        flat = dict(zip(numbers, whole.split(sizes), strict=True))
        for segment, _, gradient, momentum in slices:
            momentum.lerp_(gradient, 1 - self.momentum)
            place = flat[segment.parameter][segment.start : segment.start + segment.length]
            place.copy_(gradient.lerp(momentum, self.momentum).reshape(-1))
        flat = dict(zip(numbers, layout.add_up(whole).split(sizes), strict=True))
        own = sorted({segment.parameter for segment, *_ in slices})
        steps = dict(zip(own, orthogonal([flat[n].view(layout.shapes[n][0], -1) for n in own]), strict=True))
        for segment, parameter, _, _ in slices:
            step = steps[segment.parameter]
            moved = step.reshape(-1)[segment.start : segment.start + segment.length].view(parameter.shape)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(moved, alpha=-group["lr"] * 0.2 * math.sqrt(max(step.shape)))

    def _slices(
        self, group: dict[str, Any], layout: Layout, numbers: set[int]
    ) -> Iterator[tuple[Segment, Tensor, Tensor, Tensor]]:
        """Segments of these parameters on this rank, with their views in parameter, gradient and momentum."""
        for p in group["params"]:
            if p.grad is None:
                continue
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            views = [layout.pieces(p, of) for of in (p.detach(), p.grad, self.state[p]["momentum_buffer"])]
            for segment, *pieces in zip(layout.tensors[p], *views, strict=True):
                if segment.parameter in numbers:
                    yield segment, *pieces


def orthogonal(matrices: Sequence[Float[Tensor, "rows columns"]]) -> list[Float[Tensor, "rows columns"]]:
    """For each matrix U S V^T, about U V^T: singular values above a hundredth of the matrix's norm come to 0.7 to 1.2,
    smaller ones less near 1, and zero stays zero. Matrices of one shape are computed at once."""
    steps: dict[int, Tensor] = {}
    for shape in {matrix.shape for matrix in matrices}:
        places = [place for place, matrix in enumerate(matrices) if matrix.shape == shape]
        steps |= zip(places, _newton_schulz(torch.stack([matrices[place] for place in places])), strict=True)
    return [steps[place] for place in range(len(matrices))]


def _newton_schulz(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # so that the products below are of the shorter side
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _buckets(numbers: Sequence[int], shapes: Sequence[torch.Size]) -> Iterator[list[int]]:
    """The parameters in turn, as many at a time as have at most BUCKET elements, but at least one."""
    bucket: list[int] = []
    elements = 0
    for number in numbers:
        elements += shapes[number].numel()
        if bucket and elements > BUCKET:
            yield bucket
            bucket, elements = [], shapes[number].numel()
        bucket.append(number)
    if bucket:
        yield bucket

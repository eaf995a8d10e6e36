"""Codes on a CUDA device by two Triton kernels: `model.sinkhorn` with fewer passes over memory.

An iteration reads the scores once. A program takes a few samples of a crop, one after the other, and keeps the whole
row of prototypes in registers: it computes exp and the row's sum weighted by the prototypes, and adds the normalized
row to the sums of the prototypes. Partial sums are added in a fixed order without atomics, so that the same scores give
the same codes. tests/model/test_sinkhorn_fused.py compares with `model.sinkhorn`, on a GPU if there is one and by
Triton's interpreter on the CPU. The kernels have not yet run on a GPU; `perf.gpu_check` checks and times them there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

LARGEST = 16_384  # prototypes whose row fits into the registers of a block of threads
PROGRAMS = 256  # about two for each multiprocessor of an H100; also the number of partial sums of each prototype


def fits(scores: Tensor) -> bool:
    """Whether the kernels accept these scores: at most 16,384 prototypes, at least one sample, not float64."""
    return 0 < scores.shape[-1] <= LARGEST and scores.numel() > 0 and scores.dtype != torch.float64


def fused_codes(
    scores: Float[Tensor, "*crops batch prototypes"],
    epsilon: float,
    iterations: int,
    all_reduce: Callable[[Tensor], Tensor],
    rescaled: int = 4,
) -> Float[Tensor, "*crops batch prototypes"]:
    """The codes of `model.sinkhorn.sinkhorn` in float32, for scores that `fits` accepts with |scores| <= 35 epsilon.

    all_reduce: sums a float32 tensor over the ranks, in place or not; called `iterations` times with [crops,
    prototypes]. rescaled: the sums are divided by their mean every so many iterations.
    """
    rows = scores if scores.ndim == 3 else scores.unsqueeze(0)
    rows = rows.contiguous()
    crops, batch, prototypes = rows.shape
    each = triton.cdiv(crops * batch, PROGRAMS)  # samples of a program
    grid = (crops, triton.cdiv(batch, each))
    width = triton.next_power_of_2(prototypes)
    warps = min(max(width // 512, 4), 16)
    sizes = {"WIDTH": width, "num_warps": warps}
    partial = torch.empty(*grid, prototypes, dtype=torch.float32, device=rows.device)
    sums = partial  # the first iteration does not read it
    for iteration in range(iterations):
        _sums_kernel[grid](rows, sums, partial, batch, prototypes, 1 / epsilon, each, iteration == 0, **sizes)
        sums = all_reduce(partial.sum(dim=1))
        if iteration and iteration % rescaled == 0:
            sums = sums / sums.mean(dim=-1, keepdim=True)
    codes = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    _codes_kernel[crops, batch](rows, sums, codes, batch, prototypes, 1 / epsilon, **sizes)
    return codes.view(scores.shape)


@triton.jit
def _sums_kernel(
    scores, sums, partial, batch, prototypes, scale, SAMPLES: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr
):
    crop, part = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    inside = column < prototypes
    if not FIRST:
        weights = 1 / tl.load(sums + crop * prototypes + column, mask=inside, other=1.0)
    total = tl.zeros([WIDTH], dtype=tl.float32)
    for number in range(SAMPLES):
        sample = part * SAMPLES + number
        here = inside & (sample < batch)  # the last program may have fewer
        row = tl.load(scores + (crop * batch + sample) * prototypes + column, mask=here, other=float("-inf"))
        plan = tl.exp(row.to(tl.float32) * scale)
        if FIRST:
            total += plan
        else:
            total += plan / tl.where(sample < batch, tl.sum(plan * weights, axis=0), 1.0)
    tl.store(partial + (crop * tl.num_programs(1) + part) * prototypes + column, total, mask=inside)


@triton.jit
def _codes_kernel(scores, sums, codes, batch, prototypes, scale, WIDTH: tl.constexpr):
    crop, sample = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    inside = column < prototypes
    place = (crop * batch + sample) * prototypes + column
    row = tl.load(scores + place, mask=inside, other=float("-inf"))
    weighted = tl.exp(row.to(tl.float32) * scale) / tl.load(sums + crop * prototypes + column, mask=inside, other=1.0)
    tl.store(codes + place, weighted / tl.sum(weighted, axis=0), mask=inside)

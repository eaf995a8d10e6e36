"""LARS on a CUDA device by three Triton kernels, for any number of parameters and at every ZeRO stage.

The optimizer's tensors (whole parameters, or ZeRO's flat partitions) are cut into chunks, each of one parameter:

    _squares   sums of squares of parameter and gradient, for each chunk
    _sums      their sums for each parameter, in a fixed order; over the ranks by the layout's all-reduce
    _update    trust ratio of the chunk's parameter, momentum and step, for each chunk of a group

tests/model/optimizer/test_lars_fused.py compares with `model.optimizer.lars`, on a GPU if there is one and by Triton's
interpreter on the CPU, and compiles the kernels for NVIDIA's GPUs. They have not yet run on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from model.optimizer.segments import Layout

CHUNK = 16_384  # elements of a program: a ResNet-50 has 1,900 chunks
BLOCK = 1024  # elements that a program reads at once; it adds up their squares in float32, and blocks in float64
PARTS = 64  # chunks of a parameter whose sums a program reads at once

Group = tuple[int, dict[str, Any], list[Tensor]]  # number of a group, its options, its tensors with a gradient


@dataclass(frozen=True)
class Chunks:
    """What of which tensors a program works on; on the tensors' device."""

    table: Tensor  # int64 [4, chunks]: number of the tensor, first element, number of elements, parameter
    spans: Tensor  # int64 [2, parameters]: first chunk of a parameter, and how many it has
    longest: int  # the most that one has
    groups: tuple[tuple[int, int], ...]  # first chunk and number of chunks of each group
    tensors: tuple[Tensor, ...]


def runs_on(device: torch.device) -> bool:
    """Whether Triton can compile and run a kernel for the device (it needs a C compiler); if not, warns why."""
    try:
        spans, empty = torch.zeros(2, 1, dtype=torch.int64, device=device), torch.zeros(2, 1, device=device).double()
        _sums[(1,)](empty, spans, torch.empty_like(empty), 1, 1, LONGEST=PARTS, BLOCK=PARTS)
    except Exception as error:  # of Triton, of the compiler, of the driver
        reason = (str(error).splitlines() or [""])[0]
        warnings.warn(f"LARS runs without its Triton kernels: {type(error).__name__}: {reason}", stacklevel=2)
        return False
    return True


def chunks_of(active: Sequence[Group], layout: Layout) -> Chunks:
    """The chunks of the groups' tensors: those of a group, and within it those of a parameter, follow each other."""
    tensors = [p for _, _, members in active for p in members]
    rows: list[tuple[int, int, int, int]] = []
    groups = []
    for _, _, members in active:
        first = len(rows)
        segments = [(s, number) for number, p in enumerate(tensors) if any(p is m for m in members)
                    for s in layout.tensors[p]]  # fmt: skip
        for segment, number in sorted(segments, key=lambda pair: pair[0].parameter):
            ends = segment.offset + segment.length
            for offset in range(segment.offset, ends, CHUNK):
                rows.append((number, offset, min(CHUNK, ends - offset), segment.parameter))
        groups.append((first, len(rows) - first))
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4).T.contiguous()
    parameters = torch.arange(len(layout.names))
    counts = torch.bincount(table[3], minlength=len(parameters))
    firsts = torch.zeros_like(counts)
    firsts.scatter_reduce_(0, table[3], torch.arange(table.shape[1]), "amin", include_self=False)
    device = tensors[0].device
    spans = torch.stack([firsts, counts]).to(device)
    return Chunks(table.to(device), spans, int(counts.max()), tuple(groups), tuple(tensors))


class FusedLARS:
    """The kernels' tables of one optimizer, which change only when a group is frozen or released."""

    def __init__(self) -> None:
        self._chunks: Chunks | None = None
        self._numbers: list[int] = []
        self._addresses: Tensor | None = None

    def fits(self, tensors: Sequence[Tensor], momenta: Sequence[Tensor]) -> bool:
        """Whether the kernels accept these tensors with their gradients: float32 on one device, each a piece of memory
        without gaps, in the same order in parameter, gradient and momentum."""
        return all(
            p.grad is not None
            and p.dtype == p.grad.dtype == v.dtype == torch.float32
            and p.device == p.grad.device == v.device == tensors[0].device
            and _order(p) == _order(p.grad) == _order(v)
            and (p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last))
            for p, v in zip(tensors, momenta, strict=True)
        )

    def __call__(
        self, active: Sequence[Group], layout: Layout, momenta: Sequence[Tensor]
    ) -> Float[Tensor, "2 parameters"]:
        """Update the groups' tensors and momenta in place; returns the squared norms, float64, of the layout's whole
        parameters before the update and of their gradients.

        momenta: of the groups' tensors, in their order. At least one tensor, and all as `fits` wants them. One
        all-reduce if parameters are partitioned.
        """
        tensors = [p for _, _, members in active for p in members]
        chunks = self._chunks
        if chunks is None or [id(p) for p in chunks.tensors] != [id(p) for p in tensors]:
            chunks = self._chunks = chunks_of(active, layout)
        addresses = self._addresses_of(tensors, momenta)
        count, parameters = chunks.table.shape[1], len(layout.names)
        partial = torch.empty(2, count, dtype=torch.float64, device=addresses.device)
        squares = torch.empty(2, parameters, dtype=torch.float64, device=addresses.device)
        if count:
            _squares[(count,)](addresses, chunks.table, partial, len(tensors), count, CHUNK=CHUNK, BLOCK=BLOCK)
        _sums[(parameters,)](partial, chunks.spans, squares, count, parameters, LONGEST=chunks.longest, BLOCK=PARTS)
        squares = layout.add_up(squares)
        for (_, group, _), (first, number) in zip(active, chunks.groups, strict=True):
            if number:
                _update[(number,)](
                    addresses, chunks.table, squares, len(tensors), count, parameters, first,
                    float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]),
                    float(group["trust_coefficient"]), float(group["eps"]),
                    TRUST=bool(group["trust_ratio"]), CHUNK=CHUNK, BLOCK=BLOCK,
                )  # fmt: skip
        return squares

    def _addresses_of(self, tensors: Sequence[Tensor], momenta: Sequence[Tensor]) -> Tensor:
        """int64 [3, tensors] on the device: where parameters, gradients and momenta begin. Copied when they moved."""
        numbers = [t.data_ptr() for t in (*tensors, *(p.grad for p in tensors if p.grad is not None), *momenta)]
        if self._addresses is None or numbers != self._numbers:
            host = torch.tensor(numbers, dtype=torch.int64)
            if tensors[0].is_cuda:
                host = host.pin_memory()  # else the host would wait for the copy
            self._numbers, self._addresses = numbers, host.to(tensors[0].device, non_blocking=True)
        return self._addresses


def _order(tensor: Tensor) -> list[int]:
    """Strides of the axes with more than one element; the others mean nothing, and differ for 1x1 convolutions."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@triton.jit
def _squares(addresses, table, partial, tensors, chunks, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    chunk = tl.program_id(0)
    tensor, first, length = tl.load(table + chunk), tl.load(table + chunks + chunk), tl.load(table + 2 * chunks + chunk)
    parameter = tl.load(addresses + tensor).to(tl.pointer_type(tl.float32)) + first
    gradient = tl.load(addresses + tensors + tensor).to(tl.pointer_type(tl.float32)) + first
    of_parameter, of_gradient = tl.zeros([], dtype=tl.float64), tl.zeros([], dtype=tl.float64)
    for begin in range(0, CHUNK, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        p = tl.load(parameter + place, mask=place < length, other=0.0)
        g = tl.load(gradient + place, mask=place < length, other=0.0)
        of_parameter += tl.sum(p * p).to(tl.float64)
        of_gradient += tl.sum(g * g).to(tl.float64)
    tl.store(partial + chunk, of_parameter)
    tl.store(partial + chunks + chunk, of_gradient)


@triton.jit
def _sums(partial, spans, squares, chunks, parameters, LONGEST: tl.constexpr, BLOCK: tl.constexpr):
    number = tl.program_id(0)
    first, count = tl.load(spans + number), tl.load(spans + parameters + number)
    of_parameter, of_gradient = tl.zeros([BLOCK], dtype=tl.float64), tl.zeros([BLOCK], dtype=tl.float64)
    for begin in range(0, LONGEST, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        of_parameter += tl.load(partial + first + place, mask=place < count, other=0.0)
        of_gradient += tl.load(partial + chunks + first + place, mask=place < count, other=0.0)
    tl.store(squares + number, tl.sum(of_parameter))
    tl.store(squares + parameters + number, tl.sum(of_gradient))


@triton.jit
def _update(
    addresses, table, squares, tensors, chunks, parameters, start,
    lr, momentum, decay, trust, eps, TRUST: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = start + tl.program_id(0)
    tensor, first, length = tl.load(table + chunk), tl.load(table + chunks + chunk), tl.load(table + 2 * chunks + chunk)
    parameter = tl.load(addresses + tensor).to(tl.pointer_type(tl.float32)) + first
    gradient = tl.load(addresses + tensors + tensor).to(tl.pointer_type(tl.float32)) + first
    velocity = tl.load(addresses + 2 * tensors + tensor).to(tl.pointer_type(tl.float32)) + first
    scale, scaled_decay = 1.0, decay
    if TRUST:
        number = tl.load(table + 3 * chunks + chunk)
        norm = tl.sqrt(tl.load(squares + number)).to(tl.float32)
        gradient_norm = tl.sqrt(tl.load(squares + parameters + number)).to(tl.float32)
        usable = (norm > 0) & (gradient_norm > 0)
        scale = tl.where(usable, trust * norm / (gradient_norm + decay * norm + eps), 1.0)
        scaled_decay = tl.where(usable, scale * decay, 0.0)
    for begin in range(0, CHUNK, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        here = place < length
        p = tl.load(parameter + place, mask=here, other=0.0)
        g = tl.load(gradient + place, mask=here, other=0.0)
        v = tl.load(velocity + place, mask=here, other=0.0)
        v = momentum * v + scale * g + scaled_decay * p
        tl.store(velocity + place, v, mask=here)
        tl.store(parameter + place, p - lr * v, mask=here)

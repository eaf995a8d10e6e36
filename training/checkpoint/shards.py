"""What each rank writes of a training state, and how any other number of ranks, at any ZeRO stage, reads it.

A rank's file holds float32 (master) values by parameter and segment, under "KIND/PARAMETER/START":

    master/backbone.conv1.weight/0        the parameter's values from element START on
    momentum_buffer/..., exp_avg/...      the optimizer's state, element by element
    step/.../0                            a number of the optimizer's, for the parameter it belongs to

what is the rank's own, under "own/NAME": its buffers (batch-norm statistics), its part of the queue, its memory; and
its share of whole tensors that are the same on all ranks, under "alike/NAME": a teacher's parameters, an online probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.optimizer.segments import Layout


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


# ---------------------------------------------------------------------------------------------- out
def pieces_of(optimizer: Any, rank: int, world_size: int) -> dict[str, Tensor]:
    """This rank's share of masters and optimizer state, on the CPU. Where every rank has everything, the parameters
    are dealt out."""
    layout: Layout = optimizer.layout
    found: dict[str, Tensor] = {}
    for tensor, segments in layout.tensors.items():
        columns = {"master": tensor.detach(), **optimizer.state.get(tensor, {})}
        for kind, values in columns.items():
            whole = torch.is_tensor(values) and values.shape == tensor.shape
            parts = layout.pieces(tensor, values) if whole else [torch.as_tensor(values).reshape(1)] * len(segments)
            for segment, part in zip(segments, parts, strict=True):
                if layout.partitioned or segment.parameter % world_size == rank:
                    name = layout.names[segment.parameter]
                    copy = part.detach().reshape(-1).to("cpu", copy=True)
                    found[f"{kind}/{name}/{segment.start}"] = copy.contiguous()
    return found


def own_of(network: nn.Module, queue: Tensor | None) -> dict[str, Tensor]:
    """What differs between ranks: buffers, and the queue's rows if there is one."""
    own = {f"own/{name}": buffer for name, buffer in network.named_buffers()}
    own |= {"own/queue": queue} if queue is not None else {}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in own.items()}


def beside_of(beside: Mapping[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
    """What this rank writes of tensors beside the network, named own/... and alike/...: the latter are dealt out."""
    alike = [name for name in beside if name.startswith("alike/")]
    mine = {name for name in beside if name not in alike} | {*alike[rank::world_size]}
    return {name: beside[name].detach().to("cpu", copy=True).contiguous() for name in mine}


# ---------------------------------------------------------------------------------------------- in
class Pieces:
    """The files of all ranks of a checkpoint, opened for reading; nothing is read before it is asked for."""

    def __init__(self, checkpoint: Path, world_size: int) -> None:
        self.files = [safe_open(checkpoint / rank_file(rank), "pt") for rank in range(world_size)]
        self.found: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        self.alike: dict[str, Any] = {}  # which file has it
        for file in self.files:
            for key in file.keys():  # noqa: SIM118  (no mapping)
                kind, _, rest = key.partition("/")
                if kind == "alike":
                    self.alike[rest] = file
                elif kind != "own":
                    name, _, start = rest.rpartition("/")
                    length = file.get_slice(key).get_shape()[0]
                    self.found.setdefault((kind, name), []).append((int(start), length, file, key))

    def kinds(self) -> list[str]:
        """The kinds of values there are for any parameter, masters first."""
        return sorted({kind for kind, _ in self.found}, key=lambda kind: (kind != "master", kind))

    def has(self, kind: str, name: str) -> bool:
        return (kind, name) in self.found

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """Values [start, start + length) of the flattened parameter. Raises KeyError where some are missing."""
        parts: list[Tensor] = []
        position = start
        for begin, size, file, key in sorted(self.found.get((kind, name), []), key=lambda part: part[:2]):
            low, high = max(position, begin), min(start + length, begin + size)
            if low == position and high > low:
                parts.append(file.get_slice(key)[low - begin : high - begin])
                position = high
        if position != start + length:
            raise KeyError(f"{kind} of {name} from element {position}")
        return torch.cat(parts) if parts else torch.empty(0)

    def number(self, kind: str, name: str) -> Tensor:
        """The one number stored for a parameter."""
        _, _, file, key = self.found[kind, name][0]
        return file.get_tensor(key)[0]

    def own(self, name: str) -> list[Tensor]:
        """Every rank's own tensor of that name, in order of rank."""
        return [file.get_tensor(f"own/{name}") for file in self.files]


@torch.no_grad()
def restore(pieces: Pieces, optimizer: Any, numbers: Sequence[str] = ("step",)) -> None:
    """Write masters and optimizer state into the tensors of `optimizer`. Raises KeyError where something is missing."""
    layout: Layout = optimizer.layout
    for tensor, segments in layout.tensors.items():
        names = [layout.names[segment.parameter] for segment in segments]
        for kind in pieces.kinds():
            if kind == "master":
                _fill(pieces, kind, layout, tensor, tensor.detach())
            elif segments and all(pieces.has(kind, name) for name in names):
                if kind in numbers:
                    optimizer.state[tensor][kind] = pieces.number(kind, names[0])
                else:
                    optimizer.state[tensor][kind] = torch.zeros_like(tensor)
                    _fill(pieces, kind, layout, tensor, optimizer.state[tensor][kind])


def _fill(pieces: Pieces, kind: str, layout: Layout, tensor: Tensor, target: Tensor) -> None:
    for segment, part in zip(layout.tensors[tensor], layout.pieces(tensor, target), strict=True):
        values = pieces.read(kind, layout.names[segment.parameter], segment.start, segment.length)
        part.copy_(values.view(part.shape))


@torch.no_grad()
def restore_own(pieces: Pieces, network: nn.Module, rank: int, world_size: int) -> None:
    """This rank's buffers back, or with another world size the ranks' average (of integers rank 0's)."""
    for name, buffer in network.named_buffers():
        saved = pieces.own(name)
        buffer.copy_(saved[rank] if len(saved) == world_size else mean_of(saved))


@torch.no_grad()
def restore_beside(pieces: Pieces, beside: Mapping[str, Tensor], rank: int, world_size: int) -> None:
    """Write what was saved by `beside_of` back into these tensors. A probe that was not saved, or for other classes,
    begins anew. Raises KeyError where anything else is missing."""
    for name, tensor in beside.items():
        kind, _, rest = name.partition("/")
        if kind == "own":
            saved = pieces.own(rest)
            tensor.copy_(saved[rank] if len(saved) == world_size else mean_of(saved))
        elif rest in pieces.alike:
            value = pieces.alike[rest].get_tensor(name)
            if value.shape == tensor.shape or not rest.startswith("probe/"):
                tensor.copy_(value)
        elif not rest.startswith("probe/"):
            raise KeyError(rest)


def mean_of(tensors: list[Tensor]) -> Tensor:
    """The mean of float tensors, the first of others."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack(tensors).double().mean(0).to(tensors[0].dtype)


def whole_teacher(
    pieces: Pieces, shapes: Mapping[str, Sequence[int]], buffers: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """The same of the teacher. Raises KeyError where there is none."""
    for name in shapes:
        yield name, pieces.alike[f"teacher/{name}"].get_tensor(f"alike/teacher/{name}")
    for name in buffers:
        yield name, mean_of(pieces.own(f"teacher/{name}"))


def whole(pieces: Pieces, shapes: Mapping[str, Sequence[int]], buffers: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's masters in its shape, and every buffer's mean over the ranks."""
    for name, shape in shapes.items():
        yield name, pieces.read("master", name, 0, torch.Size(shape).numel()).view(torch.Size(shape))
    for name in buffers:
        yield name, mean_of(pieces.own(name))

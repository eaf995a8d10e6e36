"""A network and its optimizer in a checkpoint: float32 masters, optimizer state and buffers by parameter name.

    master/backbone.conv1.weight/0     the parameter's float32 values from element 0 on
    momentum_buffer/..., exp_avg/...   the optimizer's state, element by element
    step/.../0                         one number of the optimizer for the parameter
    own/backbone.bn1.running_mean      a buffer of the network on this rank

Names, not positions: any number of ranks at any ZeRO stage reads what any other wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.optimizer.segments import Layout
from model.state import buffer_tensors, load_buffers
from training.checkpoint.shards import CheckpointError, SavedTensors

NUMBERS = ("step",)  # optimizer state that is one number for a parameter


def network_shapes(network: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What state.json holds about the network: {"shapes": of each parameter by name, "buffers": names}."""
    layout: Layout = optimizer.layout
    shapes = {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    return {"shapes": shapes, "buffers": [name for name, _ in network.named_buffers()]}


def network_tensors(network: nn.Module, optimizer: Any, rank: int, world_size: int) -> dict[str, Tensor]:
    """This rank's share of masters and optimizer state, flattened, and its buffers; they share the optimizer's memory.

    optimizer: its `layout` says which parameters its tensors hold. Where every rank holds all parameters (ZeRO stage
    0) each rank gives every world_size-th one.
    """
    layout: Layout = optimizer.layout
    tensors: dict[str, Tensor] = {}
    for tensor, segments in layout.tensors.items():
        columns = {"master": tensor, **optimizer.state.get(tensor, {})}
        for kind, values in columns.items():
            by_element = torch.is_tensor(values) and values.shape == tensor.shape
            parts = layout.pieces(tensor, values.detach()) if by_element else [torch.as_tensor(values)] * len(segments)
            for segment, part in zip(segments, parts, strict=True):
                if layout.partitioned or segment.parameter % world_size == rank:
                    name = f"{kind}/{layout.names[segment.parameter]}/{segment.start}"
                    tensors[name] = part.detach().reshape(-1)
    return tensors | buffer_tensors(network)


@torch.no_grad()
def load_network(
    state: dict[str, Any], saved: SavedTensors, network: nn.Module, optimizer: Any, rank: int, world_size: int
) -> None:
    """Write masters, optimizer state and buffers back in place, on any number of ranks at any ZeRO stage.

    state: state.json. The network's own copy of the parameters follows by `training.zero.publish`. With the saved
    number of ranks each rank gets its buffers back bit for bit, with another one their mean. Raises CheckpointError
    with the names if the checkpoint holds another network, KeyError where a tensor is missing.
    """
    expected = network_shapes(network, optimizer)
    own, other = expected["shapes"], state["shapes"]
    wrong = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
    wrong += sorted({*expected["buffers"]} ^ {str(name) for name in state["buffers"]})
    if wrong:
        raise CheckpointError(
            f"{saved.checkpoint} does not fit this recipe's network: {', '.join(wrong)}; use another run.directory"
        )
    _load_optimizer(saved, optimizer)
    load_buffers(network, saved.ranks, rank, world_size)


def _load_optimizer(saved: SavedTensors, optimizer: Any) -> None:
    layout: Layout = optimizer.layout
    for tensor, segments in layout.tensors.items():
        names = [layout.names[segment.parameter] for segment in segments]
        for kind in saved.kinds():
            if kind == "master":
                _fill(saved, kind, layout, tensor, tensor.detach())
            elif segments and all(saved.has(kind, name) for name in names):
                if kind in NUMBERS:
                    optimizer.state[tensor][kind] = saved.number(kind, names[0])
                else:
                    optimizer.state[tensor][kind] = torch.zeros_like(tensor)
                    _fill(saved, kind, layout, tensor, optimizer.state[tensor][kind])


def _fill(saved: SavedTensors, kind: str, layout: Layout, tensor: Tensor, target: Tensor) -> None:
    """Write saved values into `target`, shaped like the optimizer's `tensor`."""
    for segment, part in zip(layout.tensors[tensor], layout.pieces(tensor, target), strict=True):
        values = saved.read(kind, layout.names[segment.parameter], segment.start, segment.length)
        part.copy_(values.view(part.shape))


def whole_masters(saved: SavedTensors, shapes: dict[str, Sequence[int]]) -> dict[str, Tensor]:
    """The float32 masters of every parameter in its shape. Raises KeyError where elements are missing."""
    sizes = {name: torch.Size(shape) for name, shape in shapes.items()}
    return {name: saved.read("master", name, 0, size.numel()).view(size) for name, size in sizes.items()}

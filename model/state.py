"""How a part of a run (queue, memory, teacher, probe, ...) gives its tensors to a checkpoint and takes them back.

A part names its tensors "own/NAME" where each rank holds different values, and "alike/NAME" where all ranks hold the
same. The part that owns the tensors decides how another number of ranks shares them; checkpoints only carry names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

OWN, ALIKE = "own/", "alike/"

# For each saving rank, in order: by name, the rank's own tensors and every "alike" tensor.
RankTensors = Sequence[Mapping[str, Tensor]]


class HasState(Protocol):
    """A part of a run with tensors that a checkpoint keeps."""

    def state_tensors(self) -> dict[str, Tensor]:
        """This rank's tensors by name. They may share memory with the part."""

    def load_state_tensors(self, saved: RankTensors, rank: int = 0, world_size: int = 1) -> None:
        """Continue, as rank `rank` of `world_size`, from the tensors that any number of ranks saved. Raises KeyError
        with the name of a missing tensor, ValueError or RuntimeError for a tensor of another shape."""


def buffer_tensors(network: nn.Module, prefix: str = OWN) -> dict[str, Tensor]:
    """The buffers of a network (batch-norm statistics), which differ between ranks."""
    return {prefix + name: buffer for name, buffer in network.named_buffers()}


@torch.no_grad()
def load_buffers(network: nn.Module, saved: RankTensors, rank: int = 0, world_size: int = 1, prefix: str = OWN) -> None:
    """Write saved buffers back in place: with the saved number of ranks each rank's own, else the ranks' mean."""
    for name, buffer in network.named_buffers():
        same_ranks = len(saved) == world_size
        buffer.copy_(saved[rank][prefix + name] if same_ranks else rank_mean(saved, prefix + name))


def rank_mean(saved: RankTensors, name: str) -> Tensor:
    """The mean of a float tensor over the ranks, summed in float64; for an integer tensor, rank 0's values."""
    tensors = [tensors_of_rank[name] for tensors_of_rank in saved]
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack(tensors).double().mean(0).to(tensors[0].dtype)

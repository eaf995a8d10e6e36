"""Features of images from a backbone, computed on all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.batch import Batch


@torch.no_grad()
def extract(
    function: Callable[[Tensor], Tensor], batches: Iterable[Batch], device: torch.device
) -> Float[Tensor, "rows features"]:
    """`function` of every batch's crops, float32, L2-normalized, on `device`, in the batches' order."""
    features = [function(batch.crops[0].to(device, non_blocking=True)).float() for batch in batches]
    return nn.functional.normalize(torch.cat(features))


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Within the block the network is in eval mode with batch-norm statistics averaged over the ranks; afterwards every
    module's mode and each rank's own statistics are restored."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    own = [buffer.clone() for buffer in buffers]
    modes = [(module, module.training) for module in network.modules()]
    if buffers and dist.is_initialized():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
    network.eval()
    try:
        yield
    finally:
        for buffer, saved in zip(buffers, own, strict=True):
            buffer.copy_(saved)
        for module, training in modes:
            module.training = training


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks; ranks may have different numbers of rows."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    longest = max(int(c) for c in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])

"""Features of images from a backbone, computed on all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.batch import Batch


def bank_dtype(device: torch.device) -> torch.dtype:
    """Of the features that are searched: float16 on a GPU (ImageNet's 1.28 million of a ResNet-50 take 5.2 GB, and
    similarities change by less than 1e-4), float32 on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32


@torch.no_grad()
def extract(
    function: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    device: torch.device,
    rows: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "rows features"]:
    """`function` of every batch's crops, L2-normalized in float32, of `dtype` on `device`, in the batches' order.

    rows: of all batches together. The result is allocated once, and no second copy of it is ever made.
    """
    features, done = torch.empty(0, 0, dtype=dtype, device=device), 0
    for batch in batches:
        part = nn.functional.normalize(function(batch.crops[0].to(device, non_blocking=True)).float())
        if not done:
            features = torch.empty(rows, part.shape[1], dtype=dtype, device=device)
        features[done : done + len(part)] = part
        done += len(part)
    return features


def unit_rows(
    features: Float[Tensor, "rows features"],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    chunk: int = 65536,
) -> Float[Tensor, "rows features"]:
    """The rows at length 1, of `dtype` on `device`; computed in float32, a chunk at a time."""
    whole = torch.empty(features.shape, dtype=dtype, device=device)
    for target, part in zip(whole.split(chunk), features.split(chunk), strict=True):
        target.copy_(nn.functional.normalize(part.to(device).float()))
    return whole


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
    """The rows of all ranks, in the order of ranks; ranks may have different numbers of rows. Beside `rows` and the
    result it takes no memory."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = torch.cat(counts).tolist()
    whole = rows.new_empty(sum(sizes), *rows.shape[1:])
    for rank, part in enumerate(whole.split(sizes)):
        if rank == dist.get_rank():
            part.copy_(rows)
        if len(part):
            dist.broadcast(part, rank)
    return whole

"""The peer of a step: SwAV as the paper has it, in plain PyTorch, without anything of ours but the network itself.

DistributedDataParallel, torch.optim.SGD behind layer-wise scaling parameter by parameter (LARC; You et al., arXiv
1708.03888), Sinkhorn-Knopp crop by crop with four all-reduces each (the sum of all, and the prototypes' sums of three
iterations), torch's SyncBatchNorm where the recipe synchronizes (a CPU has none, so ours there), prototypes normalized
before each forward pass, a loss that goes through pairs of crops. Tensors are as torch makes them: NCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from model.backbone import stride_outside

EPS = 1e-8


def beyond_it(config: DictConfig) -> str:
    """The settings of a recipe that this loop does not have, separated by commas; empty for plain SwAV. A comparison
    would not be fair with one of them."""
    missing = {
        f"method={config.method}": config.method != "swav",
        f"model.heads={config.model.heads}": config.model.heads > 1,
        "swav.hard=true": config.swav.hard,
        f"swav.teacher.momentum={config.swav.teacher.momentum}": config.swav.teacher.momentum,
        "evaluation.probe=true": config.evaluation.probe,
    }
    return ", ".join(name for name, is_set in missing.items() if is_set)


def plain_step(
    config: DictConfig, network: nn.Module, cluster: Any, device: torch.device, learning_rate: float
) -> Callable[[Sequence[Tensor]], None]:
    """A training step on this rank's crops, one tensor a resolution, view-major. `config` is fitted; `network` is this
    loop's own, on the device. Collective, as its steps are."""
    model = _parallel(config, network, cluster, device)
    prototypes = network.get_submodule("prototypes").weight
    assert isinstance(prototypes, Tensor)
    settings = config.optimizer
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=settings.momentum)
    queue: Tensor | None = None
    if config.swav.queue.length:
        shape = len(config.swav.assigning), config.swav.queue.length // cluster.world_size, config.model.embedding_dim
        queue = functional.normalize(torch.randn(shape, device=device), dim=2)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.engine.precision != "fp32")
    here = config.run.batch_size // cluster.world_size

    def step(crops: Sequence[Tensor]) -> None:
        with torch.no_grad():
            prototypes.copy_(functional.normalize(prototypes, dim=1))
        with autocast:
            embeddings, scores, *_ = model(list(crops), here)
        loss = torch.zeros((), device=device)
        views = range(len(scores))
        for number, crop in enumerate(config.swav.assigning):
            with torch.no_grad():
                assigned = scores[crop].detach()
                if queue is not None:
                    assigned = torch.cat([queue[number] @ prototypes.t(), assigned])
                    queue[number, here:] = queue[number, :-here].clone()
                    queue[number, :here] = embeddings[crop]
                codes = knopp(assigned, config.swav.epsilon, config.swav.iterations)[-here:]
            part = torch.zeros((), device=device)
            for other in views:
                if other != crop:
                    predicted = functional.log_softmax(scores[other] / config.swav.temperature, dim=1)
                    part = part - (codes * predicted).sum(dim=1).mean()
            loss = loss + part / (len(views) - 1)
        optimizer.zero_grad()
        (loss / len(config.swav.assigning)).backward()
        scale_gradients(network, settings.trust_coefficient, settings.weight_decay)
        optimizer.step()

    return step


def _parallel(config: DictConfig, network: nn.Module, cluster: Any, device: torch.device) -> nn.Module:
    size = config.engine.sync_batch_norm or cluster.world_size
    if size > 1 and cluster.world_size > 1:
        if device.type == "cuda":
            firsts = range(0, cluster.world_size, size)
            groups = [dist.new_group(list(range(n, min(n + size, cluster.world_size)))) for n in firsts]
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network, groups[cluster.rank // size])
        else:
            from model.batchnorm import replace_batch_norm

            replace_batch_norm(network, size, cluster.world_size, cluster.rank)
    if device.type == "cpu":
        stride_outside(network)
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


@torch.no_grad()
def knopp(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes [batch, prototypes] of one crop by Sinkhorn-Knopp over all ranks, step by step as the paper writes it."""
    q = torch.exp(scores.float() / epsilon).t()
    prototypes, batch = q.shape[0], q.shape[1] * dist.get_world_size()
    q = q / _summed(q.sum())
    for _ in range(iterations):
        q = q / _summed(q.sum(dim=1, keepdim=True)) / prototypes
        q = q / q.sum(dim=0, keepdim=True) / batch
    return (q * batch).t()


def _summed(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values


@torch.no_grad()
def scale_gradients(network: nn.Module, trust: float, decay: float) -> None:
    """Each parameter's gradient with weight decay, times its trust ratio."""
    for parameter in network.parameters():
        if parameter.grad is None:
            continue
        norm, gradient_norm = parameter.norm(), parameter.grad.norm()
        if norm > 0 and gradient_norm > 0:
            parameter.grad.add_(parameter, alpha=decay)
            parameter.grad.mul_(trust * norm / (gradient_norm + decay * norm + EPS))

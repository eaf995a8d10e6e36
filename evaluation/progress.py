"""Training in evaluations: averages gradients over processes, and saves progress after every epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.files import replacing_path


@torch.no_grad()
def average_(tensors: list[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in one message."""
    if not tensors or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def save_progress(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, curves: list[list[float]]) -> None:
    """Save weights, momenta and the curves so far; an interrupted save leaves the one before."""
    tensors = {f"weight.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_path(path) as temporary:
        save_file(tensors, temporary, metadata={"curves": json.dumps(curves)})


def load_progress(path: Path | None, network: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """Restore weights and momenta; returns the curves of the finished epochs, [] if nothing was saved."""
    if path is None or not path.is_file():
        return []
    tensors: dict[str, Any] = load_file(path)
    network.load_state_dict({k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")})
    for name, parameter in network.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"].to(parameter.device)
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["curves"])

"""Training in evaluations: averages gradients over processes, and saves progress after every epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from common.cli import note
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
        tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_path(path) as temporary:
        content = save(tensors, metadata={"curves": json.dumps(curves), "digest": _digest(tensors, curves)})
        temporary.write_bytes(content)  # save_file raises no OSError on a full disk


def load_progress(path: Path | None, network: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """Restore weights and momenta; returns the curves of the finished epochs, [] if nothing was saved or the file is
    damaged."""
    if path is None or not path.is_file():
        return []
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        curves: list[list[float]] = json.loads(metadata["curves"])
        damaged = metadata["digest"] != _digest(tensors, curves)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        damaged = True
    if damaged:
        note(f"{path} is damaged; the training begins again")
        return []
    network.load_state_dict({k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")})
    for name, parameter in network.named_parameters():
        momentum = torch.empty_like(parameter, requires_grad=False)
        optimizer.state[parameter]["momentum_buffer"] = momentum.copy_(tensors[f"momentum.{name}"])
    return curves


def _digest(tensors: Mapping[str, Tensor], curves: list[list[float]]) -> str:
    """SHA-256 of all that is saved: a bit that a disk has turned makes a file of the same form."""
    digest = hashlib.sha256(json.dumps(curves).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
